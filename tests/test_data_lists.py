# SPDX-License-Identifier: Apache-2.0
"""A single file, a pattern, a list: inputs that are named one by one."""

import pytest
from trees import PNG, make_tree

from fundad_fast.data import DataError, Item, discover


@pytest.fixture
def tree(tmp_path):
    """Makes files (of the extension's kind by name only) and gives the root."""
    return lambda *paths: make_tree(tmp_path / "data", *paths)


def test_a_single_file(tree, tmp_path):
    root = tree("a.png", "b.xyz")
    dataset = discover(root / "a.png")
    assert (dataset.layout, dataset.root) == ("file", str(root))
    assert dataset.items == (Item("a.png", str(root / "a.png")),)
    (root / "b.xyz").write_text("?")
    with pytest.raises(DataError, match="neither an image nor a manifest"):
        discover(root / "b.xyz")
    (root / "loop.png").symlink_to(root / "loop.png")
    assert len(discover(root / "loop.png")) == 1  # becomes a row that says why


def test_a_pattern(tree, monkeypatch):
    root = tree("x/1.png", "x/2.jpg", "y/deep/3.png", "x/masks/1.png", "x/4.txt")
    dataset = discover(f"{root}/**/*")
    assert (dataset.layout, dataset.root) == ("glob", str(root))
    assert [item.id for item in dataset.items] == ["x/1.png", "x/2.jpg", "y/deep/3.png"]
    assert dataset.notes == ("1 mask: not taken for images",)
    assert [item.id for item in discover(f"{root}/x/?.png").items] == ["1.png"]
    with pytest.raises(DataError, match="matches no image among 1 files; .. stands for folders"):
        discover(f"{root}/x/*.txt")
    with pytest.raises(DataError, match="matches no image;"):
        discover(f"{root}/q/*.png")
    monkeypatch.chdir(root)
    assert [item.id for item in discover("x/*.jpg").items] == ["2.jpg"]
    # A file whose name looks like a pattern is a file.
    (root / "a[1].png").write_bytes(PNG)
    assert discover(root / "a[1].png").layout == "file"


def test_a_list(tree):
    root = tree("b.png", "a.png")
    dataset = discover([root / "b.png", str(root / "a.png")])
    assert dataset.layout == "list"
    assert [item.id for item in dataset.items] == [str(root / "b.png"), str(root / "a.png")]
    with pytest.raises(DataError, match="is listed twice"):
        discover([root / "a.png", root / "b.png", root / "a.png"])
    with pytest.raises(DataError, match="list of images is empty"):
        discover([])
    with pytest.raises(DataError, match="holds int"):
        discover([3])


def test_masks_and_manifests_that_a_pattern_matches_are_no_images(tree):
    root = tree(
        "x.jpg", "x_mask.png", "x_mask_2.png", "y_mask.png", "z_mask.png", "gt/x.png", "notes"
    )
    (root / "z.txt").write_text("no image")
    for name in ("manifest.csv", "table.parquet"):
        (root / name).write_text("path\n")
    dataset = discover(f"{root}/**/*")
    # The images of y_mask and z_mask are not there: these are images of odd names.
    assert [item.id for item in dataset.items] == ["notes", "x.jpg", "y_mask.png", "z_mask.png"]
    assert dataset.notes == ("3 masks and 2 manifests: not taken for images",)
    assert dataset.ignored == 1  # z.txt; what is called notes has the first bytes of an image
    # Also where the pattern leaves the image out.
    assert [i.id for i in discover(f"{root}/*.png").items] == ["y_mask.png", "z_mask.png"]
    with pytest.raises(DataError, match="matches no image among 1 files"):
        discover(f"{root}/x_mask.p*")


def test_masks_and_manifests_in_a_list_are_no_images(tree, monkeypatch):
    root = tree("a/x.jpg", "a/x_mask.png", "a/y_mask.png", "gt/x.png", "manifest.csv")
    names = ["a/x.jpg", "a/x_mask.png", "a/y_mask.png", "gt/x.png", "manifest.csv", "b/gone.png"]
    monkeypatch.chdir(root)
    dataset = discover(names)
    assert [item.id for item in dataset.items] == ["a/x.jpg", "a/y_mask.png", "b/gone.png"]
    assert dataset.notes == ("2 masks and 1 manifest: not taken for images",)
    assert [item.id for item in discover([root / "a" / "x.jpg"]).items] == [str(root / "a/x.jpg")]
    # A folder that all of them lie in says nothing, as with a folder that is given by its name.
    assert [item.id for item in discover(["gt/x.png"]).items] == ["gt/x.png"]
    assert discover(["gone/q_mask.png"]).items[0].id == "gone/q_mask.png"
    with pytest.raises(DataError, match="no images, but 1 mask and 1 manifest:"):
        discover(["a/x_mask.png", "manifest.csv"])
