# SPDX-License-Identifier: Apache-2.0
"""Layouts: trees of tiny files, what is understood of them, and what is said of the rest."""

import os

import pytest
from trees import PNG, make_tree

from fundad_fast.data import DataError, Dataset, Item, discover, show


@pytest.fixture
def tree(tmp_path):
    """Makes files (of the extension's kind by name only) and gives the root."""
    return lambda *paths, root="data": make_tree(tmp_path / root, *paths)


def told(dataset):
    """Items as id -> (split, label, class, mask), paths relative to the root."""

    def relative(path):
        return path and os.path.relpath(path, dataset.root)

    return {
        item.id: (item.split, item.label, item.class_name, relative(item.mask_path))
        for item in dataset.items
    }


def test_mvtec(tree):
    root = tree(
        "train/good/000.png",
        "test/good/000.png",
        "test/cut/000.png",
        "test/cut/001.png",
        "test/hole/000.png",
        "ground_truth/cut/000_mask.png",
        "ground_truth/cut/001.png",
        "ground_truth/hole/000_mask.png",
        "readme.txt",
        "license.pdf",
    )
    dataset = discover(root)
    assert dataset.layout == "mvtec"
    assert told(dataset) == {
        "test/cut/000.png": ("test", 1, "cut", "ground_truth/cut/000_mask.png"),
        "test/cut/001.png": ("test", 1, "cut", "ground_truth/cut/001.png"),
        "test/good/000.png": ("test", 0, "good", None),
        "test/hole/000.png": ("test", 1, "hole", "ground_truth/hole/000_mask.png"),
        "train/good/000.png": ("train", 0, "good", None),
    }
    assert [item.id for item in dataset.items] == sorted(told(dataset))
    assert dataset.ignored == 2
    assert dataset.notes == ()
    assert all(os.path.isfile(item.path) for item in dataset.items)


def test_mvtec_with_a_category(tree):
    root = tree(
        "bottle/train/good/000.png",
        "bottle/test/cut/000.png",
        "bottle/ground_truth/cut/000_mask.png",
        "preview.png",
    )
    dataset = discover(root)
    assert dataset.layout == "mvtec"
    assert told(dataset)["bottle/test/cut/000.png"][3] == "bottle/ground_truth/cut/000_mask.png"
    assert "preview.png" not in told(dataset)
    assert "read as the data set in the folder bottle" in dataset.notes
    assert "outside that folder and left out: 1 image" in dataset.notes


def test_several_categories_are_ambiguous(tree):
    root = tree("bottle/train/good/0.png", "cable/train/good/0.png", "cable/test/bent/0.png")
    with pytest.raises(DataError, match="2 data sets .bottle, cable.: give one of them") as caught:
        discover(root)
    assert os.path.join(root, "bottle") in str(caught.value)
    assert len(discover(root / "cable")) == 2


def test_masks_by_lesion_type(tree):
    root = tree(
        "train/good/0.png",
        "test/dr/IDRiD_01.jpg",
        "test/dr/IDRiD_02.jpg",
        "ground_truth/dr/IDRiD_01.png",
        "ground_truth_by_type/EX/IDRiD_01.png",
        "ground_truth_by_type/EX/IDRiD_02_EX.tif",
        "ground_truth_by_type/MA/dr/IDRiD_01_MA.tif",
        "ground_truth_by_type/SE/IDRiD_09.png",
    )
    dataset = discover(root)
    first, second = dataset.select("test")
    assert [kind for kind, _ in first.mask_paths_by_type] == ["EX", "MA"]
    assert first.mask_paths_by_type[1][1].endswith("MA/dr/IDRiD_01_MA.tif")
    assert [kind for kind, _ in second.mask_paths_by_type] == ["EX"]
    assert first.mask_path.endswith("ground_truth/dr/IDRiD_01.png")
    assert second.mask_path is None
    assert len(dataset) == 3
    assert any("1 SE masks belong to no image" in note for note in dataset.notes)
    assert "masks by type: EX 2 MA 1" in dataset.describe()


