# SPDX-License-Identifier: Apache-2.0
"""PatchCore here and in anomalib: the same images, weights, pixels and share of the bank.

    pip install '.[peers]' && python benchmarks/peers.py --data DIR --weights FILE -o peers/

Each turn is a process of its own, from image files to scores, ours and theirs in turn: time to fit,
time to score all test images, peak memory, image and pixel AUROC by the same evaluator. With
``--share-bank`` our bank is loaded into anomalib's model, so that scoring alone is compared, and
on the same rows; with ``--ratio 0.1`` there is no other way, since choosing one there takes hours.
Ours fits without folds here: anomalib sets no threshold from held-out images.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def evaluate(items: Any, maps: list[np.ndarray], scores: list[float]) -> dict[str, float | None]:
    """AUROCs over all pixels of all test images, whatever made the maps ``[s, s]``."""
    from fundad_fast.data import read_mask
    from fundad_fast.evaluation import PixelEvaluator, image_metrics, resample_map, resize_affine

    pixels = PixelEvaluator()
    for item, values in zip(items, maps):
        mask = read_mask(item.mask_path) if item.label == 1 else None
        shape = mask.shape if mask is not None else values.shape
        pixels.add(item.id, resample_map(values, resize_affine(values.shape, *shape), *shape), mask)
    found = pixels.metrics(n_boot=0)
    image = image_metrics(scores, [item.label for item in items], n_boot=0)
    names = ("pixel_AUROC", "pixel_AP")
    return {"image_AUROC": image["image_AUROC"].value} | {n: found[n].value for n in names}


def fitted(args: argparse.Namespace, dataset: Any) -> Any:
    import fundad_fast

    detector = fundad_fast.PatchCore(
        weights=args.weights,
        backbone="resnet18",
        image_size=args.image_size,
        coreset_sampling_ratio=args.ratio,
        fov=args.fov,
        bank_rows="fov" if args.fov == "auto" else "all",
        batch_size=args.batch_size,
        folds=0,
        seed=args.seed,
    )
    return detector.fit(list(dataset.select("train", 0)))


def bank(args: argparse.Namespace, dataset: Any, test: Any) -> dict[str, Any]:
    """Fit ours and leave the model, and its bank for anomalib, in the folder ``args.bank``."""
    detector = fitted(args, dataset)
    detector.save(args.bank)
    np.save(Path(args.bank) / "rows.npy", detector.bundle_.method.state().bank["rows"].numpy())
    return {}


def ours(args: argparse.Namespace, dataset: Any, test: Any) -> dict[str, Any]:
    import fundad_fast

    began = time.perf_counter()
    if args.bank:
        detector = fundad_fast.load(args.bank)
        detector.batch_size = args.batch_size
    else:
        detector = fitted(args, dataset)
    fit = time.perf_counter() - began
    began = time.perf_counter()
    scores = detector.score(list(test))
    score = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert scores.map is not None
    quality = evaluate(test, list(scores.map.numpy()), scores.image.tolist())
    return {"fit_s": fit, "score_s": score, "peak_bytes": peak, **quality}


def patchcore_of_anomalib(args: argparse.Namespace, *, visualizer: bool = False) -> Any:
    """Their model with our weights; where ``args.bank`` names our model, also with its bank."""
    import torch
    from anomalib.models import Patchcore
    from safetensors.torch import load_file

    size = (args.image_size, args.image_size)
    model = Patchcore(
        backbone="resnet18",
        layers=("layer2", "layer3"),
        pre_trained=False,
        coreset_sampling_ratio=args.ratio,
        num_neighbors=9,
        pre_processor=Patchcore.configure_pre_processor(image_size=size),
        visualizer=visualizer,
        evaluator=False,
    )
    net = model.model.feature_extractor.feature_extractor
    state = {k: v.float() for k, v in load_file(args.weights).items()}
    missing, surplus = net.load_state_dict(state, strict=False)
    assert not surplus, surplus
    assert all("num_batches_tracked" in key for key in missing), missing
    if args.bank:
        model.model.memory_bank = torch.from_numpy(np.load(Path(args.bank) / "rows.npy"))
        model.model.eval()
    return model


def engine_of_anomalib() -> Any:
    from anomalib.engine import Engine

    return Engine(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        default_root_dir=tempfile.mkdtemp(),
    )


def anomalib(args: argparse.Namespace, dataset: Any, test: Any) -> dict[str, Any]:
    import torch
    from anomalib.data import Folder, PredictDataset
    from torch.utils.data import DataLoader

    torch.manual_seed(args.seed)
    np.random.seed(args.seed)
    began = time.perf_counter()
    model, engine = patchcore_of_anomalib(args), engine_of_anomalib()
    root = Path(dataset.root)
    data = Folder(
        name="pack",
        root=root,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir="test/dr",
        train_batch_size=args.batch_size,
        eval_batch_size=args.batch_size,
        num_workers=args.workers,
    )
    if not args.bank:
        began = time.perf_counter()
        engine.fit(model=model, datamodule=data)
    fit = time.perf_counter() - began
    folder = tempfile.mkdtemp()
    for i, item in enumerate(test):
        Path(folder, f"{i:05d}{Path(item.path).suffix}").symlink_to(Path(item.path).absolute())
    loader = DataLoader(
        PredictDataset(path=folder),
        batch_size=args.batch_size,
        num_workers=args.workers,
        collate_fn=PredictDataset(path=folder).collate_fn,
    )
    began = time.perf_counter()
    predictions = engine.predict(model=model, dataloaders=loader, return_predictions=True)
    score = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # The post-processor clamps to [0, 1] after fitting; for the AUROCs the raw scores are taken.
    maps, scores = [], []
    model.model.eval()
    with torch.no_grad():
        for batch in loader:
            out = model.model(model.pre_processor.transform(batch.image))
            maps += list(out.anomaly_map[:, 0].numpy())
            scores += out.pred_score.flatten().tolist()
    assert predictions is not None
    return {"fit_s": fit, "score_s": score, "peak_bytes": peak, **evaluate(test, maps, scores)}


def turn(role: str, more: list[str]) -> dict[str, Any]:
    """One part in a process of its own; the arguments of this call, and more."""
    command = [sys.executable, __file__, *sys.argv[1:], "--role", role, *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{role} failed:\n{done.stderr[-3000:]}")
    line = next(s for s in done.stdout.splitlines() if s.startswith("RESULT "))
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of data packs")
    parser.add_argument("--weights", required=True)
    parser.add_argument("-o", "--output", type=Path, default=Path("peers"))
    parser.add_argument("--ratio", type=float, default=0.01)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--fov", default="none", choices=("none", "auto"))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1, help="the seed goes up with each")
    parser.add_argument("--share-bank", action="store_true", help="load our bank into anomalib")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--role", choices=("bank", "ours", "anomalib"), help=argparse.SUPPRESS)
    parser.add_argument("--bank", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        from fundad_fast.data import discover

        dataset = discover(args.data / "idrid_512")
        run = {"bank": bank, "ours": ours, "anomalib": anomalib}[args.role]
        print("RESULT " + json.dumps(run(args, dataset, dataset.select(split="test"))))
        return
    args.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "anomalib": []}
    for number in range(args.rounds):
        more = ["--seed", str(number)]
        if args.share_bank:
            more += ["--bank", str(args.output / f"bank-{args.ratio:g}-{number}")]
            if not Path(more[-1]).exists():
                turn("bank", more)
        for role in found:
            found[role].append(turn(role, more))
            print(role, found[role][-1], flush=True)
    table = [
        f"PatchCore on idrid_512, ResNet-18, {args.image_size} px, bank {args.ratio:.0%}, "
        f"{args.rounds} rounds, median" + (", one bank for both:" if args.share_bank else ":"),
        "",
        "| | ours | anomalib | ratio |",
        "|---|---|---|---|",
    ]
    keys = [key for key in found["ours"][0] if key != "fit_s" or not args.share_bank]
    for key in keys:
        a, b = (statistics.median(r[key] for r in found[role]) for role in found)
        table.append(f"| {key} | {a:.4g} | {b:.4g} | {b / a:.3g} |")
    stem = f"peers-{args.ratio:g}" + ("-shared" if args.share_bank else "")
    (args.output / f"{stem}.json").write_text(json.dumps(found, indent=1))
    (args.output / f"{stem}.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    main()
