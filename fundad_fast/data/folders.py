# SPDX-License-Identifier: Apache-2.0
"""Recognises the layout of a folder of images from its paths alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fundad_fast.data.items import NO_LABELS, DataError, Dataset, Item, item_id, show
from fundad_fast.data.listing import Listing, count_extensions, list_images
from fundad_fast.data.manifest import MANIFEST_NAMES, has_path_column, read_manifest
from fundad_fast.data.masks import (
    MaskIndex,
    Place,
    base_of_side_by_side,
    stem_of,
)
from fundad_fast.data.naming import (
    SPLIT_NAMES,
    WRAPPER_FOLDERS,
    is_healthy,
    is_mask_by_type_folder,
    is_mask_folder,
)
from fundad_fast.data.shards import items_of_shards
from fundad_fast.words import count


@dataclass(frozen=True)
class _File:
    """A file of the listing, taken apart."""

    path: str
    folders: tuple[str, ...]
    name: str


def dataset_of_folder(root: str, *, recursive: bool = True) -> Dataset:
    """The data set that a folder is, see :func:`fundad_fast.data.discover`."""
    manifests = [name for name in MANIFEST_NAMES if os.path.isfile(os.path.join(root, name))]
    usable = [name for name in manifests if has_path_column(os.path.join(root, name))]
    if len(usable) > 1:
        raise DataError(
            f"{show(root)} holds {' and '.join(usable)}: name the one to use by its path"
        )
    listing = list_images(root, recursive=recursive)
    listing.ignored -= len(manifests)
    if usable:
        listing.ignored += len(listing.shards)
        return _with_manifest(root, usable[0], listing)
    dataset = _by_folders(root, listing, recursive)
    if manifests:
        note = f"{manifests[0]} is not used: it has no column named path"
        dataset = replace(dataset, notes=(*dataset.notes, note))
    return dataset


def _with_manifest(root: str, name: str, listing: Listing) -> Dataset:
    dataset = read_manifest(os.path.join(root, name))
    files, masks = _take_apart(listing.images)
    named = {os.path.normpath(item.path) for item in dataset.items}
    left = sum(os.path.normpath(os.path.join(root, file.path)) not in named for file in files)
    notes = [f"{name} says what the images are; the folders' names are not looked at"]
    if left:
        notes.append(f"{count(left, 'image')} in the folder not named in {name}: left out")
    # A manifest has one mask for each image; masks by lesion type come from their folders.
    kinds = _index_by_type(root, masks)
    items = list(dataset.items)
    places = [
        Place(item.split, (item.class_name or "").lower() or None, _stem(item), item.label)
        for item in items
    ]
    items, more = _with_types(items, places, kinds)
    return Dataset(
        tuple(items),
        "manifest",
        root,
        listing.ignored,
        (*notes, *dataset.notes, *listing.notes, *more),
    )


def _stem(item: Item) -> str:
    return stem_of(os.path.basename(item.path))


def _by_folders(root: str, listing: Listing, recursive: bool) -> Dataset:
    if not listing.images and not listing.shards:
        other = count_extensions(root, recursive=recursive)
        deeper = "" if recursive else " (its folders were not searched)"
        raise DataError(
            f"no images in {show(root)}{deeper}: "
            + (f"it holds {other}; " if other else "the folder is empty; ")
            + "wanted are JPEG, PNG, TIFF or DICOM files, or .tar and .zip shards of them"
        )
    files, masks = _take_apart(listing.images)
    if not files and not listing.shards:
        raise DataError(
            f"{show(root)} holds {len(masks)} masks and no images: give the folder above, or the "
            "images' folder itself"
        )
    prefix, outside = _category(root, files)
    notes = list(listing.notes)
    if prefix:
        notes.append(f"read as the data set in the folder {show('/'.join(prefix))}")
    if outside:
        notes.append(f"outside that folder and left out: {count(outside, 'image')}")
    files, masks = _inside(files, prefix), _inside(masks, prefix)
    keyed = [(file, _key(file.folders[len(prefix) :])) for file in files]
    tops = {key[0].lower() for _, key in keyed if key}
    if tops & SPLIT_NAMES.keys():
        items, places, layout = _split_items(root, keyed)
    elif any(is_healthy(top) for top in tops):
        items, places, layout = _class_items(root, keyed)
    else:
        items = [Item(item_id(file.path), _join(root, file.path)) for file in files]
        places = [Place(None, None, stem_of(file.name)) for file in files]
        layout = "folder"
    items, places, more = _labelled(items, places)
    notes += more
    items, more = _with_masks(root, items, places, masks, len(prefix), layout != "folder")
    notes += more
    if layout == "imagefolder" and _is_mvtec(items):
        layout = "mvtec"
    ignored = listing.ignored
    if layout != "folder" and listing.shards:
        ignored += len(listing.shards)
        notes.append(
            f"{count(len(listing.shards), 'shard')} (.tar, .zip), such as "
            f"{show(listing.shards[0])}, not opened: this folder has a layout of "
            "its own; name them to read them"
        )
    elif listing.shards:
        found = [(_join(root, path), path) for path in listing.shards]
        more_items, more_ignored, more = items_of_shards(found)
        items = sorted([*items, *more_items], key=lambda item: item.id)
        ignored += more_ignored
        notes += more
    return Dataset(tuple(items), layout, root, ignored, tuple(notes))


def _take_apart(paths: Iterable[str]) -> tuple[list[_File], list[_File]]:
    """Images and masks."""
    every = [_File(path, tuple(path.split("/")[:-1]), path.split("/")[-1]) for path in paths]
    beside = {(file.folders, stem_of(file.name)) for file in every}
    images: list[_File] = []
    masks: list[_File] = []
    for file in every:
        base = base_of_side_by_side(file.name)
        beside_its_image = base is not None and (file.folders, base) in beside
        in_folder = any(is_mask_folder(folder) for folder in file.folders)
        (masks if in_folder or beside_its_image else images).append(file)
    return images, masks


def _key(folders: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(folder for folder in folders if folder.lower() not in WRAPPER_FOLDERS)


def _category(root: str, files: list[_File]) -> tuple[tuple[str, ...], int]:
    """The one folder that holds a data set of its own, such as MVTec's ``bottle``, if any."""

    keys = [_key(file.folders) for file in files]
    if any(key and _speaks(key[0]) for key in keys):
        return (), 0
    categories = sorted({key[0] for key in keys if len(key) > 1 and _speaks(key[1])})
    if len(categories) > 1:
        names = ", ".join(show(name) for name in categories[:5])
        raise DataError(
            f"{show(root)} holds {len(categories)} data sets ({names}"
            f"{', …' if len(categories) > 5 else ''}): give one of them, such as "
            f"{show(os.path.join(root, categories[0]))}, or write a manifest"
        )
    if not categories:
        return (), 0
    holder = next(file for file, key in zip(files, keys) if key[:1] == (categories[0],))
    prefix = holder.folders[: holder.folders.index(categories[0]) + 1]
    return prefix, sum(file.folders[: len(prefix)] != prefix for file in files)


