# SPDX-License-Identifier: Apache-2.0
"""Images that lie in memory, as a source for the loader."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from fundad_fast.data.items import DataError, Item, ReadError
from fundad_fast.data.volumes import Voxels

if TYPE_CHECKING:
    from fundad_fast.data.spec import InputSpec

_VOLUMES = "wanted are uint8 volumes [n, d, h, w] or float tensors [n, 1, d, h, w] in [0, 1]"
_WANTED = (
    "wanted are uint8 arrays [n, h, w, c], float tensors [n, c, h, w] in [0, 1], or a sequence or "
    "torch Dataset of uint8 [h, w, c] or float [c, h, w] images, with c = 1 or 3"
)


class ArraySource:
    """Arrays, tensors or a torch Dataset as items ``"0"``, ``"1"`` ...

    Samples must be uint8 or uint16 with channels last, or float in [0, 1] with channels first.
    Float images need not have the bit depth of the model's specification: [0, 1] says it all. Of a
    Dataset's tuples the first element is the image. A sample that is wrong is that item's failure;
    an array that is wrong as a whole raises.

    Args:
        data: the images.
        labels: one per image, 0 healthy, 1 abnormal; optional.
        ids: one per image instead of the numbers; optional.
        volumes: the images are volumes: uint8 or uint16 ``[d, h, w]``, or float ``[1, d, h, w]``,
            0 outside of the object.

    Raises:
        DataError: not images, none at all, of the wrong type or range, or with another number of
            labels or ids.
    """

    any_depth = True

    def __init__(
        self,
        data: Any,
        *,
        labels: Sequence[int] | None = None,
        ids: Sequence[str] | None = None,
        volumes: bool = False,
    ) -> None:
        if isinstance(data, np.ndarray | torch.Tensor):
            _check_volumes(data) if volumes else _check_whole(data)
        elif not (hasattr(data, "__getitem__") and hasattr(data, "__len__")) or isinstance(
            data, str | bytes
        ):
            raise DataError(f"images of type {type(data).__name__}: {_WANTED}")
        self._data = data
        self._lock = threading.Lock()
        n = len(data)
        if n == 0:
            raise DataError("no images: the array, list or Dataset is empty")
        for what, values in (("labels", labels), ("ids", ids)):
            if values is not None and len(values) != n:
                raise DataError(f"{len(values)} {what} for {n} images: give one for each")
        if labels is not None and not {int(label) for label in labels} <= {0, 1}:
            raise DataError("labels must be 0 (healthy) or 1 (abnormal)")
        names = [str(i) for i in range(n)] if ids is None else list(ids)
        if len(set(names)) != n:
            raise DataError("ids must differ from each other")
        self.items = tuple(
            Item(name, "", label=None if labels is None else int(labels[i]))
            for i, name in enumerate(names)
        )

    def read(self, index: int, spec: InputSpec, max_megapixels: float) -> np.ndarray | Voxels:
        """Pixels ``[h, w, c]`` of one image; of a volume its voxels, of the model's spacing.

        Raises:
            ReadError: ``unsupported`` for a wrong type, shape or range, ``too_large``.
        """
        sample = self._sample(index)
        if isinstance(sample, tuple | list) and sample:
            sample = sample[0]
        if spec.volume is not None:
            return _voxels(sample, spec)
        if not isinstance(sample, np.ndarray | torch.Tensor):
            raise ReadError("unsupported", f"an image of type {type(sample).__name__}: {_WANTED}")
        array = _as_numpy(sample)
        problem = _problem(array.dtype, array.shape)
        if problem is not None:
            raise ReadError("unsupported", problem)
        if array.dtype.kind == "f":
            array = array.transpose(1, 2, 0).astype(np.float32)
        megapixels = array.shape[0] * array.shape[1] / 1e6
        if megapixels > max_megapixels:
            raise ReadError(
                "too_large", f"{megapixels:.1f} megapixels; the limit is {max_megapixels:g}"
            )
        return np.ascontiguousarray(array)

    def _sample(self, index: int) -> Any:
        if isinstance(self._data, np.ndarray | torch.Tensor):
            return self._data[index]
        with self._lock:  # a Dataset need not be safe among threads
            try:
                return self._data[index]
            except (LookupError, OSError, RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise ReadError(
                    "failed", f"the Dataset raised {type(error).__name__}: {reason}"
                ) from error

    def kind(self) -> tuple[Literal["rgb", "grey"], Literal[8, 16, 32]]:
        """Channels and bit depth of the first image, for the input specification of a fit.

        Raises:
            DataError: the first image is not one.
        """
        from fundad_fast.data.spec import InputSpec

        try:
            first = self.read(0, InputSpec(image_size=16), float("inf"))
        except ReadError as error:
            raise DataError(f"the first image: {error.reason}") from error
        assert isinstance(first, np.ndarray)
        depths: dict[str, Literal[8, 16, 32]] = {"uint8": 8, "uint16": 16, "float32": 32}
        return "rgb" if first.shape[2] == 3 else "grey", depths[first.dtype.name]


def _voxels(sample: Any, spec: InputSpec) -> Voxels:
    array = _as_numpy(sample) if isinstance(sample, np.ndarray | torch.Tensor) else np.empty(0)
    if array.dtype.kind == "f" and array.ndim == 4 and len(array) == 1:
        array = array[0].astype(np.float32)
    elif not (array.dtype.name in ("uint8", "uint16") and array.ndim == 3):
        raise ReadError("unsupported", f"a sample of {list(array.shape)} {array.dtype}; {_VOLUMES}")
    spacing = spec.spacing or (1.0, 1.0, 1.0)
    affine = np.column_stack([np.diag(spacing[::-1]), np.zeros(3)])
    return Voxels(np.ascontiguousarray(array), spacing, affine)


def _check_volumes(data: np.ndarray | torch.Tensor) -> None:
    if data.ndim != (5 if _as_numpy(data[:1]).dtype.kind == "f" else 4):
        raise DataError(f"an array of {data.ndim} axes; {_VOLUMES}")


def _as_numpy(sample: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(sample, np.ndarray):
        return sample
    sample = sample.detach().cpu()
    return (sample.float() if sample.is_floating_point() else sample).numpy()


def _check_whole(data: np.ndarray | torch.Tensor) -> None:
    if data.ndim != 4:
        hint = ": add an axis in front (x[None])" if data.ndim == 3 else ""
        raise DataError(f"an array of {data.ndim} axes{hint}; {_WANTED}")
    if len(data) == 0:
        return
    problem = _problem(_as_numpy(data[:1]).dtype, tuple(data.shape[1:]))
    if problem is not None:
        raise DataError(problem)
    if _as_numpy(data[:1]).dtype.kind == "f":
        low, high = float(data.min()), float(data.max())
        if low < 0 or high > 1:  # NaN is the affair of the image that has it
            raise DataError(
                f"float images from {low:g} to {high:g}: they must lie in [0, 1]; divide 8-bit "
                "values by 255, and do not standardise"
            )


def _problem(dtype: np.dtype, shape: tuple[int, ...]) -> str | None:
    """What is wrong with one image of this type and shape, if anything."""
    if dtype.kind != "f" and dtype.name not in ("uint8", "uint16"):
        return f"images of type {dtype.name}; {_WANTED}"
    if len(shape) != 3:
        return f"an image of shape {list(shape)}; {_WANTED}"
    first = dtype.kind == "f"
    if shape[0 if first else 2] in (1, 3):
        return None
    order = "[c, h, w]" if first else "[h, w, c]"
    other_end = shape[2 if first else 0] in (1, 3)
    hint = " (the channels seem to be at the other end)" if other_end else ""
    kind = "float" if first else dtype.name
    return f"a {kind} image of shape {list(shape)}, not {order} with c = 1 or 3{hint}"
