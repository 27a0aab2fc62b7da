# SPDX-License-Identifier: Apache-2.0
"""Finds what is abnormal in medical images, having learned from healthy ones only."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import ops
    from .detector import (
        DIA,
        Autoencoder,
        ManyTasks,
        PatchCore,
        ProxyAno,
        ReSAD,
        ReSynthDetect,
        load,
    )

__version__ = "0.1.0"
__all__ = [
    "DIA",
    "Autoencoder",
    "ManyTasks",
    "PatchCore",
    "ProxyAno",
    "ReSAD",
    "ReSynthDetect",
    "__version__",
    "load",
    "ops",
]


def __getattr__(name: str) -> Any:
    """The public names, imported when first used: importing the package itself costs nothing."""
    from importlib import import_module

    if name == "ops":
        return import_module(".ops", __name__)
    if name in __all__:
        return getattr(import_module(".detector", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
