"""The sweepers that ``hydra/sweeper=...`` can choose, beside Hydra's own."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins


def register() -> None:
    """Make ``hydra/sweeper=optuna`` the sweeper of this package: Hydra's plugin has its own under that name, which no file can replace.

    Without the extra there is no sampler to choose, and the sweeper says what to install.
    """
    Plugins.instance()  # which reads all plugins, this one and the one to replace
    node = {
        "defaults": [{"optional sampler": "tpe"}, "_self_"],
        "_target_": "hydra_plugins.lowerbound_optuna.OptunaSweeper",
        "_recursive_": False,  # a sampler is made for each trial
        "n_trials": 20,
        "n_jobs": 1,
        "sampler": {"seed": 0},
        "params": None,
    }
    ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=node, provider="lowerbound")
