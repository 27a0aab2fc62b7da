# SPDX-License-Identifier: Apache-2.0
"""Axial slices of NIfTI volumes against nibabel's own canonical volumes."""

from __future__ import annotations

import gzip
import itertools
import math
import struct
import threading
import tracemalloc

import numpy as np
import pytest

from fundad_fast.data import InputSpec, Loader, ReadError, discover, read_image, read_mask
from fundad_fast.data.opening import read_header

nib = pytest.importorskip("nibabel", reason="nibabel is not installed")


def refused(source, status, *words, **options) -> None:
    with pytest.raises(ReadError) as caught:
        read_image(source, **options)
    assert caught.value.status == status, caught.value
    for word in words:
        assert word in caught.value.reason, caught.value


def save(path, values, affine=None, *, kind=nib.Nifti1Image, **header):
    image = kind(values, np.eye(4) if affine is None else affine, dtype=values.dtype)
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def expected(path, k):
    """Slice k of the nearest RAS volume: rows from front to back, columns from left to right."""
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)[:, ::-1, k].T


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 24, 17)).astype(np.uint8)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, 1), (1, -1, -1)])
def test_slices_of_every_orientation(tmp_path, values, order, signs):
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (direction, sign) in enumerate(zip(order, signs)):
        affine[direction, axis] = sign * 2
    path = save(tmp_path / "v.nii", values, affine)
    items = discover(path).items
    assert len(items) == values.shape[order.index(2)]
    for k in (0, 3, len(items) - 1):
        found = read_image(items[k])
        assert found.dtype == np.uint8
        assert found.flags.writeable
        assert read_header(items[k]).shape == found.shape[:2]
        np.testing.assert_array_equal(found[:, :, 0], expected(path, k))


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4", "f8"])
def test_types(tmp_path, values, kind, name, order, dtype):
    stored = (values.astype("i4") * 3 - 300 * (dtype[0] != "u")).astype(order + dtype)
    path = save(tmp_path / name, stored, kind=kind)
    items = discover(tmp_path).items
    assert [item.id for item in items] == [f"{name}#{k}" for k in range(17)]
    found = read_image(items[5])
    assert found.dtype == {"u1": np.uint8, "u2": np.uint16}.get(dtype, np.float32)
    np.testing.assert_array_equal(found[:, :, 0], expected(path, 5))
    depth = {"u1": 8, "u2": 16}.get(dtype, 32)
    assert read_header(items[5]).bit_depth == depth


def test_scaled_values(tmp_path, values):
    image = nib.Nifti1Image(values.astype(np.float32) * 0.5 - 7, np.eye(4))
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "v.nii")
    found = read_image(tmp_path / "v.nii", frame=2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, :, 0], expected(tmp_path / "v.nii", 2), rtol=1e-6)


def test_one_slice_is_one_image(tmp_path, values):
    save(tmp_path / "a.nii", values[:, :, :1])
    save(tmp_path / "b.nii.gz", values[:, :, 0])
    items = discover(tmp_path).items
    assert [item.id for item in items] == ["a.nii", "b.nii.gz"]
    np.testing.assert_array_equal(read_image(items[0]), read_image(items[1]))


def test_a_volume_is_no_image(tmp_path, values):
    path = save(tmp_path / "v.nii", values)
    refused(path, "unsupported", "17 axial slices", "for a model of two dimensions")
    refused(path, "unreadable", "no slice 17", frame=17)
    assert read_image(path, first_page=True).shape == (24, 20, 1)


def test_the_brains(packs):
    dataset = discover(packs / "brain_t1_2mm")
    assert len(dataset.items) == 75 * 80
    item = next(item for item in dataset.items if item.id.endswith("#40"))
    np.testing.assert_array_equal(read_image(item)[:, :, 0], expected(item.path, 40))
    slices = [i for i in dataset.items if i.mask_path and i.id.startswith("TCGA-DU")]
    whole = np.asarray(nib.load(slices[0].mask_path).dataobj)
    k = int((whole > 0).sum((0, 1)).argmax())
    assert [item.frame for item in slices] == list(range(80))
    mask = read_mask(slices[k].mask_path, frame=k, shape=(96, 80))
    np.testing.assert_array_equal(mask, expected(slices[k].mask_path, k) > 0)
    assert 0 < mask.sum() < mask.size / 4


def test_masks_beside_volumes_are_matched(tmp_path, values):
    save(tmp_path / "test" / "bad" / "x.nii.gz", values)
    save(tmp_path / "train" / "good" / "y.nii.gz", values)
    save(tmp_path / "ground_truth" / "bad" / "x_mask.nii.gz", (values > 200).astype(np.uint8))
    items = [item for item in discover(tmp_path).items if item.class_name == "bad"]
    assert len(items) == 17
    assert all(item.mask_path.endswith("x_mask.nii.gz") for item in items)
    flat = save(tmp_path / "one.nii", (values[:, :, 3] > 200).astype(np.uint8))
    np.testing.assert_array_equal(read_mask(flat, frame=9), read_mask(items[0].mask_path, frame=3))


