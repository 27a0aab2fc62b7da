# SPDX-License-Identifier: Apache-2.0
"""The settings of the memory-bank methods, each with its source."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ._base import MethodConfig


class MemoryBankConfig(MethodConfig):
    """ReSAD's settings ; PatchCore is one choice of them."""

    backbone: str = Field(
        "wide_resnet50_2.tv_in1k",
        description="timm model name. ReSAD and PatchCore: WideResNet-50, ImageNet, frozen.",
    )
    layers: tuple[str, ...] = Field(
        ("layer2", "layer3"), description="Layers of F, by timm's names. ReSAD eq. 1-2."
    )
    backbone_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="Products of the backbone, by autocast; what follows it is float32. On a GPU "
        "the short types are faster; features move by about 2⁻⁸ (bfloat16) or 2⁻¹¹ (float16) of "
        "their size, so a model scores with what it was fitted with.",
    )
    upscale: Literal["bilinear", "nearest"] = Field(
        "bilinear", description="T_u of eq. 2; not stated in the paper."
    )
    patch_pooling: Literal[0, 3] = Field(
        0, description="PatchCore's 3×3 neighbourhood averaging; ReSAD puts ψ_r in its place."
    )
    combination: tuple[Literal["F", "R", "P"], ...] = Field(
        ("P", "R"), description="Terms of C. ReSAD eq. 5: P + R."
    )

    radius: int = Field(12, ge=1, description="Radius of ψ_r in map cells; ReSAD: 12 at 98×98.")
    radius_fraction: float | None = Field(
        None, gt=0, le=0.5, description="Radius as a share of the map's width, in place of radius."
    )
    filter_support: Literal["radius", "size"] = Field(
        "radius",
        description="radius: 2r+1 taps a side; size: radius is the filter's width. The paper's "
        "method section calls r the size, its implementation section the radius.",
    )
    filter_distance: Literal["euclidean", "chebyshev", "manhattan"] = Field(
        "euclidean", description="Distance of ψ_r from the centre; not stated in the paper."
    )
    filter_profile: Literal["1-d/(r+1)", "1-d/r"] = Field(
        "1-d/(r+1)", description="Weight at distance d; the paper says linear decay."
    )
    filter_gain: Literal["sum1", "raw"] = Field(
        "sum1", description="Weights that sum to one, or as they are; not stated in the paper."
    )
    filter_border: Literal["renormalise", "zero", "reflect"] = Field(
        "renormalise", description="What ψ_r does beyond the map; not stated in the paper."
    )

    attn_scale: float | Literal["rsqrt_c"] = Field(
        1.0, description="Factor of the logits; eq. 4 prints none. rsqrt_c: 1/√channels."
    )
    attn_norm: Literal["none", "l2"] = Field(
        "none", description="l2: logits of ℓ2-normalised features. Our option."
    )
    attn_reading: Literal["row", "column", "hadamard_sum", "hadamard_diag"] = Field(
        "row",
        description="How eq. 4 is read; its printed shapes do not fit.",
    )

    projection_eps: float | None = Field(
        0.9,
        gt=0,
        lt=1,
        description="Distortion of the sparse random projection for the selection; its dimension "
        "is the Johnson-Lindenstrauss bound, and none is made when that is not below the number "
        "of features. ReSAD: 0.90.",
    )
    coreset_sampling_ratio: float = Field(
        0.1, gt=0, le=1, description="Share of the rows kept in the bank. ReSAD: 0.1."
    )
    coreset_size: int | None = Field(
        None, ge=1, description="Number of rows kept, in place of the ratio."
    )
    coreset_bytes: int | None = Field(
        None, ge=1, description="Bytes of the bank in float32, an upper bound beside the others."
    )
    bank_rows: Literal["auto", "all", "fov"] = Field(
        "auto",
        description="Rows that may enter the bank: all, those in the field of view, or those in it "
        "where one is looked for (auto).",
    )

    num_neighbors: int = Field(
        1,
        ge=1,
        description="Bank rows of a patch's score: the mean distance to them; with "
        "reweight=paper, the neighbourhood of the re-weighting, and the patch's score is the "
        "distance to the nearest.",
    )
    reweight: Literal["none", "paper"] = Field(
        "none", description="Image score re-weighted as in PatchCore, eq. 7; ReSAD: none."
    )
    image_score: Literal["max", "mean", "top"] = Field(
        "max", description="Image score from the map: ReSAD: max; top: mean of the highest share."
    )
    top_fraction: float = Field(
        0.01, gt=0, le=1, description="Share of the pixels that image_score=top averages."
    )
    smoothing: float = Field(
        0.0, ge=0, le=64, description="Gaussian blur of the map, σ in input pixels; PatchCore: 4."
    )

    memory_budget: int = Field(
        4 * 2**30,
        ge=2**20,
        description="Bytes that rows may take in memory while the bank is built, the bank and 8 "
        "bytes per row aside. Beyond it rows are spilled to disk and the selection runs in shards "
        "(k-centre of k-centres, our design).",
    )
    store_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="How rows are kept until the bank is chosen."
    )

    @field_validator("combination", "layers")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("want at least one, and each at most once")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> MemoryBankConfig:
        if self.bank_rows == "fov" and self.fov == "none":
            raise ValueError("bank_rows=fov needs fov=auto")
        if self.reweight == "paper" and self.image_score != "max":
            raise ValueError(
                f"image_score={self.image_score} has no meaning with reweight=paper, which "
                "re-weights the largest patch score; set reweight=none"
            )
        return self
