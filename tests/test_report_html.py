# SPDX-License-Identifier: Apache-2.0
"""The static report: what it says of run folders of many kinds, good and bad."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fundad_fast.report import write_report
from fundad_fast.run_folder import overlay_path

NASTY = "</script><script>alert(1)</script> \"q\" 's' & \n眼底 😀/img"
SIZE = 48
GRID = 12
KEYS = {
    "model", "schema", "method", "preset", "id", "input", "layout", "created", "notes", "config",
    "trained_on", "thresholds", "image", "pixel", "rule", "target_fpr", "colour_scale", "settings",
    "environment", "metrics", "image_AUROC", "groups", "definition", "reason", "normal_scores",
    "input_spec", "image_size",
}  # fmt: skip
MARKED = ("id", "error", "class", "patient_id", "laterality", "map_path")
VOID = {"meta", "img", "input", "br", "link", "hr"}


def make_run(
    folder: Path,
    n: int = 6,
    *,
    failed: int = 2,
    labels: bool = True,
    maps: bool = True,
    images: int | None = None,
    parts: int = 2,
    model: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """A run folder as score and eval write it; returns its rows.

    Image i scores i; odd ones are abnormal and have a lesion; the map is hot where the lesion is.
    The threshold is n / 2. Only the first ``images`` photographs exist (default: all).
    """
    rows: list[dict[str, Any]] = []
    source = folder.parent / "source"
    source.mkdir(parents=True, exist_ok=True)
    (folder / "maps").mkdir(parents=True)
    (folder / "scores").mkdir()
    rng = np.random.default_rng(0)
    step = SIZE / GRID
    affine = np.array([[step, 0, step / 2 - 0.5], [0, step, step / 2 - 0.5]])
    for i in range(n):
        path, abnormal = source / f"{i}.png", i % 2 == 1
        values = np.zeros((GRID, GRID), np.float16)
        if abnormal:
            values[4:7, 2:5] = 8
        if images is None or i < images:
            photo = rng.integers(60, 120, (SIZE, SIZE, 3), dtype=np.uint8)
            cv2.imwrite(str(path), photo)
            mask = np.uint8(255) * (values > 0).repeat(4, 0).repeat(4, 1)
            cv2.imwrite(str(source / f"{i}_mask.png"), mask)
        if maps:
            np.savez(folder / "maps" / f"{i}.npz", map=values, affine=affine)
        row = {
            "id": NASTY if i == 0 else f"image {i}", "path": str(path), "status": "ok",
            "error": None, "width": SIZE, "height": SIZE, "fov_status": "ok", "fov_cx": 23.5,
            "fov_cy": 23.5, "fov_r": 22.0, "fov_box": [0, 0, SIZE, SIZE],
            "score": float(i), "score_pct": 100.0 * i / n,
            "pred_label": int(i > n / 2), "map_path": f"maps/{i}.npz" if maps else None,
            "bytes": path.stat().st_size if path.exists() and i != 5 else None,
            "regions": [{"x": 8, "y": 16, "w": 12, "h": 12, "area": 144, "score": 8.0}] * abnormal,
        }  # fmt: skip
        if labels:
            row |= {"gt_label": int(abnormal), "class": "dr" if abnormal else "good"}
            row["mask_path"] = str(source / f"{i}_mask.png") if abnormal else None
        rows.append(row)
    for i in range(failed):
        reason = f"broken <b>{i}</b>"
        rows.append({"id": f"bad {i}", "path": "gone", "status": "unreadable", "error": reason})
    schema = {
        "score": pa.float32(), "gt_label": pa.int8(), "class": pa.string(), "error": pa.string(),
    }  # fmt: skip
    for k in range(parts):
        chunk = rows[k::parts]
        if chunk:
            names = [name for name in rows[0] if name not in schema] if n else ["id", "status"]
            table = pa.table({
                **{name: [row.get(name) for row in chunk] for name in names},
                **{name: pa.array([r.get(name) for r in chunk], t) for name, t in schema.items()},
            })  # fmt: skip
            pq.write_table(table, folder / "scores" / f"part-{k:05d}.parquet")
    about = {
        "schema": 1, "kind": "eval" if labels else "score", "created": "2026-01-02T03:04:05+0000",
        "input": str(source), "layout": "flat <folder>", "notes": ["a <note>"],
        "model": {
            "id": "abc", "method": "ReSAD", "preset": "quick", "config": {"a": {"b<": [1, 2.5]}},
            "input_spec": {"image_size": 64}, "trained_on": {"images": 31},
            "thresholds": {
                "image": {"value": n / 2, "rule": "the <rule>", "target_fpr": 0.05, "n": 31},
                "pixel": {"value": 4.0, "rule": "r", "n": 31},
            },
            "colour_scale": {"lo": 1.0, "hi": 8.0, "rule": "r"},
            "normal_scores": [0.5, 1.0, 1.5, 2.0],
            **(model or {}),
        },
        "settings": {"save_maps": maps}, "environment": {"torch": "9.8.7"}, "seconds": 1.5,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    if labels:
        one = {"value": 0.875, "lo": 0.75, "hi": 0.96, "n": n, "definition": "Area < curve."}
        none = {"value": None, "lo": None, "hi": None, "n": 0, "definition": "D", "reason": "why"}
        metrics = {
            "schema": 1,
            "metrics": {"image_AUROC": one, "image_FPR_threshold": one, "pixel_AP": none},
            "groups": {"class": {"dr": {"image_AUROC": one}}, "group": {}},
            "settings": {"n_boot": 7},
        }
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return rows


class Page(html.parser.HTMLParser):
    """Checks that elements nest, and collects text, attributes and elements."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.raw: dict[str, str] = {}
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.raw[f"{self.open[-1]} {self.elements[-1][1].get('id')}"] = data
        else:
            self.text += data

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [a for _, a in self.elements if name in (a.get("class") or "").split()]

    def data(self) -> dict[str, Any]:
        return dict(json.loads(self.raw["script data"]))


