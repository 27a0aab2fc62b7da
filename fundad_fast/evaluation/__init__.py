# SPDX-License-Identifier: Apache-2.0
"""What scores and maps are worth: pure functions from arrays to figures; no files are read here."""

from __future__ import annotations

from .evaluate import ImageRecord, evaluate, markdown_table
from .image_metrics import image_metrics
from .metric import Metric
from .pixel_metrics import PixelEvaluator
from .resample import resample_map, resize_affine
from .thresholds import colour_scale, image_threshold, pixel_threshold, score_percentile

__all__ = [
    "ImageRecord",
    "Metric",
    "PixelEvaluator",
    "colour_scale",
    "evaluate",
    "image_metrics",
    "image_threshold",
    "markdown_table",
    "pixel_threshold",
    "resample_map",
    "resize_affine",
    "score_percentile",
]
