# SPDX-License-Identifier: Apache-2.0
"""Folds: patients stay together, sizes are balanced, the seed decides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fundad_fast.data import DataError, Item, assign_folds


def items(patients):
    return [Item(str(i), "", patient_id=patient) for i, patient in enumerate(patients)]


PATIENTS = st.lists(st.one_of(st.none(), st.sampled_from("abcdefghij")), min_size=2, max_size=60)


@settings(max_examples=60, deadline=None)
@given(PATIENTS, st.integers(2, 8), st.integers(0, 3))
def test_laws(patients, k, seed):
    made = items(patients)
    groups = len({p for p in patients if p is not None}) + patients.count(None)
    if groups < k:
        with pytest.raises(DataError, match=f"{k} folds need at least {k}"):
            assign_folds(made, k, seed)
        return
    folds = assign_folds(made, k, seed)
    assert folds.dtype == np.int64
    assert set(folds) == set(range(k))
    for patient in {p for p in patients if p is not None}:
        assert len({f for f, p in zip(folds, patients) if p == patient}) == 1
    sizes = np.bincount(folds)
    largest = max([patients.count(p) for p in set(patients) - {None}], default=1)
    assert sizes.max() - sizes.min() <= max(largest, 1)
    np.testing.assert_array_equal(folds, assign_folds(made, k, seed))


def test_without_patients_sizes_differ_by_one_at_most():
    sizes = np.bincount(assign_folds(items([None] * 63), 5, 0))
    assert sorted(sizes) == [12, 12, 13, 13, 13]


def test_a_patient_of_many_images_is_weighed_against_many_patients():
    folds = assign_folds(items(["a"] * 6 + [None] * 6), 2, 0)
    assert np.bincount(folds).tolist() == [6, 6]


def test_the_seed_decides():
    made = items([None] * 40)
    assert (assign_folds(made, 5, 0) != assign_folds(made, 5, 1)).any()


def test_it_is_not_the_order_of_files():
    folds = assign_folds(items([None] * 40), 2, 0)
    assert (np.diff(folds) == 0).any()
    assert len(set(folds[:20])) == 2


def test_an_image_without_id_is_not_the_patient_of_the_same_name():
    folds = assign_folds([Item("a", "", patient_id="1"), Item("b", "")], 2, 0)
    assert sorted(folds) == [0, 1]


@pytest.mark.parametrize(
    "patients, words",
    [(["a", "a", "a", "b"], "3 folds need at least 3 patients, there are 2")]
    + [([None, None], "3 folds need at least 3 images, there are 2"), ([], "there are 0")],
)
def test_too_few(patients, words):
    with pytest.raises(DataError, match=words):
        assign_folds(items(patients), 3, 0)


def test_one_fold_is_none():
    with pytest.raises(ValueError, match="at least 2"):
        assign_folds(items([None] * 5), 1, 0)
