# SPDX-License-Identifier: Apache-2.0
"""One tiny picture of every kind that is read, as the bytes of a file."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import imagecodecs
import nibabel as nib
import numpy as np
import simplejpeg
import tifffile
from dicoms import (
    BASELINE,
    EXTENDED,
    JPEG_2000,
    JPEG_LS,
    LOSSLESS,
    PLAIN,
    RLE,
    rle,
    uid,
    write_dicom,
)
from PIL import Image
from pydicom.pixels import convert_color_space

H, W = 20, 26


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        extension: of its name.
        make: the bytes, from a seed.
        frames: how many images it makes; 0 for a file of one.
    """

    extension: str
    make: Callable[[int], bytes]
    frames: int = 0


def rgb(seed: int) -> np.ndarray:
    """``[H, W, 3]`` uint8: smooth, and another one for each seed."""
    y, x = np.mgrid[:H, :W]
    a, b, c = np.random.default_rng(seed).integers(1, 8, 3)
    return np.stack([x * a + 9, y * b + 5, 255 - x * c - y], -1).astype(np.uint8)


def grey(seed: int) -> np.ndarray:
    return np.ascontiguousarray(rgb(seed)[:, :, 0])


def deep(seed: int) -> np.ndarray:
    """``[H, W]`` uint16 of 12 bits."""
    return np.random.default_rng(seed).integers(0, 4096, (H, W)).astype(np.uint16)


def palette(seed: int) -> Image.Image:
    return Image.fromarray(rgb(seed)).quantize(16)


def cmyk(seed: int) -> Image.Image:
    return Image.fromarray(rgb(seed)).convert("CMYK")


def pillow(image: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(pixels: np.ndarray) -> bytes:
    """By OpenCV, which writes 16 bits: channels in the order RGB or RGBA."""
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2] if pixels.ndim == 3 else 1]
    return cv2.imencode(".png", np.atleast_3d(pixels)[:, :, order])[1].tobytes()


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    colours = pixels.ndim > 2 and pixels.shape[-1] in (3, 4)
    options = {"photometric": "rgb" if colours else "minisblack", **options}
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def dicom(pixels: np.ndarray, frames: list[bytes] | None = None, **options: Any) -> bytes:
    with TemporaryDirectory() as folder:
        return write_dicom(Path(folder) / "a.dcm", pixels, frames, **options).read_bytes()


def nifti(values: np.ndarray, *, packed: bool = False) -> bytes:
    data = nib.Nifti1Image(values, np.eye(4), dtype=values.dtype).to_bytes()
    return gzip.compress(data, mtime=0) if packed else data


def volume(seed: int, dtype: Any = np.uint8) -> np.ndarray:
    """``[W, H, 3]``: three axial slices."""
    return np.stack([rgb(seed + k)[:, :, k].T for k in range(3)], -1).astype(dtype)


def ybr(seed: int) -> np.ndarray:
    return convert_color_space(rgb(seed), "RGB", "YBR_FULL")


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _opaque(seed: int) -> np.ndarray:
    return np.dstack([rgb(seed), np.full((H, W), 255, np.uint8)])


def _palette_dicom(seed: int) -> bytes:
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    table = np.random.default_rng(seed).integers(0, 256, (3, 256)).astype(np.uint8)
    for name, values in zip(("Red", "Green", "Blue"), table):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        tags[f"{name}PaletteColorLookupTableData"] = values.tobytes()
    return dicom(grey(seed), **tags)


def _planes(seed: int) -> bytes:
    raw = np.ascontiguousarray(rgb(seed).transpose(2, 0, 1)).tobytes()
    return dicom(rgb(seed), raw=raw, PlanarConfiguration=1)


def _jpeg_dicom(seed: int) -> bytes:
    frame = simplejpeg.encode_jpeg(rgb(seed), 90)
    return dicom(rgb(seed), [frame], syntax=BASELINE, PhotometricInterpretation="YBR_FULL_422")


def _j2k_dicom(seed: int) -> bytes:
    frame = imagecodecs.jpeg2k_encode(rgb(seed), codecformat="j2k", level=0, mct=True)
    return dicom(rgb(seed), [frame], syntax=JPEG_2000, PhotometricInterpretation="YBR_RCT")


def _coded(syntax: str, encode: Callable[[np.ndarray], bytes]) -> Callable[[int], bytes]:
    return lambda s: dicom(deep(s), [encode(deep(s))], syntax=syntax, BitsStored=12)


def _deep_jpeg(pixels: np.ndarray) -> bytes:
    return imagecodecs.jpeg8_encode(pixels, 98, bitspersample=12)


