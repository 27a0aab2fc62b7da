# SPDX-License-Identifier: Apache-2.0
"""Files of MedMNIST: what is found in them, their pixels, the healthy class, what is refused."""

import io
import os
import zipfile

import numpy as np
import pytest
from npz_files import medmnist
from trees import make_tree

from fundad_fast.data import (
    DataError,
    Dataset,
    InputSpec,
    Item,
    Loader,
    ReadError,
    data_hash,
    discover,
    inspect_inputs,
    item_of_row,
    npz,
    read_image,
    take_inventory,
)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(npz, "_arrays", npz._Arrays())


# -- what is found -------------------------------------------------------------------------------


def test_every_image_has_its_split_and_class_and_no_label(tmp_path):
    arrays = medmnist(tmp_path / "set.npz")
    dataset = discover(tmp_path / "set.npz")
    assert dataset.layout == "npz"
    assert [i.id for i in dataset.items[:2]] == ["train/000000", "train/000001"]
    assert [i.id for i in dataset.items[-4:]] == [f"test/{i:06d}" for i in range(4)]
    assert [len(dataset.select(s)) for s in ("train", "val", "test")] == [6, 2, 4]
    classes = [i.class_name for i in dataset.select("test")]
    assert classes == [str(v) for v in arrays["test_labels"][:, 0]] == ["0", "1", "0", "1"]
    assert {i.label for i in dataset.items} == {None}
    assert "arrays of 28 x 28 grey pixels" in dataset.describe()
    with pytest.raises(DataError, match=r"classes 0 \(6\), 1 \(6\).*--normal-class NAME"):
        dataset.healthy_for_fit()


@pytest.mark.parametrize("name", ["0", "1"])
def test_the_healthy_class_is_the_one_that_is_named(tmp_path, name):
    arrays = medmnist(tmp_path / "set.npz")
    dataset = discover(tmp_path / "set.npz").with_normal_class(name)
    for item in dataset.items:
        value = arrays[f"{item.split}_labels"][item.frame, 0]
        assert item.label == int(value != int(name))
    assert len(dataset.healthy_for_fit()) == 3
    assert len(dataset.healthy("val")) == 1
    assert f"the class {name} is healthy" in dataset.notes
    with pytest.raises(DataError, match="has no class 2: there are 0, 1"):
        dataset.with_normal_class("2")


def test_what_a_label_means_in_medmnist_is_said(tmp_path):
    medmnist(tmp_path / "breastmnist_64.npz")
    assert "0 malignant, 1 normal and benign" in discover(tmp_path / "breastmnist_64.npz").notes[1]
    medmnist(tmp_path / "octmnist.npz")
    assert "3 normal" in discover(tmp_path / "octmnist.npz").notes[1]


def test_without_labels_all_images_of_train_count_as_healthy(tmp_path):
    arrays = medmnist(tmp_path / "set.npz")
    np.savez(tmp_path / "bare.npz", train_images=arrays["train_images"])
    dataset = discover(tmp_path / "bare.npz")
    assert len(dataset.healthy_for_fit()) == 6
    with pytest.raises(DataError, match="no class 0: there are no classes at all"):
        dataset.with_normal_class("0")


def test_several_files_and_inventories(tmp_path):
    for name in "ab":
        medmnist(tmp_path / f"{name}.npz")
    names = [str(tmp_path / f"{name}.npz") for name in "ab"]
    both = discover(names)
    assert len(both) == 24
    assert both.items[12].id == f"{names[1]}/train/000000"
    for source in (names[0], names):
        found = discover(source)
        listed = take_inventory(source, tmp_path / "work")
        assert tuple(listed) == found.items
        assert listed.describe() == found.describe()


# -- folders whose names do not tell -------------------------------------------------------------


def test_two_folders_of_numbers_may_mean_either(tmp_path):
    root = make_tree(tmp_path, "train/0/a.jpg", "test/0/b.jpg", "test/1/c.jpg")
    dataset = discover(root)
    assert {item.label for item in dataset.items} == {None}
    with pytest.raises(DataError, match="--normal-class"):
        dataset.healthy_for_fit()
    said = dataset.with_normal_class("1")
    assert [item.label for item in said.items] == [1, 0, 1]
    assert not any("labels are unknown" in note for note in said.notes)


