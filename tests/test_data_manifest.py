# SPDX-License-Identifier: Apache-2.0
"""Manifests: columns, aliases, labels, and a message for every mistake."""

import os

import numpy as np
import pytest

from fundad_fast.data import DataError, Item, discover

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def table(tmp_path):
    """Writes a manifest beside files a.png ... e.png, and gives its path."""
    for name in "abcde":
        (tmp_path / f"{name}.png").write_bytes(PNG)

    def write(text, name="list.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write


def wrong(path, *words):
    with pytest.raises(DataError) as caught:
        discover(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_every_column(table, tmp_path):
    dataset = discover(
        table(
            "path,id,label,split,mask_path,patient_id,laterality,group,class,age\n"
            "a.png,first,0,train,,7,OD,site A,good,61\n"
            "b.png,,1,Test,m/b.png,8,L,,dr,\n"
            f"{tmp_path}/c.png,,,,,,,,,\n"
        )
    )
    assert dataset.layout == "manifest"
    assert dataset.items == (
        Item(
            "first",
            str(tmp_path / "a.png"),
            label=0,
            class_name="good",
            split="train",
            patient_id="7",
            laterality="OD",
            group="site A",
        ),
        Item(
            "b.png",
            str(tmp_path / "b.png"),
            label=1,
            class_name="dr",
            split="test",
            mask_path=str(tmp_path / "m/b.png"),
            patient_id="8",
            laterality="L",
        ),
        Item(f"{tmp_path}/c.png", str(tmp_path / "c.png")),
    )
    assert dataset.notes == ("columns not used: age",)


def test_rows_keep_their_order(table):
    assert [i.id for i in discover(table("path\nc.png\na.png\nb.png\n")).items] == [
        "c.png",
        "a.png",
        "b.png",
    ]


@pytest.mark.parametrize(
    "label, class_name, expected",
    [
        ("0", "", (0, None)),
        ("1", "", (1, None)),
        ("0.0", "", (0, None)),
        ("1.0", "", (1, None)),
        ("True", "", (1, None)),
        ("false", "", (0, None)),
        ("NA", "", "must be"),
        ("good", "", (0, "good")),
        ("Normal", "", (0, "Normal")),
        ("healthy", "", (0, "healthy")),
        ("drusen", "", (1, "drusen")),
        ("", "", (None, None)),
        ("", "good", (0, "good")),
        ("", "amd", (1, "amd")),
        ("0", "site B", (0, "site B")),
        ("dr", "severe", (1, "severe")),
        ("1", "normal", "contradicts"),
        ("2", "", "must be 0 (healthy), 1 (abnormal), a class name or empty"),
        ("-1", "", "must be"),
        ("0.5", "", "must be"),
        ("nan", "", "must be"),
    ],
)
def test_labels(table, label, class_name, expected):
    path = table(f"path,label,class\nb.png,0,\na.png,{label},{class_name}\n")
    if isinstance(expected, str):
        wrong(path, "list.csv, line 3", expected)
    else:
        item = discover(path).items[1]
        assert (item.label, item.class_name) == expected


@pytest.mark.parametrize("header", ["image_path,label_index", " Path , LABEL ", "path,label_index"])
def test_aliases_and_spelling(table, header):
    dataset = discover(table(f"{header}\na.png,1\nb.png,0\n"))
    assert [item.label for item in dataset.items] == [1, 0]
    assert dataset.notes == ()


def test_an_alias_beside_the_real_name_is_not_used(table):
    dataset = discover(table("path,image_path\na.png,b.png\n"))
    assert dataset.items[0].id == "a.png"
    assert dataset.notes == ("columns not used: image_path",)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_and_byte_order_mark(table, separator):
    text = f"path{separator}label\r\na.png{separator}1\r\n\r\nb.png{separator}0\r\n"
    dataset = discover(table("\ufeff" + text, name="list.tsv" if separator == "\t" else "list.csv"))
    assert [(item.id, item.label) for item in dataset.items] == [("a.png", 1), ("b.png", 0)]


def test_names_with_separators_line_breaks_and_spaces(table, tmp_path):
    for name in ("x, y.png", "p\nq.png", "end "):
        (tmp_path / name).write_bytes(PNG)
    path = table('path,label\n"x, y.png",0\n"p\nq.png",1\n"end ",0\nz.png,7\n')
    wrong(path, "list.csv, line 6", "'7'")  # a line of the file, also after a broken name
    path = table('path,label\n"x, y.png",0\n"p\nq.png",1\n"end ",0\n')
    assert all(os.path.exists(item.path) for item in discover(path).items)


def test_mistakes(table, tmp_path):
    wrong(table("image,label\na.png,0\n"), "no column named path", "rename the column image")
    wrong(table("x,y\na.png,0\n"), "no column named path", "its columns are x, y")
    wrong(table(""), "is empty")
    wrong(table("path,label\n"), "a header and no rows")
    wrong(table("path,label\n,1\n"), "line 2: the path is empty")
    wrong(table("path,split\na.png,train\nb.png,dev\n"), "line 3", "'dev'", "train, val, test")
    wrong(table("path,label\na.png,0,1\n"), "line 2: 3 cells under 2 columns", "quotes")
    wrong(table("path\na.png\nb.png\na.png\n"), "a.png", "listed twice")
    wrong(table("path,id\na.png,x\nb.png,x\n"), "the id x names two images", "a.png", "b.png")
    wrong(table("path\nn/x.png\nn/y.png\n"), "none of the first 2 files", "n/x.png")
    wrong(table("path\nkäse.png\n", encoding="latin-1"), "UTF-8")
    (tmp_path / "list.parquet").write_bytes(b"not parquet")
    wrong(tmp_path / "list.parquet", "not a Parquet table")
    (tmp_path / "list.csv").unlink()
    (tmp_path / "list.csv").symlink_to(tmp_path / "list.csv")
    wrong(tmp_path / "list.csv", "cannot be read")


def test_a_file_that_is_missing_becomes_a_row(table):
    assert len(discover(table("path\nmissing.png\na.png\n"))) == 2


def test_short_rows_have_empty_cells(table):
    assert discover(table("path,label\na.png\n")).items[0].label is None


def parquet(file, /, **columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), file, row_group_size=30_000)
    return file


def test_parquet(table, tmp_path):
    path = parquet(
        tmp_path / "list.parquet",
        path=["a.png", "b.png", "c.png", "d.png", "e.png"],
        label=[0, 1, 0, 1, None],
        patient_id=np.array([1.0, 1.0, np.nan, 2.0, 2.5]),
        split=["train", None, "val", "test", "valid"],
        extra=[1, 2, 3, 4, 5],
    )
    dataset = discover(path)
    assert [item.label for item in dataset.items] == [0, 1, 0, 1, None]
    assert [item.patient_id for item in dataset.items] == ["1", "1", None, "2", "2.5"]
    assert [item.split for item in dataset.items] == ["train", None, "val", "test", "val"]
    assert dataset.items[4].path == str(tmp_path / "e.png")
    assert dataset.notes == ("columns not used: extra",)


def test_labels_of_parquet(table, tmp_path):
    path = parquet(tmp_path / "l.parquet", path=["a.png", "b.png"], label=np.array([1.0, np.nan]))
    assert [item.label for item in discover(path).items] == [1, None]
    path = parquet(tmp_path / "l.parquet", path=["a.png", "b.png"], label=[True, False])
    assert [item.label for item in discover(path).items] == [1, 0]
    path = parquet(tmp_path / "l.parquet", path=["a.png", "b.png", "c.png"], label=[0, 1, 3])
    wrong(path, "l.parquet, row 3", "'3'")


def test_rows_of_a_large_parquet_are_counted_through(table, tmp_path):
    n = 66_000  # more than pyarrow reads at a time
    path = parquet(tmp_path / "l.parquet", path=["a.png"] * n, label=[0] * (n - 1) + [5])
    wrong(path, "l.parquet, row 66000", "'5'")


# -- in folders ------------------------------------------------------------------------------------


def test_a_folders_manifest_is_used_and_said(table, tmp_path):
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "g.png").write_bytes(PNG)
    types = tmp_path / "ground_truth_by_type" / "EX"
    types.mkdir(parents=True)
    (types / "b.png").write_bytes(PNG)
    table("path,label,class\na.png,0,x\nb.png,1,dr\n", name="manifest.csv")
    dataset = discover(tmp_path)
    assert dataset.layout == "manifest"
    assert dataset.root == str(tmp_path)
    assert [item.id for item in dataset.items] == ["a.png", "b.png"]
    assert [item.label for item in dataset.items] == [0, 1]
    assert dataset.items[1].mask_paths_by_type == (("EX", str(types / "b.png")),)
    assert dataset.items[0].mask_paths_by_type == ()
    assert dataset.ignored == 0
    said = " ".join(dataset.notes)
    assert "manifest.csv says what the images are" in said
    assert "4 images in the folder not named in manifest.csv" in said


