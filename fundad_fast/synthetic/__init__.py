# SPDX-License-Identifier: Apache-2.0
"""Synthetic anomalies, and healthy variation, made from real images at fixed seeds."""

from . import fundus
from .consistent import Mixed, mix_in
from .consistent_settings import ConsistentSettings
from .external import embedded_external
from .settings import TaskSettings
from .tasks import EXTRA_TASKS, TASKS, Synthetic, synthesize
from .variation import Photograph, vary_geometry, vary_photometry

__all__ = [
    "EXTRA_TASKS",
    "TASKS",
    "ConsistentSettings",
    "Mixed",
    "Photograph",
    "Synthetic",
    "TaskSettings",
    "embedded_external",
    "fundus",
    "mix_in",
    "synthesize",
    "vary_geometry",
    "vary_photometry",
]
