# SPDX-License-Identifier: Apache-2.0
"""Finds what is abnormal in medical images, having learned from healthy ones only."""

import torch  # noqa: F401  Before the native module: torch's libgomp must be the one in the process.

__version__ = "0.1.0"
