# SPDX-License-Identifier: Apache-2.0
"""What users hold: fit on healthy images, score others, save, load. Here methods meet files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from . import methods
from .batch import Scores
from .bundle import Bundle, load_bundle, save_bundle
from .data import (
    ArraySource,
    BatchStream,
    DataError,
    Failure,
    InputSpec,
    Item,
    Loader,
    ShownStream,
    as_source,
    assign_folds,
    data_hash,
    inspect_inputs,
    inspect_volumes,
    items_of,
    take_census,
    training_images,
)
from .held_out import colour_scale_of, how_held_out, thresholds_of
from .methods import HeldOut, Method, MethodConfig, Plan, make_config, thinned, touched
from .progress import Bars, Progress


class NotFittedError(RuntimeError):
    """``fit`` or ``load`` comes first."""


@dataclass(frozen=True)
class ImageScores(Scores):
    """Scores of everything that was given, in its order.

    Attributes:
        image: ``[n]`` float32; NaN where an image could not be used.
        map: ``[n, *s']`` float32, NaN likewise; ``None`` when not wanted or the method has none.
        id: one name per image.
        status: ``ok``, or why there is no score.
        error: the reason in words, empty for ``ok``.
    """

    id: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    error: tuple[str, ...] = ()


class Detector:
    """Learns from healthy images and scores others; higher is more abnormal.

    Use a subclass, such as :class:`ReSAD`.
    Names follow PyOD: ``decision_function``, ``predict`` (1 = abnormal) and ``threshold_``. There
    is no ``score_samples``, because scikit-learn's means the opposite.

    Args:
        preset: ``default``, ``paper`` or ``quick``; see the method.
        weights: of the backbone: a ``.safetensors`` file, ``"untrained"``, or ``None`` for timm's
            pretrained ones; of DIA a folder with a DDPM of diffusers, or ``None`` to train one.
        device: as torch names it; by default a GPU where there is one.
        folds: how many parts of the healthy images are held out in turn for the thresholds.
        target_fpr: the share of healthy images that may be called abnormal, in (0, 1).
        batch_size, threads: of scoring; they change no score beyond rounding.
        max_megapixels: larger images are refused.
        progress: ``True`` for progress bars, or a display of your own.
        settings: of the method, by name; see ``fundad info --settings``.

    Raises:
        ConfigError: for an unknown preset or setting, or a value out of range.
    """

    method: ClassVar[type[Method]]

    def __init_subclass__(cls, **options: Any) -> None:
        """A subclass without a docstring has this one, which then names its method."""
        super().__init_subclass__(**options)
        if cls.__doc__ is None:
            cls.__doc__ = (Detector.__doc__ or "").replace(
                "Use a subclass, such as :class:`ReSAD`.",
                f"The method is {cls.__name__}, see :class:`fundad_fast.methods.{cls.__name__}`.",
            )

    def __init__(
        self,
        preset: str = "default",
        *,
        weights: str | Path | None = None,
        device: str | torch.device | None = None,
        folds: int = 5,
        target_fpr: float = 0.05,
        batch_size: int = 4,
        threads: int | None = None,
        max_megapixels: float = 200.0,
        progress: bool | Progress = False,
        **settings: Any,
    ) -> None:
        self.preset, self.weights, self.settings = preset, weights, settings
        self.config: MethodConfig = make_config(self.method, preset, settings)
        self.device = device
        self.device_ = _device(device)
        if folds < 0 or folds == 1:
            raise methods.ConfigError(f"folds={folds}: use 2 or more, or 0 for no thresholds")
        if not 0 < target_fpr < 1:
            raise methods.ConfigError(f"target_fpr={target_fpr}: use a share between 0 and 1")
        self.folds, self.target_fpr = folds, target_fpr
        self.batch_size, self.threads, self.max_megapixels = batch_size, threads, max_megapixels
        self.progress = progress
        if isinstance(progress, bool):
            progress = Bars() if progress else Progress()
        self._shows = progress
        self.bundle_: Bundle | None = None
        self.failures_: dict[str, Failure] = {}

    # -- learning --------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Sequence[int] | None = None,
        *,
        external: Any = None,
        select_on: Any = None,
        scratch: str | Path | None = None,
    ) -> Self:
        """Learn from healthy images, and set thresholds on held-out ones.

        Args:
            X: a folder, manifest, glob or list of paths; or a uint8 array ``[n, h, w, 3]``, a
                float tensor ``[n, c, h, w]`` in [0, 1], or a torch Dataset of images. Of labelled
                data only the healthy images of the training split are used; healthy images of a
                split ``val`` set the thresholds in place of folds.
            y: labels of arrays, 0 healthy; the others are left out.
            external: images of another kind, given like X, for methods that take from such
                (ManyTasks); their channels and bit depths are converted.
            select_on: labelled files, for DIA with ``select=labelled`` alone, which chooses its
                weights by them; of data with splits those not of ``train``. This leaks: figures on
                these images are too high, and the model says so wherever it is used.
            scratch: a folder for work in progress: after a kill, the same call goes on.

        Returns:
            self, with ``threshold_`` and ``decision_scores_`` (of held-out healthy images), and
            ``failures_``: images that could not be used, by id.

        Raises:
            DataError: no usable healthy image, duplicates, mixed channels or bit depths.
            ConfigError: settings that do not fit the data.
            WeightsError: the backbone's weights cannot be had.
        """
        train, val = training_images(X, y, volumes=self.volumes)
        spec = self._spec(train)
        method = self.method(self.config, weights=self.weights).to(self.device_)
        self.failures_ = {}
        ids = [item.id for item in items_of(train)]
        folds = None
        if not val and self.folds:
            folds = self._assign_folds(items_of(train))
        sha256 = data_hash(train)
        work, done = None, set()
        if scratch is not None:
            if sha256 is None:
                raise DataError("scratch is for files; images in memory have to be fitted at once")
            work = Path(scratch) / sha256[:16]
            done = method.done(work)
        rest = train if not done else tuple(i for i in items_of(train) if i.id not in done)
        stream = self._stream(rest, spec, method.reading, len(ids), len(done))
        stream.failures = self.failures_
        other = None
        if external is not None and not method.takes_external:
            raise methods.ConfigError(f"{method.name} learns from healthy images alone")
        if external is not None:
            other, of_other = self._external(external, spec)
            if work is not None:
                work = work / (of_other or "in-memory")[:16]
        if select_on is not None:
            of_labelled = self._hand_labelled(method, select_on, spec)
            if work is not None:
                work = work / of_labelled[:16]
        method.fit(stream, external=other, folds=folds, scratch=work, progress=self._shows)
        held_out = method.held_out_
        if val:
            held_out = self._score_held_out(method, val, spec)
        thresholds = thresholds_of(held_out, self.target_fpr, bool(val))
        self.bundle_ = Bundle(
            method=method,
            preset=self.preset,
            input_spec=spec.model_dump(mode="json"),
            thresholds=thresholds,
            colour_scale=colour_scale_of(held_out, thresholds),
            trained_on={
                "images": len(ids) - len(self.failures_),
                "failed": len(self.failures_),
                "data_sha256": sha256,
                "held_out": how_held_out(held_out, folds, bool(val)),
                "census": take_census(self._loader(train, spec)),
            },
            normal=held_out,
            files=method.files(),
        )
        return self

    def _external(self, X: Any, spec: InputSpec) -> tuple[ShownStream, str | None]:
        source = as_source(X, volumes=self.volumes)[0]
        loose = spec.model_copy(
            update={"mixed_inputs": "convert", "fov": "none", "fov_crop": False}
        )
        return self._stream(source, loose, "external", len(items_of(source)), 0), data_hash(source)

    def _hand_labelled(self, method: Method, X: Any, spec: InputSpec) -> str:
        """Give a method images to choose weights by; returns their hash."""
        _, dataset = as_source(X)
        if dataset is None:
            raise DataError("select_on is for labelled files: a folder, a manifest, an .npz")
        items = tuple(i for i in dataset.items if i.label is not None and i.split != "train")
        if not items:
            raise DataError(
                f"no labelled image to select by in {dataset.root}: use test/good and "
                "test/<class>, a manifest with labels, or name the healthy class (--normal-class)"
            )
        stream = self._stream(items, spec, "labelled images", len(items), 0)
        method.take_labelled(stream, {item.id: int(item.label or 0) for item in items})
        found = data_hash(items)
        assert found is not None  # they are files
        return found

    def plan(self, X: Any, y: Sequence[int] | None = None) -> Plan:
        """Memory, disk and time that ``fit`` on the same data would take."""
        train, val = training_images(X, y, volumes=self.volumes)
        self._spec(train)
        method = self.method(self.config, weights=self.weights).to(self.device_)
        return method.plan(len(items_of(train)), 0 if val else self.folds)

    @property
    def volumes(self) -> bool:
        """Whether the method takes whole volumes, not images or slices."""
        return getattr(self.config, "volume", None) is not None

    def _spec(self, train: Any) -> InputSpec:
        c = self.config
        shared = InputSpec.model_fields.keys() & type(c).model_fields.keys()
        values = {name: getattr(c, name) for name in shared}
        wanted = values.pop("channels", "auto")
        if self.volumes:
            return self._volume_spec(train, values)
        if isinstance(train, ArraySource):
            channels, bit_depth = train.kind()
        else:
            census = inspect_inputs(train, mixed_inputs=c.mixed_inputs, pages=c.pages)
            channels, bit_depth = census.spec_channels, census.spec_bit_depth
        if wanted not in ("auto", channels):
            channels, values["mixed_inputs"] = wanted, "convert"
        return InputSpec(**values, channels=channels, bit_depth=bit_depth)

    def _volume_spec(self, train: Any, values: dict[str, Any]) -> InputSpec:
        """A spacing that the settings name is resampled to; else it is that of the volumes."""
        values |= {"channels": "grey", "fov": "none"}
        if isinstance(train, ArraySource):
            return InputSpec(**values)
        named = values.get("spacing") is not None
        resample = values.get("resample", False) or named
        mixed = values["mixed_inputs"] == "convert"
        kind = inspect_volumes(train, mixed=mixed, resample=resample)
        if not named:
            values["spacing"] = kind.spacing
        values |= {"bit_depth": kind.bit_depth, "resample": resample}
        return InputSpec(**values)

    def _assign_folds(self, items: Sequence[Item]) -> dict[str, int] | None:
        patients = {item.patient_id or ("image", item.id) for item in items}
        k = min(self.folds, len(patients))
        if k < 2:
            return None
        number = assign_folds(items, k, self.config.seed)
        return {item.id: int(fold) for item, fold in zip(items, number)}

    def _stream(
        self, source: Any, spec: InputSpec, name: str, total: int, done: int
    ) -> ShownStream:
        return ShownStream(self._shows, BatchStream(self._loader(source, spec)), name, total, done)

    def _loader(self, source: Any, spec: InputSpec) -> Loader:
        return Loader(
            source,
            spec,
            batch_size=self.batch_size,
            threads=self.threads,
            max_megapixels=self.max_megapixels,
            pinned=self.device_.type == "cuda",
        )

    def _score_held_out(
        self, method: Method, val: Sequence[Item], spec: InputSpec
    ) -> HeldOut | None:
        ids: list[str] = []
        image: list[np.ndarray] = []
        pixels: list[np.ndarray] = []
        for batch in self._stream(val, spec, "held out", len(val), 0):
            scores = method.score(batch)
            ids += batch.id
            image.append(scores.image.cpu().numpy())
            if scores.map is not None:
                shown = scores.map[touched(batch.mask, scores.map)].cpu().numpy()
                pixels.append(thinned(shown, len(val)))
        if not ids:
            return None
        return HeldOut(
            tuple(ids),
            np.zeros(len(ids), np.int32),
            np.concatenate(image),
            np.concatenate(pixels) if pixels else None,
        )

    # -- scoring ---------------------------------------------------------------------------------

    def score(self, X: Any, *, maps: bool = True) -> ImageScores:
        """Score images; one that cannot be used has NaN, a status and a reason.

        Args:
            X: as for ``fit``; everything that is found is scored.
            maps: whether to keep the anomaly maps (in memory: ``fundad score`` writes them to
                disk instead).
        """
        bundle = self._fitted()
        spec = InputSpec(**bundle.input_spec)
        source = as_source(X, volumes=self.volumes)[0]
        order = {item.id: i for i, item in enumerate(items_of(source))}
        image = torch.full((len(order),), float("nan"))
        full: torch.Tensor | None = None
        status, error = ["ok"] * len(order), [""] * len(order)
        with self._shows.task("score", len(order), "images") as task:
            for chunk in self._loader(source, spec):
                for failure in chunk.failures:
                    at = order[failure.item.id]
                    status[at], error[at] = failure.status, failure.error
                if chunk.items:
                    scores = bundle.method.score(chunk.batch)
                    at = [order[item.id] for item in chunk.items]  # type: ignore[assignment]
                    image[at] = scores.image.cpu()
                    if maps and scores.map is not None:
                        if full is None:
                            full = torch.full((len(order), *scores.map.shape[1:]), float("nan"))
                        full[at] = scores.map.cpu()
                task.advance(len(chunk))
        return ImageScores(image, full, tuple(order), tuple(status), tuple(error))

    def decision_function(self, X: Any) -> np.ndarray:
        """Image scores ``[n]`` float32, higher = more abnormal; NaN for an unusable image."""
        return self.score(X, maps=False).image.numpy()

    def predict(self, X: Any) -> np.ndarray:
        """``[n]`` int64: 1 where the score is above ``threshold_``, else 0.

        Raises:
            DataError: an image cannot be used, so that neither answer would be true.
        """
        threshold = self.threshold_
        scores = self.score(X, maps=False)
        bad = [i for i, status in enumerate(scores.status) if status != "ok"]
        if bad:
            raise DataError(
                f"{len(bad)} of {len(scores)} images cannot be used, the first is "
                f"{scores.id[bad[0]]}: {scores.error[bad[0]]}; leave them out, or use score"
            )
        return (scores.image.numpy() > threshold).astype(np.int64)

    @property
    def threshold_(self) -> float:
        """The image threshold, set on held-out healthy images."""
        fact = self._fitted().thresholds.get("image")
        if fact is None:
            raise NotFittedError("no threshold was set: fit with at least 2 images and folds >= 2")
        return float(fact["value"])

    @property
    def decision_scores_(self) -> np.ndarray:
        """Scores of held-out healthy images."""
        normal = self._fitted().normal
        return np.zeros(0, np.float32) if normal is None else normal.score

    # -- keeping ---------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the model to a new folder; ``fundad_fast.load`` reads it."""
        return save_bundle(self._fitted(), Path(path))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Constructor arguments, as scikit-learn's ``clone`` wants them."""
        names = ["preset", "weights", "device", "folds", "target_fpr", "batch_size", "threads"]
        names += ["max_megapixels", "progress"]
        return {name: getattr(self, name) for name in names} | self.settings

    def set_params(self, **params: Any) -> Self:
        """Change constructor arguments; the detector must be fitted again."""
        self.__init__(**{**self.get_params(), **params})  # type: ignore[misc]
        return self

    def _fitted(self) -> Bundle:
        if self.bundle_ is None:
            raise NotFittedError("not fitted: call fit, or use fundad_fast.load(folder)")
        return self.bundle_


class ReSAD(Detector):
    method = methods.ReSAD


class PatchCore(Detector):
    method = methods.PatchCore


class ManyTasks(Detector):
    method = methods.ManyTasks


class ProxyAno(Detector):
    method = methods.ProxyAno


class Autoencoder(Detector):
    method = methods.Autoencoder


class ReSynthDetect(Detector):
    method = methods.ReSynthDetect


class DIA(Detector):
    method = methods.DIA


_ALL = (ReSAD, PatchCore, ManyTasks, ReSynthDetect, ProxyAno, Autoencoder, DIA)
DETECTORS: Mapping[str, type[Detector]] = {cls.method.name: cls for cls in _ALL}


def load(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    compile: str | None = None,
) -> Detector:
    """Read a model that ``save`` or ``fundad fit`` wrote; it scores as before, bit for bit.

    Args:
        path: the model's folder.
        device: as torch names it; by default a GPU where there is one.
        compile: a mode of ``torch.compile``, such as ``default`` or ``reduce-overhead`` (CUDA
            graphs): scoring starts a minute later and then runs faster, and scores change by
            rounding.

    Raises:
        BundleError: the folder is missing, incomplete, changed or of an unknown kind.
        ConfigError: the device is not there, or the method has no compiled form.
    """
    bundle = load_bundle(Path(path))
    config = bundle.method.config
    default = make_config(type(bundle.method), bundle.preset)
    changed = {
        name: value
        for name, value in config.model_dump().items()
        if value != getattr(default, name)
    }
    fact = bundle.thresholds.get("image")
    more = {"target_fpr": fact["target_fpr"]} if fact else {}
    detector = DETECTORS[bundle.method.name](bundle.preset, device=device, **more, **changed)
    bundle.method.to(detector.device_)
    if compile is not None:
        bundle.method.compile(mode=compile)
    detector.bundle_ = bundle
    return detector


def _device(name: str | torch.device | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for what is not there
        reason = str(error).splitlines()[0]
        raise methods.ConfigError(f"device={name}: not to be had here ({reason})") from error
    return device