def report(folder: Path, **options: Any) -> Page:
    path = write_report(folder, **options)
    assert path == folder / "report.html"
    return Page(path)


def test_an_evaluation_says_all_that_it_should(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 7)
    page = report(tmp_path / "run")
    assert "healthy in this run (4)" in page.text
    for phrase in (
        "For research use; no clinical claim", "ReSAD · preset quick", "2026-01-02T03:04:05+0000",
        "31 healthy images", "the <rule>", "a <note>", "flat <folder>", "0.875", "0.750–0.960",
        "Area < curve.", "why", "ROC curve", "Precision and recall", "broken <b>0</b>", "a.b<",
        "1, 2.5", "9.8.7", "n_boot", "By class", "held-out healthy (4)", "abnormal in this run (3)",
    ):  # fmt: skip
        assert phrase in page.text, phrase
    tiles = re.findall(r'<div class="tile"><b>(.*?)</b><span>(.*?)</span>', page.source)
    assert {name: value for value, name in tiles} == {
        "images": "9", "scored": "7", "flagged": "3", "not scored": "2", "image AUROC": "0.875",
        "of the healthy flagged": "87.5\u00a0%",
    }  # fmt: skip


def test_the_gallery_is_worst_first_with_pictures_and_outcomes(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    page = report(tmp_path / "run")
    cards = page.with_class("card")
    assert [card["id"] for card in cards] == [f"image-{k}" for k in range(1, 7)]
    names = re.findall(r'<h3 class="id">(.*?)</h3>', page.source, re.S)
    assert names[:5] == [f"image {i}" for i in (5, 4, 3, 2, 1)]
    # Above 3: 5 (abnormal) and 4 (healthy). 3 lies at the threshold and so is not flagged.
    assert [card["data-flag"] for card in cards] == ["1", "1", "0", "0", "0", "0"]
    assert [card["data-outcome"] for card in cards] == ["", "alarm", "missed", "", "missed", ""]
    pictures = [a for tag, a in page.elements if tag == "img"]
    assert len(pictures) == 12
    assert len(page.with_class("switch")) == 1
    assert len([a for _, a in page.elements if "data-layer" in a]) == 3
    assert all((a["src"] or "").startswith("data:image/jpeg;base64,") for a in pictures)
    assert all(a["alt"] for a in pictures)
    assert "<summary>1 above the pixel threshold" in page.source
    assert "8.000 at x 8, y 16, 12 × 12 px" in page.text


def test_where_a_row_is_full_of_regions_they_are_called_the_worst(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 2, parts=1)
    part = tmp_path / "run/scores/part-00000.parquet"
    table = pq.read_table(part)
    rows = table.to_pylist()
    for n, words in ((9, "<summary>9 above"), (10, "<summary>the worst 10 above")):
        rows[1]["regions"] = rows[1]["regions"][:1] * n
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), part)
        page = report(tmp_path / "run")
        assert words in page.source


