# SPDX-License-Identifier: Apache-2.0
"""Rows without names: nothing that says whose they are, and everything else as before."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from null_method import make_images, null_bundle, score_null, table

from fundad_fast.archive.deidentify import Hidden, key_of
from fundad_fast.archive.merge import merge_runs
from fundad_fast.archive.run import ScoreOptions, score_run
from fundad_fast.archive.sharding import Shard
from fundad_fast.data import Identifiers, Item, discover
from fundad_fast.run_folder import RunError, read_rows

KEY = bytes(range(32))
TELLING = ("Musterfrau", "P-7", "1.2.3", "2024-05-31", "20240531", "Linz")


@pytest.fixture
def archive(tmp_path):
    """Two eyes of one patient and one of another, in folders named after them; one is damaged."""
    dicoms = pytest.importorskip("dicoms")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    root = tmp_path / "Linz"
    for name, tags in (
        ("Musterfrau/L.dcm", {}),
        ("Musterfrau/R.dcm", {"ImageLaterality": "R"}),
        ("Huber/P-7.dcm", {"PatientID": "Huber"}),
    ):
        dicoms.write_dicom(root / name, pixels, PatientName="Musterfrau^Erika", **tags)
    (root / "Musterfrau" / "Musterfrau.png").write_bytes(b"\x89PNG no")
    return root


def score(source, out, key=KEY, **options):
    dataset = replace(discover(source), notes=("the folder Musterfrau cannot be read",))
    chosen = ScoreOptions(batch_size=2, threads=1, naming=Hidden(key), **options)
    return score_run(null_bundle(), dataset, dataset.items, out, options=chosen)


def test_nothing_in_the_run_folder_tells(archive, tmp_path):
    from fundad_fast.report import write_report

    out = tmp_path / "run"
    assert score(archive, out) == {"ok": 3, "unreadable": 1}
    write_report(out)
    said = repr(list(read_rows(out)))
    for path in out.rglob("*"):
        said += str(path.relative_to(out))
        if path.suffix in (".json", ".jsonl", ".csv", ".html"):
            said += path.read_text()
    for name in (*TELLING, "Huber", str(archive), "Musterfrau".lower()):
        assert name not in said, name
    rows = list(read_rows(out))
    patients = [row["patient_id"] for row in rows if row["status"] == "ok"]
    assert len(set(patients)) == 2  # images of one patient stay together
    assert sorted(row["laterality"] for row in rows if row["status"] == "ok") == ["L", "L", "R"]
    assert all(len(row["id"]) == 24 for row in rows)
    times = {path.stat().st_mtime_ns for path in archive.rglob("*")}
    assert not times & {row["mtime_ns"] for row in rows}
    failed = next(row for row in rows if row["status"] != "ok")
    assert failed["error"] == "no image format is recognised: the file is damaged or no image"


def test_scores_are_those_of_a_run_with_names(archive, tmp_path):
    score(archive, tmp_path / "hidden")
    score_null(archive, tmp_path / "open", batch_size=2)
    hidden, shown = table(tmp_path / "hidden"), table(tmp_path / "open")
    naming = Hidden(KEY)
    assert list(hidden) == [naming.id(Item(name, "")) for name in shown]
    for a, b in zip(hidden.values(), shown.values()):
        for key in ("status", "score", "regions", "map", "width", "bytes", "frame", "pred_label"):
            assert a.get(key) == b.get(key), key


def test_it_goes_on_and_notices_changes(archive, tmp_path):
    out = tmp_path / "run"
    score(archive, out, limit=2)
    score(archive, out)
    first = table(out)
    assert len(first) == 4
    score(archive, out)
    assert table(out) == first
    events = (out / "log.jsonl").read_text()
    assert '"anew"' not in events
    path = archive / "Musterfrau" / "L.dcm"
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    score(archive, out)
    changed = [name for name, row in table(out).items() if row != first[name]]
    assert changed == [Hidden(KEY).id(Item("Musterfrau/L.dcm", ""))]


def test_another_key_or_none_is_refused(archive, tmp_path):
    out = tmp_path / "run"
    score(archive, out)
    with pytest.raises(RunError, match="made with deidentify="):
        score(archive, out, key=bytes(32))
    with pytest.raises(RunError, match="made with deidentify=.*, not deidentify=None"):
        score_null(archive, out)


def test_shards_with_one_key_are_merged(archive, tmp_path):
    parts = [tmp_path / f"part{i}" for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        score(archive, part, shard=Shard(i, 2))
    assert merge_runs(parts, tmp_path / "all") == {"ok": 3, "unreadable": 1}
    shutil.rmtree(parts[1])
    score(archive, parts[1], key=bytes(32), shard=Shard(2, 2))
    with pytest.raises(RunError, match="differ in"):
        merge_runs(parts, tmp_path / "other")


def test_errors_lose_names_and_keep_reasons():
    naming = Hidden(KEY)
    item = Item("Linz/Musterfrau.tar!/a_Erika.png", "/x/Linz/Musterfrau.tar", member="a_Erika.png",
                patient_id="P-7")  # fmt: skip
    assert naming.error(item, "ok", None) is None
    said = naming.error(item, "unreadable", "a_erika.png of P-7 in musterfrau is damaged PNG")
    assert said == "… of … in … is damaged PNG"
    said = naming.error(item, "failed", "ValueError: cannot read /elsewhere/Musterfrau")
    assert said == "ValueError"
    assert naming.error(item, "failed", "anything else: Musterfrau") == "failed"


def test_what_is_left_out_of_a_row():
    naming = Hidden(KEY)
    said = naming.about({"settings": {}, "input": "/x", "notes": ["x"], "folders": ["/x"]})
    assert "x" not in str([said["notes"], said["folders"], said["input"]])
    identifiers = Identifiers("1.2.3", "1.2", "1", "P-7", "L", "2024-05-31")
    known = {"patient_id": "P-7", "laterality": "L", "group": "Linz", "mask_path": "/m"}
    place = {"member": "b", "frame": 3, "offset": 512}
    item = Item("a", "/a", 1, "Musterfrau", **known, **place, identifiers=identifiers)
    row = {**naming.labels(item), **naming.origin(item), "path": naming.path("/a")}
    patient = row.pop("patient_id")
    assert {key: value for key, value in row.items() if value is not None} == {
        "gt_label": 1, "laterality": "L", "frame": 3, "path": "",
    }  # fmt: skip
    assert patient == Hidden(KEY).labels(item)["patient_id"]
    assert patient != Hidden(bytes(32)).labels(item)["patient_id"]
    assert naming.id(Item("P-7", "")) != patient  # an id that is the patient's does not tell


def test_a_key_is_made_once_for_its_owner_alone(tmp_path):
    out = tmp_path / "deep" / "run"
    key = key_of(out)
    file = tmp_path / "deep" / "run.key"
    assert file.stat().st_mode & 0o777 == 0o600
    assert key_of(out) == key == bytes.fromhex(file.read_text().strip())
    assert key_of(tmp_path / "other") != key
    assert key_of(tmp_path / "third", file) == key
    score_null(make_images(tmp_path / "in", 2), out)
    file.rename(tmp_path / "away")
    with pytest.raises(RunError, match=r"key of .* is missing: put .*run.key back"):
        key_of(out)
    file.write_text("no key\n")
    with pytest.raises(RunError, match="want 64 hexadecimal digits"):
        key_of(out)
