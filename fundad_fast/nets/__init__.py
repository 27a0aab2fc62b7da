# SPDX-License-Identifier: Apache-2.0
"""The small networks that methods train; no file is read or written here."""

from .autoencoder import Autoencoder, Decoder, DoubleConv, Encoder, level_widths
from .discriminator import PatchDiscriminator, fooling_loss, telling_loss
from .guided import Guide, GuidedPair, GuidedUNet, guidance
from .memory import Memory
from .positions import position_channels
from .reconstruction import Made, Reconstructor, code_divergence
from .resnet import ContrastNet
from .unet import UNet

__all__ = [
    "Autoencoder",
    "ContrastNet",
    "Decoder",
    "DoubleConv",
    "Encoder",
    "Guide",
    "GuidedPair",
    "GuidedUNet",
    "Made",
    "Memory",
    "PatchDiscriminator",
    "Reconstructor",
    "UNet",
    "code_divergence",
    "fooling_loss",
    "guidance",
    "level_widths",
    "position_channels",
    "telling_loss",
]
