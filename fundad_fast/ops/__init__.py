# SPDX-License-Identifier: Apache-2.0
"""The operators that the methods are made of."""

from . import _adapt, cuda, triton
from ._registry import OPS, Choice, choices
from .change_labels import change_labels
from .clean_labels import clean_labels
from .distance_filter import distance_filter
from .distance_transform import distance_transform
from .kcenter import KCenterPlace, KCenterState, kcenter, kcenter_place, kcenter_state
from .nearest import nearest
from .nearest_bank import NearestPrepared, nearest_prepare
from .nearest_faiss import ApproximateBank, nearest_approximate
from .poisson_blend import poisson_blend
from .self_attention import self_attention
from .spline_sample import spline_sample

build = _adapt.build

__all__ = [
    "OPS",
    "ApproximateBank",
    "Choice",
    "KCenterPlace",
    "KCenterState",
    "NearestPrepared",
    "build",
    "change_labels",
    "choices",
    "clean_labels",
    "cuda",
    "distance_filter",
    "distance_transform",
    "kcenter",
    "kcenter_place",
    "kcenter_state",
    "nearest",
    "nearest_approximate",
    "nearest_prepare",
    "poisson_blend",
    "self_attention",
    "spline_sample",
    "status",
    "triton",
]


def status() -> dict[str, object]:
    """What is in force here: how the native module was built, and who runs each operator.

    Returns:
        ``build``, a dict of words, and ``ops``, one :class:`Choice` per operator and device.
    """
    return {"build": build(), "ops": choices()}
