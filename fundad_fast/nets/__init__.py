# SPDX-License-Identifier: Apache-2.0
"""The small networks that methods train; no file is read or written here."""

from .autoencoder import Autoencoder, Decoder, DoubleConv, Encoder, level_widths
from .discriminator import PatchDiscriminator, fooling_loss, telling_loss
from .memory import Memory
from .positions import position_channels
from .reconstruction import Made, Reconstructor, code_divergence
from .unet import UNet

__all__ = [
    "Autoencoder",
    "Decoder",
    "DoubleConv",
    "Encoder",
    "Made",
    "Memory",
    "PatchDiscriminator",
    "Reconstructor",
    "UNet",
    "code_divergence",
    "fooling_loss",
    "level_widths",
    "position_channels",
    "telling_loss",
]
