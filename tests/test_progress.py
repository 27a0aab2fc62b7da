# SPDX-License-Identifier: Apache-2.0
"""What long work says of itself where nobody sees a bar."""

import io
import sys

import pytest

from fundad_fast import progress
from fundad_fast.progress import Lines, Progress, RichBars


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_line_now_and_then_tells_steps_losses_and_the_time_left(clock):
    out = io.StringIO()
    with Lines(out).task("model 0: intra", 1100, "steps") as task:
        task.advance(500)  # of a training that goes on
        for step in range(100):
            clock.now += 1
            task.advance(1, **({"loss": "0.012"} if step == 20 else {}))
            if step == 28:
                assert not out.getvalue()
        clock.now += 3600
        task.advance(500)
    lines = out.getvalue().splitlines()
    assert lines[0] == ("model 0: intra: 530 of 1100 steps in 0:30, about 9:30 left, loss 0.012")
    assert lines[1].startswith("model 0: intra: 560 of 1100 steps in 1:00, about 9:00 left")
    assert len(lines) == 5  # after 30, 60 and 90 seconds, after the long step, and at the end
    assert lines[-1] == "model 0: intra: 1100 of 1100 steps in 1:01:40, loss 0.012"


def test_what_is_soon_over_says_nothing(clock):
    out = io.StringIO()
    with Lines(out).task("images", None) as task:
        clock.now += 29
        task.advance(7)
    assert not out.getvalue()
    with Lines(out).task("images", None, "images") as task:
        task.advance(7)
        clock.now += 30
        task.advance(2)
    assert out.getvalue().splitlines()[0] == "images: 9 images in 0:30"


def test_auto_is_bars_in_a_terminal_and_lines_elsewhere(monkeypatch):
    assert isinstance(progress.progress("auto"), Lines)
    assert type(progress.progress("none")) is Progress
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(progress.progress("auto"), RichBars)
    with pytest.raises(ValueError, match="use auto"):
        progress.progress("loud")


def test_a_bar_keeps_the_losses_between_two_of_them():
    told = []

    class Bars:
        def update(self, number, **what):
            told.append(what)

    bar = progress._RichBar(Bars(), 0)
    bar.advance(1, loss="0.5", val="0.6")
    bar.advance(2)
    assert told == [{"advance": 1, "info": "loss 0.5 val 0.6"}, {"advance": 2}]
