# SPDX-License-Identifier: Apache-2.0
"""JPEGs on a GPU: who is let in, and what a run says of it; nvImageCodec's place is taken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from null_method import null_bundle
from typer.testing import CliRunner

from fundad_fast.archive import run as archive_run
from fundad_fast.archive.run import ScoreOptions, score_run
from fundad_fast.cli import app
from fundad_fast.data import ReadError, discover, gpu_jpeg, read_picture
from fundad_fast.run_folder import RunError, read_rows, read_run

KINDS = ["HW_GPU_ONLY", "GPU_ONLY", "HYBRID_CPU_GPU"]
OURS = "within 3 grey levels of libjpeg-turbo"


def turbo(data: bytes, grey: bool) -> np.ndarray | None:
    try:
        return simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB", strict=True)
    except ValueError:
        return None


def module(decode: Callable[[bytes, bool], Any] = turbo, **more: Any) -> Any:
    """A stand-in for ``nvidia.nvimgcodec``; ``made`` lists what its decoders were made with."""
    made: list[dict[str, Any]] = []

    class Decoder:
        def __init__(self, **options: Any) -> None:
            made.append(options)

        def decode(self, data: bytes, params: Any) -> Any:
            assert not params.apply_exif_orientation
            pixels = decode(data, params.color_spec == "grey")
            return None if pixels is None else SimpleNamespace(cpu=lambda: pixels)

    said: dict[str, Any] = {
        "__version__": "1.2",
        "made": made,
        "Decoder": Decoder,
        "BackendKind": SimpleNamespace(**{k: k for k in KINDS}),
        "Backend": lambda kind: kind,
        "ColorSpec": SimpleNamespace(GRAY="grey", SRGB="rgb"),
        "DecodeParams": lambda **options: SimpleNamespace(**options),
    }
    return SimpleNamespace(**{**said, **more})


def shifted(by: int, share: float = 1.0) -> Callable[[bytes, bool], np.ndarray | None]:
    def decode(data: bytes, grey: bool) -> np.ndarray | None:
        pixels = turbo(data, grey)
        if pixels is not None:
            rows = pixels[: max(1, round(share * len(pixels)))]
            rows[...] = np.where(rows > 127, rows - np.uint8(by), rows + np.uint8(by))
        return pixels

    return decode


def lenient(data: bytes, grey: bool) -> np.ndarray | None:
    """As nvImageCodec's CPU form: cut short is refused, damaged is not."""
    try:
        return simplejpeg.decode_jpeg(
            data, "GRAY" if grey else "RGB", strict=b"\0" * 40 not in data
        )
    except ValueError:
        return None


def raising(data: bytes, grey: bool) -> np.ndarray:
    raise RuntimeError("no memory\non the device")


def test_a_right_one_is_taken_and_asked_for_as_agreed() -> None:
    codec = module()
    decode, said = gpu_jpeg.gpu_jpeg(3, lambda name: codec)
    assert decode is not None
    assert said == f"nvImageCodec 1.2, {OURS}"
    (options,) = codec.made
    assert options["device_id"] == 3
    assert options["backends"] == KINDS
    assert options["options"] == ":fancy_upsampling=1"


@pytest.mark.parametrize(
    "decode, words",
    [
        (shifted(4, 0.01), "a picture of the kind 444 is up to 4 grey levels off"),
        (shifted(1), "is up to 1 grey levels off"),  # everywhere: above the mean's tolerance
        (lenient, "decodes a picture whose data is damaged as if it were sound"),
        (lambda data, grey: np.zeros((149, 203, 3), np.uint8), "grey levels off"),
        (lambda data, grey: turbo(data, False), "a picture of the kind grey becomes uint8"),
        (lambda data, grey: None, "cannot decode a picture of the kind 444"),
        (raising, "cannot decode a picture of the kind 444"),
    ],
)
def test_a_wrong_one_is_not_and_it_is_said_why(decode: Any, words: str) -> None:
    found, said = gpu_jpeg.gpu_jpeg(0, lambda name: module(decode))
    assert found is None
    assert said.startswith("libjpeg-turbo, not the GPU (nvImageCodec 1.2: ")
    assert words in said


def test_a_small_difference_is_within_the_tolerance() -> None:
    assert gpu_jpeg.gpu_jpeg(0, lambda name: module(shifted(3, 0.1)))[0] is not None


def test_colours_that_are_not_smoothed_are_too_far_off() -> None:
    def plain(data: bytes, grey: bool) -> np.ndarray | None:
        if turbo(data, grey) is None:
            return None
        return simplejpeg.decode_jpeg(data, "GRAY" if grey else "RGB", fastupsample=True)

    _, said = gpu_jpeg.gpu_jpeg(0, lambda name: module(plain))
    assert "of the kind 4" in said
    assert "grey levels off" in said


