# SPDX-License-Identifier: Apache-2.0
"""Scoring of many images into a run folder: rows, maps, overlays, nothing lost."""