def _speaks(name: str) -> bool:
    return name.lower() in SPLIT_NAMES or is_healthy(name)


def is_plain(path: str) -> bool:
    """Whether an image's path in its folder tells of no class, split, mask or data set."""
    *folders, name = path.split("/")
    if base_of_side_by_side(name) is not None or any(is_mask_folder(part) for part in folders):
        return False
    return not any(_speaks(part) for part in _key(tuple(folders))[:2])


def _inside(files: list[_File], prefix: tuple[str, ...]) -> list[_File]:
    return [file for file in files if file.folders[: len(prefix)] == prefix]


def _split_items(
    root: str, keyed: list[tuple[_File, tuple[str, ...]]]
) -> tuple[list[Item], list[Place], str]:
    items, places, classes = [], [], set()
    for file, key in keyed:
        split = SPLIT_NAMES.get(key[0].lower()) if key else None
        name = key[1] if split and len(key) > 1 else None
        classes.add((name or "").lower())
        items.append(Item(item_id(file.path), _join(root, file.path), class_name=name, split=split))
        places.append(Place(split, name and name.lower(), stem_of(file.name)))
    layout = "imagefolder"
    if "ungood" in classes:
        layout = "bmad"
    elif classes == {"good", "bad"}:
        layout = "visa"
    elif classes == {""}:
        layout = "splits"
    return items, places, layout


def _is_mvtec(items: list[Item]) -> bool:
    return any(item.class_name == "good" and item.split == "train" for item in items)


def _class_items(
    root: str, keyed: list[tuple[_File, tuple[str, ...]]]
) -> tuple[list[Item], list[Place], str]:
    items, places = [], []
    for file, key in keyed:
        name = key[0] if key else None
        items.append(Item(item_id(file.path), _join(root, file.path), class_name=name))
        places.append(Place(None, name and name.lower(), stem_of(file.name)))
    wrapped = all("Images" in file.folders for file, key in keyed if key)
    names = {place.class_name for place in places}
    return items, places, "visa" if wrapped and names == {"normal", "anomaly"} else "classes"


