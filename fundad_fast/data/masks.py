# SPDX-License-Identifier: Apache-2.0
"""Matches masks to images by folder and file name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from fundad_fast.data.items import DataError, show
from fundad_fast.words import count

_SUFFIX = re.compile(r"[ _-](mask|gt|seg)$", re.IGNORECASE)
_SIDE_BY_SIDE = re.compile(r"^(.+)_mask(_\d+)?$", re.IGNORECASE)


def stem_of(name: str) -> str:
    """A file name without its extension, of which ``.nii.gz`` is one."""
    if name.lower().endswith(".nii.gz"):
        return name[:-7]
    return name.rsplit(".", 1)[0] if "." in name[1:] else name


def base_of_side_by_side(name: str) -> str | None:
    """``x`` for ``x_mask.png`` and ``x_mask_1.png``, masks that lie beside their images."""
    match = _SIDE_BY_SIDE.match(stem_of(name))
    return match.group(1) if match else None


@dataclass(frozen=True)
class Place:
    """Where an image or a mask lies, as far as a layout knows.

    Attributes:
        split: its split, or ``None``.
        class_name: its class in lower case, or ``None``.
        stem: its file name without extension.
        label: of an image: 0, 1 or unknown.
    """

    split: str | None
    class_name: str | None
    stem: str
    label: int | None = None


@dataclass
class MaskIndex:
    """The masks of one kind, to be looked up by the place of an image.

    A mask fits an image of the same stem (with or without ``_mask``), the same class where the mask
    lies in a folder of a class, and the same split where it lies in a folder of a split.
    """

    lesion_type: str | None = None
    _paths: dict[tuple[str | None, str | None, str], list[str]] = field(default_factory=dict)
    _count: int = 0

    def add(self, place: Place, path: str) -> None:
        """Enter a mask; ``place`` is where the mask lies."""
        self._count += 1
        stem = place.stem
        if self.lesion_type is not None:
            stem = stem.removesuffix(f"_{self.lesion_type}")
        # The plain stem too: an image may itself be called x_mask.
        for name in dict.fromkeys((_SUFFIX.sub("", stem), stem)):
            self._paths.setdefault((place.split, place.class_name, name), []).append(path)

    def match(self, places: Iterable[Place]) -> tuple[list[str | None], list[str]]:
        """The mask of each image, and notes on masks that are left over or doubled.

        Raises:
            DataError: a mask fits several images, none of them more than the others.
        """
        listed = list(places)
        found = [self._find(place) for place in listed]
        claims: dict[str, list[int]] = {}
        doubled = 0
        for i, paths in enumerate(found):
            if paths:
                # x_mask.png before x.png where both exist.
                chosen = max(paths, key=lambda path: bool(_SUFFIX.search(stem_of(path))))
                doubled += len(paths) > 1
                claims.setdefault(chosen, []).append(i)
        masks: list[str | None] = [None] * len(listed)
        for path, claimants in claims.items():
            masks[self._owner(path, claimants, listed)] = path
        kind = "masks" if self.lesion_type is None else f"{self.lesion_type} masks"
        notes = []
        if doubled:
            notes.append(
                f"{count(doubled, 'image')} with several {kind}; the one named …_mask is used"
            )
        left = self._count - len(claims) - doubled
        if left > 0:
            used = set(claims)
            example = min(p for paths in self._paths.values() for p in paths if p not in used)
            notes.append(f"{left} {kind} belong to no image, such as {show(example)}")
        return masks, notes

    def _find(self, place: Place) -> list[str]:
        for split in dict.fromkeys((place.split, None)):
            for class_name in dict.fromkeys((place.class_name, None)):
                paths = self._paths.get((split, class_name, place.stem))
                if paths:
                    return paths
        return []

    @staticmethod
    def _owner(path: str, claimants: list[int], places: list[Place]) -> int:
        """Of several images of one name: the abnormal one, then the one of the test split."""
        for better in (lambda p: p.label == 1, lambda p: p.split == "test"):
            narrowed = [i for i in claimants if better(places[i])]
            claimants = narrowed or claimants
        if len(claimants) > 1:
            raise DataError(
                f"the mask {show(path)} fits {len(claimants)} images of the same name: put the "
                "masks in folders named as the images' folders, or write a manifest with mask_path"
            )
        return claimants[0]
