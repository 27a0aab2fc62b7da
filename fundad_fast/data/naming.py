# SPDX-License-Identifier: Apache-2.0
"""What names of folders, classes and splits mean in this field's data sets."""

from __future__ import annotations

import re

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

WRAPPER_FOLDERS = frozenset(("img", "image", "images", "data"))
"""Folders that say nothing: ``good/img/x.png``, ``Data/Images/Normal/x.png``."""

_HEALTHY = frozenset(("good", "normal", "normals", "healthy", "no_dr", "nodr", "no dr"))
_MASK_FOLDERS = frozenset(
    ("label", "labels", "annotation", "annotations", "groundtruth", "gt", "anomaly_mask")
    + ("anomaly_masks", "segmentation", "segmentations")
)


def is_healthy(name: str) -> bool:
    """Whether a class of this name is the healthy one: good, normal, healthy, also ``0_normal``."""
    return re.sub(r"^\d+[ _.-]+", "", name.strip().lower()) in _HEALTHY


def is_mask_folder(name: str) -> bool:
    """Whether a folder of this name holds masks: ``ground_truth``, ``mask…``, ``label`` ..."""
    name = name.lower()
    return name in _MASK_FOLDERS or name.startswith(("mask", "ground_truth", "ground truth"))


def is_mask_by_type_folder(name: str) -> bool:
    """Whether a folder of this name holds a folder of masks for each lesion type."""
    return is_mask_folder(name) and name.lower().endswith("_by_type")
