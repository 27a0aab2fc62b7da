# SPDX-License-Identifier: Apache-2.0
"""What every method promises: a validated config, ``fit``, ``score`` and a state that travels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as nnf
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)
from torch import Tensor

from ..batch import Batch, Scores
from ..progress import Progress

PIXELS_KEPT = 10_000_000  # held-out healthy map cells kept for the pixel threshold


class ConfigError(ValueError):
    """A setting that does not exist or cannot have the value it was given."""


class MethodConfig(BaseModel):
    """The settings that every method has. Frozen; an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(784, ge=32, le=4096, description="Side of the square input, in pixels.")
    fov: Literal["auto", "none"] = Field(
        "auto",
        description="auto: find the fundus field of view and score inside it only, a photograph "
        "without one is that row's error; none: the whole frame (other modalities).",
    )
    fov_crop: bool = Field(False, description="Cut to the square around the field of view first.")
    fov_erode: float = Field(
        0.03, ge=0, lt=0.5, description="Rim of the field of view left out, in radii. Our design."
    )
    white_level: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Sample value that is white, such as 4095; None: by bit depth.",
    )
    pages: Literal["one", "first"] = Field(
        "one", description="A TIFF of several pages is refused (one), or its first page is taken."
    )
    window: (
        Annotated[int, Field(strict=True, ge=0)]
        | tuple[FiniteFloat, Annotated[FiniteFloat, Field(ge=1)]]
        | Literal["none"]
        | None
    ) = Field(
        None,
        description="Window of grey DICOM. None: the file's first; 1: its second, and so on; "
        "40,400: this centre and width, in units of the rescale; none: the whole stored range.",
    )
    mixed_inputs: Literal["error", "convert"] = Field(
        "error",
        description="What to do when images differ in channels or bit depth: error, or convert "
        "all to 8-bit-range RGB.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Of everything random in the method.")

    @model_validator(mode="after")
    def _crop_needs_a_field_of_view(self) -> Self:
        if self.fov_crop and self.fov == "none":
            raise ValueError("fov_crop=true needs fov=auto")
        return self


@dataclass(frozen=True)
class HeldOut:
    """What a method says of healthy images that it has not learned from.

    Attributes:
        id: one name per image.
        fold: ``[n]`` int32, the fold that held the image out.
        score: ``[n]`` float32 image scores.
        pixels: float32 scores of the map's cells inside the mask, pooled over the images (thinned
            evenly to a bounded number), or ``None`` for a method without maps.
        rule: which images these are, in words, where they are not simply every fold in turn.
    """

    id: tuple[str, ...]
    fold: np.ndarray
    score: np.ndarray
    pixels: np.ndarray | None
    rule: str = ""


@dataclass(frozen=True)
class Plan:
    """What ``fit`` expects to need, before it starts. Sizes in bytes, times in seconds."""

    images: int
    memory: int
    disk: int
    bundle: int
    seconds: float
    lines: tuple[str, ...]


