# SPDX-License-Identifier: Apache-2.0
"""Commands as a user gives them, and a small model's settings."""

import pyarrow.parquet as pq
from typer.testing import CliRunner

from fundad_fast.cli import app

SETTINGS = [
    *("--weights", "untrained", "--folds", "3"),
    *("--set", "backbone=resnet18", "--set", "layers=layer1,layer2"),
    *("--set", "image_size=64", "--set", "coreset_sampling_ratio=0.1"),
]


def call(*args, code=0, stdin=None):
    """What a command says; fails where it ends with another code."""
    result = CliRunner().invoke(app, [str(a) for a in args], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def rows(run):
    """The rows of a run folder."""
    return [r for p in sorted(run.glob("scores/*.parquet")) for r in pq.read_table(p).to_pylist()]