def test_a_volume_is_unpacked_once_for_all_threads(tmp_path, values, monkeypatch):
    from fundad_fast.data import nifti

    save(tmp_path / "a.nii.gz", values)
    save(tmp_path / "b.nii.gz", 255 - values)
    done, unpack = [], nifti.stored_values
    monkeypatch.setattr(nifti, "stored_values", lambda *args: done.append(1) or unpack(*args))
    spec = InputSpec(image_size=32, fov="none", channels="grey")
    chunks = list(Loader(discover(tmp_path).items, spec, batch_size=4, threads=4))
    assert sum(len(chunk.items) for chunk in chunks) == 34
    assert len(done) == 2
    assert threading.active_count() < 10
    save(tmp_path / "a.nii.gz", values[:, :, ::-1].copy())
    np.testing.assert_array_equal(
        read_image(discover(tmp_path).items[0])[:, :, 0], expected(tmp_path / "a.nii.gz", 0)
    )


def test_headers_that_cannot_be(tmp_path, values):
    good = save(tmp_path / "v.nii", values).read_bytes()
    (tmp_path / "x").mkdir()

    def broken(at, form, *numbers):
        data = bytearray(good)
        struct.pack_into(form, data, at, *numbers)
        path = tmp_path / "x" / "v.nii"
        path.write_bytes(data)
        assert len(discover(path).items) == (17 if at == 108 else 1)
        return path

    refused(broken(40, "<h", 0), "unreadable", "0 axes")
    refused(broken(40, "<h", 9), "unreadable", "axes of")
    refused(broken(40, "<4h", 3, 20, -24, 17), "unreadable", "-24")
    refused(broken(40, "<5h", 4, 20, 24, 17, 3), "unsupported", "series")
    refused(broken(40, "<4h", 3, 32000, 32000, 32000), "too_large", "GB")
    refused(broken(70, "<h", 128), "unsupported", "grey")
    refused(broken(70, "<h", 77), "unreadable", "damaged NIfTI")
    refused(broken(280, "<4f", *[0.0] * 4), "unreadable", "orientation")
    refused(broken(280, "<4f", *[math.nan] * 4), "unreadable")
    refused(broken(344, "<4s", b"ni1\0"), "unsupported", "pair")
    refused(broken(108, "<f", 5000), "unreadable", "cut short", frame=0)
    path = tmp_path / "x" / "v.nii"
    path.write_bytes(good[:108] + struct.pack("<f", math.nan) + good[112:])
    refused(path, "unreadable", frame=0)


def test_a_slope_of_zero_means_none(tmp_path, values):
    path = save(tmp_path / "v.nii", values)
    data = bytearray(path.read_bytes())
    struct.pack_into("<2f", data, 112, 0.0, 5.0)
    np.testing.assert_array_equal(read_image(bytes(data), frame=1), read_image(path, frame=1))


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_every_cut_ends_in_a_reason(tmp_path, values, name):
    data = save(tmp_path / name, values).read_bytes()
    np.testing.assert_array_equal(read_image(data, frame=1)[:, :, 0], values[:, ::-1, 1].T)
    for cut in range(1, len(data) - 8, 301):
        refused(data[:cut], "unreadable", frame=1)


def test_a_gzip_bomb_is_not_unpacked(tmp_path, values):
    raw = save(tmp_path / "v.nii", values).read_bytes()
    bomb = gzip.compress(raw + bytes(30_000_000))
    tracemalloc.start()
    np.testing.assert_array_equal(read_image(bomb, frame=0)[:, :, 0], values[:, ::-1, 0].T)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000
    refused(gzip.compress(b"no image at all" * 100), "unreadable", "no image format")
    huge = bytearray(raw)
    struct.pack_into("<4h", huge, 40, 3, 20, 24, 30_000)
    refused(gzip.compress(bytes(huge) + bytes(1_000_000)), "unreadable", "cut short", frame=0)


def test_values_that_are_no_numbers(tmp_path, values):
    floats = values.astype(np.float32)
    floats[3, 4, 5] = np.nan
    path = save(tmp_path / "v.nii", floats)
    refused(path, "non_finite", "1 of 480", frame=5)
    assert np.isfinite(read_image(path, frame=6)).all()


def test_nibabel_is_not_there(tmp_path, values, monkeypatch):
    path = save(tmp_path / "v.nii", values)
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    (item,) = discover(path).items
    refused(item, "unsupported", "pip install nibabel")