def test_a_class_is_found_by_its_name_in_small_or_capital_letters(tmp_path):
    dataset = discover(make_tree(tmp_path, "train/COVID/a.jpg", "train/non-COVID/b.jpg"))
    assert [i.label for i in dataset.with_normal_class("non-covid").items] == [1, 0]
    with pytest.raises(DataError, match="no class covit: there are COVID, non-COVID"):
        dataset.with_normal_class("covit")
    mixed = discover(make_tree(tmp_path / "b", "train/ok/a.jpg", "train/OK/b.jpg"))
    for name in ("OK", "ok"):
        found = mixed.with_normal_class(name).items
        assert [i.label for i in found] == [int(i.class_name != name) for i in found]
    with pytest.raises(DataError, match="no class Ok: there are OK, ok"):
        mixed.with_normal_class("Ok")


def test_an_image_without_a_class_keeps_the_label_it_has(tmp_path):
    items = (
        Item("a", "a.png", class_name="3"),
        Item("b", "b.png", class_name="0", label=0),
        Item("c", "c.png", label=0),
        Item("d", "d.png"),
    )
    found = Dataset(items, "manifest", "x", notes=("other",)).with_normal_class("3")
    assert [i.label for i in found.items] == [0, 1, 0, None]
    assert found.notes == ("other", "the class 3 is healthy")


@pytest.mark.parametrize(
    ("folders", "healthy"),
    [
        (("COVID", "non-COVID"), "non-COVID"),  # SARS-COV-2: the first of the names is ill
        (("0", "1"), "1"),  # BreastMNIST as folders: 0 is malignant
        (("0",), "0"),  # a part of it
        (("0", "1", "2", "3"), "3"),  # OCTMNIST as folders
    ],
)
def test_folders_of_the_papers_sets_are_refused_without_their_healthy_class(
    tmp_path, folders, healthy
):
    root = make_tree(tmp_path, *(f"train/{name}/a{name}.jpg" for name in folders))
    with pytest.raises(DataError, match="--normal-class NAME"):
        discover(root).healthy_for_fit()
    (found,) = discover(root).with_normal_class(healthy).healthy_for_fit()
    assert found.class_name == healthy


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        (("CNV", "DME", "DRUSEN", "NORMAL"), [1, 1, 1, 0]),
        (("0", "1", "2", "3", "4"), [0, 1, 1, 1, 1]),  # APTOS: grades of retinopathy
        (("0_normal", "1_abnormal"), [0, 1]),  # as the public code has its trees
    ],
)
def test_folders_whose_names_tell_have_their_labels(tmp_path, folders, labels):
    dataset = discover(make_tree(tmp_path, *(f"train/{name}/a.jpg" for name in folders)))
    assert [i.label for i in dataset.items] == labels


# -- pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("side", "channels"), [(28, 1), (64, 3)])
def test_pixels_are_those_of_the_array(tmp_path, packed, side, channels):
    path = tmp_path / "set.npz"
    arrays = medmnist(path, side=side, channels=channels, packed=packed)
    items = discover(path).items
    for item in items:
        want = arrays[f"{item.split}_images"][item.frame]
        got = read_image(item)
        assert got.shape == (side, side, channels)
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, want.reshape(side, side, channels))
    census = inspect_inputs(items)
    assert census.spec_channels == ("rgb" if channels == 3 else "grey")
    assert census.sizes == {(side, side): 12}
    # As a row of a run has it.
    row = {"id": items[7].id, "path": str(path), "member": items[7].member, "frame": 1}
    np.testing.assert_array_equal(read_image(item_of_row(row)), read_image(items[7]))


