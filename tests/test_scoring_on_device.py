# SPDX-License-Identifier: Apache-2.0
"""Scoring as a device sees it: no question to it on the way, compiled, and when memory runs out."""

from __future__ import annotations

import pytest
import torch

from fundad_fast import ops
from fundad_fast.batch import Batch
from fundad_fast.methods import ConfigError, Method, PatchCore, ReSAD, make_config, memory_bank
from fundad_fast.methods.cells import Cells, image_score
from fundad_fast.methods.portions import Portion, in_portions

SMALL = {"backbone": "resnet18", "layers": ("layer1", "layer2"), "image_size": 48}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def images(n: int, masks: bool = False, seed: int = 0) -> Batch:
    x = torch.rand(n, 3, 48, 48, generator=torch.Generator().manual_seed(seed))
    mask = None
    if masks:
        mask = torch.zeros(n, 48, 48, dtype=torch.bool)
        for i in range(n):
            mask[i, 6 + i : 40 + i, 3 * i : 30] = True
    return Batch(x, tuple(f"im{i}" for i in range(n)), mask)


def fitted(method=ReSAD, masks: bool = False, preset: str = "paper", **settings) -> ReSAD:
    settings = {**SMALL, "fov": "auto" if masks else "none", "coreset_size": 60, **settings}
    config = make_config(method, preset, settings)
    return method(config, weights="untrained").fit([images(4, masks)])


KINDS = [
    {},
    {"image_score": "mean"},
    {"image_score": "top", "top_fraction": 0.1},
    {"num_neighbors": 3},
    {"reweight": "paper", "num_neighbors": 4},
    {"smoothing": 2.0},
    {"backbone_dtype": "bfloat16"},
    {"combination": ("F", "R", "P")},
]


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_the_way_from_images_to_scores_asks_the_device_nothing(masks, settings):
    """On the meta device there are no values, so whatever reads one to go on would fail."""
    if settings.get("backbone_dtype"):
        pytest.skip("torch has no autocast for the meta device")
    model, batch = fitted(masks=masks, **settings), images(3, masks)
    want = model.score(batch)
    got = model.to("meta").score(batch)  # the batch itself lies where a loader leaves it
    assert got.image.device.type == got.map.device.type == "meta"
    assert (got.image.shape, got.map.shape) == (want.image.shape, want.map.shape)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("masks", [False, True])
