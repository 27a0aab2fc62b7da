# SPDX-License-Identifier: Apache-2.0
"""NT-Xent with excluded pairs, LARS, the schedule, the ResNet, and CSI's score."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf

from fundad_fast.methods.contrast import nt_xent
from fundad_fast.methods.shift_scores import Axes, scoring_views, view_features
from fundad_fast.nets import ContrastNet
from fundad_fast.synthetic import augmented, mirrored, shifted
from fundad_fast.training import LARS, warm_up_and_cosine

# Two images, two shifts: rows 0-3 are O1, 4-7 O2, 8-11 D. P is a positive pair, x is excluded,
# o is excluded in shifted_removed and negative in naive, a dot is negative.
MATRIX = """
x . . . P . . . o . . .
. x . . . P . . . o . .
. . x . . . P . . . o .
. . . x . . . P . . . o
P . . . x . . . o . . .
. P . . . x . . . o . .
. . P . . . x . . . o .
. . . P . . . x . . . o
"""


def by_hand(z, mode, tau=0.5):
    z = z / z.norm(dim=1, keepdim=True)
    total = 0.0
    for i, line in enumerate(MATRIX.split("\n")[1:-1]):
        kinds = line.split()
        left_out = "xo" if mode == "shifted_removed" else "x"
        bottom = sum(
            math.exp(float(z[i] @ z[j]) / tau) for j in range(12) if kinds[j] not in left_out
        )
        (j,) = [j for j in range(12) if kinds[j] == "P"]
        total -= math.log(math.exp(float(z[i] @ z[j]) / tau) / bottom)
    return total / 8


@pytest.mark.parametrize("mode", ["shifted_removed", "naive"])
def test_the_matrix_of_twelve_by_hand(mode):
    z = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = by_hand(z, mode)
    assert nt_xent(z, 4, mode=mode).item() == pytest.approx(want, rel=1e-5)
    images = nt_xent(z, 4, mode=mode, divisor="images")
    assert images.item() == pytest.approx(want * 2 / 3, rel=1e-5)
    other = nt_xent(z, 4, mode=mode, temperature=0.2).item()
    assert other == pytest.approx(by_hand(z, mode, 0.2), rel=1e-5)


def test_modes_differ_in_an_images_own_dissolved_version_alone():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(12, 5, generator=g)
    moved = z.clone()
    moved[8] = z[0]  # the dissolved image of row 0 now looks like it
    own = {
        m: nt_xent(moved, 4, mode=m) - nt_xent(z, 4, mode=m) for m in ("shifted_removed", "naive")
    }
    assert own["naive"] > own["shifted_removed"] + 0.05


def test_views_that_agree_and_all_else_apart_lose_what_they_must():
    # Orthogonal pairs: each row has its positive at 1, the others at 0.
    z = torch.eye(6).repeat(2, 1)
    assert nt_xent(z, 6).item() == pytest.approx(math.log(math.e**2 + 10) - 2, rel=1e-6)
    three = torch.cat([z, torch.eye(12)[6:, 6:]])
    assert nt_xent(three, 6).item() == pytest.approx(math.log(math.e**2 + 15) - 2, rel=1e-6)
    naive = nt_xent(three, 6, mode="naive").item()
    assert naive == pytest.approx(math.log(2 * math.e**2 + 15) - 2, rel=1e-6)


@pytest.mark.parametrize("stacked", [2, 3])
def test_blocks_of_rows_give_the_same_loss_and_gradient(stacked):
    g = torch.Generator().manual_seed(0)
    whole = torch.randn(stacked * 20, 7, generator=g, requires_grad=True)
    parts = whole.detach().clone().requires_grad_()
    a, b = nt_xent(whole, 20), nt_xent(parts, 20, block_bytes=4 * stacked * 20 * 7)
    a.backward()
    b.backward()
    assert b.item() == pytest.approx(a.item(), rel=1e-6)
    torch.testing.assert_close(parts.grad, whole.grad)


def test_blocks_bound_what_is_kept_for_the_gradient():
    z = torch.randn(3 * 64, 8, requires_grad=True)

    def peak(limit):
        sizes = []

        def note(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            nt_xent(z, 64, block_bytes=limit)
        return sum(sizes)

    kept = [peak(2**30), peak(4 * 192 * 16)]
    assert kept[0] > 2 * 64 * 192
    assert kept[1] < kept[0] / 3
    with pytest.raises(ValueError, match="want 8 or 12 rows, got 11"):
        nt_xent(torch.rand(11, 3), 4)


# -- the optimiser -------------------------------------------------------------------------------


def test_lars_takes_steps_that_are_a_share_of_a_tensors_size():
    w, b = torch.nn.Parameter(torch.tensor([3.0, 4.0])), torch.nn.Parameter(torch.zeros(2))
    idle = torch.nn.Parameter(torch.ones(1))
    optimizer = LARS([w, b, idle], 2.0, momentum=0.5, weight_decay=0.1, trust=0.01)
    gw, gb = torch.tensor([0.6, -0.8]), torch.tensor([0.5, 0.25])
    wd, bd = w.detach().clone().double(), b.detach().clone().double()
    mw, mb = torch.zeros(2).double(), torch.zeros(2).double()
    for step in range(3):
        w.grad, b.grad = gw.clone(), gb.clone()
        optimizer.step()
        rate = 0.01 * wd.norm() / (gw.double().norm() + 0.1 * wd.norm() + 1e-8)
        mw = 0.5 * mw + rate * (gw + 0.1 * wd)
        of_b = (
            1.0 if step == 0 else 0.01 * bd.norm() / (gb.double().norm() + 0.1 * bd.norm() + 1e-8)
        )
        mb = 0.5 * mb + of_b * (gb + 0.1 * bd)
        wd, bd = wd - 2 * mw, bd - 2 * mb
        torch.testing.assert_close(w.detach().double(), wd, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(b.detach().double(), bd, rtol=1e-5, atol=1e-7)
    assert torch.equal(w.grad, gw)
    assert idle.item() == 1
    with pytest.raises(ValueError, match="lr > 0"):
        LARS([w], 0.0)


def test_the_rate_rises_tenfold_then_falls_as_a_cosine():
    rates = [warm_up_and_cosine(s, warmup=10, total=1000) for s in (0, 5, 10, 510, 1010, 2000)]
    assert rates == pytest.approx([1, 5.5, 10, 5, 0, 0])
    assert warm_up_and_cosine(0, warmup=0, total=100) == 10
    assert warm_up_and_cosine(9, warmup=10, total=1) == pytest.approx(9.1)


# -- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("stem", "first"), [("cifar", 32), ("imagenet", 8)])
def test_stems_keep_or_quarter_the_resolution(stem, first):
    net = ContrastNet(3, stem=stem, width=8).eval()
    x = torch.rand(2, 3, 32, 32)
    assert net.stem(x).shape == (2, 8, first, first)
    z, logits = net(x)
    assert z.shape == (2, 128)
    assert logits.shape == (2, 4)


def test_the_papers_network_is_resnet_18():
    import timm

    body = timm.create_model("resnet18", num_classes=0)
    size = sum(p.numel() for p in body.parameters())
    heads = 512 * 512 + 512 + 512 * 128 + 128 + 512 * 4 + 4
    ours = ContrastNet(3)
    assert sum(p.numel() for p in ours.parameters()) == size + heads
    # In order, the tensors of the body are timm's but for the places of the shortcuts.
    own = [v.shape for k, v in ours.state_dict().items() if k.startswith(("stem", "blocks"))]
    assert sorted(own) == sorted(v.shape for v in body.state_dict().values())
    theirs = [k for k in body.state_dict() if "downsample" not in k]
    mine = [k for k in ours.state_dict() if "short" not in k and k.startswith(("stem", "blocks"))]
    short = [k for k in body.state_dict() if "downsample" in k]
    mine_short = [k for k in ours.state_dict() if "short" in k]
    ours.load_state_dict(
        {a: body.state_dict()[b] for a, b in zip(mine + mine_short, theirs + short)}, strict=False
    )
    x = torch.rand(2, 3, 64, 64)
    want = body.eval()((x - 0.5) / 0.5)
    got = ours.eval().blocks(ours.stem((x - 0.5) / 0.5)).mean((-2, -1))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours(x)[1], ours.shift(want), rtol=1e-4, atol=1e-5)


# -- the score -----------------------------------------------------------------------------------


def test_features_are_means_over_the_views_one_by_one(monkeypatch):
    net = ContrastNet(3, width=4, projection=6).eval()
    views = scoring_views(3, (0.54, 0.54))
    assert len(views) == 12
    assert 0 < views.flip.sum() < 12
    image = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    z, logits = view_features(net, image, views, "cutperm")
    assert z.shape == (3, 4, 6)
    for i in range(3):
        for k in range(4):
            seen = []
            for v in range(3):
                own = views[torch.tensor([4 * v + k])]
                one = shifted(mirrored(image[i : i + 1], own.flip), k, "cutperm")
                seen.append(net(augmented(one, own)))
            for got, want in ((z, 0), (logits, 1)):
                mean = torch.stack([s[want][0] for s in seen]).mean(0)
                torch.testing.assert_close(got[i, k], mean, rtol=1e-4, atol=1e-5)
    from fundad_fast.methods import shift_scores

    monkeypatch.setitem(shift_scores.PIXELS_AT_ONCE, "cpu", 5 * 32 * 32)
    parts = view_features(net, image, views, "cutperm")
    torch.testing.assert_close(parts[0], z, rtol=1e-4, atol=1e-5)


def test_scores_are_the_formula_in_float64():
    g = torch.Generator().manual_seed(0)
    f, a = torch.randn(4, 4, 6, generator=g), torch.randn(7, 4, 6, generator=g)
    logits, known = torch.rand(4, 4, 4, generator=g), torch.rand(7, 4, 4, generator=g)
    axes = Axes.of(a, known)
    want = np.zeros(4)
    for i in range(4):
        for k in range(4):
            lengths = [a[m, k].double().norm().item() for m in range(7)]
            best = max(float(f[i, k].double() @ a[m, k].double()) / lengths[m] for m in range(7))
            want[i] += best / np.mean(lengths)
            want[i] += float(logits[i, k, k]) / np.mean([float(known[m, k, k]) for m in range(7)])
    np.testing.assert_allclose(axes.normality(f, logits).numpy(), want / 4, rtol=1e-5)
    # The training images themselves are about as normal as can be: their own axes are there.
    own = axes.normality(a, known).mean().item()
    assert own == pytest.approx(2, rel=1e-6)


def test_a_shift_that_was_not_learned_is_left_out_and_told():
    f = nnf.normalize(torch.rand(3, 4, 5), dim=2)
    logits = torch.ones(3, 4, 4)
    logits[:, 2, 2] = -0.5
    with pytest.warns(RuntimeWarning, match="does not know shifts apart"):
        axes = Axes.of(f, logits)
    assert axes.shi.tolist() == [1, 1, 0, 1]
    assert axes.normality(f, logits).tolist() == pytest.approx([1.75] * 3)
