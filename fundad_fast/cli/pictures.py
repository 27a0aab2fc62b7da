# SPDX-License-Identifier: Apache-2.0
"""The PNG that a gallery is written to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .options import UsageError

if TYPE_CHECKING:
    import numpy as np


def check_png(output: Path, overwrite: bool) -> None:
    """Refuse another kind of file, and one that is there."""
    if output.exists() and not overwrite:
        raise UsageError(f"{output} exists; give another -o, or --overwrite")
    if output.suffix.lower() != ".png":
        raise UsageError(f"-o {output}: want a name that ends in .png")


def write_png(picture: np.ndarray, output: Path) -> None:
    """Write ``[h, w, 3]`` uint8 RGB, making the folder where there is none."""
    import cv2

    done, png = cv2.imencode(".png", picture[..., ::-1])
    if not done:
        raise UsageError("OpenCV cannot write PNG here")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(png.tobytes())