def test_compiled_features_and_scores_are_the_same(masks, device):
    model, batch = fitted(masks=masks).to(device), images(2, masks)
    want = model.score(batch)
    features = torch.compile(model.features, fullgraph=True, backend="aot_eager")
    x = batch.image.to(device)
    torch.testing.assert_close(features(x), model.features(x), rtol=1e-4, atol=1e-4)

    def judge(c: torch.Tensor, cells: Cells) -> tuple[torch.Tensor, torch.Tensor]:
        scores = model._judge(cells.rows(c), cells, batch.mask, model._bank)
        return scores.image, scores.map

    again = model.compile(backend="aot_eager").score(batch)
    torch.testing.assert_close(again.image, want.image, rtol=1e-4, atol=1e-5)
    cells = Cells.under(batch.mask, (2, 12, 12), torch.device(device))
    step = torch.compile(judge, fullgraph=True, backend="aot_eager")
    image, map = step(model.features(x), cells)
    torch.testing.assert_close(image, want.image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(map, want.map, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_every_device_scores_as_the_cpu_does(device, settings):
    model, batch = fitted(masks=True, **settings), images(3, True, seed=5)
    want = model.score(batch)
    got = model.to(device).score(batch)
    loose = 0.05 if "backbone_dtype" in settings else 1e-3
    torch.testing.assert_close(got.image.cpu(), want.image, rtol=loose, atol=loose)
    torch.testing.assert_close(got.map.cpu(), want.map, rtol=loose, atol=loose)


@pytest.mark.parametrize("dtype, bound", [("bfloat16", 2.0**-6), ("float16", 2.0**-9)])
def test_short_types_in_the_backbone_change_features_a_little(dtype, bound):
    config = make_config(ReSAD, "paper", {**SMALL, "fov": "none", "combination": ("F",)})
    exact = ReSAD(config, weights="untrained").features(images(2).image)
    short = config.model_copy(update={"backbone_dtype": dtype})
    c = ReSAD(short, weights="untrained").features(images(2).image)
    assert c.dtype == torch.float32
    off = (c - exact).norm() / exact.norm()
    assert 0 < off < bound


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_model_scores_batch_after_batch_on_a_device(mode):
    model, batches = fitted(masks=True).to("cuda"), [images(2, True, seed=i) for i in range(4)]
    want = [model.score(batch) for batch in batches]
    model.compile(mode=mode)
    for batch, one in zip(batches, want):
        got = model.score(batch)
        torch.testing.assert_close(got.image, one.image, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(got.map, one.map, rtol=1e-3, atol=1e-4)


def test_a_batch_of_another_size_is_not_compiled_again(monkeypatch):
    model, seen = fitted(), []
    want = model.score(images(3))

    def compiled(features, **options):
        return lambda image: seen.append((len(image), options["mode"])) or features(image)

    monkeypatch.setattr(torch, "compile", compiled)
    model.compile(mode="default")
    for n in (2, 3, 2):
        got = model.score(images(n))
    assert seen == [(2, "default")] * 2
    torch.testing.assert_close(got.image, want.image[:2])


def test_a_method_without_a_compiled_form_says_so():
    with pytest.raises(ConfigError, match="resad has no compiled form"):
        Method.compile(fitted(), mode="default")


class Small:
    """A GPU that takes so many images, or queries, at a time."""

    def __init__(self, call, size: int, limit: int, at: int) -> None:
        self.call, self.size, self.limit, self.at = call, size, limit, at
        self.seen: list[int] = []

    def __call__(self, *args, **kwargs):
        n = len(args[self.at])
        self.seen.append(n)
        if n > self.limit:
            raise torch.cuda.OutOfMemoryError("injected")
        return self.call(*args, **kwargs)


@pytest.mark.parametrize("masks", [False, True])
def test_scoring_goes_on_with_fewer_images_where_memory_runs_out(masks, monkeypatch):
    model, batch = fitted(masks=masks), images(5, masks)
    want = model.score(batch)
    gpu = Small(model._features, 5, 2, 0)
    gpu.backbone = model.features.backbone
    monkeypatch.setattr(model, "_features", gpu)
    with pytest.warns(RuntimeWarning, match="with 5 images at a time; going on with 2"):
        got = model.score(batch)
    assert gpu.seen == [5, 2, 2, 1]
    torch.testing.assert_close(got.image, want.image)
    torch.testing.assert_close(got.map, want.map)
    model.score(batch)
    assert gpu.seen[4:] == [2, 2, 1]  # what fitted is remembered


def test_fitting_goes_on_with_fewer_images_where_memory_runs_out(monkeypatch):
    whole = fitted()
    model = ReSAD(whole.config, weights="untrained")
    gpu = Small(model.features, 4, 3, 0)
    gpu.backbone, gpu.dim = model.features.backbone, model.features.dim
    monkeypatch.setattr(model, "_features", gpu)
    with pytest.warns(RuntimeWarning, match="going on with 2"):
        model.fit([images(4)])
    assert gpu.seen == [4, 2, 2]
    torch.testing.assert_close(model._bank.rows, whole._bank.rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method, preset", [(ReSAD, "paper"), (PatchCore, "paper")])
def test_the_search_goes_on_with_fewer_patches_where_memory_runs_out(method, preset, monkeypatch):
    model, batch = fitted(method, preset=preset), images(5)
    want = model.score(batch)
    model._queries.least = 16
    gpu = Small(ops.nearest, 720, 200, 0)
    monkeypatch.setattr(memory_bank.ops, "nearest", gpu)
    with pytest.warns(RuntimeWarning, match="720 patches at a time; going on with 360"):
        got = model.score(batch)
    assert gpu.seen[:6] == [720, 360, 180, 180, 180, 180]
    torch.testing.assert_close(got.image, want.image)
    torch.testing.assert_close(got.map, want.map)


def test_memory_that_does_not_suffice_for_one_image_is_an_error(monkeypatch):
    model = fitted()
    monkeypatch.setattr(model, "_features", Small(model._features, 1, 0, 0))
    with (
        pytest.warns(RuntimeWarning, match="going on with 1"),
        pytest.raises(torch.cuda.OutOfMemoryError),
    ):
        model.score(images(2))


def test_portions_cover_everything_in_order():
    assert in_portions(lambda s: (s.start, s.stop), 7, Portion("things", most=3)) == [
        (0, 3),
        (3, 6),
        (6, 7),
    ]
    assert in_portions(lambda s: 1, 0, Portion("things")) == []


def test_image_scores_are_those_of_the_pixels_under_the_mask():
    g = torch.Generator().manual_seed(0)
    full, mask = torch.rand(3, 20, 20, generator=g) - 2, torch.rand(3, 20, 20, generator=g) < 0.4
    mask[1] = False
    mask[1, 3, 4] = True  # a single pixel: less than the share
    for seen, parts in ((mask, [f[m] for f, m in zip(full, mask)]), (None, full.flatten(1))):
        want = {
            "max": [p.max() for p in parts],
            "mean": [p.mean() for p in parts],
            "top": [p.topk(max(1, round(0.1 * len(p)))).values.mean() for p in parts],
        }
        for how, values in want.items():
            got = image_score(full, seen, how, 0.1)
            torch.testing.assert_close(got, torch.stack(values))


def test_cells_are_those_that_the_mask_touches():
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[0, 0, 0] = mask[0, 7, 5] = mask[1, 3, 2] = True
    cells = Cells.under(mask, (2, 4, 4), torch.device("cpu"))
    assert cells.index.tolist() == [0, 14, 21]
    assert cells.count == (2, 1)
    c = torch.arange(32.0).view(2, 4, 4, 1)
    assert cells.rows(c)[:, 0].tolist() == [0, 14, 21]
    grid = cells.grid(torch.tensor([1.0, 2.0, 3.0]))
    assert grid.flatten().nonzero()[:, 0].tolist() == [0, 14, 21]
    assert torch.equal(grid > 0, cells.inside(grid.device))
