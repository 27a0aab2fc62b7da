# SPDX-License-Identifier: Apache-2.0
"""The small networks that methods train; no file is read or written here."""

from .positions import position_channels
from .unet import UNet

__all__ = ["UNet", "position_channels"]
