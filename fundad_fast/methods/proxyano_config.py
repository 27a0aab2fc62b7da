# SPDX-License-Identifier: Apache-2.0
"""The settings of ProxyAno, each with its source."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..nets.memory import Address
from ..synthetic.proxies import ProxyKind, ProxySettings
from ..synthetic.pseudo_anomalies import PasteSettings
from .reconstruction_config import PNET, ReconstructionConfig


class ProxyAnoConfig(ReconstructionConfig):
    """Proxy, memory, pseudo-anomalies, discriminators, training.

    Published is an abstract: superpixel images as proxies, a memory in the module that makes them,
    a module that makes the image again, pseudo-anomalies pasted on the proxy. "Ours" is our design
    (METHODS.md E), anchored on the same first author's P-Net code and on MemAE where it says so.
    """

    proxy: ProxyKind = Field(
        "superpixel",
        description="Paper: superpixel, the best of several types; which others it does not say "
        "(lowres, edge and blur are ours).",
    )
    proxy_settings: ProxySettings = Field(
        default_factory=lambda: ProxySettings.model_validate({}),
        description="Numbers of the proxies, as in proxy_settings={segments: 200}. Ours.",
    )
    memory: Literal["slots", "kv", "none"] = Field(
        "slots",
        description="slots: read what is addressed (MemAE); kv: a second vector per slot is read; "
        "none: no memory, for the ablation. Paper: a memory, of no stated kind.",
    )
    slots: int = Field(2000, ge=2, description="Slots of the memory. MemAE; ours here.")
    shrink: float = Field(
        2.0, ge=0, description="Weights up to this over slots become 0; 0: none do. MemAE: 1 to 3."
    )
    address: Address = Field("dot", description="dot: MemAE's code; cosine: MemAE's paper. Ours.")
    entropy_weight: float = Field(
        2e-4, ge=0, description="Of the entropy of the memory's weights. MemAE: 2e-4."
    )
    pseudo_anomalies: bool = Field(
        True, description="Paste patches on proxies; the target stays the healthy image. Paper."
    )
    patch_from: Literal["same", "other"] = Field(
        "other",
        description="Patches of the image itself or of another one of the batch. Paper: a patch "
        "cropped from the image; other is ours.",
    )
    paste: PasteSettings = Field(
        default_factory=lambda: PasteSettings.model_validate({}),
        description="Numbers of the pasted patches, as in paste={jitter: 0.2}. Ours.",
    )
    discriminators: bool = Field(
        True, description=f"One for proxies and one for images. Ours, after {PNET}."
    )
    adversarial_weight: float = Field(0.1, ge=0, description=f"Of both. {PNET}, README: 0.1.")
    discriminator_width: int = Field(64, ge=1, description=f"First channels. {PNET}: 64.")
    discriminator_rate: float = Field(
        0.1, gt=0, description=f"Their learning rate, as a share. {PNET}: 0.1."
    )
    detached: bool = Field(
        False, description="No gradient from the image back into the proxy's network. Ours."
    )
    proxy_residual: float = Field(
        0.0,
        ge=0,
        description="Weight in the map of what the made proxy misses of the image's own; needs "
        f"the proxy of every scored image. Ours; {PNET}: the image's residual alone.",
    )
