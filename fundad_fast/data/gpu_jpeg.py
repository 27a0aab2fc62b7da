# SPDX-License-Identifier: Apache-2.0
"""JPEG files decoded on a GPU by nvImageCodec, where that is asked for and proves to be right.

Not used by itself: another decoder gives other pixels, if only by a grey level, and no figure says
yet that it is faster. It must first decode test pictures as libjpeg-turbo does, and refuse damaged
ones, as a photograph with torn pixels must not become a score. (nvImageCodec 0.9.0's own CPU form
refuses a picture that is cut short, but decodes one with damaged data.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

TOLERANCE, MEAN_TOLERANCE = 3, 0.5
"""Grey levels by which a pixel, and pixels on average, may differ from libjpeg-turbo's."""

JpegDecoder = Callable[[bytes, int], "np.ndarray | None"]
"""From the bytes of a file, and 1 or 3 channels, to ``[h, w, c]`` uint8; ``None`` where it cannot.
It may be called from many threads."""

INSTALL = "nvImageCodec is not installed: pip install nvidia-nvimgcodec-cu13 or -cu12, and nvJPEG"


class NvImageCodec:
    """Decodes by nvImageCodec; each thread has a decoder of its own.

    Args:
        codec: the module ``nvidia.nvimgcodec``.
        device: number of the GPU.
        kinds: names of its backends that may be used.
    """

    def __init__(
        self,
        codec: ModuleType,
        device: int,
        kinds: tuple[str, ...] = ("HW_GPU_ONLY", "GPU_ONLY", "HYBRID_CPU_GPU"),
    ) -> None:
        self._codec, self._device = codec, device
        self._backends = [codec.Backend(getattr(codec.BackendKind, kind)) for kind in kinds]
        self._own = threading.local()

    def __call__(self, data: bytes, channels: int) -> np.ndarray | None:
        """See :data:`JpegDecoder`."""
        decoder = getattr(self._own, "decoder", None)
        if decoder is None:
            decoder = self._own.decoder = self._codec.Decoder(
                device_id=self._device,
                max_num_cpu_threads=1,
                backends=self._backends,
                options=":fancy_upsampling=1",  # as libjpeg: else edges of colours are 100 off
            )
        spec = self._codec.ColorSpec
        params = self._codec.DecodeParams(
            color_spec=spec.GRAY if channels == 1 else spec.SRGB, apply_exif_orientation=False
        )
        try:
            image: Any = decoder.decode(data, params=params)
            return None if image is None else np.ascontiguousarray(image.cpu())
        except RuntimeError:  # of the device, or its memory: libjpeg-turbo decodes this one
            return None


def gpu_jpeg(
    device: int, load: Callable[[str], ModuleType] = import_module
) -> tuple[JpegDecoder | None, str]:
    """A decoder on a GPU that has been tried on it, or ``None``; and one line that says which.

    Args:
        device: number of the GPU.
        load: imports a module.
    """
    try:
        codec = load("nvidia.nvimgcodec")
    except (ImportError, OSError) as error:
        missing = isinstance(error, ModuleNotFoundError)
        return None, _instead(INSTALL if missing else f"nvImageCodec cannot be loaded: {error}")
    name = f"nvImageCodec {getattr(codec, '__version__', '')}".strip()
    try:
        decoder = NvImageCodec(codec, device)
        wrong = fault_of(decoder)
    except (RuntimeError, AttributeError, TypeError, ValueError, OSError) as error:
        wrong = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if wrong is not None:
        return None, _instead(f"{name}: {wrong}")
    return decoder, f"{name}, within {TOLERANCE} grey levels of libjpeg-turbo"


def fault_of(decode: JpegDecoder) -> str | None:
    """What a decoder does wrong on pictures made for it; ``None`` where all is right."""
    import simplejpeg

    for name, data, channels in _sound():
        want = simplejpeg.decode_jpeg(data, "GRAY" if channels == 1 else "RGB")
        found = decode(data, channels)
        if found is None:
            return f"it cannot decode a picture of the kind {name}"
        if found.shape != want.shape or found.dtype != np.uint8:
            return f"a picture of the kind {name} becomes {found.dtype} {list(found.shape)}"
        off = np.abs(found.astype(np.int16) - want)
        if off.max() > TOLERANCE or off.mean() > MEAN_TOLERANCE:
            return f"a picture of the kind {name} is up to {off.max()} grey levels off"
    for name, data in _damaged():
        if _decodes(decode, data):
            return f"it decodes a picture {name} as if it were sound"
    return None


def _decodes(decode: JpegDecoder, data: bytes) -> bool:
    try:
        return decode(data, 3) is not None
    except (RuntimeError, ValueError):
        return False


def _sound() -> Iterator[tuple[str, bytes, int]]:
    """Pictures of odd sizes with sharp edges of colour, in the ways that cameras store them."""
    import cv2
    import simplejpeg

    pattern = _pattern()
    for kind in ("444", "422", "420"):
        yield kind, simplejpeg.encode_jpeg(pattern, 90, colorsubsampling=kind), 3
    grey = np.ascontiguousarray(pattern[..., :1])
    yield "grey", simplejpeg.encode_jpeg(grey, 90, colorspace="GRAY"), 1
    how = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_QUALITY, 90]
    yield "progressive", cv2.imencode(".jpg", pattern[..., ::-1], how)[1].tobytes(), 3


def _damaged() -> Iterator[tuple[str, bytes]]:
    """Pictures that libjpeg-turbo refuses."""
    import simplejpeg

    data = simplejpeg.encode_jpeg(_pattern(), 90)
    half = len(data) * 2 // 3
    yield "that is cut short", data[:half]
    yield "whose data is damaged", data[:half] + bytes(40) + data[half + 40 :]


def _pattern() -> np.ndarray:
    y, x = np.mgrid[:149, :203]
    picture = np.stack([x, 255 - y, (x + y) // 2], -1).astype(np.uint8)
    picture[40:80, 50:90] = (255, 0, 0)
    picture[90:97, 120:190] = (0, 40, 255)
    return picture


def _instead(why: str) -> str:
    return f"libjpeg-turbo, not the GPU ({why})"