def _labelled(items: list[Item], places: list[Place]) -> tuple[list[Item], list[Place], list[str]]:
    """Labels from class names, where one of the classes is a healthy one."""
    names = {item.class_name for item in items if item.class_name is not None}
    # 0 is malignant in MedMNIST's BreastMNIST, of two classes, and of the four of its OCTMNIST 3 is
    # healthy: neither they nor a part of them are grades.
    grades = all(re.fullmatch(r"\d+", name) for name in names) and not names <= set("0123")
    healthy = {name for name in names if is_healthy(name) or (grades and int(name) == 0)}
    if not healthy:
        if not names:
            return items, places, []
        return items, places, [NO_LABELS]
    labels = [
        None if item.class_name is None else int(item.class_name not in healthy) for item in items
    ]
    unlabelled = sum(label is None for label in labels)
    nowhere = f"{count(unlabelled, 'image')} in no class folder, and so without a label"
    notes = [nowhere] if unlabelled else []
    return (
        [replace(item, label=label) for item, label in zip(items, labels)],
        [replace(place, label=label) for place, label in zip(places, labels)],
        notes,
    )


def _with_masks(
    root: str,
    items: list[Item],
    places: list[Place],
    masks: list[_File],
    depth: int,
    classes: bool,
) -> tuple[list[Item], list[str]]:
    union = MaskIndex()
    beside: dict[tuple[tuple[str, ...], str], str] = {}
    for file in masks:
        if any(is_mask_by_type_folder(folder) for folder in file.folders):
            continue
        base = base_of_side_by_side(file.name)
        if base is not None and not any(is_mask_folder(folder) for folder in file.folders):
            # Of several (x_mask, x_mask_1) the plain one comes first in order of name.
            beside.setdefault((file.folders, base), file.path)
            continue
        union.add(_mask_place(file, depth, classes), _join(root, file.path))
    found, notes = union.match(places)
    out = []
    for item, place, mask in zip(items, places, found):
        folders = tuple(os.path.relpath(item.path, root).split(os.sep)[:-1])
        own = beside.get((folders, place.stem))
        out.append(replace(item, mask_path=_join(root, own) if own is not None else mask))
    several = len([f for f in masks if not any(map(is_mask_folder, f.folders))]) - len(beside)
    if several:
        notes.append(f"{several} further masks (…_mask_1 and so on) are not used")
    out, more = _with_types(out, places, _index_by_type(root, masks))
    return out, notes + more


def _mask_place(file: _File, depth: int, classes: bool) -> Place:
    said = [
        folder
        for folder in file.folders[depth:]
        if folder.lower() not in WRAPPER_FOLDERS and not is_mask_folder(folder)
    ]
    split = SPLIT_NAMES.get(said[0].lower()) if said and classes else None
    said = said[1:] if split else said
    name = said[0].lower() if said and classes else None
    return Place(split, name, stem_of(file.name))


def _index_by_type(root: str, masks: list[_File]) -> list[MaskIndex]:
    """Masks under ``ground_truth_by_type/<type>/[<class>/]``."""
    kinds: dict[str, MaskIndex] = {}
    for file in masks:
        for i, folder in enumerate(file.folders[:-1]):
            if is_mask_by_type_folder(folder):
                kind = file.folders[i + 1]
                index = kinds.setdefault(kind, MaskIndex(kind))
                rest = [f for f in file.folders[i + 2 :] if f.lower() not in WRAPPER_FOLDERS]
                name = rest[0].lower() if rest else None
                index.add(Place(None, name, stem_of(file.name)), _join(root, file.path))
                break
    return [kinds[kind] for kind in sorted(kinds)]


def _with_types(
    items: list[Item], places: list[Place], kinds: list[MaskIndex]
) -> tuple[list[Item], list[str]]:
    by_type: list[list[tuple[str, str]]] = [[] for _ in items]
    notes: list[str] = []
    for index in kinds:
        found, more = index.match(places)
        notes += more
        for pairs, mask in zip(by_type, found):
            if mask is not None and index.lesion_type is not None:
                pairs.append((index.lesion_type, mask))
    return [
        replace(item, mask_paths_by_type=tuple(pairs)) if pairs else item
        for item, pairs in zip(items, by_type)
    ], notes


def _join(root: str, path: str) -> str:
    return os.path.join(root, *path.split("/"))
