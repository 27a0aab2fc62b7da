# SPDX-License-Identifier: Apache-2.0
"""Synthetic anomalies, and healthy variation, made from real images at fixed seeds."""

from . import fundus
from .consistent import Mixed, mix_in
from .consistent_settings import ConsistentSettings
from .dissolving import blurred, cosine_kept, dissolve, draw_t, one_step
from .external import embedded_external
from .settings import TaskSettings
from .tasks import EXTRA_TASKS, TASKS, Synthetic, synthesize
from .variation import Photograph, vary_geometry, vary_photometry
from .views import SHIFTS, Views, augmented, draw_views, mirrored, shifted

__all__ = [
    "EXTRA_TASKS",
    "SHIFTS",
    "TASKS",
    "ConsistentSettings",
    "Mixed",
    "Photograph",
    "Synthetic",
    "TaskSettings",
    "Views",
    "augmented",
    "blurred",
    "cosine_kept",
    "dissolve",
    "draw_t",
    "draw_views",
    "embedded_external",
    "fundus",
    "mirrored",
    "mix_in",
    "one_step",
    "shifted",
    "synthesize",
    "vary_geometry",
    "vary_photometry",
]
