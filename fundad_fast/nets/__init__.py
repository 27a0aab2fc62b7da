# SPDX-License-Identifier: Apache-2.0
"""The small networks that methods train; no file is read or written here."""

from .autoencoder import Autoencoder, Decoder, DoubleConv, Encoder, level_widths
from .positions import position_channels
from .unet import UNet

__all__ = [
    "Autoencoder",
    "Decoder",
    "DoubleConv",
    "Encoder",
    "UNet",
    "level_widths",
    "position_channels",
]
