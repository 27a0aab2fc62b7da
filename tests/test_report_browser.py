# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser: loaded from disk in headless Chromium, clicked and typed through.

Chromium is driven over its debugging pipe (NUL-terminated JSON on two file descriptors), so that no
browser-automation package is needed.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import runpy
import select
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fundad_fast.report import write_report

make_run = runpy.run_path(str(Path(__file__).with_name("test_report_html.py")))["make_run"]
archive = runpy.run_path(str(Path(__file__).with_name("test_report_reviewers.py")))["archive"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 120.0  # seconds for one answer: a loaded machine starts Chromium slowly


class Refused(Exception):
    """Chromium could not do what it was asked to."""


class Browser:
    """One page of a headless Chromium."""

    def __init__(self, program: str, profile: Path) -> None:
        here_reads, chrome_writes = os.pipe()
        chrome_reads, here_writes = os.pipe()
        # Chromium reads from 3 and writes to 4; ours must be out of the way of both.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in (chrome_reads, chrome_writes)]
        log = os.open(profile / "chromium.log", os.O_WRONLY | os.O_CREAT, 0o600)
        flags = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-extensions", "--disable-background-networking",
            "--hide-scrollbars", "--remote-debugging-pipe", f"--user-data-dir={profile}",
        ]  # fmt: skip
        self.pid = os.posix_spawn(
            program,
            [program, *flags, "about:blank"],
            {**os.environ, "HOME": str(profile)},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
                (os.POSIX_SPAWN_DUP2, ends[0], 3),
                (os.POSIX_SPAWN_DUP2, ends[1], 4),
            ],
        )
        for fd in (*ends, chrome_reads, chrome_writes, log):
            os.close(fd)
        self.reads, self.writes = here_reads, here_writes
        self.pending = b""
        self.count = 0
        self.session: str | None = None
        self.events: list[dict[str, Any]] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its result; events that come between are kept."""
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writes, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise Refused(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self.pending:
            ready = select.select([self.reads], [], [], max(0.0, until - time.monotonic()))[0]
            data = os.read(self.reads, 1 << 16) if ready else b""
            assert data, "Chromium has gone or does not answer"
            self.pending += data
        line, self.pending = self.pending.split(b"\0", 1)
        return dict(json.loads(line))

    def open(self, path: Path, width: int, height: int, *, dark: bool = False) -> None:
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=2 if phone else 1, mobile=phone,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, (expression, answer)
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        """Return when an expression is true; pages may come and go meanwhile."""
        until = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(Refused):  # the page is being left
                if self.js(expression):
                    return
            assert time.monotonic() < until, f"never became true: {expression}"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """A real mouse click in the middle of an element, scrolled into view."""
        box = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            # A click is aimed at the last frame that was drawn.
            "return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {"
            "const b = e.getBoundingClientRect();"
            "done([b.x + b.width / 2, b.y + b.height / 2]); }))); })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left",
                clickCount=1,
            )  # fmt: skip

    def key(self, key: str, code: int, text: str = "") -> None:
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key,
                windowsVirtualKeyCode=code, **typed,
            )  # fmt: skip

    def screenshot(self) -> np.ndarray:
        """What is in the window, ``[h, w, 3]`` BGR."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))

    def problems(self) -> list[str]:
        """JavaScript errors, console errors, refused resources, and requests beyond the disk."""
        found = [self.js("document.documentElement.dataset.errors || ''")]
        for event in self.events:
            params = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(json.dumps(params["entry"]))
            elif event["method"] == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("file:", "data:")):
                    found.append(f"request for {url}")
        return [text for text in found if text]

    def close(self) -> None:
        self.session = None
        self.call("Browser.close")
        os.waitpid(self.pid, 0)
        os.close(self.reads)
        os.close(self.writes)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no Chromium on PATH (looked for {', '.join(NAMES)})")
    browser = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 130 images in three gallery pages; the first page holds 50."""
    run = tmp_path_factory.mktemp("browser") / "run"
    make_run(run, 130, failed=5)
    write_report(run, page_size=50)
    return run


def busy(picture: np.ndarray) -> bool:
    """Whether a screenshot shows a page: several colours, structure in every third of it."""
    thirds = np.array_split(picture.astype(float), 3)
    colours = np.unique(picture.astype(np.uint32) @ np.uint32([1, 256, 65536]))
    return len(colours) > 50 and all(third.std() > 3 for third in thirds)


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
@pytest.mark.parametrize("dark", [False, True])
def test_the_report_opens_without_errors(
    browser: Browser, folder: Path, width: int, height: int, dark: bool
) -> None:
    browser.open(folder / "report.html", width, height, dark=dark)
    assert busy(browser.screenshot())
    browser.js("document.getElementById('images').scrollIntoView({behavior: 'instant'})")
    picture = browser.screenshot()
    assert busy(picture)
    corner = picture[-1, -1].mean()
    assert corner < 90 if dark else corner > 160
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")  # no sideways scroll
    view = browser.js("document.documentElement.dataset.view")
    assert view == ("side" if width > 700 else "wipe")
    assert browser.js("[...document.images].every(i => i.complete && i.naturalWidth === 48)")
    assert browser.problems() == []


def test_an_error_would_be_noticed(browser: Browser, folder: Path) -> None:
    browser.open(folder / "report.html", 1280, 900)
    browser.js("setTimeout(() => { throw new Error('on purpose'); }, 0); 1")
    browser.wait("document.documentElement.dataset.errors !== undefined")
    browser.js("new Image().src = 'http://192.0.2.1/x.png'; 1")
    browser.wait("document.documentElement.dataset.errors.includes('refused')")
    assert any("on purpose" in text for text in browser.problems())


def test_the_mouse_moves_the_slider_and_the_layers(browser: Browser, folder: Path) -> None:
    browser.open(folder / "report.html", 1280, 900)
    card = "document.querySelector('#image-1 .stage')"
    edge = "getComputedStyle(document.querySelector('#image-1 .map')).clipPath"
    assert browser.js(edge) == "none"
    browser.click("input[value=wipe] + span")
    assert browser.js("document.documentElement.dataset.view") == "wipe"
    assert browser.js(edge) == "inset(0px 50% 0px 0px)"
    box = browser.js(
        f"(() => {{ {card}.scrollIntoView({{block: 'center', behavior: 'instant'}});"
        f"const b = {card}.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; }})()"
    )
    y = box[1] + box[3] / 3
    for kind, share in (("mousePressed", 0.4), ("mouseMoved", 0.7), ("mouseReleased", 0.7)):
        browser.call(
            "Input.dispatchMouseEvent", type=kind, x=box[0] + share * box[2], y=y, button="left",
            buttons=1, clickCount=1,
        )  # fmt: skip
    assert browser.js("document.querySelector('#image-1 .wipe input').value") == "70"
    assert browser.js(edge) == "inset(0px 30% 0px 0px)"
    assert not browser.js("document.getElementById('viewer').open")  # a drag opens nothing
    shown = "getComputedStyle(document.querySelector('#image-1 .{}')).display"
    for layer, at_first in (("hot", "inline"), ("lesions", "inline"), ("regions", "none")):
        assert browser.js(shown.format(layer)) == at_first
        browser.click(f"[data-layer={layer}]")
        assert browser.js(shown.format(layer)) != at_first
    assert browser.problems() == []


def test_the_keyboard_walks_through_the_large_view(browser: Browser, folder: Path) -> None:
    browser.open(folder / "report.html", 1280, 900)
    browser.js("document.querySelector('#image-1 .enlarge').focus()")
    browser.key("Enter", 13, "\r")
    name = "document.getElementById('viewer-name').textContent"
    assert browser.js("document.getElementById('viewer').open")
    assert browser.js(name) == "image 129"
    map_shown = (
        "getComputedStyle(document.querySelector('#viewer-stage .map')).visibility === 'visible'"
    )
    assert browser.js(map_shown)
    browser.key(" ", 32, " ")
    assert not browser.js(map_shown)
    browser.key(" ", 32, " ")
    assert browser.js(map_shown)
    browser.key("ArrowLeft", 37)
    assert browser.js(name) == "image 129"  # there is none before the first
    browser.key("ArrowRight", 39)
    browser.key("ArrowRight", 39)
    assert browser.js(name) == "image 127"
    assert browser.js("document.getElementById('viewer-place').textContent") == "3 of 50"
    browser.js("document.querySelector('#viewer .wipe input').focus()")
    browser.key("ArrowLeft", 37)
    assert browser.js(name) == "image 127"  # on the slider, arrows belong to the slider
    assert browser.js("document.querySelector('#viewer .wipe input').value") == "99"
    browser.key("Escape", 27)
    assert not browser.js("document.getElementById('viewer').open")
    browser.wait("document.activeElement === document.querySelector('#image-3 .enlarge')")
    assert browser.problems() == []


def test_every_stop_of_the_tab_key_can_be_seen(browser: Browser, folder: Path) -> None:
    browser.open(folder / "report.html", 1280, 900)
    stops = []
    for _ in range(24):
        browser.key("Tab", 9)
        stops.append(
            browser.js(
                "(() => { const e = document.activeElement, b = e.getBoundingClientRect();"
                "const looks = [e, e.nextElementSibling].filter(Boolean).map(getComputedStyle);"
                "return [e.tagName, e.name || e.className || e.id || e.textContent,"
                "looks.some(s => s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2),"
                "b.bottom > 0 && b.top < innerHeight]; })()"
            )
        )
    assert stops[0][:2] == ["A", "skip"]
    assert [stop for stop in stops if not (stop[2] and stop[3])] == []
    names = [stop[1] for stop in stops]
    assert {"view", "kind", "enlarge", "Summary", "Settings"} <= set(names)


def test_the_gallery_shows_one_kind_and_says_when_there_is_none(
    browser: Browser, folder: Path
) -> None:
    browser.open(folder / "report.html", 1280, 900)
    count = "document.querySelectorAll('.card:not([hidden])').length"
    choose = (
        "(() => {{ const s = document.getElementById('kind'); s.value = '{}';"
        "s.dispatchEvent(new Event('change')); }})()"
    )
    assert browser.js(count) == 50
    browser.js(choose.format("outcome-alarm"))
    assert browser.js(count) == 25  # 129 to 80 are all above 65; the even ones are healthy
    assert browser.js("document.getElementById('none-left').hidden")
    browser.js(choose.format("outcome-missed"))
    assert browser.js(count) == 0
    assert not browser.js("document.getElementById('none-left').hidden")
    browser.click("#rows-body a")  # the link to a hidden card brings it back
    browser.wait(f"{count} === 50")
    assert browser.js("location.hash") == "#image-1"
    assert browser.problems() == []


def test_the_table_sorts_finds_and_turns_pages(browser: Browser, folder: Path) -> None:
    browser.open(folder / "report.html", 1280, 900)
    column = (
        "[...document.querySelectorAll('#rows-body tr')].map(row => row.children[{}].textContent)"
    )
    assert browser.js(column.format(1))[:2] == ["image 129", "image 128"]
    assert len(browser.js(column.format(1))) == 50
    browser.click("#rows-last")
    assert browser.js("document.getElementById('rows-page').textContent") == "page 3 of 3"
    assert browser.js(column.format(6))[-5:] == ["unreadable"] * 5
    assert browser.js(column.format(0))[-6:] == ["130", "–", "–", "–", "–", "–"]
    for order in (["129.0", "128.0"], ["0.000", "1.000"]):
        browser.click("#rows-table [data-sort=score]")
        assert browser.js(column.format(2))[:2] == order
    browser.click("#rows-last")
    assert browser.js(column.format(2))[-1] == "–"  # no score comes last either way
    browser.click("#rows-find")
    browser.call("Input.insertText", text="GE 12")
    browser.wait("document.getElementById('rows-count').textContent.startsWith('11 of 135')")
    assert set(browser.js(column.format(1))) == {f"image {i}" for i in (12, *range(120, 130))}
    browser.js(
        "(() => { const s = document.getElementById('rows-pick');"
        "s.value = [...s.options].find(o => o.text === 'missed').value;"
        "s.dispatchEvent(new Event('change')); })()"
    )
    assert browser.js(column.format(1)) == []
    assert browser.problems() == []


def test_links_lead_to_the_other_pages_and_back(browser: Browser, folder: Path) -> None:
    browser.open(folder / "report.html", 1280, 900)
    browser.click(".pages a[href='report/page-0002.html']")
    browser.wait(
        "location.pathname.endsWith('page-0002.html') && document.readyState === 'complete'"
    )
    assert browser.js("document.querySelectorAll('.card').length") == 50
    assert browser.js("[...document.images].every(i => i.complete && i.naturalWidth === 48)")
    browser.click("input[value=wipe] + span")
    assert browser.js("document.documentElement.dataset.view") == "wipe"
    browser.click(".menu a[href='../report.html']")
    browser.wait("location.pathname.endsWith('/report.html') && document.readyState === 'complete'")
    assert browser.problems() == []


def test_names_from_outside_are_shown_and_not_run(browser: Browser, folder: Path) -> None:
    browser.open(folder / "report" / "page-0003.html", 1280, 900)
    name = browser.js("document.querySelector('#image-130 h3').textContent")
    assert name.startswith("</script><script>alert(1)</script>")
    assert not [e for e in browser.events if e["method"] == "Page.javascriptDialogOpening"]
    assert browser.problems() == []


@pytest.fixture(scope="module")
def screening(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 images of 1,000 patients over 24 months, of which three score higher."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for i in range(3000):
        month = i % 24
        score = float(rng.gamma(20, 1) + (12 if month in (8, 9, 10) else 0))
        rows.append({
            "patient_id": f"P{i // 3:04d}", "laterality": "LR"[i % 2], "score": score,
            "id": f"clinic {i % 7}/{i:04d}.jpg", "acquired": f"{2023 + month // 12}-"
            f"{month % 12 + 1:02d}-03",
        })  # fmt: skip
    rows[1500] |= {"score": None}
    return write_report(archive(tmp_path_factory.mktemp("screening") / "run", rows), top=3)


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
@pytest.mark.parametrize("dark", [False, True])
def test_drift_and_likeness_fit_the_window(
    browser: Browser, screening: Path, width: int, height: int, dark: bool
) -> None:
    browser.open(screening, width, height, dark=dark)
    browser.js("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    for part in ("drift", "likeness", "patients"):
        browser.js(f"document.getElementById('{part}').scrollIntoView({{behavior: 'instant'}})")
        assert busy(browser.screenshot())
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")
    marked = "[...document.querySelectorAll('.period.unlike')].length"
    assert browser.js(marked) == 3
    colour = "getComputedStyle(document.querySelector('.period{} .box')).fill"
    assert browser.js(colour.format(".unlike")) != browser.js(colour.format(":not(.unlike)"))
    # No name at the axis lies over the next one, and none is cut off.
    assert browser.js(
        "[...document.querySelectorAll('.long .chart')].every(svg => {"
        "const [all, w] = [svg.getBoundingClientRect(), e => e.getBoundingClientRect()];"
        "const names = [...svg.querySelectorAll('text.tick[text-anchor=middle]')].map(w);"
        "return [...svg.querySelectorAll('text')].map(w).every(b => b.left >= all.left - 1 &&"
        "b.right <= all.right + 1 && b.bottom <= all.bottom + 1) &&"
        "names.every((b, i) => i === 0 || b.left > names[i - 1].right); })"
    )
    assert browser.problems() == []


def test_patients_are_found_and_lead_to_their_images(browser: Browser, screening: Path) -> None:
    browser.open(screening, 1280, 900)
    column = (
        "[...document.querySelectorAll('#{}-body tr')].map(row => row.children[{}].textContent)"
    )
    count = "document.getElementById('{}-count').textContent"
    scores = [float(s) for s in browser.js(column.format("patients", 2))]
    assert scores == sorted(scores, reverse=True)
    assert browser.js("document.getElementById('patients-page').textContent") == "page 1 of 20"
    browser.click("#patients-table [data-sort=name]")
    assert browser.js(column.format("patients", 1))[:2] == ["P0000", "P0001"]
    browser.js(
        "(() => { const s = document.getElementById('patients-pick');"
        "s.value = [...s.options].find(o => o.text === 'some images not scored').value;"
        "s.dispatchEvent(new Event('change')); })()"
    )
    assert browser.js(column.format("patients", 1)) == ["P0500"]
    assert browser.js(column.format("patients", 8)) == ["1"]
    month = "document.querySelector('#rows-divisions select')"
    browser.js(f"{month}.value = 0; {month}.dispatchEvent(new Event('change'))")
    assert browser.js(count.format("rows")) == "125 of 3,000"
    browser.click("#patients-body a")
    assert browser.js(count.format("rows")) == "3 of 3,000"  # whatever month was chosen
    assert set(browser.js(column.format("rows", 2))) == {"P0500"}
    assert browser.js(column.format("rows", 8))[-1] == "no_fov"
    assert browser.js("document.getElementById('rows-only').textContent") == "Patient P0500 ✕"
    browser.click("#rows-only")
    assert browser.js(count.format("rows")) == "3,000 of 3,000"
    browser.click("#rows-find")
    browser.call("Input.insertText", text="p0123")
    browser.wait(f"{count.format('rows')} === '3 of 3,000'")
    assert browser.problems() == []


def test_a_table_of_100000_rows_stays_usable(browser: Browser, tmp_path: Path) -> None:
    n = 100_000
    run = tmp_path / "run"
    make_run(run, 0, failed=0, labels=False)
    (run / "scores").mkdir(exist_ok=True)
    table = pa.table({
        "id": [f"archive/{i % 97:02d}/photograph {i:06d}.jpg" for i in range(n)],
        "status": ["ok"] * n,
        "score": pa.array(np.arange(n) / 7, pa.float32()),
    })  # fmt: skip
    pq.write_table(table, run / "scores" / "part-00000.parquet")
    path = write_report(run, top=0)
    assert path.stat().st_size < 15e6
    browser.open(path, 1280, 900)
    assert browser.js("document.querySelectorAll('#rows-body tr').length") == 50
    assert browser.js("document.querySelectorAll('*').length") < 2000
    browser.click("#rows-last")
    assert browser.js("document.getElementById('rows-page').textContent") == "page 2,000 of 2,000"
    browser.click("#rows-table [data-sort=id]")
    browser.click("#rows-find")
    browser.call("Input.insertText", text="099999")
    browser.wait("document.getElementById('rows-count').textContent === '1 of 100,000'")
    assert browser.problems() == []
