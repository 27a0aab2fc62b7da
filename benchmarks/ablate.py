# SPDX-License-Identifier: Apache-2.0
"""What each part of a method is worth, on real images, in one table.

    python benchmarks/ablate.py resynth DIR/idrid_512 --ablation all -o resynth/
    python benchmarks/ablate.py proxyano DIR/cxr_224 --ablation memory --seeds 0 1 2 -o proxyano/
    python benchmarks/ablate.py resynth DIR/idrid_512 --vary tau=0,2 guide=none,features -o tau/ \\
        --set image_size=256 resad.coreset_sampling_ratio=0.01 --weights FILE \\
        --beside resad resynth:draem-default --also other=RUN
    python benchmarks/ablate.py dia DIR/cxr_224 --preset quick --ablation dissolve -o dia/ \\
        --seeds 0 1 2 --set channels=grey

fits the method as its preset and ``--set`` say, then with one setting changed at a time, then with
random weights, and each method of ``--beside`` (settings that it has as well are the same), for
each seed; scores the test images, and writes ``ablation-PACK-PART.json`` and ``.md``: pixel AUROC,
pixel AP and image AUROC with 95 % bootstrap intervals, of several seeds mean and deviation, seconds
of training and scoring, the controls (images of the base's size, in the direction that suits them),
and paired differences to the base. ``--also NAME=RUN`` adds a run folder of ``fundad eval`` on the
same data. A change of how scores are made of the same weights is not fitted again.

Of DIA the lines of a seed share the diffusion model, where they want the same: it is trained once
for each seed (``--denoiser seed``), once for all seeds (``one``), by every fit (``line``), or given
by ``--weights``, a DDPM folder of diffusers.

Nothing is held out for thresholds, which no figure of the table needs. Everything that is finished
is kept: a second call with the same words goes on where the first one was killed, within a training
as well. Two calls at a time share the work. ``--list`` prints the lines and stops.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from denoisers import SHARED, BusyError, Denoisers, claimed
from environment import environment
from judging import (
    best,
    cell,
    compact,
    control_values,
    differences,
    gap,
    parts,
    run_of,
    signed,
)
from variants import ABLATIONS, Line, lines_of

from fundad_fast.archive.run import ScoreOptions, score_run
from fundad_fast.archive.truth import check_mask, collect_run
from fundad_fast.bundle import load_bundle, read_facts, save_bundle
from fundad_fast.data import Dataset, InputSpec, Item, discover
from fundad_fast.detector import DETECTORS
from fundad_fast.evaluation.compare import Evaluated
from fundad_fast.evaluation.evaluate import evaluate
from fundad_fast.methods import ConfigError
from fundad_fast.progress import Bars
from fundad_fast.run_folder import read_run, replacing

SHOWN = ("pixel_AUROC", "pixel_AP", "image_AUROC")
BUSY = "is another call's at the moment"


def fitted_and_scored(
    line: Line,
    seed: int,
    folder: Path,
    dataset: Dataset,
    args: argparse.Namespace,
    denoisers: Denoisers,
    like: Path | None = None,
) -> dict[str, float]:
    """Fit one line and score all test images into ``folder / run``, or go on with that.

    ``like`` is the folder of a line with the same weights, which are taken from there.

    Returns:
        the seconds of the fit, of training, of the diffusion model that it shares, of scoring.

    Raises:
        BusyError: another call trains that diffusion model.
    """
    config = line.config(seed).model_dump(mode="json")
    told = {"method": line.method, "preset": line.preset, "config": config}
    if (folder / "line.json").exists():
        if json.loads((folder / "line.json").read_text()) != told:
            raise SystemExit(f"{folder} holds {line.name} of other settings; give another -o")
    else:
        with replacing(folder / "line.json", "w") as file:
            json.dump(told, file, indent=1)
    if not (folder / "model").exists() and like is not None:
        bundle = load_bundle(like / "model")
        state, config_here = bundle.method.state(), line.config(seed)
        bundle.method = type(bundle.method).from_state(config_here, state)
        (folder / "seconds.json").write_text((like / "seconds.json").read_text())
        save_bundle(bundle, folder / "model")
    if not (folder / "model").exists():
        cls = DETECTORS[line.method]
        weights, taken = denoisers.of(line, seed, dataset)
        detector = cls(
            line.preset,
            weights=weights if cls.method.trains else args.weights,
            seed=seed,
            folds=0,
            threads=args.threads,
            device=args.device,
            progress=Bars(),
            **{k: v for k, v in line.settings.items() if k != "seed"},
        )
        began = time.perf_counter()
        detector.fit(dataset, scratch=folder / "work")
        seconds = {"fit_s": round(time.perf_counter() - began, 1)}
        assert detector.bundle_ is not None
        trained = training_seconds(detector.bundle_.method.state().facts)
        if trained:
            seconds["training_s"] = trained
        if taken:
            seconds["denoiser_s"] = taken
        with replacing(folder / "seconds.json", "w") as file:
            json.dump(seconds, file)
        detector.save(folder / "model")
    shutil.rmtree(folder / "work", ignore_errors=True)
    if not (folder / "scored").exists():
        bundle = load_bundle(folder / "model")
        bundle.method.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        items = dataset.select(split="test")
        options = ScoreOptions(batch_size=4, threads=args.threads)
        score_run(
            bundle, dataset, items, folder / "run", kind="eval", options=options, check=check_mask
        )
        (folder / "scored").touch()
    seconds = json.loads((folder / "seconds.json").read_text())
    return {**seconds, "score_s": read_run(folder / "run")["seconds"]}


def training_seconds(facts: Any) -> float:
    """Seconds of all trainings that a method tells of, of killed calls as well; 0 for none."""
    if isinstance(facts, dict):
        own = facts.get("seconds", 0.0)
        return float(own) + sum(training_seconds(v) for v in facts.values())
    if isinstance(facts, list):
        return sum(training_seconds(v) for v in facts)
    return 0.0


def judged(run: Path, items: tuple[Item, ...], n_boot: int) -> tuple[Evaluated, dict[str, Any]]:
    """A run against the truth: itself, and its metrics."""
    found = collect_run(run, items)
    metrics = evaluate(found.records, found.pixels, n_boot=n_boot)["metrics"]
    return found, {key: metrics[key] for key in SHOWN if key in metrics}


class Table:
    """Rows as they come, with their differences to the base of the same seed.

    Args:
        items: the test images.
        n_boot: resamples.
        cache: where figures of finished rows are kept.
    """

    def __init__(self, items: tuple[Item, ...], n_boot: int, cache: Path) -> None:
        self.items, self.n_boot, self.cache = items, n_boot, cache
        self.rows: dict[str, dict[str, Any]] = {}
        self.bases: dict[int, tuple[str, Path]] = {}
        self._kept: dict[Path, Evaluated] = {}

    def add(self, name: str, run: Path, seed: int | None, seconds: dict[str, float] | None) -> None:
        """A run's row; the first of each seed is that seed's base."""
        first = next(iter(self.bases), 0)
        base = self.bases.setdefault(first if seed is None else seed, (name, run))
        model = read_run(run)["model"]["id"]
        of_base = read_run(base[1])["model"]["id"]
        key = [model, of_base, self.n_boot, [item.id for item in self.items]]
        file = self.cache / f"{model}-{of_base}.json"
        row: dict[str, Any] = {}
        if file.exists():
            row = json.loads(file.read_text())
        if row.get("key") != key:
            mine, metrics = judged(run, self.items, self.n_boot)
            row = {"key": key, "metrics": metrics}
            if run != base[1]:
                row["minus_base"] = differences(mine, self._base(base[1]), SHOWN, self.n_boot)
            self.cache.mkdir(parents=True, exist_ok=True)
            with replacing(file, "w") as out:
                json.dump(row, out, allow_nan=False)
        row = {k: v for k, v in row.items() if k != "key"}
        self.rows[name] = {**row, "base": base[0], "model": model, "seconds": seconds, "seed": seed}
        print(text_of(name, self.rows[name]), flush=True)

    def _base(self, run: Path) -> Evaluated:
        if run not in self._kept:
            self._kept = {run: collect_run(run, self.items)}
        return self._kept[run]

    def controls(self, dataset: Dataset, spec: InputSpec) -> dict[str, dict[str, Any]]:
        """Image scores that have learned nothing, each minus the base of the first seed."""
        base = self._base(next(iter(self.bases.values()))[1])
        plain = Evaluated(base.records)
        found = {}
        for name, values in control_values(dataset, self.items, spec).items():
            chosen = signed(values, self.items)
            name = name if chosen == values else f"minus {name}"
            run = run_of(chosen, self.items)
            metrics = evaluate(run.records, n_boot=self.n_boot)["metrics"]
            key = ("image_AUROC",)
            found[f"control: {name.replace('_', ' ')}"] = {
                "metrics": {k: metrics[k] for k in key},
                "minus_base": differences(run, plain, key, self.n_boot),
                "seconds": None,
            }
        return found


def text_of(name: str, row: dict[str, Any]) -> str:
    cells = [name, *(cell(row["metrics"].get(key)) for key in SHOWN), *took(row["seconds"])]
    return f"| {' | '.join(cells)} |"


def took(seconds: dict[str, float] | None) -> tuple[str, str]:
    """Training (of a method that trains nothing, the fit), and scoring."""
    if seconds is None:
        return "–", "–"
    shared = f" + {seconds['denoiser_s']:.0f}" if "denoiser_s" in seconds else ""
    own = seconds.get("training_s", seconds["fit_s"])
    return f"{own:.0f}{shared}", f"{seconds['score_s']:.0f}"


def means(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of every line with several seeds: mean, standard deviation (of n - 1), least and largest."""
    by_line: dict[str, list[dict[str, Any]]] = {}
    for row in rows.values():
        by_line.setdefault(row["line"], []).append(row)
    found: dict[str, dict[str, Any]] = {}
    for name, group in by_line.items():
        if len(group) < 2:
            continue
        entry: dict[str, Any] = {"seeds": [row["seed"] for row in group], "metrics": {}}
        for key in SHOWN:
            values = [row["metrics"][key]["value"] for row in group if key in row["metrics"]]
            if values and None not in values:
                entry["metrics"][key] = {
                    "value": statistics.fmean(values),
                    "deviation": statistics.stdev(values),
                    "least": min(values),
                    "largest": max(values),
                }
        found[name] = entry
    return found