def test_visa_as_one_class(tree):
    root = tree("train/good/0.JPG", "test/good/1.JPG", "test/bad/2.JPG", "ground_truth/bad/2.png")
    dataset = discover(root)
    assert dataset.layout == "visa"
    assert told(dataset)["test/bad/2.JPG"] == ("test", 1, "bad", "ground_truth/bad/2.png")


def test_visa_as_published(tree):
    root = tree(
        "candle/Data/Images/Normal/0000.JPG",
        "candle/Data/Images/Anomaly/000.JPG",
        "candle/Data/Masks/Anomaly/000.png",
        "candle/image_anno.csv",
    )
    for source in (root, root / "candle"):
        dataset = discover(source)
        assert dataset.layout == "visa"
        assert [item.label for item in dataset.items] == [1, 0]
        assert dataset.items[0].mask_path.endswith("Masks/Anomaly/000.png")
        assert dataset.items[1].mask_path is None


@pytest.mark.parametrize("masks", ["anomaly_mask", "label"])
def test_bmad(tree, masks):
    root = tree(
        "train/good/0.png",
        "train/good/img/1.png",
        "valid/good/img/0.png",
        "valid/Ungood/img/0.png",
        f"valid/Ungood/{masks}/0.png",
        "test/good/img/0.png",
        "test/Ungood/img/0.png",
        "test/Ungood/img/1.png",
        f"test/Ungood/{masks}/0.png",
    )
    dataset = discover(root)
    assert dataset.layout == "bmad"
    what = told(dataset)
    assert what["train/good/img/1.png"] == ("train", 0, "good", None)
    assert what["valid/good/img/0.png"] == ("val", 0, "good", None)
    assert what["valid/Ungood/img/0.png"] == ("val", 1, "Ungood", f"valid/Ungood/{masks}/0.png")
    assert what["test/Ungood/img/0.png"] == ("test", 1, "Ungood", f"test/Ungood/{masks}/0.png")
    assert what["test/Ungood/img/1.png"][3] is None
    assert len(what) == 7


@pytest.mark.parametrize("healthy", ["normal", "NORMAL", "healthy", "0_normal", "No_DR", "good"])
def test_image_folder(tree, healthy):
    root = tree(
        f"train/{healthy}/a.jpg", f"val/{healthy}/b.jpg", "test/AMD/c.jpg", f"test/{healthy}/d.jpg"
    )
    dataset = discover(root)
    assert dataset.layout == ("mvtec" if healthy == "good" else "imagefolder")
    labels = {item.id: (item.split, item.label) for item in dataset.items}
    assert labels == {
        f"train/{healthy}/a.jpg": ("train", 0),
        f"val/{healthy}/b.jpg": ("val", 0),
        "test/AMD/c.jpg": ("test", 1),
        f"test/{healthy}/d.jpg": ("test", 0),
    }


def test_grades_as_folders(tree):
    dataset = discover(tree("train/0/a.jpg", "test/0/b.jpg", "test/2/c.jpg", "test/10/d.jpg"))
    assert [(i.class_name, i.label) for i in dataset.items] == [
        ("0", 0),
        ("10", 1),
        ("2", 1),
        ("0", 0),
    ]


def test_classes_of_which_none_is_healthy(tree):
    dataset = discover(tree("train/amd/a.jpg", "train/dr/b.jpg"))
    assert {item.label for item in dataset.items} == {None}
    assert any("labels are unknown" in note for note in dataset.notes)
    with pytest.raises(DataError, match="no healthy images among the 2 .* good, normal or healthy"):
        dataset.healthy_for_fit()


def test_splits_without_classes(tree):
    dataset = discover(tree("train/a.jpg", "train/images/b.jpg", "test/c.jpg"))
    assert dataset.layout == "splits"
    assert told(dataset)["train/images/b.jpg"] == ("train", None, None, None)
    assert [item.id for item in dataset.healthy_for_fit()] == ["train/a.jpg", "train/images/b.jpg"]


