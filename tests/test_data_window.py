# SPDX-License-Identifier: Apache-2.0
"""Which window of grey DICOM is used: the file's first, another of it, one's own, or none."""

from __future__ import annotations

import numpy as np
import pytest
from dicoms import Dataset, deep_grey, refused, write_dicom

from fundad_fast import ReSAD, load
from fundad_fast.data import InputSpec, Loader, discover, read_image
from fundad_fast.data.greyscale import Greyscale
from fundad_fast.methods import ConfigError
from fundad_fast.report.view import read_photograph

SCALE = {"RescaleSlope": 2, "RescaleIntercept": -1000}
TWO = {"WindowCenter": [100, 900], "WindowWidth": [500, 2000], "VOILUTFunction": "SIGMOID"}


@pytest.fixture
def deep():
    return deep_grey()


def expected(deep, window, function="LINEAR"):
    made = Greyscale(12, slope=2, intercept=-1000, window=window, function=function)
    return made.apply(deep)[..., None]


@pytest.mark.parametrize(
    "window, taken, function",
    [
        (None, (100, 500), "SIGMOID"),
        (0, (100, 500), "SIGMOID"),
        (1, (900, 2000), "SIGMOID"),
        ((300.0, 70.0), (300, 70), "LINEAR"),  # linear, whatever the file's own windows are
        ("none", None, "LINEAR"),
    ],
)
def test_one_of_several(tmp_path, deep, window, taken, function):
    path = write_dicom(tmp_path / "a.dcm", deep, BitsStored=12, **SCALE, **TWO)
    found = read_image(path, window=window)
    np.testing.assert_array_equal(found, expected(deep, taken, function))


def test_a_window_that_is_asked_for_comes_before_a_table(tmp_path, deep):
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [2, 0, 16], np.array([7, 9000], "<u2").tobytes()
    more = {**SCALE, "WindowCenter": 100, "WindowWidth": 500, "VOILUTSequence": [table]}
    path = write_dicom(tmp_path / "a.dcm", deep, BitsStored=12, **more)
    assert set(np.unique(read_image(path))) <= {7, 9000}
    np.testing.assert_array_equal(read_image(path, window=0), expected(deep, (100, 500)))
    np.testing.assert_array_equal(read_image(path, window="none"), expected(deep, None))


def test_a_file_without_it_is_an_error(tmp_path, deep):
    one = {**SCALE, "WindowCenter": 100, "WindowWidth": 500}
    path = write_dicom(tmp_path / "a.dcm", deep, BitsStored=12, **one)
    refused(path, "unsupported", "no window 1, counted from 0", window=1)
    plain = write_dicom(tmp_path / "b.dcm", deep, BitsStored=12, **SCALE)
    refused(plain, "unsupported", "no window 0", window=0)
    bad = write_dicom(tmp_path / "c.dcm", deep, BitsStored=12, **{**one, "WindowWidth": 0})
    refused(bad, "unsupported", "no window 0", window=0)
    np.testing.assert_array_equal(read_image(bad), expected(deep, None))


def test_it_travels_with_the_model(tmp_path, deep):
    for k in range(4):
        write_dicom(tmp_path / f"{k}.dcm", deep + np.uint16(k), BitsStored=12, **SCALE, **TWO)
    settings = {"backbone": "resnet18", "layers": ("layer1",), "image_size": 32, "fov": "none"}
    fit = ReSAD("quick", weights="untrained", folds=0, window=[300, 700], **settings)
    fit.fit(tmp_path).save(tmp_path / "model")
    spec = InputSpec(**fit.bundle_.input_spec)
    assert spec.window == (300.0, 700.0)
    assert load(tmp_path / "model").config.window == spec.window
    items = discover(str(tmp_path / "0.dcm")).items
    own = next(iter(Loader(items, spec))).batch.image
    other = next(iter(Loader(items, spec.model_copy(update={"window": None})))).batch.image
    assert float((own - other).abs().max()) > 0.1
    row = {"id": "0", "path": str(tmp_path / "0.dcm")}
    shown = read_photograph(row, spec, 512, 200.0).pixels
    plain = read_photograph(row, spec.model_copy(update={"window": None}), 512, 200.0).pixels
    assert np.abs(shown.astype(int) - plain).max() > 50


@pytest.mark.parametrize("window", [-1, True, [40, 0.5], [40], [float("nan"), 400], "lung"])
def test_what_is_no_window_is_refused(window):
    with pytest.raises(ConfigError, match="window: "):
        ReSAD("quick", window=window)
