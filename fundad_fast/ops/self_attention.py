# SPDX-License-Identifier: Apache-2.0
"""Attention of every position of a feature map to all others, without learned projections."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _adapt
from ._registry import Op

Norm = Literal["none", "l2"]
Reading = Literal["row", "column", "hadamard_sum", "hadamard_diag"]


def self_attention(
    f: Tensor, scale: float = 1.0, norm: Norm = "none", reading: Reading = "row"
) -> Tensor:
    """Mix the positions of each feature map by how alike they are.

    ReSAD's spatial-aware features P (eq. 4), with G = scale · F Fᵀ and A the softmax of each row of
    G. As printed, the shapes of the equation do not fit; ``row`` is the adopted reading.

    Args:
        f: ``[b, n, d]`` float16, bfloat16, float32 or float64: n positions, d features.
        scale: the factor of the logits; any finite number.
        norm: ``l2``: the rows in G have length 1 (a row of zeros stays). The mixed values are
            always those of ``f``.
        reading: ``row``: P = A F. ``column``: P = Aᵀ F, so that the softmax is over the columns of
            G and the weights of a row need not sum to 1. ``hadamard_sum``: P_j = a_j F_j with a
            the column sums of A. ``hadamard_diag``: the same with a the diagonal of A.

    Returns:
        ``[b, n, d]``, contiguous, of the type of ``f``. Products and exponentials are float32, or
        float64 for float64, and the largest logit of a row is subtracted before the exponential.
        Beside copies of the input, memory is O(n · tile). A NaN makes all of its own map NaN, and
        no other. Differentiable once in ``f``.

    Raises:
        ValueError: a shape, a type or an option that is not listed here.
    """
    return torch.ops.fundad.self_attention(f, float(scale), norm, reading)


def _unit_rows(f: Tensor) -> tuple[Tensor, Tensor]:
    """The rows at length 1, and their lengths ``[..., 1]``; a row of zeros has length 1."""
    if f.shape[-1] == 0:
        return f, f.new_ones(*f.shape[:-1], 1)
    largest = f.abs().amax(-1, keepdim=True)  # so that no square is lost to under- or overflow
    largest = torch.where(largest == 0, 1.0, largest)
    length = (f / largest).square().sum(-1, keepdim=True).sqrt() * largest
    length = torch.where(length == 0, 1.0, length)
    return f / length, length


def reference(f: Tensor, scale: float, norm: str, reading: str) -> Tensor:
    f = f.double()
    keys = _unit_rows(f)[0] if norm == "l2" else f
    weights = torch.softmax(scale * keys @ keys.transpose(1, 2), 2)
    if reading == "row":
        return weights @ f
    if reading == "column":
        return weights.transpose(1, 2) @ f
    if reading == "hadamard_sum":
        return weights.sum(1)[..., None] * f
    return weights.diagonal(dim1=1, dim2=2)[..., None] * f


def fake(f: Tensor, scale: float, norm: str, reading: str) -> Tensor:
    torch._check_value(
        f.dim() == 3, lambda: f"self_attention: want f [b, n, d], got {list(f.shape)}"
    )
    torch._check_value(
        f.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64),
        lambda: f"self_attention: want f float16, bfloat16, float32 or float64, got {f.dtype}",
    )
    torch._check_value(
        -math.inf < scale < math.inf,
        lambda: f"self_attention: want a finite scale, got {scale}",
    )
    torch._check_value(
        norm in get_args(Norm),
        lambda: f"self_attention: want norm one of {', '.join(get_args(Norm))}, got {norm!r}",
    )
    torch._check_value(
        reading in get_args(Reading),
        lambda: (
            f"self_attention: want reading one of {', '.join(get_args(Reading))}, got {reading!r}"
        ),
    )
    return f.new_empty(f.shape)


def samples() -> dict[str, tuple[Any, ...]]:
    g = torch.Generator().manual_seed(0)

    def rows(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=g).to(dtype)

    huge = rows(2, 70, 24).abs()
    huge *= 100 / huge.norm(dim=2, keepdim=True)
    nan, dead, tiny = rows(3, 40, 8), rows(1, 30, 8), rows(1, 20, 8) * 1e-25
    nan[1, 7, 3], dead[0, 4:9] = math.nan, 0
    relu = rows(1, 700, 33).relu() * 0.9
    return {
        "odd": (rows(2, 37, 19), 1.0, "none", "row"),
        "two_blocks": (relu, 1.0, "none", "row"),
        "two_blocks_column": (relu, 1.0, "none", "column"),
        "two_blocks_sum": (relu, 1.0, "none", "hadamard_sum"),
        "two_blocks_diag": (relu, 1.0, "none", "hadamard_diag"),
        "column": (rows(2, 37, 19), 0.5, "none", "column"),
        "hadamard_sum": (rows(2, 37, 19), 0.5, "none", "hadamard_sum"),
        "hadamard_diag": (rows(2, 37, 19), 0.5, "none", "hadamard_diag"),
        "l2": (rows(2, 37, 19) + 3, 10.0, "l2", "row"),
        "l2_column": (rows(2, 37, 19) + 3, 10.0, "l2", "column"),
        "l2_dead_rows": (dead, 10.0, "l2", "row"),
        "l2_tiny": (tiny, 5.0, "l2", "row"),
        "one": (rows(1, 1, 5), 1.0, "none", "row"),
        "one_feature": (rows(2, 9, 1), 1.0, "none", "row"),
        "no_feature": (rows(2, 9, 0), 1.0, "l2", "row"),
        "no_map": (rows(0, 9, 4), 1.0, "none", "row"),
        "no_position": (rows(2, 0, 4), 1.0, "none", "column"),
        "ties": (torch.ones(1, 600, 8), 1.0, "none", "row"),
        "deep": (rows(1, 50, 300) * 0.3, 1.0, "none", "row"),
        "huge_norm": (huge, 1.0, "none", "row"),
        "huge_norm_column": (huge, 1.0, "none", "column"),
        "far": (rows(1, 50, 6) * 0.01 + 20, 1.0, "none", "row"),
        "negative_scale": (rows(1, 50, 6), -0.7, "none", "row"),
        "no_scale": (rows(1, 50, 6), 0.0, "none", "row"),
        "nan": (nan, 1.0, "none", "row"),
        "nan_l2": (nan, 1.0, "l2", "hadamard_diag"),
        "transposed": (rows(1, 12, 31).transpose(1, 2), 1.0, "none", "row"),
        "strided": (rows(4, 40, 22)[::2, ::3, ::2], 1.0, "none", "row"),
        "expanded": (rows(1, 20, 6).expand(3, 20, 6), 1.0, "none", "row"),
        "double": (rows(1, 45, 12, dtype=torch.float64), 1.0, "none", "row"),
        "half": (rows(1, 45, 12, dtype=torch.float16) * 4, 1.0, "none", "row"),
        "bfloat16": (rows(1, 45, 12, dtype=torch.bfloat16) * 4, 1.0, "none", "row"),
    }


def _bound(f: Tensor, scale: float, norm: str, want: Tensor) -> Tensor:
    """What rounding may do: logits are off in proportion to their size, weights by as much."""
    unit = torch.finfo(torch.float64 if f.dtype == torch.float64 else torch.float32).eps
    f = f.double()
    size2 = 1.0 if norm == "l2" else f.square().sum(2).amax(1)[:, None, None]
    return 4 * unit * (4 + abs(scale) * size2) * want.abs().amax((1, 2), keepdim=True)


def check(args: tuple[Any, ...], got: Tensor, want: Tensor) -> None:
    f, scale, norm, _ = args
    assert got.dtype == f.dtype
    assert got.is_contiguous()
    if f.numel() == 0:
        return
    assert torch.equal(got.isnan(), want.isnan())
    clean = ~want.isnan().any(-1).any(-1)
    f, got, want = f[clean], got.double()[clean], want[clean]
    bound = _bound(f, scale, norm, want) + torch.finfo(f.dtype).eps * want.abs()
    assert ((got - want).abs() <= bound).all(), f"off by {((got - want).abs() / bound).max()}x"


def bad() -> dict[str, tuple[tuple[Any, ...], str]]:
    f = torch.zeros(1, 4, 3)
    return {
        "two_axes": ((f[0], 1.0, "none", "row"), r"want f \[b, n, d\], got \[4, 3\]"),
        "integers": ((f.int(), 1.0, "none", "row"), "got torch.int32"),
        "scale": ((f, math.nan, "none", "row"), "want a finite scale, got nan"),
        "norm": ((f, 1.0, "l1", "row"), "want norm one of none, l2, got 'l1'"),
        "reading": ((f, 1.0, "none", "rows"), "want reading one of row, column, .* got 'rows'"),
    }


op = Op(
    "self_attention",
    "(Tensor f, float scale, str norm, str reading) -> Tensor",
    reference,
    fake,
    samples,
    check,
    bad,
)


def _no_cpu(f: Tensor, scale: float, norm: str, reading: str) -> str | None:
    if f.dtype == torch.float64:
        return "float64 is left to torch, which computes in float64"
    if reading != "row":
        return f"the reading {reading} is left to torch"
    return _adapt.no_cpu(f)


@op.backend("cpu", _no_cpu)
def _cpu(f: Tensor, scale: float, norm: str, reading: str) -> Tensor:
    values = _adapt.dense(f)
    out = torch.empty_like(values)
    keys = _unit_rows(values)[0] if norm == "l2" else values
    queries = keys if scale == 1 else keys * scale
    b, n, d = f.shape
    _adapt.native().self_attention_cpu(
        *(t.data_ptr() for t in (queries, keys, values, out)),
        *(b, n, d),
        _adapt.isa(),
        _adapt.threads(2 * b * n * n * d),
    )
    return out.to(f.dtype)


# Rows of weights that exist at a time: 512 x 9604 floats stay near the cache.
_ROWS = {"cpu": 512, "cuda": 4096}


def _blocks(n: int, device: torch.device) -> list[slice]:
    rows = _ROWS.get(device.type, 1024)
    return [slice(first, min(first + rows, n)) for first in range(0, n, rows)]


@op.backend("torch")
def _torch(f: Tensor, scale: float, norm: str, reading: str) -> Tensor:
    out = torch.empty_like(f, memory_format=torch.contiguous_format)
    for one, result in zip(f, out, strict=True):
        values = one.to(torch.promote_types(f.dtype, torch.float32)).contiguous()
        result.copy_(_mix(values, scale, norm, reading))
    return out


def _mix(values: Tensor, scale: float, norm: str, reading: str) -> Tensor:
    # oneDNN's products ran at 390 GFLOP/s where the BLAS that torch.mm calls ran at 170 (2 cores,
    # 9604 x 384 and x 1536; scaled_dot_product_attention 200). Its own tensors keep it in charge.
    onednn = (
        values.device.type == "cpu"
        and values.dtype == torch.float32
        and values.numel() > 0
        and torch.backends.mkldnn.is_available()
    )
    keys = _unit_rows(values)[0] if norm == "l2" else values
    queries = keys * scale
    mixed = values.T.contiguous()
    if onednn:
        keys, mixed = keys.to_mkldnn(), mixed.to_mkldnn()
    out, sums = torch.zeros_like(values), values.new_zeros(len(values))
    for rows in _blocks(len(values), values.device):
        query = queries[rows].to_mkldnn() if onednn else queries[rows]
        logits = F.linear(query, keys)
        if reading == "row":
            out[rows] = F.linear(torch.softmax(logits, 1), mixed).to_dense()
            continue
        # oneDNN's softmax leaves the rest of a row finite beside a NaN: only a product shows it.
        weights = torch.softmax(logits.to_dense(), 1)
        if reading == "column":
            out.addmm_(weights.T, values[rows])
        elif reading == "hadamard_sum":
            sums += weights.sum(0)
        else:
            sums[rows] = weights.diagonal(rows.start)
    return out if reading in ("row", "column") else values * sums[:, None]


def reference_backward(grad: Tensor, f: Tensor, scale: float, norm: str, reading: str) -> Tensor:
    with torch.enable_grad():
        f = f.detach().double().requires_grad_()
        return torch.autograd.grad(reference(f, scale, norm, reading), f, grad.double())[0]


def fake_backward(grad: Tensor, f: Tensor, scale: float, norm: str, reading: str) -> Tensor:
    torch._check_value(
        grad.shape == f.shape and grad.dtype == f.dtype,
        lambda: (
            f"self_attention_backward: want grad as f, {list(f.shape)} {f.dtype}, "
            f"got {list(grad.shape)} {grad.dtype}"
        ),
    )
    return fake(f, scale, norm, reading)


def samples_backward() -> dict[str, tuple[Any, ...]]:
    g = torch.Generator().manual_seed(1)
    some = samples()
    return {
        name: (torch.randn(some[name][0].shape, generator=g).to(some[name][0].dtype), *some[name])
        for name in some
        # The length of a row of zeros, or of one too small to square, has no gradient to compare.
        if name not in ("l2_dead_rows", "l2_tiny", "nan", "nan_l2", "no_feature")
    }


def check_backward(args: tuple[Any, ...], got: Tensor, want: Tensor) -> None:
    grad, f, scale, norm, _ = args
    assert got.dtype == f.dtype
    if f.numel() == 0:
        return
    values, slopes = f.double(), grad.double()
    steep = abs(scale) * values.norm(dim=2).amax() * slopes.norm(dim=2).amax()
    size = torch.maximum(want.abs().amax(), steep * values.abs().amax())
    bound = _bound(f, scale, norm, size.expand(len(f), 1, 1))
    bound = bound + torch.finfo(f.dtype).eps * want.abs()
    assert ((got - want).abs() <= bound).all(), f"off by {((got - want).abs() / bound).max()}x"


def bad_backward() -> dict[str, tuple[tuple[Any, ...], str]]:
    f = torch.zeros(1, 4, 3)
    return {"shape": ((f[:, :2], f, 1.0, "none", "row"), r"want grad as f, \[1, 4, 3\]")}


op_backward = Op(
    "self_attention_backward",
    "(Tensor grad, Tensor f, float scale, str norm, str reading) -> Tensor",
    reference_backward,
    fake_backward,
    samples_backward,
    check_backward,
    bad_backward,
)


@op_backward.backend("torch")
def _torch_backward(grad: Tensor, f: Tensor, scale: float, norm: str, reading: str) -> Tensor:
    out = torch.empty_like(f, memory_format=torch.contiguous_format)
    wide = torch.promote_types(f.dtype, torch.float32)
    for one, slope, result in zip(f, grad, out, strict=True):
        result.copy_(_slopes(slope.to(wide), one.to(wide), scale, norm, reading))
    return out


def _slopes(grad: Tensor, values: Tensor, scale: float, norm: str, reading: str) -> Tensor:
    """The weights are computed again, block by block: to keep them would take n x n."""
    keys, length = _unit_rows(values) if norm == "l2" else (values, values.new_ones(()))
    queries = keys * scale
    inner = (grad * values).sum(1)
    out, d_keys, sums = (torch.zeros_like(t) for t in (values, values, inner))
    for rows in _blocks(len(values), values.device):
        weights = torch.softmax(queries[rows] @ keys.T, 1)
        if reading == "row":
            d_weights = grad[rows] @ values.T
            out.addmm_(weights.T, grad[rows])
        elif reading == "column":
            d_weights = values[rows] @ grad.T
            out[rows] += weights @ grad
        elif reading == "hadamard_sum":
            d_weights = inner.expand_as(weights)
            sums += weights.sum(0)
        else:
            d_weights = torch.zeros_like(weights)
            d_weights.diagonal(rows.start).copy_(inner[rows])
            sums[rows] = weights.diagonal(rows.start)
        d_logits = weights * (d_weights - (weights * d_weights).sum(1, keepdim=True)) * scale
        d_keys[rows] += d_logits @ keys
        d_keys.addmm_(d_logits.T, keys[rows])
    if reading.startswith("hadamard"):
        out += sums[:, None] * grad
    if norm == "l2":
        d_keys = (d_keys - keys * (keys * d_keys).sum(1, keepdim=True)) / length
    return out + d_keys


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    f, *ctx.options = inputs
    ctx.save_for_backward(f)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (f,) = ctx.saved_tensors
    return op_backward.call(grad, f, *ctx.options), None, None, None


def _no_second(ctx: Any, grad: Tensor) -> None:
    # Without this, torch would leave the gradient out and go on.
    raise NotImplementedError("self_attention has no second gradient")


op.autograd(_backward, _save)
op_backward.autograd(_no_second, lambda ctx, inputs, output: None)