@pytest.mark.parametrize("masks", ["mask", "masks", "ground_truth", "mask/abnormal"])
def test_flat_classes(tree, masks):
    root = tree(
        "normal/1.png", "normal/2.png", "abnormal/1.png", "abnormal/3.png", f"{masks}/1.png"
    )
    dataset = discover(root)
    assert dataset.layout == "classes"
    assert told(dataset) == {
        "abnormal/1.png": (None, 1, "abnormal", f"{masks}/1.png"),
        "abnormal/3.png": (None, 1, "abnormal", None),
        "normal/1.png": (None, 0, "normal", None),
        "normal/2.png": (None, 0, "normal", None),
    }
    assert [item.id for item in dataset.healthy_for_fit()] == ["normal/1.png", "normal/2.png"]


def test_flat_classes_and_images_beside_them(tree):
    dataset = discover(tree("healthy/1.png", "stray.png"))
    assert told(dataset)["stray.png"] == (None, None, None, None)
    assert "1 image in no class folder, and so without a label" in dataset.notes
    assert [item.id for item in dataset.healthy_for_fit()] == ["healthy/1.png"]


def test_masks_beside_their_images(tree):
    root = tree(
        "normal/n (1).png",
        "malignant/m (1).png",
        "malignant/m (1)_mask.png",
        "malignant/m (1)_mask_1.png",
        "malignant/gas_mask.png",
    )
    dataset = discover(root)
    assert told(dataset) == {
        "malignant/gas_mask.png": (None, 1, "malignant", None),
        "malignant/m (1).png": (None, 1, "malignant", "malignant/m (1)_mask.png"),
        "normal/n (1).png": (None, 0, "normal", None),
    }
    assert any(note.startswith("1 further masks") for note in dataset.notes)


def test_a_plain_folder(tree):
    root = tree(
        "b.jpg", "a.png", "patient 1/left.tif", "masks_union/a.png", "masks_by_type/EX/a.png"
    )
    dataset = discover(root)
    assert dataset.layout == "folder"
    assert told(dataset) == {
        "a.png": (None, None, None, "masks_union/a.png"),
        "b.jpg": (None, None, None, None),
        "patient 1/left.tif": (None, None, None, None),
    }
    assert dataset.items[0].mask_paths_by_type[0][0] == "EX"
    assert dataset.healthy_for_fit() == dataset.items
    assert [item.id for item in discover(root, recursive=False).items] == ["a.png", "b.jpg"]


def test_images_and_masks_in_sibling_folders(tree):
    dataset = discover(tree("images/a.jpg", "images/b.jpg", "masks/b.png", "masks/c.png"))
    assert told(dataset)["images/b.jpg"][3] == "masks/b.png"
    assert any("1 masks belong to no image, such as" in note for note in dataset.notes)


def test_a_mask_that_fits_several_images(tree):
    with pytest.raises(DataError, match="fits 2 images of the same name"):
        discover(tree("cut/1.png", "hole/1.png", "good/2.png", "mask/1.png"))
    # In MVTec's layout masks belong to the test images.
    cut = ("train/good/0.png", "train/cut/1.png", "test/cut/1.png", "ground_truth/cut/1.png")
    what = told(discover(tree(*cut, root="mvtec")))
    assert what["test/cut/1.png"][3] == "ground_truth/cut/1.png"
    assert what["train/cut/1.png"][3] is None


def test_two_masks_for_one_image(tree):
    root = tree("good/0.png", "dr/1.png", "ground_truth/dr/1.png", "ground_truth/dr/1_mask.png")
    dataset = discover(root)
    assert told(dataset)["dr/1.png"][3] == "ground_truth/dr/1_mask.png"
    assert dataset.notes == ("1 image with several masks; the one named …_mask is used",)


