# SPDX-License-Identifier: Apache-2.0
"""What a command says at the end of an archive that is unlike the training images."""

from __future__ import annotations

from pathlib import Path


def print_warnings(run: Path) -> None:
    """Say in what an archive looks unlike the images that the model was fitted on."""
    from ..report import archive_warnings

    found = archive_warnings(run)
    if found:
        print("warning: this archive looks unlike the images that the model was fitted on:")
    for sentence in found:
        print(f"  {sentence}")