def test_what_is_not_there_or_does_not_start() -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    def broken(name: str) -> Any:
        raise OSError("libcuda.so.1: cannot open")

    def refuses(**options: Any) -> Any:
        raise RuntimeError("Could not create decoder.\nCode: 8")

    assert "is not installed: pip install nvidia-nvimgcodec" in gpu_jpeg.gpu_jpeg(0, missing)[1]
    assert "cannot be loaded: libcuda.so.1" in gpu_jpeg.gpu_jpeg(0, broken)[1]
    _, said = gpu_jpeg.gpu_jpeg(0, lambda name: module(Decoder=refuses))
    assert said.endswith("(nvImageCodec 1.2: RuntimeError: Could not create decoder. Code: 8)")


def test_each_thread_has_a_decoder_of_its_own() -> None:
    codec = module()
    decode = gpu_jpeg.NvImageCodec(codec, 0)
    data = simplejpeg.encode_jpeg(np.zeros((20, 20, 3), np.uint8))
    threads = [threading.Thread(target=lambda: [decode(data, 3) for _ in range(3)]) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(codec.made) == 2


def test_the_real_one_by_its_cpu_form() -> None:
    codec = pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed")
    decode = gpu_jpeg.NvImageCodec(codec, codec.NVIMGCODEC_DEVICE_CPU_ONLY, ("CPU_ONLY",))
    for name, data, channels in gpu_jpeg._sound():
        found = decode(data, channels)
        assert found is not None, name
        np.testing.assert_array_equal(found, turbo(data, channels == 1), err_msg=name)


def test_readers_turn_and_what_it_cannot_goes_to_libjpeg(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    data = simplejpeg.encode_jpeg(picture)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06" + bytes(6)
    turned = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    ours = gpu_jpeg.NvImageCodec(module(shifted(1)), 0)
    plain = read_picture(data).pixels
    assert np.abs(read_picture(data, jpeg=ours).pixels.astype(int) - plain).min() == 1
    assert read_picture(turned).pixels.shape == (40, 30, 3)
    assert read_picture(turned, jpeg=ours).pixels.shape == (40, 30, 3)
    np.testing.assert_array_equal(read_picture(data, jpeg=lambda *_: None).pixels, plain)
    with pytest.raises(ReadError, match="damaged JPEG: Premature end"):
        read_picture(data[: len(data) // 2], jpeg=ours)
    other = np.zeros((149, 203, 3), np.uint8)
    np.testing.assert_array_equal(read_picture(data, jpeg=lambda *_: other).pixels, plain)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for k in range(3):
        cv2.imwrite(str(tmp_path / "in" / f"{k}.jpg"), np.full((24, 24, 3), 60 * k + 20, np.uint8))
    (tmp_path / "in" / "bad.jpg").write_bytes((tmp_path / "in" / "2.jpg").read_bytes()[:300])
    return tmp_path / "in"


def score(source: Path, run: Path, device: str = "cuda", **options: Any) -> dict[str, Any]:
    bundle = null_bundle()
    bundle.method.device = torch.device(device)
    dataset = discover(source)
    chosen = ScoreOptions(batch_size=2, threads=1, **options)
    score_run(bundle, dataset, dataset.items, run, options=chosen)
    return read_run(run)


def test_a_run_says_which_and_keeps_to_it(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **more: empty(*a, **more))
    codec = module(shifted(2))
    ours = gpu_jpeg.NvImageCodec(codec, 1)
    asked: list[int] = []

    def probed(device: int) -> Any:
        asked.append(device)
        return ours, "ours"

    monkeypatch.setattr(archive_run, "gpu_jpeg", probed)
    about = score(pictures, tmp_path / "plain")
    assert (about["profile"]["jpeg"], asked) == ("libjpeg-turbo", [])
    assert "jpeg" not in about["settings"]
    about = score(pictures, tmp_path / "gpu", "cuda:1", gpu_decode=True)
    assert (about["profile"]["jpeg"], about["settings"]["jpeg"], asked) == ("ours", "ours", [1])
    plain, gpu = ({r["id"]: r for r in read_rows(tmp_path / name)} for name in ("plain", "gpu"))
    for k in range(3):
        off = abs(plain[f"{k}.jpg"]["score"] - gpu[f"{k}.jpg"]["score"]) * 255
        assert off == pytest.approx(2, abs=0.01)
    assert plain["bad.jpg"]["error"] == gpu["bad.jpg"]["error"]
    assert "damaged JPEG" in gpu["bad.jpg"]["error"]
    with pytest.raises(RunError, match="was made with jpeg=ours, not jpeg=None"):
        score(pictures, tmp_path / "gpu")
    about = score(pictures, tmp_path / "cpu", "cpu", gpu_decode=True)
    assert about["profile"]["jpeg"].startswith("libjpeg-turbo, not the GPU (the model scores on")
    assert "jpeg" not in about["settings"]


def test_the_command_says_which(pictures: Path, tmp_path: Path, fitted: Any) -> None:
    fitted.save(tmp_path / "model")
    args = ["-m", tmp_path / "model", "-o", tmp_path / "run", "--device", "cpu", "--gpu-decode"]
    more = ["--progress", "none", "--no-report", "--overlays", "none"]
    done = CliRunner().invoke(app, ["score", str(pictures), *map(str, args), *more])
    assert done.exit_code == 0, done.output
    said = "JPEGs by libjpeg-turbo, not the GPU (the model scores on the device cpu)"
    assert said in done.output