def test_what_is_stored_is_mapped_and_what_is_large_lies_in_a_file(tmp_path, monkeypatch):
    for name, packed in (("stored", False), ("packed", True)):
        medmnist(tmp_path / f"{name}.npz", packed=packed)
    stored, packed = (discover(tmp_path / f"{n}.npz").items[0] for n in ("stored", "packed"))
    assert isinstance(npz._arrays.get(stored), np.memmap)
    small = npz._arrays.get(packed)
    assert not isinstance(small, np.memmap)
    monkeypatch.setattr(npz, "_arrays", npz._Arrays())
    monkeypatch.setattr(npz, "_IN_MEMORY", 100)
    large = npz._arrays.get(packed)
    assert isinstance(large, np.memmap)
    np.testing.assert_array_equal(large, small)
    assert npz._arrays.get(packed) is large  # inflated once
    assert sorted(os.listdir(tmp_path)) == ["packed.npz", "stored.npz"]


def test_only_the_last_arrays_are_kept(tmp_path):
    for i in range(npz._KEPT + 1):
        medmnist(tmp_path / f"{i}.npz", counts=(1, 1, 1))
        read_image(discover(tmp_path / f"{i}.npz").items[0])
    assert len(npz._arrays._kept) == npz._KEPT
    assert str(tmp_path / "0.npz") not in {key[0] for key in npz._arrays._kept}


def test_16_bits_columns_first_and_images_of_one_channel(tmp_path):
    rng = np.random.default_rng(0)
    deep = np.asfortranarray(rng.integers(0, 65536, (3, 20, 18, 1), dtype=np.uint16))
    for packed in (np.savez, np.savez_compressed):
        packed(tmp_path / "deep.npz", test_images=deep)
        items = discover(tmp_path / "deep.npz").items
        assert inspect_inputs(items).spec_bit_depth == 16
        for i, item in enumerate(items):
            np.testing.assert_array_equal(read_image(item), deep[i])


def test_a_loader_reads_them_and_the_hash_is_of_the_file(tmp_path):
    path = tmp_path / "set.npz"
    arrays = medmnist(path)
    items = discover(path).items
    spec = InputSpec(image_size=28, channels="grey", fov="none")
    chunks = list(Loader(items, spec, batch_size=5, threads=2))
    images = np.concatenate([c.batch.image.numpy() for c in chunks])
    whole = np.concatenate([arrays[f"{s}_images"] for s in ("train", "val", "test")])
    np.testing.assert_allclose(images[:, 0], whole / 255, atol=1e-6)
    before = data_hash(items)
    arrays["test_images"][0, 0, 0] ^= 1
    np.savez_compressed(path, **arrays)
    assert data_hash(discover(path).items) != before


def test_a_file_that_changed_meanwhile(tmp_path):
    path = tmp_path / "set.npz"
    medmnist(path)
    *_, kept, gone, item = discover(path).items
    read_image(item)
    arrays = medmnist(path, counts=(1, 1, 2))
    assert np.array_equal(read_image(kept)[..., 0], arrays["test_images"][1])
    for one in (gone, item):  # the first one past the end, and the next
        with pytest.raises(ReadError, match="changed: the array has 2 images by now"):
            read_image(one)
    np.savez(path, train_images=arrays["train_images"])
    with pytest.raises(ReadError, match="unreadable: it has no test_images.npy any more"):
        read_image(item)
    path.unlink()
    with pytest.raises(ReadError, match="unreadable: the file cannot be read: No such file"):
        read_image(item)


def test_a_file_that_was_written_over_with_one_of_its_size(tmp_path):
    path = tmp_path / "set.npz"

    def write(value, second):
        values = io.BytesIO()
        np.save(values, np.full((2, 28, 28), value, np.uint8))
        # Deflated without compressing: inflated into memory, and always as long.
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=0) as file:
            file.writestr("test_images.npy", values.getvalue())
        os.utime(path, ns=(second, second))
        return path.stat()

    before = write(7, 10**18)
    item = discover(path).items[1]
    assert (read_image(item) == 7).all()
    after = write(9, 10**18 + 1)
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert (read_image(item) == 9).all()


# -- what is refused -----------------------------------------------------------------------------


def test_a_large_image_is_refused(tmp_path):
    medmnist(tmp_path / "set.npz")
    with pytest.raises(ReadError, match="too_large: 0.0 megapixels; the limit is 0.0001"):
        read_image(discover(tmp_path / "set.npz").items[0], max_megapixels=1e-4)


