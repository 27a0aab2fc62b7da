# SPDX-License-Identifier: Apache-2.0
"""What scores and maps are worth: pure functions from arrays to figures; no files are read here."""

from __future__ import annotations

from .compare import Evaluated, compare, markdown_comparison
from .controls import PcaReconstruction, control_metrics, control_scores
from .evaluate import ImageRecord, comparison_table, evaluate, markdown_table
from .image_metrics import image_metrics
from .metric import Metric
from .pixel_metrics import PixelEvaluator
from .resample import resample_map, resize_affine, resize_map, resize_mask
from .thresholds import colour_scale, image_threshold, pixel_threshold, score_percentile

__all__ = [
    "Evaluated",
    "ImageRecord",
    "Metric",
    "PcaReconstruction",
    "PixelEvaluator",
    "colour_scale",
    "compare",
    "comparison_table",
    "control_metrics",
    "control_scores",
    "evaluate",
    "image_metrics",
    "image_threshold",
    "markdown_comparison",
    "markdown_table",
    "pixel_threshold",
    "resample_map",
    "resize_affine",
    "resize_map",
    "resize_mask",
    "score_percentile",
]
