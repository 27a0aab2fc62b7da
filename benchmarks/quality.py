# SPDX-License-Identifier: Apache-2.0
"""What the readings, presets and controls are worth on real images, in one table.

    python benchmarks/quality.py --data DIR --weights FILE -o quality/ [--pack idrid_512]
        [--part all|tune|report] [--only NAME ...] [--image-size 512] [--fov none] [--painted 2]

writes ``quality-PACK-PART.json`` and ``.md``: image and pixel metrics with 95 % bootstrap intervals
for F, R, P, their sums, the readings of ReSAD's eq. 4, the presets, PatchCore, an untrained
backbone and the controls, all with the same backbone, size and share of the bank. ``--ablation``
repeats the default with 10, 40, 70 and 100 % of the healthy images. ``--fov none`` is for images
that are no fundus photographs; ``--painted N`` tests on N painted copies of each healthy test
image instead (of the part ``tune`` for ``idrid_512``), to choose settings on. Finished lines are
kept: a second call goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from judging import cell, compact, control_values, gap, parts
from painted import painted_cohort

import fundad_fast
from fundad_fast.archive.run import ScoreOptions, score_run
from fundad_fast.archive.truth import check_mask, collect_run, evaluate_run
from fundad_fast.data import Dataset, InputSpec, Item, discover
from fundad_fast.evaluation.compare import compare
from fundad_fast.evaluation.controls import control_metrics

LITERAL = {"fov": "none"}  # the literal readings, over the whole frame
L2 = {"attn_norm": "l2", "attn_scale": 10.0}

SETTINGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # name: (method, preset, settings)
    "F": ("resad", "paper", {"combination": ("F",)}),
    "R, radius 12": ("resad", "paper", {"combination": ("R",)}),
    "P": ("resad", "paper", {"combination": ("P",)}),
    "F+R, radius 12": ("resad", "paper", {"combination": ("F", "R")}),
    "paper (P+R, radius 12)": ("resad", "paper", {}),
    "P, column": ("resad", "paper", {"combination": ("P",), "attn_reading": "column"}),
    "P, Hadamard sum": ("resad", "paper", {"combination": ("P",), "attn_reading": "hadamard_sum"}),
    "P, Hadamard diagonal": (
        "resad",
        "paper",
        {"combination": ("P",), "attn_reading": "hadamard_diag"},
    ),
    "P, 1/√c": ("resad", "paper", {"combination": ("P",), "attn_scale": "rsqrt_c"}),
    "P, l2 × 10": ("resad", "paper", {"combination": ("P",), **L2}),
    "R, radius 4": ("resad", "paper", {"combination": ("R",), "radius": 4}),
    "F+R, radius 8": ("resad", "paper", {"combination": ("F", "R"), "radius": 8}),
    "P+R, l2 × 10, radius 8": ("resad", "paper", {**L2, "radius": 8}),
    # the way to the default, inside the field of view
    "in the field of view: F": ("resad", "default", {"combination": ("F",), "num_neighbors": 1}),
    "… F+R, radius 1/8": ("resad", "default", {"combination": ("F", "R"), "num_neighbors": 1}),
    "… P+R, l2 × 10": ("resad", "default", {"combination": ("P", "R"), "num_neighbors": 1}),
    "… F+P+R, l2 × 10": ("resad", "default", {"num_neighbors": 1}),
    "… F+R, 3 neighbours": ("resad", "default", {"combination": ("F", "R")}),
    "… F+P+R, 5 neighbours": ("resad", "default", {"num_neighbors": 5}),
    "default": ("resad", "default", {}),
    "default, untrained backbone": ("resad", "default", {}),
    "PatchCore": ("patchcore", "default", {}),
    "PatchCore, whole frame": ("patchcore", "default", {"fov": "none", "bank_rows": "all"}),
}
SHOWN = ("image_AUROC", "image_AP", "pixel_AUROC", "pixel_AP", "pixel_AUPRO", "pixel_AUROC_fov")
SHARES = (0.1, 0.4, 0.7, 1.0)


def fit_and_score(
    out: Path, train: tuple[Item, ...], dataset: Dataset, name: str, base: dict[str, Any], args: Any
) -> dict[str, float]:
    """Fit one line of the table and score all test images into ``out / run``; returns seconds."""
    method, preset, settings = SETTINGS[name]
    if method == "resad" and preset == "paper":
        settings = {**LITERAL, **settings}
    if args.fov == "none":
        settings = {**settings, "fov": "none", "bank_rows": "all"}
    weights = "untrained" if "untrained" in name else args.weights
    cls = {"resad": fundad_fast.ReSAD, "patchcore": fundad_fast.PatchCore}[method]
    # Without folds there are no thresholds, which no figure of the table needs.
    detector = cls(preset, weights=weights, seed=args.seed, folds=0, **{**base, **settings})
    began = time.perf_counter()
    detector.fit(list(train))
    fitted = time.perf_counter()
    assert detector.bundle_ is not None
    test = dataset.select(split="test")
    options = ScoreOptions(batch_size=4)
    score_run(
        detector.bundle_, dataset, test, out / "run", kind="eval", options=options, check=check_mask
    )
    return {"fit_s": fitted - began, "score_s": time.perf_counter() - fitted}


def line(name: str, metrics: dict[str, Any], seconds: dict[str, float] | None) -> str:
    cells = [name, *(cell(metrics.get(key)) for key in SHOWN)]
    cells.append("–" if seconds is None else f"{seconds['fit_s']:.0f} / {seconds['score_s']:.0f}")
    return "| " + " | ".join(cells) + " |"


def controls(dataset: Dataset, items: tuple[Item, ...], size: int) -> dict[str, Any]:
    spec = InputSpec(image_size=size, fov="none", mixed_inputs="convert")
    return control_metrics(control_values(dataset, items, spec), [int(i.label or 0) for i in items])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of data packs")
    parser.add_argument("--weights", required=True, help="backbone weights, safetensors")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--pack", default="idrid_512")
    parser.add_argument("--part", default="all", choices=("all", "tune", "report"))
    parser.add_argument("--only", nargs="*", help="names of lines")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--fov", default="auto", choices=("auto", "none"))
    parser.add_argument("--ratio", type=float, default=0.01)
    parser.add_argument("--boot", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--painted", type=int, default=0, help="painted copies per healthy image")
    parser.add_argument("--ablation", action="store_true")
    args = parser.parse_args()

    dataset = discover(args.data / args.pack)
    print(dataset.describe(), flush=True)
    items = parts(args.pack, dataset, args.part)
    train = dataset.select("train", 0)
    pack = args.pack
    if args.painted:
        pack = f"{args.pack}-painted"
        healthy = tuple(i for i in parts(args.pack, dataset, "tune") if i.label == 0)
        dataset = painted_cohort(
            args.output / pack / "images", train, healthy, args.image_size, args.painted
        )
        items, train = dataset.select("test"), dataset.select("train", 0)
    base = {
        "backbone": args.backbone,
        "image_size": args.image_size,
        "coreset_sampling_ratio": args.ratio,
    }
    if args.ablation:
        jobs = [("default", share) for share in SHARES]
    else:
        jobs = [(name, 1.0) for name in (args.only or SETTINGS)]
    result: dict[str, Any] = {"pack": pack, "part": args.part, "settings": base, "lines": {}}
    table = [
        f"{pack}, part {args.part}: {len(items)} images, {args.backbone}, "
        f"{args.image_size} px, bank {args.ratio:.0%}",
        "",
        "| | " + " | ".join(SHOWN) + " | fit / score s |",
        "|" + "---|" * (len(SHOWN) + 2),
    ]
    collected = {}
    for name, share in jobs:
        label = name if share == 1 and not args.ablation else f"{name}, {share:.0%} of the images"
        out = args.output / pack / label.replace("/", "÷").replace(" ", "_")
        if not (out / "seconds.json").exists():
            some = train[: max(2, round(share * len(train)))]
            out.mkdir(parents=True, exist_ok=True)
            seconds = fit_and_score(out, some, dataset, name, base, args)
            (out / "seconds.json").write_text(json.dumps(seconds))
        seconds = json.loads((out / "seconds.json").read_text())
        metrics = evaluate_run(out / "run", items, n_boot=args.boot, seed=args.seed)
        collected[label] = out / "run"
        result["lines"][label] = {"seconds": seconds, **metrics}
        table.append(line(label, metrics["metrics"], seconds))
        print(table[-1], flush=True)
    if not args.ablation and not args.only:
        result["controls"] = controls(dataset, items, args.image_size)
        for name, entry in result["controls"].items():
            table.append(line(f"control: {name}", entry["metrics"], None))
    if "default" in collected and "PatchCore" in collected:
        pair = [collect_run(collected[name], items) for name in ("default", "PatchCore")]
        against = compare(*pair, n_boot=args.boot, seed=args.seed)
        result["default against PatchCore"] = against
        table += ["", "default − PatchCore, paired bootstrap of the images:", ""]
        for key in ("image_AUROC", "pixel_AUROC", "pixel_AP"):
            entry = against["metrics"].get(key)
            if entry is None or entry["lo"] is None:  # no masks, or too few images to resample
                continue
            table.append(f"* {key}: {gap(entry)}, above 0 in {entry['share_above_0']:.1%}")
    result["versions"] = {"fundad_fast": fundad_fast.__version__, "torch": torch.__version__}
    args.output.mkdir(parents=True, exist_ok=True)
    stem = f"quality-{pack}-{args.part}" + ("-ablation" if args.ablation else "")
    definitions: dict[str, str] = {}
    short = compact(result, definitions)
    text = json.dumps({**short, "definitions": definitions}, allow_nan=False)
    (args.output / f"{stem}.json").write_text(text.replace('{"seconds"', '\n{"seconds"') + "\n")
    (args.output / f"{stem}.md").write_text("\n".join(table) + "\n")
    print("\n".join(table[4:]))


if __name__ == "__main__":
    main()
