# SPDX-License-Identifier: Apache-2.0
"""From files and arrays to prepared images: discovery, readers, field of view, loading, folds.

The names are loaded when first used, so that importing the package stays cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fundad_fast.data.appearance import brightness, take_census
    from fundad_fast.data.arrays import ArraySource
    from fundad_fast.data.census import InputCensus, inspect_inputs
    from fundad_fast.data.folds import assign_folds
    from fundad_fast.data.fundus import Fov, find_fov, fov_mask
    from fundad_fast.data.handed import as_source, data_hash, items_of, training_images
    from fundad_fast.data.inventory import Inventory, take_inventory
    from fundad_fast.data.items import (
        STATUSES,
        DataError,
        Dataset,
        Identifiers,
        Item,
        ReadError,
        Status,
        item_id,
        item_of_row,
        path_of_row,
        show,
    )
    from fundad_fast.data.layouts import discover
    from fundad_fast.data.loader import BatchStream, Chunk, Failure, FileStream, Loader
    from fundad_fast.data.opening import open_source
    from fundad_fast.data.preparation import Prepared, prepare
    from fundad_fast.data.readers import read_image, read_mask, read_picture
    from fundad_fast.data.resizing import resize
    from fundad_fast.data.shown import ShownStream
    from fundad_fast.data.spec import InputSpec
    from fundad_fast.data.volume_census import VolumeKind, inspect_volumes
    from fundad_fast.data.volume_preparation import prepare_volume
    from fundad_fast.data.volumes import Voxels, as_nifti, read_volume

__all__ = [
    "STATUSES",
    "ArraySource",
    "BatchStream",
    "Chunk",
    "DataError",
    "Dataset",
    "Failure",
    "FileStream",
    "Fov",
    "Identifiers",
    "InputCensus",
    "InputSpec",
    "Inventory",
    "Item",
    "Loader",
    "Prepared",
    "ReadError",
    "ShownStream",
    "Status",
    "VolumeKind",
    "Voxels",
    "as_nifti",
    "as_source",
    "assign_folds",
    "brightness",
    "data_hash",
    "discover",
    "find_fov",
    "fov_mask",
    "inspect_inputs",
    "inspect_volumes",
    "item_id",
    "item_of_row",
    "items_of",
    "open_source",
    "path_of_row",
    "prepare",
    "prepare_volume",
    "read_image",
    "read_mask",
    "read_picture",
    "read_volume",
    "resize",
    "show",
    "take_census",
    "take_inventory",
    "training_images",
]

_MODULE_OF = {
    "STATUSES": "items",
    "ArraySource": "arrays",
    "BatchStream": "loader",
    "Chunk": "loader",
    "DataError": "items",
    "Dataset": "items",
    "Failure": "loader",
    "FileStream": "loader",
    "Fov": "fundus",
    "Identifiers": "items",
    "InputCensus": "census",
    "InputSpec": "spec",
    "Inventory": "inventory",
    "Item": "items",
    "Loader": "loader",
    "ShownStream": "shown",
    "Prepared": "preparation",
    "ReadError": "items",
    "Status": "items",
    "VolumeKind": "volume_census",
    "Voxels": "volumes",
    "as_nifti": "volumes",
    "as_source": "handed",
    "assign_folds": "folds",
    "brightness": "appearance",
    "data_hash": "handed",
    "discover": "layouts",
    "find_fov": "fundus",
    "fov_mask": "fundus",
    "inspect_inputs": "census",
    "inspect_volumes": "volume_census",
    "item_id": "items",
    "item_of_row": "items",
    "path_of_row": "items",
    "items_of": "handed",
    "open_source": "opening",
    "prepare": "preparation",
    "prepare_volume": "volume_preparation",
    "read_image": "readers",
    "read_mask": "readers",
    "read_picture": "readers",
    "read_volume": "volumes",
    "resize": "resizing",
    "show": "items",
    "take_census": "appearance",
    "take_inventory": "inventory",
    "training_images": "handed",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