def test_outlines_and_boxes_lie_where_the_lesion_is(tmp_path: Path) -> None:
    """Map cells 2..4 × 4..6 are original pixels 8..19 × 16..27; the picture has their size."""
    make_run(tmp_path / "run", 2)
    page = report(tmp_path / "run")

    def box(path: str) -> tuple[int, int, int, int]:
        points = np.array(re.findall(r"(\d+) (\d+)", path), int)
        return (*points.min(0).tolist(), *points.max(0).tolist())

    lesions = [a["d"] for a in page.with_class("lesions") if a.get("d")]
    assert [box(path or "") for path in lesions] == [(7, 15, 20, 28)]  # one pixel outside
    hot = [a["d"] or "" for a in page.with_class("hot") if a.get("d")]
    assert len(hot) == 1
    assert box(hot[0]) == (8, 16, 19, 27)  # bilinear: half of 8 is reached at the cells' borders
    rect = next(a for tag, a in page.elements if tag == "rect" and "x" in a and "rx" not in a
                and a.get("class") != "hover")  # fmt: skip
    assert [rect[k] for k in ("x", "y", "width", "height")] == ["8.0", "16.0", "12.0", "12.0"]


def test_strings_from_outside_stay_text(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    page = report(tmp_path / "run")
    scripts = [a for tag, a in page.elements if tag == "script"]
    assert [a.get("type") for a in scripts] == ["application/json", None]
    assert "<script>alert" not in page.source
    assert NASTY in page.text
    assert page.data()["id"][-3] == NASTY
    assert page.text.count("broken <b>") == 2


def test_no_string_at_all_can_become_an_element(tmp_path: Path) -> None:
    """Every string of every file of the run, names of settings included, carries a <q>."""

    def marked(content: Any) -> Any:
        if isinstance(content, dict):
            kept = content.keys() & {"value", "lo", "hi", "n"}
            return {k if k in KEYS or kept else f"{k}<q>": marked(v) for k, v in content.items()}
        if isinstance(content, list):
            return [marked(value) for value in content]
        return f'"<q>{content}' if isinstance(content, str) else content

    run = tmp_path / "run"
    make_run(run)
    for name in ("run.json", "metrics.json"):
        content = json.loads((run / name).read_text(encoding="utf-8"))
        (run / name).write_text(json.dumps(marked(content)), encoding="utf-8")
    for part in (run / "scores").iterdir():
        rows = pq.read_table(part).to_pylist()
        for row in rows:
            row |= {"patient_id": "p", "laterality": "L", "class": row["class"] or "c"}
            row |= {k: f'"<q>{row[k]}' for k in MARKED if row[k] is not None}
        pq.write_table(pa.Table.from_pylist(rows), part)
    page = report(run)
    assert page.source.count("&lt;q&gt;") > 50
    assert not [tag for tag, _ in page.elements if tag == "q"]
    assert "<" not in page.raw["script data"]


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    page = report(tmp_path / "run")
    assert not [tag for tag, _ in page.elements if tag in ("link", "iframe", "object")]
    for _, attributes in page.elements:
        for name in ("src", "href", "data", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/jpeg", "#")), value
    assert not re.findall(r"url\((?!#turbo)", page.source)
    policy = next(a for tag, a in page.elements if a.get("http-equiv"))["content"] or ""
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/]{43}='", policy)


def test_rows_without_a_usable_score_are_not_ranked(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 3, failed=0, parts=1)
    part = tmp_path / "run" / "scores" / "part-00000.parquet"
    rows = pq.read_table(part).to_pylist()
    rows[1]["score"] = float("nan")
    rows[2] |= {"status": "failed", "score": 99.0}
    pq.write_table(pa.Table.from_pylist(rows), part)
    page = report(tmp_path / "run")
    assert page.data()["id"] == [NASTY, "image 1", "image 2"]
    assert page.data()["score"] == [0.0, None, 99.0]
    assert page.data()["ranked"] == 1
    assert "Failures (2)" in page.text


def test_flagged_means_the_rows_label_or_a_score_above_the_threshold(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 4, parts=1, model={"thresholds": {}})
    assert report(tmp_path / "run").data()["flag"] == [1, 0, 0, 0, -1, -1]
    part = tmp_path / "run" / "scores" / "part-00000.parquet"
    rows = [{**row, "pred_label": None} for row in pq.read_table(part).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), part)
    assert report(tmp_path / "run").data()["flag"] == [-1] * 6
    make_run(tmp_path / "other" / "run", 4, parts=1)
    (tmp_path / "other" / "run" / "scores" / "part-00000.parquet").write_bytes(part.read_bytes())
    assert report(tmp_path / "other" / "run").data()["flag"] == [1, 0, 0, 0, -1, -1]  # above 2


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    first = write_report(tmp_path / "run").read_bytes()
    assert write_report(tmp_path / "run", threads=1).read_bytes() == first


