"""The trials of an Optuna sweep: which values are tried next, and what came of them.

    optuna.db    the study: of each trial the values of what is searched, its state, and the value it ended with; more is better

A trial that was running when its sweep was stopped waits, and is the first to be run again, with the same values. This file needs
the extra ``sweep``.

A study may be a stranger's: it is looked at read-only, and gone on with only where neither SQLite nor Optuna would do more than read and
write it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path

import numpy as np
import optuna
from hydra.utils import instantiate
from omegaconf import DictConfig
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import OperationalError

from lowerbound.defaults import UNCOMPARED
from lowerbound.errors import whole
from lowerbound.runs import named

ASKED = "overrides"  # the attribute of the study
PICKLES = "cma:optimizer"  # in the names of the attributes that CMA-ES keeps its state in
NAMES_A_FILE = bytes.fromhex("d9d505f920a163d7")  # the end of a journal with the name of another file, which SQLite deletes


def open_study(path: Path, name: str, asked: Sequence[str]) -> Study:
    """The study of a sweep, begun or gone on with.

    Args:
        path: its file, in a folder that is there.
        name: that of the sweep.
        asked: the ``key=value`` words of what is searched and what is fixed.

    Raises:
        ValueError: the study has been asked for something else, or could do more than be read and written.
    """
    _check_journal(path)
    storage = RDBStorage(_address(path))
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    own = [word for word in asked if word.partition("=")[0] not in UNCOMPARED]
    if others := sorted(set(study.user_attrs.get(ASKED, own)) ^ set(own)):
        raise ValueError(f"{path} is the study of another search: {', '.join(others)} is only in one of the two.\nChoose another sweep.")
    if any(PICKLES in key for trial in study.trials for key in trial.system_attrs):
        raise ValueError(
            f"{path} holds pickles of a search by CMA-ES, which could run code: it is not gone on with.\nChoose another sweep."
        )
    study.set_user_attr(ASKED, own)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        identity = storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(name), trial.number)
        storage.set_trial_state(identity, TrialState.WAITING)
    return study


def finished(study: Study) -> int:
    """How many trials have come to their end, be it a failure."""
    return sum(trial.state.is_finished() for trial in study.trials)


def begin_trial(study: Study, space: Mapping[str, BaseDistribution], sampler: DictConfig) -> Trial:
    """The next trial: one that waits, with its values, or a new one, by the sampler of its number.

    A generator that went on from trial to trial would begin again when the sweep does, and repeat itself.
    """
    waiting = study.get_trials(states=(TrialState.WAITING,))
    study.sampler = make_sampler(sampler, waiting[0].number if waiting else len(study.trials))
    return study.ask(dict(space))


def make_sampler(node: DictConfig, number: int) -> BaseSampler:
    """The sampler of a trial by its node, whose seed (None: not repeatable) and the trial's number seed it together.

    Raises:
        ValueError: the seed is no whole number from 0.
    """
    if node.seed is None:
        return instantiate(node)
    seeds = np.random.SeedSequence([whole(node.seed, "hydra.sweeper.sampler.seed", least=0), number])
    return instantiate(node, seed=int(seeds.generate_state(1)[0]))


def end_trial(study: Study, trial: Trial, value: float | None) -> None:
    """Note what a trial ended with; without a finite value it failed."""
    if value is None or not isfinite(value):
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, value)


def told(study: Study) -> Iterator[str]:
    """How many trials there are of each kind, and the best."""
    kinds = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL, "running": TrialState.RUNNING, "waiting": TrialState.WAITING}
    counts = {word: len(study.get_trials(states=(state,))) for word, state in kinds.items()}
    yield f"trials: {', '.join(f'{count} {word}' for word, count in counts.items() if count) or 'none yet'}"
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    if complete:
        best: FrozenTrial = study.best_trial
        yield f"best: trial {best.number}, {best.value:.6g} with {named({key: str(value) for key, value in best.params.items()})}"


def read_study(path: Path) -> Study:
    """The study in a file, as it stands, to look at.

    Raises:
        ValueError: the file cannot be read without writing it.
    """
    storage = f"{_address(path)}&mode=ro"
    try:
        *_, last = optuna.get_all_study_summaries(storage)
        return optuna.load_study(study_name=last.study_name, storage=storage)
    except OperationalError as error:
        raise ValueError(f"{path} cannot be read: {error.orig}.\nWhere its search was killed, the same command again mends it.") from error


def _address(path: Path) -> str:
    """The file as SQLAlchemy and SQLite take it, whatever is in its name."""
    return f"sqlite:///{path.absolute().as_uri()}?uri=true"


def _check_journal(path: Path) -> None:
    """Refuse a journal with which SQLite would do more than take back what was cut short: the journal of one database names no file."""
    journal = Path(f"{os.path.realpath(path)}-journal")
    if not journal.is_file():
        return
    with journal.open("rb") as file:
        file.seek(max(0, journal.stat().st_size - len(NAMES_A_FILE)))
        if file.read() == NAMES_A_FILE:
            raise ValueError(f"{journal} names another file, which SQLite would delete: no search of this package has written it")
