# SPDX-License-Identifier: Apache-2.0
"""ReSAD and PatchCore against their definitions, written out in float64."""

import math

import numpy as np
import pytest
import torch

from fundad_fast import ops
from fundad_fast.batch import Batch
from fundad_fast.methods import (
    ConfigError,
    PatchCore,
    ReSAD,
    _base,
    make_config,
    spread,
    touched,
)
from fundad_fast.methods.coreset import (
    bank_size,
    choose,
    projection_dim,
    projection_matrix,
    selection_bytes,
)
from fundad_fast.progress import Progress
from fundad_fast.spill import RowStore

SMALL = {"backbone": "resnet18", "layers": ("layer1", "layer2"), "image_size": 48, "fov": "none"}


def images(n: int, seed: int = 0, size: int = 48) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def batches(x: torch.Tensor, size: int = 2, mask: torch.Tensor | None = None) -> list[Batch]:
    return [
        Batch(
            x[i : i + size],
            tuple(f"im{j}" for j in range(i, min(i + size, len(x)))),
            None if mask is None else mask[i : i + size],
        )
        for i in range(0, len(x), size)
    ]


def fit(method=ReSAD, n: int = 4, preset: str = "paper", mask=None, **settings):
    config = make_config(method, preset, {**SMALL, **settings})
    return method(config, weights="untrained").fit(batches(images(n), mask=mask))