def markdown(content: dict[str, Any]) -> str:
    """The tables of a run's JSON."""
    head = (
        "| | pixel AUROC | pixel AP | image AUROC | training s | scoring s |\n" + "|---" * 6 + "|"
    )
    rows = {**content["rows"], **content["controls"]}
    lines = [content["title"], "", head, *(text_of(name, row) for name, row in rows.items())]
    if content["means"]:
        lines += [
            "",
            "| mean ± standard deviation of the seeds (least to largest) | pixel AUROC | pixel AP "
            "| image AUROC |",
        ]
        lines += ["|---|---|---|---|"]
        for name, mean in content["means"].items():
            cells = [f"{name}, {len(mean['seeds'])} seeds"]
            for key in SHOWN:
                m = mean["metrics"].get(key)
                cells.append(
                    f"{m['value']:.3f} ± {m['deviation']:.3f} ({m['least']:.3f} to "
                    f"{m['largest']:.3f})"
                    if m
                    else "–"
                )
            lines.append(f"| {' | '.join(cells)} |")
    if any("denoiser_s" in (row["seconds"] or {}) for row in rows.values()):
        lines += ["", "Seconds after a + are of the diffusion model, which several lines share."]
    others = {name: row for name, row in rows.items() if "minus_base" in row}
    if others:
        lines += ["", "Minus the base of the same seed (controls: of the first), paired bootstrap:"]
        lines += ["", "| | pixel AUROC | pixel AP | image AUROC |", "|---|---|---|---|"]
        for name, row in others.items():
            cells = [name, *(gap(row["minus_base"].get(key)) for key in SHOWN)]
            lines.append(f"| {' | '.join(cells)} |")
    if content["controls"]:
        metrics = {name: row["metrics"] for name, row in content["controls"].items()}
        lines += ["", f"The best of the controls of images: {best(metrics, 'image_AUROC')}."]
    lines += [f"Missing: {name}, {why}." for name, why in content["missing"].items()]
    return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", choices=list(DETECTORS))
    parser.add_argument("data", type=Path, help="a data set with healthy images and a test split")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--set", nargs="*", default=[], metavar="[METHOD.]KEY=VALUE")
    named = "; ".join(f"{name}: {', '.join(one)}" for name, one in ABLATIONS.items())
    parser.add_argument("--ablation", nargs="*", default=[], help=f"all, or of {named}")
    parser.add_argument("--vary", nargs="*", default=[], metavar="KEY=VALUE,VALUE")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--beside", nargs="*", default=[], metavar="[NAME=]METHOD[:PRESET]")
    parser.add_argument("--also", nargs="*", default=[], metavar="NAME=RUN")
    parser.add_argument(
        "--weights", help="of the backbone, or for dia a DDPM folder that all its lines use"
    )
    parser.add_argument("--denoiser", choices=SHARED, default="seed", help="of dia, see above")
    parser.add_argument("--normal-class", help="the healthy class, where no name tells it")
    parser.add_argument("--part", default="all", choices=("all", "tune", "report"))
    parser.add_argument("--boot", type=int, default=1000)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device")
    parser.add_argument("--no-controls", action="store_true")
    parser.add_argument("--list", action="store_true", help="print the lines and stop")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        lines = lines_of(
            args.method,
            args.preset,
            pairs=args.set,
            vary=args.vary,
            ablations=args.ablation,
            beside=args.beside,
            untrained=not args.no_controls,
        )
        for line in lines:
            line.config()
    except ConfigError as error:
        raise SystemExit(str(error)) from error
    if args.list:
        print("\n".join(f"{line.name}: {line.settings}" for line in lines))
        return
    dataset = discover(args.data)
    if args.normal_class is not None:
        dataset = dataset.with_normal_class(args.normal_class)
    print(dataset.describe(), flush=True)
    items = parts(args.data.name, dataset, args.part)
    out: Path = args.output
    table, missing = Table(items, args.boot, out / "figures"), {}
    options = {"threads": args.threads, "device": args.device}
    denoisers = Denoisers(out / "denoisers", args.denoiser, args.seeds[0], args.weights, options)
    for line in lines:
        for seed in args.seeds[:1] if line.name.startswith("control") else args.seeds:
            name = line.name if len(args.seeds) == 1 else f"{line.name}, seed {seed}"
            folder = out / line.folder / f"seed-{seed}"
            with claimed(folder) as mine:
                if not mine:
                    missing[name] = BUSY
                    continue
                origin = out / lines[0].folder / f"seed-{seed}"
                like = origin if origin != folder and line.has_weights_of(lines[0]) else None
                if like is not None and not (like / "model").exists():
                    like = None
                try:
                    seconds = fitted_and_scored(line, seed, folder, dataset, args, denoisers, like)
                except BusyError:
                    missing[name] = f"as its diffusion model {BUSY}"
                    continue
                if seed not in table.bases and line is not lines[0]:
                    missing[name] = f"as the base of seed {seed} {BUSY}"
                    continue
                table.add(name, folder / "run", seed, seconds)
                table.rows[name]["line"] = line.name
    for text in args.also:
        name, _, run = text.partition("=")
        if table.bases:
            table.add(name, Path(run), None, None)
            table.rows[name]["line"] = name
    controls: dict[str, Any] = {}
    if table.bases and not args.no_controls:
        first = next(iter(table.bases.values()))[1]
        spec = InputSpec(**read_facts(first.parent / "model")["input_spec"])
        plain = {"fov": "none", "fov_crop": False, "intensity": "range", "mixed_inputs": "convert"}
        known = {k: v for k, v in plain.items() if k in InputSpec.model_fields}
        controls = table.controls(dataset, spec.model_copy(update=known))
    base = lines[0]
    content = {
        "title": f"{args.data.name}, part {args.part}: {len(items)} test images; {base.name}"
        + "".join(f", {key}={value}" for key, value in base.settings.items()),
        "method": base.method,
        "preset": base.preset,
        "settings": base.config().model_dump(mode="json"),
        "rows": table.rows,
        "means": means(table.rows),
        "controls": controls,
        "missing": missing,
        "environment": environment(),
    }
    stem = f"ablation-{args.data.name}-{args.part}"
    definitions: dict[str, str] = {}
    short = compact(content, definitions)
    with replacing(out / f"{stem}.json", "w") as file:
        json.dump({**short, "definitions": definitions}, file, indent=1, allow_nan=False)
        file.write("\n")
    with replacing(out / f"{stem}.md", "w") as file:
        file.write(markdown(content))
    print("\n" + markdown(content))


if __name__ == "__main__":
    main()