def _several_jpegs(seed: int) -> bytes:
    frames = [rgb(seed), 255 - rgb(seed), rgb(seed) // 2]
    coded = [simplejpeg.encode_jpeg(frame, 90) for frame in frames]
    tags = {"syntax": BASELINE, "PhotometricInterpretation": "YBR_FULL_422"}
    return dicom(np.stack(frames), coded, **tags)


KINDS: dict[str, Kind] = {
    "JPEG": Kind(".jpg", lambda s: simplejpeg.encode_jpeg(rgb(s), 90)),
    "progressive JPEG": Kind(".jpeg", lambda s: pillow(rgb(s), "JPEG", progressive=True)),
    "grey JPEG": Kind(".jpg", lambda s: pillow(grey(s), "JPEG")),
    "turned JPEG": Kind(".JPG", lambda s: pillow(rgb(s), "JPEG", exif=_exif(1 + s % 8))),
    "PNG": Kind(".png", lambda s: png(rgb(s))),
    "grey PNG": Kind(".png", lambda s: png(grey(s))),
    "16-bit PNG": Kind(".png", lambda s: png(rgb(s).astype(np.uint16) * 257)),
    "opaque PNG": Kind(".png", lambda s: png(_opaque(s))),
    "palette PNG": Kind(".png", lambda s: pillow(palette(s), "PNG")),
    "BMP": Kind(".bmp", lambda s: pillow(rgb(s), "BMP")),
    "WebP": Kind(".webp", lambda s: pillow(rgb(s), "WEBP", lossless=True)),
    "TIFF": Kind(".tif", lambda s: tiff(rgb(s))),
    "16-bit TIFF": Kind(".tif", lambda s: tiff(deep(s) * np.uint16(16))),
    "LZW TIFF": Kind(".tiff", lambda s: tiff(rgb(s), compression="lzw", predictor=True)),
    "JPEG 2000 TIFF": Kind(".tif", lambda s: tiff(rgb(s), compression="jpeg2000")),
    "tiled TIFF": Kind(".tif", lambda s: tiff(deep(s), compression="zlib", tile=(16, 16))),
    "float TIFF": Kind(".tif", lambda s: tiff(rgb(s).astype(np.float32) / 255)),
    "TIFF of pages": Kind(".tif", lambda s: tiff(np.stack([grey(s), grey(s + 1)])), 2),
    "DICOM": Kind(".dcm", lambda s: dicom(rgb(s))),
    "implicit DICOM": Kind(".dcm", lambda s: dicom(grey(s), syntax=uid.ImplicitVRLittleEndian)),
    "big-endian DICOM": Kind(
        ".dcm",
        lambda s: dicom(
            deep(s), raw=deep(s).astype(">u2").tobytes(), syntax=uid.ExplicitVRBigEndian
        ),
    ),
    "DICOM in planes": Kind(".dcm", _planes),
    "DICOM, MONOCHROME1": Kind(
        "", lambda s: dicom(deep(s), BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    ),
    "DICOM with a window": Kind(
        "",
        lambda s: dicom(
            deep(s).astype(np.int16), RescaleSlope=2, WindowCenter=3000, WindowWidth=900
        ),
    ),
    "DICOM, palette": Kind(".dcm", _palette_dicom),
    "DICOM, YBR": Kind(
        ".dcm", lambda s: dicom(ybr(s), syntax=PLAIN, PhotometricInterpretation="YBR_FULL")
    ),
    "DICOM, JPEG": Kind(".dcm", _jpeg_dicom),
    "DICOM, 12-bit JPEG": Kind(".dcm", _coded(EXTENDED, _deep_jpeg)),
    "DICOM, lossless JPEG": Kind(
        "", _coded(LOSSLESS, lambda x: imagecodecs.ljpeg_encode(x, bitspersample=12))
    ),
    "DICOM, JPEG-LS": Kind(".dcm", _coded(JPEG_LS, imagecodecs.jpegls_encode)),
    "DICOM, JPEG 2000": Kind(".dcm", _j2k_dicom),
    "DICOM, RLE": Kind(".dcm", _coded(RLE, rle)),
    "DICOM of frames": Kind(".dcm", lambda s: dicom(np.stack([rgb(s), 255 - rgb(s)])), 2),
    "DICOM of JPEGs": Kind("", _several_jpegs, 3),
    "NIfTI": Kind(".nii", lambda s: nifti(volume(s)), 3),
    "packed NIfTI": Kind(".nii.gz", lambda s: nifti(volume(s, np.uint16), packed=True), 3),
}
"""By name. A file without an extension is known by its first bytes."""