@dataclass
class State:
    """A fitted method as plain tensors and plain facts.

    Attributes:
        weights: tensors of networks, by name.
        bank: tensors of memory banks and what was prepared from them, by name.
        facts: what JSON can hold; counts, radii, hashes.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    bank: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Method(ABC):
    """An anomaly detection method that learns from healthy images only.

    A method never opens a user's file, parses an argument or chooses a backend. Its presets are
    ``paper`` (the published settings), ``default`` (what measures best here) and ``quick``.

    Attributes:
        trains: whether it trains networks, with several processes where they were launched.
        takes_external: whether ``fit`` has a use for ``external``.
        reading: what progress calls the first walk over the images.
        meaning: what its scores are, in a sentence without its full stop.
        held_out_: after a ``fit`` with folds, the scores of held-out healthy images.
    """

    name: ClassVar[str]
    trains: ClassVar[bool] = False
    takes_external: ClassVar[bool] = False
    reading: ClassVar[str] = "features"
    meaning: ClassVar[str] = "Scores are distances in feature space: raw, not clamped"
    Config: ClassVar[type[MethodConfig]]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]

    def __init__(self, config: MethodConfig, *, weights: str | Path | None = None) -> None:
        self.config = config
        self.weights = weights
        self.device = torch.device("cpu")
        self.held_out_: HeldOut | None = None

    @abstractmethod
    def fit(
        self,
        train: Iterable[Batch],
        *,
        val: Iterable[Batch] | None = None,
        external: Iterable[Batch] | None = None,
        folds: Mapping[str, int] | None = None,
        scratch: Path | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from healthy images.

        Args:
            train: batches of healthy images; may be walked more than once.
            val: healthy images that are not learned from, for methods that select a model.
            external: images of another kind, for methods that use such.
            folds: fold number of every training id; the method then fills ``held_out_`` with
                scores of each fold by a model that has not seen it, or of one fold that it
                learns nothing from.
            scratch: a folder for work that should survive a kill. Called again with the same
                folder, ``fit`` goes on; ``done(scratch)`` names the images it has already.
        """

    @abstractmethod
    def score(self, batch: Batch) -> Scores:
        """Score images; a batch scores the same whatever its size, up to rounding."""

    @abstractmethod
    def state(self) -> State:
        """Everything that ``from_state`` needs to score the same, bit for bit."""

    @classmethod
    @abstractmethod
    def from_state(cls, config: MethodConfig, state: State) -> Self:
        """The method that ``state`` was taken from."""

    @abstractmethod
    def plan(self, images: int, folds: int) -> Plan:
        """Memory, disk and time that a fit on ``images`` images would take."""

    def take_labelled(self, batches: Iterable[Batch], labels: Mapping[str, int]) -> None:
        """Labelled images to choose weights by, handed over before ``fit``.

        That leaks: what is then measured on these images, or on others of their set, is too high.

        Args:
            batches: prepared like those to learn from.
            labels: of each id, 1 abnormal.

        Raises:
            ConfigError: the method, or its settings, choose nothing by labels.
        """
        raise ConfigError(f"{self.name} chooses nothing by labelled images")

    @property
    def caveats(self) -> tuple[str, ...]:
        """What everyone has to be told who reads figures of this model; most often nothing."""
        return ()

    def files(self) -> dict[str, bytes]:
        """Further files of the model for people to read, by name; none that scoring needs."""
        return {}

    def summary(self) -> str:
        """What was fitted, in a few words."""
        return ""

    def done(self, scratch: Path) -> set[str]:
        """Ids of the training images that an interrupted ``fit`` left finished in ``scratch``."""
        return set()

    def to(self, device: torch.device | str) -> Self:
        """Move to a device; returns self."""
        self.device = torch.device(device)
        return self

    def compile(self, **options: Any) -> Self:
        """Compile the networks for scoring with ``torch.compile`` and its options; returns self.

        Raises:
            ConfigError: the method has no compiled form.
        """
        raise ConfigError(f"{self.name} has no compiled form; score without compile")


def touched(mask: Tensor | None, map: Tensor) -> Tensor:
    """Cells of a map ``[b, *s']`` that an image mask ``[b, *s]`` touches, bool ``[b, *s']``."""
    if mask is None:
        return torch.ones(map.shape, dtype=torch.bool, device=map.device)
    if mask.shape == map.shape:
        return mask.to(map.device)
    pool = nnf.adaptive_max_pool2d if map.dim() == 3 else nnf.adaptive_max_pool3d
    return pool(mask[:, None].to(map.device, torch.float32), tuple(map.shape[1:]))[:, 0] > 0


def spread(map: Tensor, inside: Tensor, rings: int = 2) -> Tensor:
    """Fill cells next to the inside of a map with the mean of their known neighbours.

    Interpolation reads one cell beyond the mask; zeros there would pull scores down at its rim.

    Args:
        map: ``[b, h, w]`` or ``[b, d, h, w]``; what lies outside is not read.
        inside: bool of the same shape.
        rings: how many cells outwards; those beyond are 0.
    """
    known = inside[:, None].to(map.dtype)
    values = map[:, None] * known
    pool = nnf.avg_pool3d if map.dim() == 4 else nnf.avg_pool2d
    for _ in range(rings):
        around = pool(known, 3, stride=1, padding=1)
        mean = pool(values, 3, stride=1, padding=1) / around.clamp_min(1e-9)
        values = torch.where(known > 0, values, torch.where(around > 0, mean, 0))
        known = (around > 0).to(map.dtype)
    return values[:, 0]


def thinned(values: np.ndarray, images: int) -> np.ndarray:
    """Evenly thinned values of one image, so that all images together keep ``PIXELS_KEPT``."""
    kept = max(1, PIXELS_KEPT // images)
    return values[:: -(-len(values) // kept)] if len(values) > kept else values


def make_config(
    method: type[Method], preset: str = "default", settings: Mapping[str, Any] | None = None
) -> MethodConfig:
    """The config of a preset with some settings changed.

    Raises:
        ConfigError: for an unknown preset, an unknown setting or a value out of range; the
            message names what exists.
    """
    if preset not in method.presets:
        raise ConfigError(
            f"{method.name} has no preset {preset!r}; it has {', '.join(method.presets)}"
        )
    values = {**method.presets[preset], **(settings or {})}
    try:
        return method.Config(**values)
    except ValidationError as error:
        known = method.Config.model_fields
        said = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"][:1]) or "settings"
            if problem["type"] == "extra_forbidden":
                said.append(f"{method.name} has no setting {key!r}{_near(key, known)}")
            elif problem["loc"]:
                said.append(f"{key}: {problem['msg']} (got {problem.get('input')!r})")
            else:
                said.append(problem["msg"].removeprefix("Value error, "))
        raise ConfigError("; ".join(said)) from error


def _near(key: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(key, list(known), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else f"; it has {', '.join(known)}"
