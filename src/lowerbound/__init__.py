"""Latent-variable models from PCA to VAEs, where every bound is checked against the exact evidence."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import lowerbound._torchvision  # noqa: F401  first of all: lightning and torchmetrics import torchvision

if TYPE_CHECKING:
    from lowerbound.gradient import GradientFit
    from lowerbound.model import LatentVariableModel
    from lowerbound.models import autoencoder, linear_autoencoder, linear_vae, vae
    from lowerbound.run import Loaded, learn, load

__all__ = ["GradientFit", "LatentVariableModel", "Loaded", "autoencoder", "learn", "linear_autoencoder", "linear_vae", "load", "vae"]

_HOMES = {
    "lowerbound.gradient": ("GradientFit",),
    "lowerbound.model": ("LatentVariableModel",),
    "lowerbound.models": ("autoencoder", "linear_autoencoder", "linear_vae", "vae"),
    "lowerbound.run": ("Loaded", "learn", "load"),
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: the command line answers a typo without importing Lightning."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'lowerbound' has no attribute {name!r}")
