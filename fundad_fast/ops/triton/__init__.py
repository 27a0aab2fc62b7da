# SPDX-License-Identifier: Apache-2.0
"""Triton kernels, one file per operator; imported by a backend when it first runs."""