PICTURES = np.zeros((4, 28, 28), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": PICTURES}, "holds x; wanted are MedMNIST's"),
        ({}, "holds nothing; wanted are MedMNIST's"),
        ({"train_images": np.zeros((2, 28, 28, 28), np.uint8)}, "volumes, and only 2-D sets"),
        ({"train_images": np.zeros((2, 1, 28, 28, 28), np.uint8)}, "volumes, and only 2-D sets"),
        ({"train_images": np.zeros((2, 28), np.uint8)}, r"is of shape \[2, 28\]; wanted"),
        ({"train_images": PICTURES.astype(np.float32)}, "of type float32; wanted is uint8"),
        ({"train_images": PICTURES[:0]}, "no image: its arrays are empty"),
        ({"train_images": PICTURES, "train_labels": np.zeros((4, 14), int)}, "14 labels for each"),
        ({"train_images": PICTURES, "train_labels": np.zeros((3, 1), int)}, "3 rows for 4 images"),
        ({"train_images": PICTURES, "train_labels": np.zeros(4)}, "wanted are integers"),
        (
            {"train_images": PICTURES, "train_labels": np.array([None] * 4)},
            "pickled objects, which are not read",
        ),
    ],
)
def test_other_arrays_are_refused_in_one_line(tmp_path, arrays, says):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=says) as caught:
        discover(tmp_path / "a.npz")
    assert "\n" not in str(caught.value)


def damaged(path, how):
    arrays = medmnist(path, packed=how != "stored")
    data = path.read_bytes()
    if how == "text":
        path.write_text("no zip")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "array":  # numpy's magic is gone
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("train_images.npy", b"no array at all")
    elif how == "longer":
        values = io.BytesIO()
        np.save(values, arrays["train_images"])
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("train_images.npy", values.getvalue() + b"more")
    elif how == "bomb":
        np.savez_compressed(path, train_images=np.zeros((400, 224, 224), np.uint8))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("text", "no .npz, or a damaged one"),
        ("empty", "no .npz, or a damaged one"),
        ("cut", "no .npz, or a damaged one"),
        ("array", "train_images.npy is no array"),
        ("longer", r"not as long as its shape \[6, 28, 28\] says"),
        ("bomb", "a zip bomb"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, how, says):
    path = tmp_path / "a.npz"
    damaged(path, how)
    with pytest.raises(DataError, match=says) as caught:
        discover(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_damage_among_the_values_is_that_images_row(tmp_path):
    path = tmp_path / "a.npz"
    medmnist(path, side=64, channels=3)
    items = discover(path).items
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("test_images.npy")
    end = info.header_offset + info.compress_size
    for i in range(end - 60, end):
        data[i] ^= 0x55
    path.write_bytes(bytes(data))
    assert len(discover(path)) == len(items)
    assert read_image(items[0]).shape == (64, 64, 3)
    with pytest.raises(ReadError, match="unreadable: .*damaged") as caught:
        read_image(items[-1])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [28, 1100])  # read in one piece, in several
def test_values_that_do_not_match_their_sum_are_refused(tmp_path, side):
    path = tmp_path / "a.npz"
    noise = np.random.default_rng(0).integers(0, 256, (1, side, side), dtype=np.uint8)
    np.savez_compressed(path, test_images=noise)
    item = discover(path).items[0]
    data = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        sum_ = file.getinfo("test_images.npy").CRC.to_bytes(4, "little")
    assert data.count(sum_) == 2  # before the values, and in the directory
    path.write_bytes(data.replace(sum_, bytes(b ^ 1 for b in sum_)))
    with pytest.raises(ReadError, match="unreadable: .*damaged.*CRC"):
        read_image(item)


def test_cut_between_an_array_that_is_stored_and_its_directory(tmp_path):
    path = tmp_path / "a.npz"
    medmnist(path, packed=False)
    items = discover(path).items
    data = path.read_bytes()
    path.write_bytes(data[:-1000])
    with pytest.raises(ReadError, match="unreadable: no .npz, or a damaged one"):
        read_image(items[0])