def test_what_counts_as_an_image(tree, tmp_path):
    root = tree("a.png", "._a.png", ".hidden/b.png", "__MACOSX/c.png", "noext", "Thumbs.db")
    (root / "scan").write_bytes(b"\xff\xd8\xff\xe0")
    (root / "dicom").write_bytes(b"\0" * 128 + b"DICM")
    (root / "movie.gif").write_bytes(b"GIF89a")
    (root / "broken.jpg").write_bytes(b"")
    (root / "notes").write_text("hello")
    (root / "x.jpg").mkdir()
    dataset = discover(root)
    assert sorted(told(dataset)) == ["a.png", "broken.jpg", "dicom", "movie.gif", "noext", "scan"]
    assert dataset.ignored == 2  # notes, Thumbs.db; hidden ones do not count


def test_links(tree, tmp_path):
    root = tree("a.png", "sub/b.png")
    tree("c.png", root="elsewhere")
    (root / "up").symlink_to(root)
    (root / "sub" / "other").symlink_to(tmp_path / "elsewhere")
    (root / "loop.png").symlink_to(root / "loop.png")
    dataset = discover(root)
    assert sorted(told(dataset)) == ["a.png", "loop.png", "sub/b.png", "sub/other/c.png"]
    assert dataset.notes == ("the link up leads back to a folder above it; not followed",)


def test_odd_names(tree):
    root = tree("a\nb.png", "Auge 👁.png", "c' \".png")
    with open(os.fsencode(root) + b"/\xff.png", "wb") as file:
        file.write(PNG)
    dataset = discover(root)
    assert [item.id for item in dataset.items] == [
        "Auge 👁.png",
        "a\nb.png",
        "c' \".png",
        "\\xff.png",
    ]
    assert all(os.path.isfile(item.path) for item in dataset.items)
    assert all(item.id.encode() for item in dataset.items)


def test_a_folder_that_cannot_be_read_is_said(tree, monkeypatch):
    root = tree("a.png", "locked/b.png")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert discover(root).notes == ("the folder locked cannot be read: Permission denied",)


def test_nothing_there(tree, tmp_path):
    root = tree("train/good/a.png", root="fundus")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in .*: the folder is empty"):
        discover(tmp_path / "empty")
    (tmp_path / "empty" / "scan.xyz").write_text("")
    with pytest.raises(DataError, match=r"no images in .*: it holds 1 \.xyz; wanted are JPEG"):
        discover(tmp_path / "empty")
    with pytest.raises(DataError, match=r"no images in .*its folders were not searched"):
        discover(root, recursive=False)
    with pytest.raises(DataError, match="does not exist; did you mean .*fundus"):
        discover(tmp_path / "fundsu" / "train")
    with pytest.raises(DataError, match="does not exist; the folder .* has no zzz"):
        discover(tmp_path / "zzz")
    with pytest.raises(DataError, match="holds 1 masks and no images"):
        discover(tree("ground_truth/dr/a.png", root="only masks"))


def test_no_healthy_images_to_learn_from(tree):
    with pytest.raises(DataError, match="no images in the split train"):
        discover(tree("test/good/a.png", "test/dr/b.png")).healthy_for_fit()
    with pytest.raises(DataError, match="no healthy images among the 1"):
        discover(tree("train/dr/a.png", "test/good/a.png", root="b")).healthy_for_fit()


def test_the_same_tree_gives_the_same_data_set(tree):
    root = tree(*(f"train/good/{i % 7}{i}.png" for i in range(40)), "test/x/1.png")
    assert discover(root) == discover(root)


def test_selection():
    items = tuple(
        Item(str(i), "", label=label, split=split)
        for i, (label, split) in enumerate([(0, "train"), (0, "test"), (1, "test"), (None, "val")])
    )
    dataset = Dataset(items, "manifest", ".")
    assert [i.id for i in dataset.select("test")] == ["1", "2"]
    assert [i.id for i in dataset.select(label=0)] == ["0", "1"]
    assert [i.id for i in dataset.select("test", 1)] == ["2"]
    assert [i.id for i in dataset.healthy_for_fit()] == ["0"]
    assert len(dataset.select()) == len(dataset) == 4
    with pytest.raises(ValueError, match="train, val, test"):
        dataset.select("valid")