def brute_force(model, x: torch.Tensor) -> torch.Tensor:
    """Distance of every cell to the nearest bank row, in float64."""
    rows = model.features(x).double()
    return (
        torch.cdist(
            rows.flatten(1, 2),
            model._bank.rows.double(),
            p=2.0,
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        .amin(2)
        .view(rows.shape[:3])
    )


def test_the_map_is_the_distance_to_the_nearest_row_and_the_score_its_interpolated_maximum():
    model = fit(coreset_sampling_ratio=0.3)
    x = images(3, seed=9)
    scores = model.score(Batch(x, ("a", "b", "c")))
    want = brute_force(model, x)
    torch.testing.assert_close(scores.map.double(), want, rtol=1e-4, atol=1e-5)
    full = torch.nn.functional.interpolate(want[:, None], (48, 48), mode="bilinear")
    torch.testing.assert_close(scores.image.double(), full.amax((1, 2, 3)), rtol=1e-4, atol=1e-5)
    assert len(model._bank.rows) == int(4 * 12 * 12 * 0.3)


def test_training_images_score_zero_when_every_row_is_kept():
    model = fit(coreset_sampling_ratio=1.0)
    scores = model.score(batches(images(4), 4)[0])
    assert scores.map.abs().max() < 1e-2 * brute_force(model, images(1, seed=5)).mean()


@pytest.mark.parametrize("terms", [("F",), ("R",), ("P",), ("P", "R"), ("F", "R", "P")])
def test_combined_features_are_the_sum_of_their_terms(terms):
    config = make_config(ReSAD, "paper", {**SMALL, "combination": terms, "radius": 2})
    model = ReSAD(config, weights="untrained")
    x = images(2)
    f = model.features.multilevel(model.features.backbone(x)).double()
    parts = {
        "F": f.permute(0, 2, 3, 1),
        "R": ops.distance_filter(f, 2).permute(0, 2, 3, 1),
    }
    rows = f.flatten(2).transpose(1, 2)
    parts["P"] = (torch.softmax(rows @ rows.transpose(1, 2), 2) @ rows).view(parts["F"].shape)
    want = sum(parts[t] for t in terms)
    torch.testing.assert_close(model.features(x).double(), want, rtol=1e-4, atol=1e-4)


def test_the_multilevel_map_lays_the_deep_layer_on_the_shallow_grid():
    model = fit(upscale="nearest", combination=("F",))
    shallow, deep = model.features.backbone(images(1))
    c = model.features(images(1))
    torch.testing.assert_close(c[0, 5, 7, :64], shallow[0, :, 5, 7])
    torch.testing.assert_close(c[0, 5, 7, 64:], deep[0, :, 2, 3])


def test_radius_follows_the_map_only_when_asked():
    fixed, relative = (fit(radius=3, **more).features for more in ({}, {"radius_fraction": 0.25}))
    assert (fixed.radius(12), fixed.radius(98)) == (3, 3)
    assert (relative.radius(12), relative.radius(98), relative.radius(1)) == (3, 24, 1)


def test_image_score_options():
    x = Batch(images(2, seed=3), ("a", "b"))
    by_max, by_mean = fit().score(x), fit(image_score="mean").score(x)
    top = fit(image_score="top", top_fraction=0.25).score(x)
    full = torch.nn.functional.interpolate(by_max.map[:, None], (48, 48), mode="bilinear")
    flat = full.flatten(1)
    torch.testing.assert_close(by_mean.image, flat.mean(1))
    torch.testing.assert_close(top.image, flat.topk(576).values.mean(1))
    assert (by_mean.image < top.image).all()
    assert (top.image < by_max.image).all()


def test_several_neighbours_are_averaged():
    model = fit(num_neighbors=3, coreset_size=20)
    x = images(1, seed=4)
    rows = model.features(x).double().flatten(1, 2)[0]
    d = (rows[:, None] - model._bank.rows.double()[None]).square().sum(-1).sqrt()
    want = d.topk(3, largest=False).values.mean(1)
    got = model.score(Batch(x, ("a",))).map.flatten().double()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_patchcore_reweights_as_its_equation_7_says():
    model = fit(PatchCore, coreset_size=30, num_neighbors=4, smoothing=0)
    x = images(1, seed=6)
    got = model.score(Batch(x, ("a",)))
    rows, bank = model.features(x).double().flatten(1, 2)[0], model._bank.rows.double()
    d = torch.cdist(rows, bank)
    near, owner = d.min(1)
    worst = near.argmax()
    around = torch.cdist(bank[owner[worst]][None], bank)[0].topk(4, largest=False).indices
    assert around[0] == owner[worst]
    e = d[worst, around].exp()
    want = (1 - e[0] / e.sum()) * near[worst]
    torch.testing.assert_close(got.image[0].double(), want, rtol=1e-4, atol=1e-6)
    assert got.image[0] < near.max()


def test_smoothing_returns_the_map_at_the_inputs_size():
    sharp, smooth = (fit(smoothing=s).score(Batch(images(1, seed=7), ("a",))) for s in (0.0, 3.0))
    assert sharp.map.shape == (1, 12, 12)
    assert smooth.map.shape == (1, 48, 48)
    assert smooth.image < sharp.image
    assert smooth.map.mean() == pytest.approx(float(sharp.map.mean()), rel=0.05)


def test_the_blur_is_a_gaussian():
    from scipy.ndimage import gaussian_filter

    x = torch.rand(2, 1, 48, 48, generator=torch.Generator().manual_seed(1))
    got = fit(smoothing=2.5)._blur(x)
    want = [gaussian_filter(image[0].numpy(), 2.5, mode="mirror", truncate=4) for image in x]
    np.testing.assert_allclose(got[:, 0], want, rtol=1e-4)


def test_outside_the_mask_nothing_is_learned_or_scored():
    mask = torch.zeros(4, 48, 48, dtype=torch.bool)
    mask[:, 8:40, 10:38] = True
    model = fit(mask=mask, fov="auto", bank_rows="fov", coreset_sampling_ratio=1.0)
    assert len(model._bank.rows) == 4 * 8 * 8  # cells of 4 pixels: rows 2..9, columns 2..9
    x = images(1, seed=8)
    inside = model.score(Batch(x, ("a",), mask[:1]))
    assert (inside.map[0, 2:10, 2:10] > 0).all()
    assert (inside.map[0, :, 12:] == 0).all()  # two rings beyond the mask, then nothing
    changed = x.clone()
    changed[..., :2] = 5.0  # the far border: seen by no scored cell's own pixels
    everywhere = model.score(Batch(changed, ("a",)))
    assert everywhere.image > inside.image


@pytest.mark.parametrize("smoothing", [0.0, 3.0])
def test_a_constant_map_stays_constant_up_to_the_rim_of_the_mask(smoothing):
    model = fit(fov="auto", smoothing=smoothing)
    y, x = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    mask = ((x - 24) ** 2 + (y - 22) ** 2 < 15**2)[None]
    inside = touched(mask, torch.empty(1, 12, 12))
    grid = torch.where(inside, 7.0, 0.0)
    full = model._pixels(spread(grid, inside), mask)
    torch.testing.assert_close(full[mask], torch.full((int(mask.sum()),), 7.0))


def test_spread_goes_two_rings_out_and_leaves_the_inside_alone():
    inside = torch.zeros(1, 7, 7, dtype=torch.bool)
    inside[0, 3, 2:4] = True
    grid = torch.full((1, 7, 7), 99.0)
    grid[0, 3, 2], grid[0, 3, 3] = 2.0, 4.0
    out = spread(grid, inside)[0]
    assert (out[3, 2], out[3, 3]) == (2, 4)
    assert (out[3, 1], out[3, 4], out[2, 2]) == (2, 4, 3)
    assert out[3, 0] == 2
    assert (out[0] == 0).all()
    assert out[3, 6] == 0


def test_held_out_pixels_are_bounded(monkeypatch):
    monkeypatch.setattr(_base, "PIXELS_KEPT", 600)
    config = make_config(PatchCore, "paper", {**SMALL, "smoothing": 1.0})
    folds = {f"im{i}": i % 2 for i in range(4)}
    held = PatchCore(config, weights="untrained").fit(batches(images(4)), folds=folds).held_out_
    assert 400 < len(held.pixels) <= 600
    assert len(_base.thinned(np.arange(601), 4)) <= 150


def test_batches_of_any_size_score_the_same():
    model = fit()
    x = images(5, seed=2)
    ids = tuple("abcde")
    whole = model.score(Batch(x, ids)).image
    single = torch.cat([model.score(Batch(x[i : i + 1], ids[:1])).image for i in range(5)])
    torch.testing.assert_close(whole, single, rtol=1e-5, atol=0)


def test_held_out_images_are_scored_by_banks_that_have_not_seen_them():
    config = make_config(ReSAD, "paper", {**SMALL, "coreset_sampling_ratio": 1.0})
    data = batches(images(6))
    folds = {f"im{i}": i % 3 for i in range(6)}
    model = ReSAD(config, weights="untrained").fit(data, folds=folds)
    held = model.held_out_
    assert held.id == tuple(f"im{i}" for i in range(6))
    assert held.fold.tolist() == [0, 1, 2, 0, 1, 2]
    rest = [batch for batch in batches(images(6), 1) if folds[batch.id[0]] != 1]
    without = ReSAD(config, weights="untrained").fit(rest)
    again = without.score(batches(images(6), 1)[4])
    assert held.score[4] == pytest.approx(float(again.image), rel=1e-5)
    assert len(held.pixels) == 6 * 12 * 12
    assert np.isfinite(held.pixels).all()


def test_a_fit_goes_on_after_a_kill_and_ends_the_same(tmp_path):
    def stream(stop_at):
        for i, batch in enumerate(batches(images(6), 1)):
            if i == stop_at:
                raise KeyboardInterrupt
            yield batch

    config = make_config(ReSAD, "paper", {**SMALL, "coreset_sampling_ratio": 0.5})
    folds = {f"im{i}": i % 2 for i in range(6)}
    whole = ReSAD(config, weights="untrained").fit(stream(None), folds=folds)
    first = ReSAD(config, weights="untrained")
    with pytest.raises(KeyboardInterrupt):
        first.fit(stream(4), folds=folds, scratch=tmp_path)
    second = ReSAD(config, weights="untrained")
    assert second.done(tmp_path) == {"im0", "im1", "im2", "im3"}
    rest = [batch for batch in stream(None) if batch.id[0] not in second.done(tmp_path)]
    second.fit(rest, folds=folds, scratch=tmp_path)
    assert torch.equal(second._bank.rows, whole._bank.rows)
    assert np.array_equal(second.held_out_.score, whole.held_out_.score)
    other = make_config(ReSAD, "paper", {**SMALL, "radius": 2})
    assert ReSAD(other, weights="untrained").done(tmp_path) == set()


def test_projection_has_the_papers_dimensions_and_keeps_distances():
    assert projection_dim(1_286_936, 1536, 0.9) == 347
    assert projection_dim(2_708_328, 1536, 0.9) == 365
    assert projection_dim(100, 1536, None) == 1536
    assert projection_dim(1_286_936, 200, 0.9) == 200
    assert projection_matrix(1000, 64, 0.9, seed=0) is None
    w = projection_matrix(1_286_936, 1536, 0.9, seed=1)
    assert w.shape == (1536, 347)
    assert torch.equal(w, projection_matrix(1_286_936, 1536, 0.9, seed=1))
    assert not torch.equal(w, projection_matrix(1_286_936, 1536, 0.9, seed=2))
    x = torch.randn(200, 1536)
    ratio = torch.pdist(x @ w) / torch.pdist(x)
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    assert (w != 0).float().mean() == pytest.approx(1 / math.sqrt(1536), rel=0.05)


def test_bank_sizes_and_their_limits():
    def size(rows, **settings):
        return bank_size(rows, 10, make_config(ReSAD, "paper", settings))

    assert size(1_286_936) == 128_693
    assert size(5, coreset_sampling_ratio=0.01) == 1
    assert size(100, coreset_size=7) == 7
    assert size(100, coreset_sampling_ratio=0.5, coreset_bytes=4 * 10 * 20 + 39) == 20
    with pytest.raises(ConfigError, match="coreset_size=101.*only 100 rows"):
        size(100, coreset_size=101)
    with pytest.raises(ConfigError, match="less than one row"):
        size(100, coreset_bytes=39)


def clusters(n: int = 3000, d: int = 6) -> RowStore:
    g = torch.Generator().manual_seed(0)
    store = RowStore(d)
    for i in range(6):
        store.append(
            f"im{i}", torch.randn(n // 6, d, generator=g) + 4 * torch.randn(d, generator=g)
        )
    return store


def test_a_small_budget_chooses_in_shards_and_tells_the_radius():
    store = clusters()
    base = {"coreset_size": 60, "projection_eps": None}
    exact = choose(
        store, range(6), make_config(ReSAD, "paper", base), name="x", progress=Progress()
    )
    config = make_config(ReSAD, "paper", base)
    config = config.model_copy(update={"memory_budget": 2 * selection_bytes(800, 6)})
    sharded = choose(store, range(6), config, name="x", progress=Progress())
    assert (exact.shards, sharded.shards > 2) == (1, True)
    for chosen in (exact, sharded):
        assert len(set(chosen.index.tolist())) == 60
        rows = store.all().double()
        radius = torch.cdist(rows, rows[chosen.index]).amin(1).max()
        assert chosen.radius == pytest.approx(float(radius), rel=1e-5)
    assert exact.radius <= sharded.radius <= 2 * exact.radius
    tiny = config.model_copy(update={"memory_budget": 2 * selection_bytes(100, 6)})
    shares = choose(store, range(6), tiny, name="x", progress=Progress())
    assert shares.shards == 30
    assert len(set(shares.index.tolist())) == 60
    radius = torch.cdist(rows, rows[shares.index]).amin(1).max()
    assert shares.radius == pytest.approx(float(radius), rel=1e-5)


def test_only_the_given_images_are_chosen_from():
    chosen = choose(
        clusters(),
        [1, 4],
        make_config(ReSAD, "paper", {"coreset_size": 40}),
        name="x",
        progress=Progress(),
    )
    assert set((chosen.index // 500).tolist()) == {1, 4}
    assert chosen.index[0] == 500


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"radious": 3}, "no setting 'radious'; did you mean radius"),
        ({"radius": 0}, "radius: .*greater than or equal to 1"),
        ({"combination": ["F", "F"]}, "at most once"),
        ({"layers": []}, "at least one"),
        ({"fov": "none", "bank_rows": "fov"}, "^bank_rows=fov needs fov=auto$"),
        ({"fov": "none", "fov_crop": True}, "^fov_crop=true needs fov=auto$"),
        ({"reweight": "paper", "image_score": "mean"}, "image_score=mean has no meaning"),
        ({"attn_norm": "l1"}, "attn_norm"),
    ],
)
def test_wrong_settings_are_refused_in_words(settings, says):
    with pytest.raises(ConfigError, match=says):
        make_config(ReSAD, "paper", settings)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigError, match="paper, default, quick"):
        make_config(PatchCore, "best")


def test_presets_hold_the_papers_settings():
    paper = make_config(ReSAD, "paper")
    assert (paper.image_size, paper.radius, paper.coreset_sampling_ratio) == (784, 12, 0.1)
    assert (paper.combination, paper.attn_norm, paper.attn_scale) == (("P", "R"), "none", 1.0)
    assert (paper.backbone, paper.image_score) == ("wide_resnet50_2.tv_in1k", "max")
    for method in (ReSAD, PatchCore):
        for preset in ("paper", "default", "quick"):
            make_config(method, preset)


def test_an_unfitted_method_says_so():
    model = ReSAD(make_config(ReSAD, "paper", SMALL), weights="untrained")
    with pytest.raises(RuntimeError, match="resad is not fitted"):
        model.score(Batch(images(1), ("a",)))
    with pytest.raises(ConfigError, match="no healthy image"):
        model.fit([])


def test_the_plan_counts_rows_and_bytes():
    plan = ReSAD(make_config(ReSAD, "paper", SMALL), weights="untrained").plan(10, folds=5)
    assert "10 images x 144 patches x 192 features = 1440 rows" in plan.lines[0]
    assert plan.disk == 1440 * 192 * 4
    assert plan.seconds > 0
