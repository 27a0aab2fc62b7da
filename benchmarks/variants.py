# SPDX-License-Identifier: Apache-2.0
"""The lines of an ablation: a method's settings, one changed at a time, and methods beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from fundad_fast.detector import DETECTORS
from fundad_fast.methods import MethodConfig, make_config

_SCORES: Sequence[Mapping[str, Any]] = [
    {"compare": "structure"},
    {"residual_blur": 0.03},
    {"residual_blur": 0.06},
    {"residual_relative": "image"},
    {"residual_relative": "local"},
    {"image_score": "top"},
]

ABLATIONS: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]] = {
    "resynth": {
        "guide": [{"guide": v} for v in ("none", "image", "features", "difference")],
        "fusion": [
            {"generator.fusion": "continuous"},
            {"generator.fusion": "selfmix", "generator.rim": [0.0, 0.5]},
            {"generator.fusion": "selfmix", "generator.rim": [0.5, 0.7]},
            {"generator.fusion": "selfmix_reference"},
            {"generator.fusion": "constant", "generator.rim": [0.2, 1.0]},
        ],
        "mask": [{"generator.masks": v} for v in ("lesions", "perlin")],
        "tau": [{"tau": v} for v in (0.0, 1.0, 2.0, 5.0)],
    },
    "proxyano": {
        "proxy": [{"proxy": v} for v in ("superpixel", "lowres", "blur", "edge")],
        "memory": [{"memory": v} for v in ("slots", "kv", "none")],
        "pseudo": [{"pseudo_anomalies": v} for v in (True, False)],
        "discriminators": [{"discriminators": v} for v in (True, False)],
        "score": _SCORES,
    },
    "autoencoder": {
        "kind": [
            {"kind": "plain"},
            {"kind": "vae"},
            {"kind": "cevae"},
            {"kind": "aeu"},
            {"kind": "memae", "latent": None},
            {"kind": "inpaint", "residual": "absolute"},
            {"kind": "fading"},
        ],
        "score": _SCORES,
    },
    "dia": {
        "dissolve": [{"dissolve": v} for v in ("diffusion", "blur", "none")],
        "t": [{"t_scale": v} for v in (50, 100, 200, 400)],
        "resolution": [{"resolution": v} for v in (16, 32, 64)],
        "length": [{"max_steps": v} for v in (1500, 3000, 6000)],
        "exclusion": [{"exclusion": v} for v in ("shifted_removed", "naive")],
        "shift": [{"shift": v} for v in ("rotation", "cutperm")],
    },
}
"""The ablations of each method by name. The values are our choice: of ReSynthDetect and ProxyAno
no table of ablations was at hand; of DIA the public README varies what dissolves, resolution and
shift, at lengths that only a GPU has."""

UNTRAINED = {"max_steps": 1, "reconstruction_steps": 1, "learning_rate": 1e-12}
"""Settings that leave random weights as they are, of those methods that have them."""


@dataclass(frozen=True)
class Line:
    """One line of the table: what is fitted, but for the seed."""

    name: str
    method: str
    preset: str
    settings: dict[str, Any] = field(compare=False)

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w=.+-]+", "_", self.name).strip("_")

    def config(self, seed: int = 0) -> MethodConfig:
        """The settings as the method understands them; an error says which it does not have."""
        known = {k: v for k, v in self.settings.items() if k != "seed"}
        return make_config(DETECTORS[self.method].method, self.preset, {**known, "seed": seed})

    def has_weights_of(self, other: Line) -> bool:
        """Whether its networks are those of the other line, which it only scores differently."""
        if self.method != other.method:
            return False
        free = getattr(DETECTORS[self.method].method, "of_scoring", frozenset())
        mine, others = self.config(), other.config()
        return mine.model_copy(update={key: getattr(others, key) for key in free}) == others


def lines_of(
    method: str,
    preset: str = "default",
    *,
    pairs: Iterable[str] = (),
    vary: Iterable[str] = (),
    ablations: Iterable[str] = (),
    beside: Iterable[str] = (),
    untrained: bool = True,
) -> list[Line]:
    """The lines of a table: the base, each change of it, the same untrained, other methods.

    A change that leaves the settings as they are is the base itself and has no line of its own.

    Args:
        method, preset: the base.
        pairs: ``KEY=VALUE`` for every line whose method has such a setting, ``METHOD.KEY=VALUE``
            for those of that method; ``generator.masks`` is a part of a setting.
        vary: ``KEY=VALUE,VALUE,...``, each value in turn.
        ablations: names in ``ABLATIONS``, or ``all``.
        beside: ``[NAME=]METHOD[:PRESET]``.
        untrained: whether a line with random weights is wanted.
    """
    given = [_pair(text) for text in pairs]
    base = _line(f"{method} ({preset})", method, preset, given)
    _refuse_unknown(given, [method, *(_parsed(text)[1] for text in beside)])
    lines, seen = [base], [base.config()]
    for change in [*_varied(vary), *_named(method, ablations)]:
        line = _line(_said(change), method, preset, [*given, *change.items()])
        if line.config() not in seen:
            lines.append(line)
            seen.append(line.config())
    if untrained and DETECTORS[method].method.trains:
        lines.append(_line("control: random weights", method, preset, [*given, *UNTRAINED.items()]))
    for text in beside:
        name, other, of = _parsed(text)
        lines.append(_line(name, other, of, given))
    for name in {line.folder for line in lines}:
        if sum(line.folder == name for line in lines) > 1:
            raise SystemExit(f"two lines are called {name}; name one as in NAME=METHOD:PRESET")
    return lines


def _line(name: str, method: str, preset: str, pairs: Iterable[tuple[str, Any]]) -> Line:
    """A preset with settings on top, of which it takes those that its method has."""
    cls = DETECTORS[method].method
    settings: dict[str, Any] = {}
    for key, value in pairs:
        own = key.removeprefix(f"{method}.")
        first, _, rest = own.partition(".")
        if first not in cls.Config.model_fields:
            continue
        if not rest:
            settings[first] = value
            continue
        before = settings.get(first, cls.presets[preset].get(first, {}))
        settings[first] = {**before, rest: value}
    return Line(name, method, preset, settings)


def _refuse_unknown(pairs: Iterable[tuple[str, Any]], methods: Sequence[str]) -> None:
    for key, _ in pairs:
        known = any(
            key.removeprefix(f"{name}.").partition(".")[0]
            in DETECTORS[name].method.Config.model_fields
            for name in methods
        )
        if not known:
            raise SystemExit(f"none of {', '.join(methods)} has a setting {key}")


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise SystemExit(f"{text}: want KEY=VALUE")
    return key, yaml.safe_load(value)


def _varied(vary: Iterable[str]) -> list[dict[str, Any]]:
    changes = []
    for text in vary:
        key, equals, values = text.partition("=")
        if not equals or not key:
            raise SystemExit(f"--vary {text}: want KEY=VALUE,VALUE,...")
        changes += [{key: value} for value in yaml.safe_load(f"[{values}]")]
    return changes


def _named(method: str, names: Iterable[str]) -> list[Mapping[str, Any]]:
    there = ABLATIONS.get(method, {})
    changes: list[Mapping[str, Any]] = []
    for name in names:
        if name != "all" and name not in there:
            raise SystemExit(
                f"{method} has no ablation {name!r}; there are {', '.join(there) or 'none'}: "
                "use --vary KEY=VALUE,VALUE"
            )
        for one in there if name == "all" else [name]:
            changes += there[one]
    return changes


def _parsed(text: str) -> tuple[str, str, str]:
    """Name, method and preset of ``[NAME=]METHOD[:PRESET]``."""
    name, equals, what = text.rpartition("=")
    method, _, preset = what.partition(":")
    if method not in DETECTORS:
        raise SystemExit(f"--beside {text}: no method {method!r}; there are {', '.join(DETECTORS)}")
    preset = preset or "default"
    if preset not in DETECTORS[method].method.presets:
        raise SystemExit(f"--beside {text}: {method} has no preset {preset!r}")
    return (name if equals else f"{method} ({preset})"), method, preset


def _said(change: Mapping[str, Any]) -> str:
    """A change in words: ``fusion=selfmix, rim=[0.0, 0.5]``."""
    return ", ".join(f"{key.rpartition('.')[2]}={_shown(value)}" for key, value in change.items())


def _shown(value: Any) -> str:
    return (
        {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    )
