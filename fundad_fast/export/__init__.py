# SPDX-License-Identifier: Apache-2.0
"""Out to other systems: runs as DICOM objects beside the images that were scored."""

from fundad_fast.export.clinic import Exported, export_dicom

__all__ = ["Exported", "export_dicom"]
