"""Latent-variable models from PCA to VAEs, where every bound is checked against the exact evidence."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import lowerbound._scipy  # this and the next before lightning and torchmetrics, which import what they stand in for
import lowerbound._torchvision  # noqa: F401

if TYPE_CHECKING:
    from lowerbound.axes import canonical
    from lowerbound.components import number_of_components
    from lowerbound.em import EMFit
    from lowerbound.gradient import GradientFit
    from lowerbound.loaded import Loaded, load
    from lowerbound.model import LatentVariableModel
    from lowerbound.models import (
        autoencoder,
        bernoulli,
        bernoulli_mixture,
        factor_analysis,
        gaussian,
        gaussian_mixture,
        linear_autoencoder,
        linear_vae,
        pca,
        ppca,
        vae,
    )
    from lowerbound.run import learn
    from lowerbound.solve import ClosedFormFit

__all__ = [
    "ClosedFormFit",
    "EMFit",
    "GradientFit",
    "LatentVariableModel",
    "Loaded",
    "autoencoder",
    "bernoulli",
    "bernoulli_mixture",
    "canonical",
    "factor_analysis",
    "gaussian",
    "gaussian_mixture",
    "learn",
    "linear_autoencoder",
    "linear_vae",
    "load",
    "number_of_components",
    "pca",
    "ppca",
    "vae",
]

_HOMES = {
    "lowerbound.axes": ("canonical",),
    "lowerbound.components": ("number_of_components",),
    "lowerbound.gradient": ("GradientFit",),
    "lowerbound.model": ("LatentVariableModel",),
    "lowerbound.models": (
        "autoencoder",
        "bernoulli",
        "bernoulli_mixture",
        "factor_analysis",
        "gaussian",
        "gaussian_mixture",
        "linear_autoencoder",
        "linear_vae",
        "pca",
        "ppca",
        "vae",
    ),
    "lowerbound.loaded": ("Loaded", "load"),
    "lowerbound.run": ("learn",),
    "lowerbound.em": ("EMFit",),
    "lowerbound.solve": ("ClosedFormFit",),
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: the command line answers a typo without importing Lightning."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'lowerbound' has no attribute {name!r}")
