# SPDX-License-Identifier: Apache-2.0
"""Synthetic anomalies, and healthy variation, made from real images at fixed seeds."""

from . import fundus
from .variation import Photograph, vary_geometry, vary_photometry

__all__ = ["Photograph", "fundus", "vary_geometry", "vary_photometry"]
