# SPDX-License-Identifier: Apache-2.0
"""Shapes of synthetic anomalies: their distributions, their cells, their surfaces, their places."""

from __future__ import annotations

import numpy as np
import pytest
import task_reference
import torch

from fundad_fast.synthetic import TaskSettings
from fundad_fast.synthetic.blending import Pool, draw
from fundad_fast.synthetic.masks import draw_extent, draw_form, draw_rotation, place
from fundad_fast.synthetic.rays import surface_distance

SETTINGS = TaskSettings()


def forms(size, n, seed=0):
    rng = np.random.default_rng(seed)
    return [draw_form(rng, size, SETTINGS) for _ in range(n)]


@pytest.mark.parametrize(
    "size, n, box, most, mean, median, over",
    [
        ((256, 256), 3000, (76, 76), (207, 207), 0.046, 0.034, 0.01),
        ((80, 112, 80), 3000, (30.0, 31.3, 31.2), (65, 91, 65), 0.008, 0.0048, 0.045),
    ],
    ids=["2-D", "3-D"],
)
def test_sizes_are_those_of_the_public_code(size, n, box, most, mean, median, over):
    found = forms(size, n)
    extents = np.array([form.inside.shape for form in found])
    shares = np.array([np.count_nonzero(form.inside) for form in found]) / np.prod(size)
    np.testing.assert_allclose(extents.mean(0), box, rtol=0.05)
    assert (extents <= most).all()
    assert shares.mean() == pytest.approx(mean, rel=0.05)
    assert np.median(shares) == pytest.approx(median, rel=0.05)
    assert (extents > np.round(0.8 * np.array(size))).any(1).mean() < over
    assert np.mean([form.ellipsoid for form in found]) == pytest.approx(0.5, abs=0.03)


def test_extents_follow_the_gamma_law():
    rng = np.random.default_rng(0)
    found = np.array([draw_extent(rng, (1000, 100), SETTINGS) for _ in range(4000)])
    assert found[:, 0].mean() == pytest.approx(230, rel=0.03)
    assert np.median(found[:, 0]) == pytest.approx(198, rel=0.03)
    assert np.quantile(found[:, 0], 0.95) == pytest.approx(504, rel=0.05)
    assert found.min(0).tolist() == [60, 6]
    assert found.max(0).tolist() == [800, 80]


