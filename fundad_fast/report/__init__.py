# SPDX-License-Identifier: Apache-2.0
"""Pictures and pages a person can read: overlays of anomaly maps, and the static HTML report."""

from fundad_fast.report.overlay import blend, overlay, save_overlay

__all__ = ["blend", "overlay", "save_overlay"]
