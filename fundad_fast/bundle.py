# SPDX-License-Identifier: Apache-2.0
"""A fitted model as a folder: safetensors, JSON and Parquet, hash-checked, nothing executed."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__
from .methods import METHODS, HeldOut, Method, State
from .words import count

SCHEMA = 1
FILES = ("weights.safetensors", "bank.safetensors", "normal_scores.parquet", "MODEL_CARD.md")


class BundleError(RuntimeError):
    """A model folder that is missing, incomplete, changed or of an unknown kind."""


@dataclass
class Bundle:
    """A fitted method and all that scoring needs beside it.

    Attributes:
        method: fitted.
        preset: the preset that its config started from.
        input_spec: how images are prepared, as plain JSON.
        thresholds: ``{"image": {...}, "pixel": {...}}``, each with its value and how it was set.
        colour_scale: ``{"lo", "hi", "rule"}`` for pictures of the map.
        trained_on: number of images, hash of their contents, failures; ``census``, what they look
            like, which bundles of earlier versions lack.
        normal: scores of held-out healthy images.
        files: further files for people to read, by name, such as curves of the training.
        id: SHA-256 of the bundle's content, shortened to 16 hex digits; set by save and load.
    """

    method: Method
    preset: str
    input_spec: dict[str, Any]
    thresholds: dict[str, Any] = field(default_factory=dict)
    colour_scale: dict[str, Any] = field(default_factory=dict)
    trained_on: dict[str, Any] = field(default_factory=dict)
    normal: HeldOut | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    id: str = ""


def environment() -> dict[str, str]:
    """Versions of what can change a score."""
    return dict(_versions())


@functools.cache  # of what was imported: what is on the disk may have changed, or been hidden
def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "timm", "numpy", "opencv-python-headless", "simplejpeg")
    found = {"fundad-fast": __version__, "python": platform.python_version()}
    found.update({name: version(name) for name in names})
    found["machine"] = platform.machine()
    return found


def save_bundle(bundle: Bundle, path: Path) -> Path:
    """Write a bundle to a folder that does not exist yet, all of it or nothing.

    Raises:
        BundleError: when ``path`` exists.
    """
    from safetensors.torch import save_file

    if path.exists():
        raise BundleError(f"{path} exists; give another folder, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.writing")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    state = bundle.method.state()
    save_file({k: v.contiguous() for k, v in state.weights.items()}, part / FILES[0])
    save_file({k: v.contiguous() for k, v in state.bank.items()}, part / FILES[1])
    _write_normal(bundle.normal, part / FILES[2])
    (part / FILES[3]).write_text(model_card(bundle, state), encoding="utf-8")
    for name, data in bundle.files.items():
        (part / name).write_bytes(data)
    names = (*FILES, *bundle.files)
    content = {
        "schema": SCHEMA,
        "method": bundle.method.name,
        "preset": bundle.preset,
        "config": bundle.method.config.model_dump(mode="json"),
        "input_spec": bundle.input_spec,
        "thresholds": bundle.thresholds,
        "colour_scale": bundle.colour_scale,
        "trained_on": bundle.trained_on,
        "facts": state.facts,
        "environment": environment(),
        "intended_use": "research; no clinical claim",
        "files": {name: _sha256(part / name) for name in names},
    }
    bundle.id = _content_id(content)
    text = json.dumps({"id": bundle.id, **content}, indent=1, sort_keys=True, allow_nan=False)
    (part / "bundle.json").write_text(text + "\n", encoding="utf-8")
    for name in (*names, "bundle.json"):
        (part / name).chmod(0o644)  # safetensors writes for the owner alone
        with open(part / name, "rb") as file:
            os.fsync(file.fileno())
    part.rename(path)
    return path


def load_bundle(path: Path) -> Bundle:
    """Read a bundle, after checking every file against its hash.

    Raises:
        BundleError: says what is missing, changed or not understood.
    """
    from safetensors.torch import load_file

    content = read_facts(path)
    for name, want in content["files"].items():
        if not (path / name).is_file():
            raise BundleError(f"{path} is incomplete: {name} is missing; copy the whole folder")
        if _sha256(path / name) != want:
            raise BundleError(
                f"{path}/{name} is not what was saved (its SHA-256 differs); copy the model again"
            )
    method = METHODS[content["method"]]
    try:
        config = method.Config(**content["config"])
        state = State(load_file(path / FILES[0]), load_file(path / FILES[1]), content["facts"])
        return Bundle(
            method=method.from_state(config, state),
            preset=content["preset"],
            input_spec=content["input_spec"],
            thresholds=content["thresholds"],
            colour_scale=content["colour_scale"],
            trained_on=content["trained_on"],
            normal=_read_normal(path / FILES[2]),
            files={
                name: (path / name).read_bytes() for name in content["files"] if name not in FILES
            },
            id=content["id"],
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # made by another program
        raise BundleError(
            f"{path} cannot be understood ({type(error).__name__}: {error}); fit again"
        ) from error


def read_facts(path: Path) -> dict[str, Any]:
    """``bundle.json``, checked for its schema, its method and its own hash."""
    file = path / "bundle.json"
    if not file.is_file():
        what = "is not a folder" if not path.is_dir() else "holds no bundle.json"
        raise BundleError(f"{path} {what}; give a model folder that `fundad fit -o` wrote")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{file} is not JSON ({error}); copy the model again") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise BundleError(
            f"{file} has schema {found!r}, this version reads {SCHEMA}; fit again, or use the "
            "version that wrote it"
        )
    if _content_id({k: v for k, v in content.items() if k != "id"}) != content.get("id"):
        raise BundleError(f"{file} was changed after it was saved; copy the model again")
    if content.get("method") not in METHODS:
        raise BundleError(f"{file} is of the method {content.get('method')!r}, unknown here")
    names = set(content.get("files", {}))
    if not names >= set(FILES) or any(Path(name).name != name for name in names):
        raise BundleError(f"{file} does not name the files of a model; copy the model again")
    return content


def model_card(bundle: Bundle, state: State) -> str:
    """The bundle in words, as Markdown."""
    trained_on = dict(bundle.trained_on)
    census = trained_on.pop("census", None) or {}
    lines = [
        f"# {bundle.method.name} ({bundle.preset})",
        "",
        "Scores images by how far they are from the healthy images it was fitted on. "
        "**For research; no clinical claim is made.**",
        "",
        *(line for text in bundle.method.caveats for line in (f"**{text}.**", "")),
        "## Fitted on",
        "",
        *(f"* {key}: {value}" for key, value in sorted(trained_on.items())),
        *_looks(census),
        "",
        "## Thresholds",
        "",
        *(
            f"* {kind}: {fact['value']:.6g} ({fact['rule']})"
            for kind, fact in bundle.thresholds.items()
            if fact is not None
        ),
        "",
        "## Settings",
        "",
        *(f"* {key}: {value}" for key, value in sorted(bundle.input_spec.items())),
        *(
            f"* {key}: {value}"
            for key, value in sorted(bundle.method.config.model_dump(mode="json").items())
            if key not in bundle.input_spec
        ),
        "",
        "## Facts",
        "",
        *(f"* {key}: {value}" for key, value in sorted(state.facts.items())),
        "",
        f"{bundle.method.meaning}; comparable only between images scored by this same model.",
        "",
    ]
    return "\n".join(lines)


def _looks(census: dict[str, Any]) -> list[str]:
    """The census of the training images in words; see ``data.appearance.take_census``."""
    lines = [
        f"* {name.replace('_', ' ')}: median {found['median']:g}, from {found['min']:g} to "
        f"{found['max']:g} ({count(found['n'], 'image')})"
        for name, found in census.items()
        if name != "sizes"
    ]
    sizes = ", ".join(f"{size} ({n})" for size, n in (census.get("sizes") or {}).items())
    return [*lines, f"* most frequent sizes: {sizes}"] if sizes else lines


def _content_id(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_normal(normal: HeldOut | None, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    empty = HeldOut((), np.zeros(0, np.int32), np.zeros(0, np.float32), None)
    normal = normal or empty
    table = pa.table(
        {
            "id": pa.array(list(normal.id), pa.string()),
            "fold": pa.array(normal.fold, pa.int32()),
            "score": pa.array(normal.score, pa.float32()),
        }
    )
    pq.write_table(table, path)


def _read_normal(path: Path) -> HeldOut | None:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    if not len(table):
        return None
    return HeldOut(
        tuple(table["id"].to_pylist()),
        table["fold"].to_numpy().astype(np.int32),
        table["score"].to_numpy().astype(np.float32),
        None,
    )