@pytest.mark.parametrize("size", [(64, 48), (24, 32, 20), (14, 12, 13, 12)])
def test_cells_are_those_within_the_shape(size):
    for form in forms(size, 20):
        extent = form.inside.shape
        assert all(n % 2 for n in extent)
        around = task_reference.grid(extent) - np.array(form.centre)[:, None]
        want = task_reference.contains(form, around).reshape(extent)
        assert (form.inside != want).sum() <= 2  # cells on the surface, to the last bit
        assert form.inside[form.centre]
        # The box holds the centres of the corner cells, and no more than it must.
        corner = np.abs(form.matrix) @ (np.array(form.half) - 0.5)
        np.testing.assert_array_equal((np.array(extent) - 1) // 2, np.ceil(corner))


@pytest.mark.parametrize("axes", [2, 3, 4])
def test_rotations_and_shear(axes):
    rng = np.random.default_rng(0)
    turned = [np.array(draw_rotation(rng, axes, np.pi / 2)) for _ in range(500)]
    for one in turned:
        np.testing.assert_allclose(one @ one.T, np.eye(axes), atol=1e-12)
        assert np.linalg.det(one) == pytest.approx(1)
    if axes == 2:
        angles = [np.arctan2(one[1, 0], one[0, 0]) for one in turned]
        assert np.std(angles) == pytest.approx(np.pi / np.sqrt(12), rel=0.06)
        assert np.abs(angles).max() <= np.pi / 2
    plain = TaskSettings(rotation=0, max_size=1, size_scale=0.01)
    sheared = np.array([draw_form(rng, (40,) * axes, plain).matrix for _ in range(500)])
    assert (np.diagonal(sheared, axis1=1, axis2=2) == 1).mean() > 0.9
    off = sheared - np.eye(axes)
    assert ((off != 0).sum((1, 2)) == axes).all()
    assert off[off != 0].std() == pytest.approx(0.2, rel=0.1)
    assert ((off != 0).mean(0)[~np.eye(axes, dtype=bool)] > 0.8 / (axes - 1)).all()


@pytest.mark.parametrize("axes", [2, 3, 4])
def test_rays_end_at_the_surface(axes):
    rng = np.random.default_rng(axes)
    for form in forms((40,) * axes, 12, seed=axes):
        cells = np.argwhere(form.inside)
        origin = (cells[rng.integers(len(cells))] - np.array(form.centre)).astype(float)
        direction = rng.normal(size=(axes, 200))
        direction[:, :axes] = np.eye(axes)  # along the grid's axes, too
        direction[:, axes : 2 * axes] = form.matrix  # and along the shape's
        direction /= np.linalg.norm(direction, axis=0)
        want = task_reference.far(form, origin, direction)
        own = form.inverse / np.array(form.half)[:, None]
        got = surface_distance(own @ origin, own @ direction, form.ellipsoid)
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_a_ray_along_an_axis_of_a_cube():
    direction = np.array([[1.0, -1, 0, 0, 1, 2], [0.0, 0, 1, -1, 1, 0]])
    got = surface_distance(np.array([0.5, 0.75]), direction, False)
    assert got.tolist() == [0.5, 1.5, 0.25, 1.75, 0.25, 0.25]
    on = np.array([1.0, 0.0])  # on a face: outwards, along it, and back
    for ellipsoid, want in ((False, [0, 1, 2]), (True, [0, 0, 2])):
        got = surface_distance(on, np.array([[1.0, 0, -1], [0.0, 1, 0]]), ellipsoid)
        assert got.tolist() == want


def test_places_are_everywhere_and_on_the_object():
    rng = np.random.default_rng(0)
    inside = np.ones((3, 5), bool)
    found = np.array([place(rng, inside, (6, 7), None, SETTINGS) for _ in range(400)])
    assert found.min(0).tolist() == [0, 0]
    assert found.max(0).tolist() == [3, 2]
    on = np.zeros((40, 40), bool)
    on[:, :12] = True
    corners = [place(rng, np.ones((4, 4), bool), (40, 40), on, SETTINGS)[1] for _ in range(300)]
    assert max(corners) == 10  # two of four columns: just a half
    strict = TaskSettings(min_object_fraction=1.0)
    corners = [place(rng, np.ones((4, 4), bool), (40, 40), on, strict)[1] for _ in range(300)]
    assert max(corners) == 8


def test_where_no_place_will_do_the_best_one_is_taken():
    on = np.zeros((20, 20), bool)
    on[10, 10] = True
    rng, taken = np.random.default_rng(0), []
    for _ in range(20):
        corner = place(rng, np.ones((6, 6), bool), (20, 20), on, SETTINGS)
        taken.append(all(c <= 10 < c + 6 for c in corner))
    assert all(taken)


def test_pieces_fit_their_source_and_lie_on_its_object():
    size, rng = (48, 40), np.random.default_rng(0)
    objects = torch.zeros(2, *size, dtype=torch.bool)
    objects[0, :24], objects[1, :, 20:] = True, True
    pool = Pool(torch.rand(2, 1, *size), objects)
    chosen, scales, hits = [], [], 0
    for form in forms((64, 64), 400):
        piece = draw(rng, form, pool, SETTINGS)
        chosen.append(piece.source)
        scale = abs(np.linalg.det(piece.matrix)) ** 0.5
        scales.append(scale)
        np.testing.assert_allclose(piece.matrix @ piece.matrix.T, scale**2 * np.eye(2), atol=1e-9)
        angle = np.arctan2(piece.matrix[1, 0], piece.matrix[0, 0])
        assert abs(angle) <= np.pi / 4
        assert all(
            c >= 0 and c + n <= s for c, n, s in zip(piece.corner, piece.extent, size, strict=True)
        )
        middle = tuple(c + n // 2 for c, n in zip(piece.corner, piece.extent, strict=True))
        hits += bool(objects[(piece.source, *middle)])
        cells = task_reference.grid(form.inside.shape)
        at = piece.matrix @ cells + piece.offset[:, None]
        assert (at >= -1e-9).all()
        assert (at <= np.array(piece.extent)[:, None]).all()
    # Large windows have few places, and none of them may have its middle on the object.
    assert hits > 380
    assert 0.4 < np.mean(chosen) < 0.6
    free = np.array(scales)
    assert 0.3 < (free > 1).mean() < 0.55
    assert free[free > 1].mean() == pytest.approx(1.1, abs=0.03)
