# SPDX-License-Identifier: Apache-2.0
"""How well anomaly maps find lesions, pixel by pixel and lesion by lesion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import curves
from .bootstrap import estimate, resample_weights
from .metric import Metric, finite
from .pixel_bootstrap import PixelHistograms, make_histograms
from .pixel_store import UNION, ImagePixels, PixelStore, PixelTotals, Region, sort_pixels
from .resample import resize_map, resize_mask
from .score_counts import BITS

Floats = NDArray[np.float64]
Mode = Literal["auto", "exact", "streaming"]
Cell = tuple[str, Region]  # a lesion type or the union, and where

REGIONS: dict[Region, str] = {
    "all": "over all pixels of all test images",
    "fov": "over the pixels inside the field of view of all test images",
    "abnormal": "over all pixels of the abnormal test images only",
}
SUFFIX: dict[Region, str] = {"all": "", "fov": "_fov", "abnormal": "_abnormal"}

DEFINITIONS: dict[str, str] = {
    "pixel_AUROC": "Area under the ROC curve {over}, ties counting one half.",
    "pixel_AP": "Average precision {over}: sum of (R_n - R_n-1) * P_n over the distinct scores, "
    "not interpolated.",
    "pixel_AUPRO": "Area under the mean overlap of the 8-connected lesions against the false "
    "positive rate of the lesion-free pixels, {over}, up to a rate of {limit:g} and divided by it; "
    "straight between thresholds and at the limit.",
    "pixel_F1Max": "Largest F1 over all thresholds on the pixel score, {over} (chosen on them).",
    "pixel_Dice": "2 TP / (2 TP + FP + FN), counted {over}, at the model's stored pixel threshold: "
    "a pixel is called abnormal where its score lies above it.",
}
CHUNK = 20
CHUNK_SHUFFLES = 10
CHUNK_DEFINITION = (
    "Mean over 10 shuffles of the images (sorted by id; seeds 0 to 9) of the mean average "
    "precision of consecutive chunks of 20 images; a shorter last chunk counts as one, chunks "
    "without lesions are left out (protocol of Baugh et al. 2023); from binned pixels."
)


class PixelEvaluator:
    """Collects anomaly maps and lesion masks image by image and computes pixel metrics.

    Args:
        pixel_threshold: the model's stored pixel threshold (abnormal means score > threshold);
            ``None`` leaves Dice undefined.
        eval_size: compare on a square grid of this side instead of the mask's resolution (the
            papers' protocols): maps bilinear, masks nearest, so that tiny lesions may vanish.
        mode: ``exact`` keeps every score (4 bytes a pixel, and as much again while sorting);
            ``streaming`` counts on order-preserving bins in bounded memory; ``auto`` is exact up to
            ``exact_limit`` pixels.
        exact_limit: pixels.
        bits: of the streaming bins; 22 ties scores that differ by less than 0.013 %.
        per_image: in streaming mode, keep a binned histogram per image (some 100 KB), which
            intervals need.
        fpr_limit: of AUPRO.
    """

    def __init__(
        self,
        *,
        pixel_threshold: float | None = None,
        eval_size: int | None = None,
        mode: Mode = "auto",
        exact_limit: int = 50_000_000,
        bits: int = BITS,
        per_image: bool = True,
        fpr_limit: float = 0.3,
    ) -> None:
        if mode not in ("auto", "exact", "streaming"):
            raise ValueError(f"mode must be auto, exact or streaming, got {mode!r}")
        if not 0 < fpr_limit <= 1:
            raise ValueError(f"fpr_limit must lie in (0, 1], got {fpr_limit}")
        if not 12 <= bits <= 31:
            raise ValueError(f"bits must lie in [12, 31], got {bits}")
        if eval_size is not None and eval_size < 1:
            raise ValueError(f"eval_size must be positive, got {eval_size}")
        if pixel_threshold is not None and not math.isfinite(pixel_threshold):
            raise ValueError(f"pixel_threshold must be finite, got {pixel_threshold}")
        self.pixel_threshold = pixel_threshold
        self.eval_size = eval_size
        self.mode: Mode = mode
        self.exact_limit = exact_limit
        self.fpr_limit = fpr_limit
        limit = {"auto": exact_limit, "exact": np.iinfo(np.int64).max, "streaming": 0}[mode]
        self._store = PixelStore(limit=int(limit), bits=bits, per_image=per_image)
        self._ids: set[str] = set()
        self._types: dict[str, None] = {}
        self._has_fov = False
        self._totals: PixelTotals | None = None
        self._histograms: PixelHistograms | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def add(
        self,
        id: str,
        score_map: ArrayLike,
        mask: ArrayLike | None,
        fov: ArrayLike | None = None,
        types: Mapping[str, ArrayLike] | None = None,
        patient: str | None = None,
    ) -> None:
        """Take one image.

        Args:
            id: its name, once only.
            score_map: ``[h, w]`` finite, at the mask's resolution (see ``resample_map``), or at
                ``eval_size``; higher = more abnormal. Of a volume ``[d, h, w]``, as are its masks;
                its lesions are 26-connected.
            mask: ``[h, w]`` true on lesions, or ``None`` for a healthy image. An abnormal image
                whose mask is unknown must not be added.
            fov: ``[h, w]`` true inside the field of view; ``None`` for the whole frame.
            types: mask ``[h, w]`` by lesion type, for those that were annotated.
            patient: to resample patients instead of images.

        Raises:
            ValueError: an id twice, shapes that differ, a score that is not finite, types of a
                healthy image.
        """
        if id in self._ids:
            raise ValueError(f"image {id!r} was added twice")
        score = np.asarray(score_map, np.float32)
        if score.ndim not in (2, 3) or score.size == 0:
            raise ValueError(
                f"{id}: the score map must be [h, w] or [d, h, w] and not empty, got {score.shape}"
            )
        if score.ndim == 3 and self.eval_size is not None:
            raise ValueError(f"{id}: eval_size is for images, not for volumes")
        if not np.isfinite(score).all():
            raise ValueError(f"{id}: the score map has values that are not finite")
        if types and mask is None:
            raise ValueError(f"{id}: a healthy image (mask None) cannot have lesion types")
        names = {"mask": mask, "fov": fov, **{f"type {t}": m for t, m in (types or {}).items()}}
        masks = {k: np.asarray(m, bool) for k, m in names.items() if m is not None}
        score = self._to_eval_size(score)
        for name, values in masks.items():
            if self.eval_size is not None:
                masks[name] = resize_mask(values, self.eval_size, self.eval_size)
            elif values.shape != score.shape:
                raise ValueError(
                    f"{id}: the {name} is {values.shape} but the score map is {score.shape}; "
                    "bring the map to the mask's resolution with resample_map"
                )
        image = sort_pixels(
            id,
            patient,
            score,
            masks.get("mask"),
            masks.get("fov"),
            {t: masks[f"type {t}"] for t in types or {}},
            self._threshold32(),
        )
        self._ids.add(id)
        self._types.update(dict.fromkeys(types or {}))
        self._has_fov |= fov is not None
        self._totals = self._histograms = None
        self._store.add(image)

    def _to_eval_size(self, score: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.eval_size is None or score.shape == (self.eval_size, self.eval_size):
            return score
        return resize_map(score, self.eval_size, self.eval_size)

    def _threshold32(self) -> np.float32 | None:
        """The largest float32 not above the threshold: scores compare with both alike."""
        if self.pixel_threshold is None:
            return None
        t = np.float32(self.pixel_threshold)
        return np.nextafter(t, np.float32(-np.inf)) if float(t) > self.pixel_threshold else t

    @property
    def types(self) -> tuple[str, ...]:
        """Lesion types seen so far."""
        return tuple(self._types)

    @property
    def images(self) -> tuple[ImagePixels, ...]:
        return tuple(self._store.images)

    def totals(self) -> PixelTotals:
        """All pixels merged; kept until the next image comes."""
        if self._totals is None:
            self._totals = self._store.totals()
        return self._totals

    def histograms(self) -> PixelHistograms | None:
        """Binned pixels per image, or ``None`` when per-image counts were not kept."""
        if not (self._store.exact or self._store.per_image):
            return None
        if self._histograms is None:
            self._histograms = make_histograms(self._store.images, self.totals())
        return self._histograms

    def reason(self, target: str, region: Region) -> str | None:
        """Why there are no ranking metrics of a target in a region, or ``None``."""
        if not self._ids:
            return "no image was added"
        if region == "fov" and not self._has_fov:
            return "no field of view was given"
        if target not in self.totals().positive:
            return "no lesion masks were given"
        curve, _ = self.totals().curve(target, region)
        if curve.p == 0:
            return "the masks have no lesion pixel here"
        if curve.n == 0:
            return "there is no lesion-free pixel here"
        return None

    def values(self, curve: curves.Curve, overlap: ArrayLike) -> dict[str, Floats]:
        """The ranking metrics of a curve ``[..., k]``."""
        return {
            "pixel_AUROC": curves.auroc(curve),
            "pixel_AP": curves.average_precision(curve),
            "pixel_AUPRO": curves.aupro(curve, overlap, self.fpr_limit),
            "pixel_F1Max": curves.f1_max(curve),
        }

    def metrics(
        self, *, n_boot: int = 1000, seed: int = 0, ap_chunk: bool = False
    ) -> dict[str, Metric]:
        """Pixel metrics of the union of all lesions, in every region, with 95 % intervals.

        Names are ``pixel_<metric>`` for all pixels, with ``_fov`` or ``_abnormal`` appended for
        the pixels inside the field of view, or of abnormal images only. Patients or images are
        resampled, never pixels. ``ap_chunk`` adds ``pixel_AP_chunk20``.
        """
        result: dict[str, Metric] = {}
        found = self._evaluate([(UNION, region) for region in REGIONS], n_boot, seed)
        for (_, region), metrics in found.items():
            result.update({name + SUFFIX[region]: m for name, m in metrics.items()})
        if ap_chunk:
            result["pixel_AP_chunk20"] = self._ap_chunk()
        return result

    def metrics_by_type(self, *, n_boot: int = 1000, seed: int = 0) -> dict[str, dict[str, Metric]]:
        """Per lesion type the ranking metrics against lesion-free pixels.

        Pixels of other types are neither positive nor negative. Names as in ``metrics``, for all
        pixels and for those inside the field of view.
        """
        regions: tuple[Region, ...] = ("all", "fov")
        cells = [(t, region) for t in self._types for region in regions]
        result: dict[str, dict[str, Metric]] = {t: {} for t in self._types}
        for (name, region), metrics in self._evaluate(cells, n_boot, seed).items():
            for key, metric in metrics.items():
                result[name][key + SUFFIX[region]] = metric
        return result

    def _evaluate(self, cells: list[Cell], n_boot: int, seed: int) -> dict[Cell, dict[str, Metric]]:
        reasons = {cell: self.reason(*cell) for cell in cells}
        usable = [cell for cell in cells if reasons[cell] is None]
        drawn, no_interval = self._resample(usable, n_boot, seed)
        result: dict[Cell, dict[str, Metric]] = {}
        for cell in cells:
            point = self.point(cell) if reasons[cell] is None else {}
            result[cell] = {}
            for name in self.names(cell[0]):
                reason = reasons[cell]
                if name == "pixel_Dice" and self.pixel_threshold is None:
                    reason = reason or "no pixel threshold was given"
                n, definition = self.count(cell[1]), self.definition(name, cell)
                if reason is not None:
                    result[cell][name] = Metric(None, None, None, n, definition, reason)
                    continue
                values = [d[cell, name] for d in drawn]
                result[cell][name] = estimate(
                    float(point[name]), n, definition, values, no_interval
                )
        return result

    def names(self, target: str) -> tuple[str, ...]:
        """Metrics of a target: a stored threshold is for all lesions, not for one type."""
        return tuple(n for n in DEFINITIONS if target == UNION or n != "pixel_Dice")

    def count(self, region: Region) -> int:
        """Images that enter in a region."""
        images = self._store.images
        return sum(image.abnormal for image in images) if region == "abnormal" else len(images)

    def definition(self, name: str, cell: Cell) -> str:
        """One sentence that says what a metric is."""
        over = REGIONS[cell[1]]
        if cell[0] != UNION:
            over = f"of this lesion type against lesion-free pixels, {over}"
        return DEFINITIONS[name].format(over=over, limit=self.fpr_limit)

    def point(self, cell: Cell) -> dict[str, Floats]:
        """The metrics of a cell that has no ``reason``."""
        values = self.values(*self.totals().curve(*cell))
        return {**values, "pixel_Dice": self.dice(cell[1])}

    def dice(self, region: Region) -> Floats:
        """Dice of all pixels together at the stored threshold."""
        row = 1 if region == "fov" else 0
        images = [m for m in self._store.images if m.abnormal or region != "abnormal"]
        tp, fp, fn = np.sum([m.confusion[row] for m in images], axis=0)
        return curves.ratio(2 * tp, 2 * tp + fp + fn)

    def _resample(
        self, cells: list[Cell], n_boot: int, seed: int
    ) -> tuple[list[dict[tuple[Cell, str], Floats]], str | None]:
        histograms = self.histograms() if n_boot and cells else None
        if histograms is None:
            asked = "no resamples were asked for" if not n_boot else "no counts per image were kept"
            return [], f"no interval: {asked}"
        images = self._store.images
        resamples = resample_weights(
            histograms.abnormal,
            [image.patient for image in images],
            n_boot,
            seed,
            width=histograms.bins,
        )
        return [self.resampled(histograms, cells, w) for w in resamples.chunks()], (
            resamples.no_interval
        )

    def resampled(
        self, histograms: PixelHistograms, cells: list[Cell], weights: Floats
    ) -> dict[tuple[Cell, str], Floats]:
        """Every metric of every cell ``[b]`` under image weights ``[b, n]``, from binned pixels."""
        result = {}
        for cell, (curve, overlap) in histograms.curves(cells, weights).items():
            values = self.values(curve, overlap)
            values["pixel_Dice"] = histograms.dice(cell[1], weights)
            result.update({(cell, name): value for name, value in values.items()})
        return result

    def _ap_chunk(self) -> Metric:
        """AP as mean over shuffles of chunks; from binned pixels, which is within 1e-3."""
        reason = self.reason(UNION, "all")
        histograms = self.histograms()
        if reason is None and histograms is None:
            reason = "no counts per image were kept"
        if reason is not None or histograms is None:
            return Metric(None, None, None, len(self), CHUNK_DEFINITION, reason)
        by_id = np.argsort(np.array(histograms.ids))
        shuffles = []
        for seed in range(CHUNK_SHUFFLES):
            order = by_id[np.random.default_rng(seed).permutation(len(by_id))]
            chunks = [order[i : i + CHUNK] for i in range(0, len(order), CHUNK)]
            weights = np.zeros((len(chunks), len(order)))
            for row, chunk in zip(weights, chunks):
                row[chunk] = 1
            curve, _ = histograms.curves([(UNION, "all")], weights)[UNION, "all"]
            shuffles.append(np.nanmean(curves.average_precision(curve)))
        return Metric(
            finite(float(np.mean(shuffles))),
            None,
            None,
            len(self),
            CHUNK_DEFINITION,
            "no interval: the shuffles are not resamples",
        )

    def settings(self) -> dict[str, Any]:
        """How the pixels were compared, for ``metrics.json``."""
        images = self._store.images
        exact = self._store.exact
        return {
            "n_images": len(self),
            "n_abnormal": sum(image.abnormal for image in images),
            "n_pixels": self._store.n_pixels,
            "mode": "exact" if exact else "streaming",
            "exact_limit": self.exact_limit,
            "bins": None if exact else f"the {self._store.bits} highest bits of the float32 score",
            "resolution": "the masks'" if self.eval_size is None else self.eval_size,
            "pixel_threshold": self.pixel_threshold,
            "fpr_limit": self.fpr_limit,
            "field_of_view": self._has_fov,
            "lesion_types": list(self._types),
        }
