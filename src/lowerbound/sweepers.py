"""Sweeps whose next runs depend on what came of the last ones: ``hydra/sweeper=optuna``.

Hydra imports this whatever the command, so what is heavy is imported when the sweeper is chosen; Optuna and Hydra's own plugin for it
are an extra of this package.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def register() -> None:
    """Make ``hydra/sweeper=optuna`` the sweeper of this package: Hydra's plugin has its own under that name, which no file can replace.

    Without the extra there is no sampler to choose, and the sweeper says what to install.
    """
    Plugins.instance()  # which reads all plugins, this one and the one to replace
    node = {
        "defaults": [{"optional sampler": "tpe"}, "_self_"],
        "_target_": "hydra_plugins.lowerbound.OptunaSweeper",
        "_recursive_": False,  # a sampler is made for each trial
        "n_trials": 20,
        "n_jobs": 1,
        "sampler": {"seed": 0},
        "params": None,
    }
    ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=node, provider="lowerbound")


@final
class OptunaSweeper(Sweeper):
    """Runs under which the model's monitor is as large as Optuna can make it, one after the other.

    Args:
        n_trials: runs in all, those that failed among them, however often the sweep was stopped and started again.
        n_jobs: how many are handed to the launcher at a time.
        sampler: the node of a sampler of Optuna's, with its `seed`; None: a search that cannot be repeated.
        params: what is searched, by key; a key of the command line stands over it.
    """

    __module__ = "hydra_plugins.lowerbound"  # where Hydra takes it from

    def __init__(self, n_trials: int, n_jobs: int, sampler: DictConfig, params: Mapping[str, object] | None) -> None:
        self.n_trials, self.n_jobs, self.sampler, self.params = n_trials, n_jobs, sampler, dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take the configuration of the sweep.

        Raises:
            ValueError: Optuna or Hydra's plugin for it is not installed, or a number is out of its range.
        """
        try:
            import hydra_plugins.hydra_optuna_sweeper._impl  # noqa: F401
            from optuna.logging import set_verbosity
        except ImportError as error:
            raise ValueError(f"hydra/sweeper=optuna needs an extra: {error}\npip install 'lowerbound[sweep]'") from error
        from lowerbound.errors import whole

        set_verbosity(logging.WARNING)
        whole(self.n_trials, "hydra.sweeper.n_trials")
        whole(self.n_jobs, "hydra.sweeper.n_jobs")
        if "CmaEs" in str(self.sampler):
            raise ValueError(
                "CMA-ES keeps pickles in its study, which could run code.\nChoose hydra/sweeper/sampler=tpe, random or nsgaii."
            )
        self.config, self.hydra_context = config, hydra_context
        self._folder, self._name = Path(config.hydra.sweep.dir), str(config.sweep)
        make = Plugins.instance().instantiate_launcher
        self._launcher = make(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that are missing.

        Raises:
            ValueError: nothing is searched, the folder has the study of another search, or another process is at it.
        """
        asked = self._asked(arguments)
        space = self._space(asked)
        from lowerbound.claim import claimed

        with claimed(self._folder):  # another process would take the trials that are running for trials that were killed
            self._run(space, asked)

    def _asked(self, arguments: Sequence[str]) -> list[str]:
        """The words of the sweep, of which the command line's stand over the configuration's."""
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        return list({word.partition("=")[0]: word for word in words}.values())

    def _space(self, asked: Sequence[str]) -> dict[str, BaseDistribution]:
        """What is searched, if it composes: a trial that cannot begin would be no trial, and a study of it would be in the way."""
        from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
        from optuna import create_study

        space, _ = create_params_from_overrides(list(asked))
        if not space:
            raise ValueError("hydra/sweeper=optuna has nothing to search.\nName it: latent_dim=2,4 'fit.optimizer.lr=interval(1e-4,1e-2)'")
        self.validate_batch_is_legal([_overrides(asked, create_study().ask(space).params)])
        return space

    def _run(self, space: Mapping[str, BaseDistribution], asked: Sequence[str]) -> None:
        from lowerbound import trials
        from lowerbound.folder import STUDY, SWEEP

        study = trials.open_study(self._folder / STUDY, self._name, asked)
        OmegaConf.save(self.config, self._folder / SWEEP)
        while (missing := self.n_trials - trials.finished(study)) > 0:
            batch = [trials.begin_trial(study, space, self.sampler) for _ in range(min(missing, self.n_jobs))]
            overrides = [_overrides(asked, {key: trial.params[key] for key in space}) for trial in batch]  # a study may hold more
            returned = self._launcher.launch(overrides, initial_job_idx=batch[0].number)
            for trial, run in zip(batch, returned, strict=True):
                trials.end_trial(study, trial, run.return_value)
        print("\n".join(trials.told(study)))


def _overrides(asked: Sequence[str], chosen: Mapping[str, object]) -> list[str]:
    """The words of a run: those that were asked for, with what was chosen for those that are searched."""
    kept = [word for word in asked if word.partition("=")[0] not in chosen]
    return [*kept, *(f"{key}={'null' if value is None else value}" for key, value in chosen.items())]
