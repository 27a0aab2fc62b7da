# SPDX-License-Identifier: Apache-2.0
"""The methods, by name."""

from __future__ import annotations

from ._base import (
    ConfigError,
    HeldOut,
    Method,
    MethodConfig,
    Plan,
    State,
    make_config,
    spread,
    thinned,
    touched,
)
from .autoencoders import Autoencoder
from .dia import DIA
from .many_tasks import ManyTasks
from .patchcore import PatchCore
from .proxyano import ProxyAno
from .resad import ReSAD
from .resynth import ReSynthDetect

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (ReSAD, PatchCore, ManyTasks, ReSynthDetect, ProxyAno, Autoencoder, DIA)
}

__all__ = [
    "DIA",
    "METHODS",
    "Autoencoder",
    "ConfigError",
    "HeldOut",
    "ManyTasks",
    "Method",
    "MethodConfig",
    "PatchCore",
    "Plan",
    "ProxyAno",
    "ReSAD",
    "ReSynthDetect",
    "State",
    "make_config",
    "spread",
    "thinned",
    "touched",
]
