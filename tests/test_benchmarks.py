# SPDX-License-Identifier: Apache-2.0
"""The table that benchmarks make of their JSON, and the roofline that times are compared with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cohorts import photograph

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

RUN: dict[str, Any] = {
    "environment": {"torch": "9.9", "CPU": "a processor"},
    "rounds": 3,
    "roofline": {
        "cpu, 2 threads": {
            "device": "cpu",
            "threads": 2,
            "operations": {"float32": 6e11},
            "traffic": 4.5e10,
        }
    },
    "races": [
        {
            "name": "nearest, some rows",
            # The middle of the ratios is not the ratio of the middles.
            "seconds": {"cpu": [1e-3, 2e-3, 4e-3], "faiss": [4e-3, 20e-3, 16e-3]},
            "notes": {},
            "shares": {"cpu": 0.25},
            "rows": [["cpu", "faiss", 3.0], ["faiss", None, None]],
        }
    ],
    "skipped": [{"race": "nearest, some rows", "candidate": "cuml", "reason": "not installed"}],
}


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_the_table_says_what_was_measured(tmp_path):
    file = tmp_path / "races.json"
    file.write_text(json.dumps(RUN))
    command = [sys.executable, str(BENCHMARKS / "table.py"), str(file)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    assert lines[2:4] == [
        "| nearest, some rows | cpu | 2 ms | 25% | faiss | 16 ms | 4 (4 to 10) | ≥ 3 |",
        "| nearest, some rows | faiss | 16 ms |  |  |  |  |  |",
    ]
    assert all(line.count("|") == 9 for line in lines[:4])
    assert "* nearest, some rows: cuml skipped, not installed" in lines
    assert "* roofline, cpu, 2 threads: float32 600 GFLOP/s, memory 45 GB/s" in lines
    assert "* at most 3 rounds; torch 9.9, CPU a processor" in lines
    empty = subprocess.run(command[:2], capture_output=True, text=True)
    assert empty.returncode != 0
    assert "give the JSON files" in empty.stderr


def test_single_figures_have_a_table(path):
    from table import table

    figure = {"name": "best", "value": 151.23456, "unit": "1/s", "bar": "≥ 150", "note": "of 8"}
    run = {"title": "ReSAD", "settings": {"size": 784}, "environment": {}, "figures": [figure]}
    lines = table([RUN, run]).split("\n")
    assert lines[lines.index("| ReSAD | | bar | |") + 2] == "| best | 151.2 1/s | ≥ 150 | of 8 |"
    assert "* size 784" in lines


def test_the_share_is_of_the_nearer_roof(path):
    from roofline import Roof, Work

    roof = Roof("cpu", 1, {"float32": 1e9, "bfloat16": 4e9}, 1e8)
    assert roof.share(Work(2e9, 1e6), 4.0) == pytest.approx(0.5)  # bound by arithmetic
    assert roof.share(Work(2e6, 1e8), 4.0) == pytest.approx(0.25)  # bound by memory
    assert roof.share(Work(2e9, 1e6, "bfloat16"), 1.0) == pytest.approx(0.5)


def test_every_operator_has_named_shapes(path):
    from operators import CASES

    from fundad_fast import ops

    assert {case.op for case in CASES} == {name for name in ops.OPS if name in ops.__all__}
    for case in CASES:
        assert len(case.sizes) == len(case.small)
        assert case.work(case.sizes).operations > case.work(case.small).operations


def test_an_ablation_changes_one_thing_at_a_time(path):
    from variants import ABLATIONS, lines_of

    lines = lines_of(
        "resynth",
        "quick",
        pairs=["tau=1", "generator.masks=perlin", "resad.radius=4"],
        vary=["tau=0,1,5", "generator.rim=[0.1, 0.2],[0.0, 0.5]"],
        beside=["resynth:draem-quick", "ours=resad"],
    )
    assert [line.name for line in lines] == [
        "resynth (quick)",
        "tau=0",
        "tau=5",  # 1 is the base, and so is the rim from 0 to 0.5
        "rim=[0.1, 0.2]",
        "control: random weights",
        "resynth (draem-quick)",
        "ours",
    ]
    base, rim, draem, resad = (lines[i].config() for i in (0, 3, 5, 6))
    assert base.tau == 1
    assert rim == base.model_copy(update={"generator": rim.generator})
    assert rim.generator == base.generator.model_copy(update={"rim": (0.1, 0.2)})
    # The preset's own settings of the generator stay, those that are given go over them.
    assert draem.generator.fusion == "constant"
    assert draem.generator.masks == "perlin"
    assert resad.radius == 4
    for method, named in ABLATIONS.items():
        for name, changes in named.items():
            # One of the values is that of the preset, but where only the others are named.
            more = name == "score"
            assert len(lines_of(method, ablations=[name], untrained=False)) == len(changes) + more
    base, other, score = lines_of("resynth", vary=["tau=1", "pool=11"], untrained=False)
    assert [line.has_weights_of(base) for line in (base, other, score)] == [True, False, True]
    assert not lines_of("resad", vary=["radius=4"])[1].has_weights_of(base)
    for wrong in ({"pairs": ["taw=1"]}, {"ablations": ["guides"]}, {"beside": ["draem"]}):
        with pytest.raises(SystemExit, match="setting taw|no ablation 'guides'|no method 'draem'"):
            lines_of("resynth", **wrong)


def test_two_calls_are_never_at_one_line(path, tmp_path):
    from ablate import claimed

    with claimed(tmp_path / "line") as first, claimed(tmp_path / "line") as second:
        assert (first, second) == (True, False)
    with claimed(tmp_path / "line") as again:
        assert again


def test_an_ablation_goes_on_and_says_what_it_measured(path, tmp_path, monkeypatch, capsys):
    import ablate
    from PIL import Image

    data, out = tmp_path / "pack", tmp_path / "out"
    for folder, seeds in (("train/good", range(4)), ("test/good", (4, 5)), ("test/sick", (6, 7))):
        (data / folder).mkdir(parents=True)
        for seed in seeds:
            picture = photograph(seed, lesion=folder == "test/sick")
            Image.fromarray(picture).save(data / folder / f"{seed}.png")
            if folder == "test/sick":
                (data / "ground_truth/sick").mkdir(parents=True, exist_ok=True)
                mask = Image.fromarray(((picture[..., 2] > 120) * 255).astype("uint8"))
                mask.save(data / f"ground_truth/sick/{seed}_mask.png")
    small = ["image_size=32", "width=2", "depth=2", "latent=2", "max_steps=2", "train_batch=2"]

    def call(*words: str) -> str:
        words = ("autoencoder", str(data), "-o", str(out), "--boot", "20", "--set", *small, *words)
        monkeypatch.setattr(sys, "argv", ["ablate.py", *words])
        ablate.main()
        return capsys.readouterr().out

    call("--vary", "residual=absolute", "--seeds", "0", "1", "--no-controls")
    model = next(out.glob("autoencoder*/seed-1/model/bundle.json"))
    before = model.stat().st_mtime_ns
    words = ("--vary", "residual=absolute", "kind=vae", "--seeds", "0", "1")
    text = call(*words, "--also", f"again={model.parent.parent / 'run'}")
    assert model.stat().st_mtime_ns == before  # it is not fitted again
    content = json.loads((out / "ablation-pack-all.json").read_text())
    rows = content["rows"]
    assert list(rows) == [
        *(f"autoencoder (default), seed {seed}" for seed in (0, 1)),
        *(f"residual=absolute, seed {seed}" for seed in (0, 1)),
        *(f"kind=vae, seed {seed}" for seed in (0, 1)),
        "control: random weights, seed 0",
        "again",
    ]
    weights = [
        (out / name / "seed-1" / "model" / "weights.safetensors").read_bytes()
        for name in ("residual=absolute", model.parents[2].name, "kind=vae")
    ]
    assert weights[0] == weights[1] != weights[2]  # the first are scored differently, no more
    assert rows["residual=absolute, seed 1"]["model"] != rows["again"]["model"]
    first, second = (rows[f"autoencoder (default), seed {seed}"] for seed in (0, 1))
    assert rows["again"]["metrics"] == second["metrics"]
    gap = rows["again"]["minus_base"]["pixel_AP"]  # of the first seed
    assert gap["difference"] == pytest.approx(
        second["metrics"]["pixel_AP"]["value"] - first["metrics"]["pixel_AP"]["value"], abs=1e-5
    )
    assert rows["kind=vae, seed 1"]["base"] == "autoencoder (default), seed 1"
    mean = content["means"]["kind=vae"]["metrics"]["image_AUROC"]
    values = [rows[f"kind=vae, seed {seed}"]["metrics"]["image_AUROC"]["value"] for seed in (0, 1)]
    assert (mean["least"], mean["largest"]) == (min(values), max(values))
    assert mean["value"] == pytest.approx(sum(values) / 2, abs=1e-5)
    # File size, gradients and the like are judged on the same images, as far from 1/2 as they are.
    controls = content["controls"]
    assert len(controls) == 8  # of colours; a minus says in which direction one is judged
    assert {name.removeprefix("control: ").removeprefix("minus ") for name in controls} >= {
        "mean blue",
        "mean gradient",
    }
    assert all(c["metrics"]["image_AUROC"]["value"] >= 0.5 for c in controls.values())
    assert mean["deviation"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5, abs=1e-5)
    assert rows["kind=vae, seed 1"]["seconds"]["score_s"] > 0
    assert "| kind=vae, 2 seeds |" in text
    with pytest.raises(SystemExit, match="of other settings; give another -o"):
        call("--set", *small, "width=3")


def small_pack(folder: Path) -> Path:
    from PIL import Image

    for part, seeds in (("train/good", range(4)), ("test/good", (4,)), ("test/sick", (6,))):
        (folder / part).mkdir(parents=True)
        for seed in seeds:
            Image.fromarray(photograph(seed, lesion=seed == 6)).save(folder / part / f"{seed}.png")
    return folder


def test_lines_of_a_seed_share_a_diffusion_model(path, tmp_path, monkeypatch):
    from denoisers import BusyError, Denoisers, claimed
    from variants import lines_of

    lines = lines_of(
        "dia",
        "quick",
        vary=["t_scale=200", "resolution=16", "dissolve=blur,none", "max_steps=50"],
        untrained=False,
    )
    base, t, small, blur, none, longer = lines
    trained: list[tuple[str, int]] = []

    def train(self: Denoisers, folder: Path, line: Any, seed: int, *_: Any) -> None:
        trained.append((line.name, seed))
        (folder / "ddpm").mkdir()
        (folder / "about.json").write_text('{"seconds": 7.5}')

    monkeypatch.setattr(Denoisers, "_train", train)
    by_seed = Denoisers(tmp_path / "a", "seed", 4, None, {})
    first = by_seed.of(base, 4, None)
    assert first == by_seed.of(t, 4, None) == by_seed.of(longer, 4, None)
    assert first[1] == 7.5
    others = {by_seed.of(line, seed, None)[0] for line, seed in ((base, 5), (small, 4))}
    assert len(others | {first[0]}) == 3
    assert [by_seed.of(line, 4, None) for line in (blur, none)] == [(None, 0.0)] * 2
    assert trained == [(base.name, 4), (base.name, 5), (small.name, 4)]
    one = Denoisers(tmp_path / "b", "one", 4, None, {})
    assert one.of(base, 5, None) == one.of(base, 4, None)
    assert trained[3:] == [(base.name, 4)]
    assert Denoisers(tmp_path / "c", "line", 4, None, {}).of(base, 4, None) == (None, 0.0)
    given = Denoisers(tmp_path / "d", "seed", 4, "ddpm/", {})
    assert given.of(small, 9, None) == ("ddpm/", 0.0)
    assert given.of(none, 9, None) == (None, 0.0)
    with claimed(Path(str(first[0])).parent) as mine:
        assert mine
        with pytest.raises(BusyError):
            by_seed.of(t, 4, None)


def test_the_shared_diffusion_model_is_the_one_that_a_fit_would_train(path, tmp_path):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    import torch
    from denoisers import Denoisers
    from small_dia import TINY
    from variants import Line

    from fundad_fast import DIA
    from fundad_fast.data import discover
    from fundad_fast.diffusion import load_denoiser

    dataset = discover(small_pack(tmp_path / "pack"))
    line = Line("dia", "dia", "quick", TINY)
    denoisers = Denoisers(tmp_path / "out", "seed", 0, None, {"threads": 1})
    folder, seconds = denoisers.of(line, 3, dataset)
    assert seconds > 0
    assert denoisers.of(line, 3, dataset) == (folder, seconds)
    assert sorted(p.name for p in Path(folder).parent.iterdir()) == [".lock", "about.json", "ddpm"]
    own = DIA("quick", folds=0, seed=3, threads=1, **TINY).fit(dataset).bundle_.method.denoiser
    shared = load_denoiser(folder)
    for name, want in own.state_dict().items():
        assert torch.equal(shared.state_dict()[name], want), name