@pytest.mark.parametrize(
    "train, val, expected",
    [
        ("0 0", "0 1", ("t0 t1", "v0")),
        ("0 1", "- -", ("t0", "v0 v1")),  # no label in val: healthy, as in train
        ("- -", "- -", ("t0 t1", "v0 v1")),
        ("0 -", "0 -", ("t0", "v0")),  # some labelled: the others are unknown
        ("0", "1 -", ("t0", "")),
        ("0", "", ("t0", "")),
    ],
)
def test_healthy_images_of_train_and_val(train, val, expected):
    def items(split, labels):
        values = [None if label == "-" else int(label) for label in labels.split()]
        return [Item(f"{split[0]}{i}", "", label=v, split=split) for i, v in enumerate(values)]

    every = (*items("train", train), *items("val", val), Item("e", "", label=0, split="test"))
    dataset = Dataset(every, "manifest", ".")
    found = tuple(" ".join(i.id for i in dataset.healthy(split)) for split in ("train", "val"))
    assert found == expected
    assert dataset.healthy_for_fit() == dataset.healthy("train")


def test_healthy_images_without_splits_and_with_classes():
    plain = Dataset((Item("a", ""), Item("b", "")), "folder", ".")
    assert (plain.healthy("train"), plain.healthy("val")) == (plain.items, ())
    classed = Dataset((Item("a", "", class_name="x", split="val"),), "imagefolder", ".")
    assert (classed.healthy("train"), classed.healthy("val")) == ((), ())
    with pytest.raises(ValueError, match="train or val"):
        plain.healthy("test")


def test_what_was_understood_is_described(tree):
    root = tree(
        "train/good/0.png",
        "train/good/1.png",
        "test/good/0.png",
        "test/dr/0.png",
        "ground_truth/dr/0.png",
        "readme.txt",
    )
    assert discover(root).describe() == (
        f"{root}: 4 images, layout mvtec\n"
        "  train: 2 healthy (good)\n"
        "  test: 1 healthy (good), 1 abnormal (dr), 1 mask\n"
        "  ignored: 1 other file"
    )


def test_messages_stay_on_one_line():
    assert show("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    assert show(os.fsdecode(b"\xff")) == "\\udcff"
    assert show("Auge 👁") == "Auge 👁"
    long = show("x" * 500)
    assert len(long) == 201
    assert "…" in long


def test_real_packs_without_their_manifests(packs):
    for name, layout, counts in (
        ("idrid_512", "mvtec", (60, 29, 54, 54)),
        ("hrf_1024", "mvtec", (10, 5, 30, 0)),
    ):
        # The manifest is used where it lies at the root: a pattern does not see it.
        dataset = discover(packs / name)
        assert dataset.layout == "manifest"
        assert any(note.startswith("manifest.csv says") for note in dataset.notes)
        by_folder = dataset_of(packs / name)
        assert by_folder.layout == layout
        for found in (dataset, by_folder):
            masks = sum(item.mask_path is not None for item in found.items)
            assert counts == (
                len(found.select("train", 0)),
                len(found.select("test", 0)),
                len(found.select("test", 1)),
                masks,
            )
        paths = {os.path.realpath(item.path): item for item in dataset.items}
        for item in by_folder.items:
            other = paths[os.path.realpath(item.path)]
            assert (item.label, item.split, item.mask_path, item.mask_paths_by_type) == (
                other.label,
                other.split,
                other.mask_path,
                other.mask_paths_by_type,
            )


def dataset_of(root):
    """The folder read by its folders, as if it had no manifest."""
    from fundad_fast.data import folders
    from fundad_fast.data.listing import list_images

    return folders._by_folders(str(root), list_images(str(root)), True)
