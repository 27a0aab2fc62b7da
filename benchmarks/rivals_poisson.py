# SPDX-License-Identifier: Apache-2.0
"""What poisson_blend is measured against: float32, with everything cached that depends on shape."""

from __future__ import annotations

import functools

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from torch import Tensor


def _lanes(dims: int, axis: int) -> tuple[slice, ...]:
    """Everything along an axis, inner cells along the others."""
    return tuple(slice(None) if a in (0, axis) else slice(1, -1) for a in range(dims))


@functools.cache
def _inverse(shape: tuple[int, ...]) -> NDArray[np.float32]:
    total = np.zeros((1,) * len(shape))
    for axis, n in enumerate(shape):
        along = 2 * np.cos(np.pi * np.arange(1, n + 1) / (n + 1)) - 2
        total = total + along.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return (1 / total).astype(np.float32)


def blend_scipy(target: NDArray, source: NDArray, mask: NDArray, workers: int) -> NDArray:
    """numpy and ``scipy.fft.dstn``, for the change instead of the result: no faces to move.

    Of the forms tried this is the fastest: differences of inner cells only, in place.
    ``mask`` is false on the faces.
    """
    axes = tuple(range(1, target.ndim))
    right = np.zeros((len(target), *(n - 2 for n in mask.shape)), target.dtype)
    for axis in axes:
        lane = _lanes(target.ndim, axis)
        gain, of_target = np.diff(source[lane], axis=axis), np.diff(target[lane], axis=axis)
        low = tuple(slice(-1) if a == axis else slice(1, -1) for a in axes)
        larger = np.abs(gain) > np.abs(of_target)
        larger &= mask[low]
        gain -= of_target
        gain *= larger
        front = tuple(slice(1, None) if a == axis else slice(None) for a in range(target.ndim))
        back = tuple(slice(-1) if a == axis else slice(None) for a in range(target.ndim))
        right += gain[front]
        right -= gain[back]
    change = scipy.fft.dstn(right, type=1, axes=axes, overwrite_x=True, workers=workers)
    change *= _inverse(right.shape[1:])
    change = scipy.fft.idstn(change, type=1, axes=axes, overwrite_x=True, workers=workers)
    out = target.copy()
    out[(slice(None), *(slice(1, -1) for _ in axes))] += change
    return out


@functools.cache
def _sines(n: int) -> Tensor:
    i = torch.arange(1, n + 1).double()
    return (torch.sin(torch.pi * i[:, None] * i / (n + 1)) * (2 / (n + 1)) ** 0.5).float()


@functools.cache
def _inverse_tensor(shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(_inverse(shape))


def blend_products(target: Tensor, source: Tensor, mask: Tensor) -> Tensor:
    """torch, with sine transforms as products with cached matrices."""
    axes = range(1, target.dim())
    inner = [n - 2 for n in mask.shape]
    right = target.new_zeros(len(target), *inner)
    for axis in axes:
        lane = _lanes(target.dim(), axis)
        of_target, of_source = target[lane].diff(dim=axis), source[lane].diff(dim=axis)
        low = mask[tuple(slice(-1) if a == axis else slice(1, -1) for a in axes)]
        wanted = low & (of_source.abs() > of_target.abs())
        right += torch.where(wanted, of_source - of_target, 0).diff(dim=axis)

    def transform(x: Tensor) -> Tensor:
        x = x @ _sines(inner[-1])
        for axis in axes[:-1]:
            flat = x.flatten(axis + 1).flatten(0, axis - 1)
            x = (_sines(inner[axis - 1]) @ flat).view(x.shape)
        return x

    change = transform(transform(right) * _inverse_tensor(tuple(inner)))
    out = target.clone()
    out[(slice(None), *(slice(1, -1) for _ in axes))] += change
    return out