def test_a_run_without_labels_has_no_metrics(tmp_path: Path) -> None:
    make_run(tmp_path / "run", labels=False, failed=0)
    page = report(tmp_path / "run")
    assert "ROC" not in page.text
    anchors = [a["href"] for tag, a in page.elements if tag == "a" and "href" in a]
    assert anchors == [
        "#main", "#summary", "#scores", "#likeness", "#images", "#rows", "#settings"
    ]  # fmt: skip
    assert "this run (6)" in page.text
    assert "missed" not in page.text
    assert page.with_class("s-run")
    assert not page.with_class("s-abnormal")


def test_an_empty_run_and_one_of_failures_only(tmp_path: Path) -> None:
    make_run(tmp_path / "empty", 0, failed=0, labels=False)
    page = report(tmp_path / "empty")
    assert "This run has no images." in page.text
    assert "No image was scored." in page.text
    make_run(tmp_path / "bad", 0, failed=3, labels=False, model={"normal_scores": []})
    page = report(tmp_path / "bad")
    assert "Failures (3)" in page.text
    assert page.data()["status"] == [0, 0, 0]
    assert page.data()["score"] == [None, None, None]


def test_photographs_that_are_gone_are_said_to_be(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 4, images=2)
    overlays = tmp_path / "run" / "overlays"
    overlays.mkdir()
    cv2.imwrite(str(overlay_path(tmp_path / "run", "image 3")), np.full((80, 200, 3), 90, np.uint8))
    page = report(tmp_path / "run")
    assert page.text.count("the file is not there any more") == 2
    assert page.text.count("This is the overlay that was saved") == 1
    assert len(page.with_class("empty")) == 1
    assert len(page.with_class("single")) == 1
    assert len([tag for tag, _ in page.elements if tag == "img"]) == 5


def test_changed_damaged_and_missing_files_get_a_note(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 6)
    source, maps = tmp_path / "source", tmp_path / "run" / "maps"
    cv2.imwrite(str(source / "5.png"), np.zeros((20, 30, 3), np.uint8))
    (source / "4.png").write_bytes((source / "4.png").read_bytes()[:100])
    (source / "3_mask.png").unlink()
    (maps / "2.npz").unlink()
    (maps / "1.npz").write_bytes(b"no map")
    np.savez(maps / "0.npz", map=np.full((3, 3), np.nan), affine=np.eye(3)[:2])
    page = report(tmp_path / "run")
    assert len(re.findall("<img", page.source)) == 5 + 1  # no map for the changed one
    notes = re.findall(r"</dl>(.*?)</li>", page.source)
    for note, says in zip(
        notes,
        ("has changed", "photograph cannot be shown", "mask cannot be shown", "cannot be read",
         "cannot be read", "is damaged"),
    ):  # fmt: skip
        assert says in note, (says, note)


def test_deep_and_grey_images_are_shown_through_a_window(tmp_path: Path) -> None:
    rows = make_run(tmp_path / "run", 1, failed=0)
    ramp = np.linspace(1000, 5000, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)
    cv2.imwrite(rows[0]["path"], ramp)
    page = report(tmp_path / "run")
    assert "Shown from 1020 (black) to 4979 (white)." in page.text


def test_without_maps_only_the_photograph_is_shown(tmp_path: Path) -> None:
    make_run(tmp_path / "run", maps=False, model={"colour_scale": {}, "thresholds": {}})
    page = report(tmp_path / "run")
    assert len(page.with_class("single")) == 6
    assert not page.with_class("colour-key")
    assert "White outlines" not in page.text
    assert not page.with_class("switch")
    assert not [a for _, a in page.elements if "data-layer" in a]
    assert [a for _, a in page.elements if a.get("id") == "kind"]
