# SPDX-License-Identifier: Apache-2.0
"""What a fitted ManyTasks model has learned, beside controls that have learned nothing.

    fundad fit DIR/cxr_224 -m manytasks -o model
    python benchmarks/many_tasks.py model --data DIR/cxr_224 -o many_tasks

writes ``many_tasks.json`` and ``.md``. Images: AUROC of the ensemble, of each model alone and of
the controls (mean, standard deviation, mean gradient, file size, reconstruction by principal
components, a network with random weights), and the ensemble minus the best of them, paired
bootstrap over the images. Volumes: voxel AP on the labelled cases, and on healthy test volumes into
which lesions were put that no model was trained on (the task ``--lesions``, seeds 0, 1, 2, ...),
beside voxel controls (brightness, distance to the mean healthy volume, gradient, principal
components, random weights). A control has the sign that suits it on the test set: that favours the
control.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import environment
from judging import best, cell, control_values, differences, gap, run_of, signed
from torch import Tensor

import fundad_fast
from fundad_fast.batch import Batch
from fundad_fast.data import InputSpec, Item, Loader, discover, read_volume
from fundad_fast.evaluation import PixelEvaluator
from fundad_fast.evaluation.compare import Evaluated
from fundad_fast.evaluation.evaluate import evaluate
from fundad_fast.evaluation.resample import resample_volume
from fundad_fast.methods import ManyTasks
from fundad_fast.synthetic import synthesize

COMPONENTS = 16


def scorers(method: ManyTasks) -> dict[str, Any]:
    """The ensemble, its models, and a network with random weights, as methods."""
    found: dict[str, Any] = {"ensemble": method}
    for model in method.facts["models"]:
        found[f"trained on {'+'.join(model['train_tasks'])}"] = method.only(model["number"])
    torch.manual_seed(7)
    random = ManyTasks(method.config)
    random.facts = method.facts
    random._nets = {"0": random._net(tuple(method.facts["shape"])).eval()}
    found["control: random weights"] = random
    return found


def batches(items: tuple[Item, ...], spec: InputSpec) -> Iterator[tuple[tuple[Item, ...], Any]]:
    for chunk in Loader(items, spec, batch_size=4):
        if chunk.failures:
            raise SystemExit(f"{chunk.failures[0].item.id}: {chunk.failures[0].error}")
        yield chunk.items, chunk


def of_images(method: ManyTasks, spec: InputSpec, dataset: Any, n_boot: int) -> dict[str, Any]:
    test = dataset.select(split="test")
    scores: dict[str, list[float]] = {}
    every = scorers(method)
    for _, chunk in batches(test, spec):
        for name, one in every.items():
            scores.setdefault(name, []).extend(one.score(chunk.batch).image.tolist())
    plain = spec.model_copy(update={"intensity": "range", "image_size": 224})
    for name, values in control_values(dataset, test, plain).items():
        scores[f"control: {name.replace('_', ' ')}"] = values
    lines, runs = {}, {}
    for name, values in scores.items():
        chosen = signed(values, test) if name.startswith("control") else values
        runs[name] = run_of(chosen, test)
        found = evaluate(runs[name].records, n_boot=n_boot)["metrics"]
        lines[name] = {key: found[key] for key in ("image_AUROC", "image_AP")}
    return {"lines": lines, "against_controls": against(runs, lines, "image_AUROC", n_boot)}


def against(
    runs: dict[str, Evaluated], lines: dict[str, Any], key: str, n_boot: int
) -> dict[str, Any]:
    """The ensemble minus the best control."""
    control = best({name: e for name, e in lines.items() if name.startswith("control")}, key)
    found = differences(runs["ensemble"], runs[control], (key,), n_boot)[key]
    return {"control": control, **found}


class VoxelControls:
    """Maps of a normalised volume ``[1, d, h, w]`` that have learned next to nothing."""

    def __init__(self, healthy: list[Tensor]) -> None:
        rows = torch.stack([volume.flatten() for volume in healthy])
        self.mean = rows.mean(0)
        _, _, axes = torch.linalg.svd(rows - self.mean, full_matrices=False)
        self.axes = axes[: min(COMPONENTS, len(rows) - 1)]

    def maps(self, volume: Tensor) -> dict[str, Tensor]:
        off = volume.flatten() - self.mean
        rest = off - (off @ self.axes.T) @ self.axes
        slope = torch.stack(torch.gradient(volume[0])).square().sum(0).sqrt()
        return {
            "control: brightness": volume[0],
            "control: darkness": -volume[0],
            "control: distance to the mean": off.abs().view_as(volume)[0],
            "control: principal components": rest.abs().view_as(volume)[0],
            "control: gradient": slope,
        }


def of_volumes(
    method: ManyTasks, spec: InputSpec, dataset: Any, n_boot: int, lesions: str
) -> dict[str, Any]:
    test = dataset.select(split="test")
    healthy = [
        image
        for _, chunk in batches(dataset.healthy_for_fit(), spec)
        for image in method._prepared(chunk.batch).image
    ]
    controls = VoxelControls(healthy)
    every = scorers(method)
    real: dict[str, PixelEvaluator] = {}
    made: dict[str, PixelEvaluator] = {}
    seed = 0
    for items, chunk in batches(test, spec):
        image = method._prepared(chunk.batch).image
        for i, item in enumerate(items):
            one, mask = image[i : i + 1], chunk.batch.mask[i : i + 1]
            label = None
            if item.label == 1:
                found = read_volume(str(item.mask_path))
                share = resample_volume(
                    (found.values > 0).astype(np.float32),
                    found.affine,
                    one.shape[2:],
                    chunk.prepared[i].affine,
                )
                label = share >= 0.5
            add(real, item, one, mask, label, every, controls)
            if item.label == 0:
                sick = synthesize(
                    one,
                    [lesions],
                    seeds=[seed],
                    mask=mask,
                    sources=torch.stack(healthy),
                    settings=method.config.synthesis,
                )
                seed += 1
                truth = (sick.label[0] > 0).numpy()
                add(made, item, sick.image, mask, truth if truth.any() else None, every, controls)
    result: dict[str, Any] = {}
    for kind, pixels in (("labelled cases", real), (f"lesions by {lesions}", made)):
        lines, runs = {}, {}
        for name, one in pixels.items():
            found = evaluate([], one, n_boot=n_boot)["metrics"]
            lines[name] = {key: found[key] for key in ("pixel_AP", "pixel_AUROC")}
            runs[name] = Evaluated([], one)
        result[kind] = {
            "lines": lines,
            "against_controls": against(runs, lines, "pixel_AP", n_boot),
        }
    return result


@torch.no_grad()
def add(
    into: dict[str, PixelEvaluator],
    item: Item,
    image: Tensor,
    mask: Tensor,
    label: np.ndarray | None,
    every: dict[str, Any],
    controls: VoxelControls,
) -> None:
    """One volume by every scorer; voxels outside of the object have the lowest score of all."""
    batch = Batch(image, (item.id,), mask)
    maps = {name: one._judge(batch).map[0] for name, one in every.items()}
    for name, values in (maps | controls.maps(image[0])).items():
        full = torch.where(mask[0], values, values[mask[0]].min()).numpy()
        evaluator = into.setdefault(name, PixelEvaluator())
        evaluator.add(item.id, full, label, fov=mask[0].numpy())


def table(lines: dict[str, Any], about: dict[str, Any]) -> str:
    keys = list(next(iter(lines.values())))
    text = [f"| | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
    for name, entries in lines.items():
        text.append(f"| {name} | {' | '.join(cell(entries[key]) for key in keys)} |")
    return "\n".join(text) + f"\n\nEnsemble minus the best, {about['control']}: {gap(about)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the data pack")
    parser.add_argument("--lesions", default="nsa", help="task that makes lesions in volumes")
    parser.add_argument("--n-boot", type=int, default=1000)
    parser.add_argument("-o", "--output", type=Path, default=Path("many_tasks"))
    args = parser.parse_args()
    bundle = fundad_fast.load(args.model, device="cpu").bundle_
    assert bundle is not None
    method, spec = bundle.method, InputSpec(**bundle.input_spec)
    assert isinstance(method, ManyTasks)
    volumes = spec.volume is not None
    dataset = discover(args.data, volumes=volumes)
    with torch.no_grad():
        if volumes:
            tables = of_volumes(method, spec, dataset, args.n_boot, args.lesions)
        else:
            tables = {"images": of_images(method, spec, dataset, args.n_boot)}
    content = {
        "title": f"ManyTasks on {args.data.name}",
        "config": method.config.model_dump(mode="json"),
        "facts": method.facts,
        "tables": tables,
        "environment": environment(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.with_suffix(".json").write_text(json.dumps(content, indent=1))
    text = "\n".join(
        f"## {name}\n\n{table(t['lines'], t['against_controls'])}" for name, t in tables.items()
    )
    args.output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
