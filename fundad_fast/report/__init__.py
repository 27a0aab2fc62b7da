# SPDX-License-Identifier: Apache-2.0
"""Pictures and pages a person can read: overlays of anomaly maps, and the static HTML report."""

from fundad_fast.report.html import write_report
from fundad_fast.report.likeness import archive_warnings
from fundad_fast.report.overlay import blend, overlay, save_overlay
from fundad_fast.report.overlays import Overlays, make_overlays

__all__ = [
    "Overlays",
    "archive_warnings",
    "blend",
    "make_overlays",
    "overlay",
    "save_overlay",
    "write_report",
]