def test_a_manifest_without_paths_is_not_used_and_said(table, tmp_path):
    table("name,label\na,0\n", name="manifest.csv")
    dataset = discover(tmp_path)
    assert dataset.layout == "folder"
    assert len(dataset) == 5
    assert dataset.ignored == 0
    assert dataset.notes == ("manifest.csv is not used: it has no column named path",)


def test_two_manifests_are_ambiguous(table, tmp_path):
    table("path\na.png\n", name="manifest.csv")
    parquet(tmp_path / "manifest.parquet", path=["b.png"])
    wrong(tmp_path, "manifest.csv and manifest.parquet", "by its path")


def test_another_csv_in_a_folder_is_ignored(table, tmp_path):
    table("path\na.png\n", name="results.csv")
    dataset = discover(tmp_path)
    assert (dataset.layout, len(dataset), dataset.ignored) == ("folder", 5, 1)


def test_a_wrong_manifest_in_a_folder_is_not_passed_over(table, tmp_path):
    table("path,label\na.png,9\n", name="manifest.csv")
    wrong(tmp_path, "manifest.csv, line 2", "'9'")


def test_real_packs(packs):
    dataset = discover(packs / "idrid_512")
    assert (len(dataset.select("train", 0)), len(dataset.select("test", 1))) == (60, 54)
    assert all(item.mask_path for item in dataset.select(label=1))
    assert len({kind for i in dataset.items for kind, _ in i.mask_paths_by_type}) == 5
    assert len(dataset.healthy_for_fit()) == 60
