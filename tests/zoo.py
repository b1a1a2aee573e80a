"""The models of `conf/`, composed as the command line composes them, and small."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

import lowerbound.cli  # noqa: F401  registers the resolver that conf/config.yaml uses
from lowerbound.instantiate import instantiate
from lowerbound.model import LatentVariableModel

CONF = Path(__file__).parents[1] / "conf"
# tanh: quadrature converges fast for smooth integrands only.
SMALL_MLP = ("network.encoder.sizes=[16]", "network.encoder.activation=tanh")
SMALL_CONV = ("network=conv", "network.encoder.channels=[2,4]", "network.encoder.activation=tanh")

# Every model of conf/model/, with every part that it can be given. A value is the overrides.
BOUNDED: dict[str, tuple[str, ...]] = {
    "vae": ("model=vae", *SMALL_MLP),
    "vae_bernoulli": ("model=vae", "likelihood=bernoulli", *SMALL_MLP),
    "vae_fixed_noise": ("model=vae", "noise=fixed", *SMALL_MLP),
    "vae_noise_per_dimension": ("model=vae", "noise=per_dimension", *SMALL_MLP),
    "vae_network_noise": ("model=vae", "noise=network", *SMALL_MLP),
    "vae_full_gaussian": ("model=vae", "posterior=full_gaussian", *SMALL_MLP),
    "vae_mixture_prior": ("model=vae", "prior=mixture_of_gaussians", "objective.kl=sampled", *SMALL_MLP),
    "vae_conv": ("model=vae", *SMALL_CONV),
    "linear_vae": ("model=linear_vae",),
}
UNBOUNDED: dict[str, tuple[str, ...]] = {
    "autoencoder": ("model=autoencoder", *SMALL_MLP),
    "autoencoder_bernoulli": ("model=autoencoder", "likelihood=bernoulli", *SMALL_MLP),
    "linear_autoencoder": ("model=linear_autoencoder",),
}
ALL = BOUNDED | UNBOUNDED


def composed(*overrides: str) -> DictConfig:
    """The configuration of a command line."""
    return deepcopy(_composed(overrides)[1])


def resolved(*overrides: str) -> DictConfig:
    """It as it stands in a run folder, without what names the folder."""
    whole, config = _composed(overrides)
    HydraConfig.instance().set_config(whole)  # from which some values are taken
    try:
        parts = OmegaConf.masked_copy(config, [str(key) for key in config if key not in ("name", "sweep")])
        return OmegaConf.create(OmegaConf.to_container(parts, resolve=True))
    finally:
        HydraConfig.instance().cfg = None


@cache
def _composed(overrides: tuple[str, ...]) -> tuple[DictConfig, DictConfig]:
    """With Hydra's own part and without. Once for all tests: composing takes longer than most of them."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        whole = compose("config", list(overrides), return_hydra_config=True)
    config = deepcopy(whole)
    with open_dict(config):
        del config["hydra"]
    return whole, config


def choices(group: str) -> list[str]:
    """The files of a configuration group; those that begin with an underscore are parts of others."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_"))


def build(name: str, *overrides: str, seed: int = 0) -> LatentVariableModel:
    """A model of the zoo with L = 2, on digits."""
    torch.manual_seed(seed)
    return instantiate(composed("latent_dim=2", *ALL[name], *overrides).model)


def objective(name: str, *overrides: str) -> Any:
    """The objective that the model's configuration chooses."""
    return instantiate(composed(*ALL[name], *overrides).objective)


def data(name: str, count: int = 64, seed: int = 1) -> torch.Tensor:
    """Rows ``[N, 64]`` that the model's likelihood can have produced."""
    x = torch.rand(count, 64, generator=torch.Generator().manual_seed(seed))
    return x.round() if "bernoulli" in name else x
