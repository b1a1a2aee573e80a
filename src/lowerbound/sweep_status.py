"""How far a sweep is: which of its runs are done, running, stopped, failed or not begun, as their folders tell.

running     a process holds the lock of the run's folder
stopped     it has begun, and no process is at it: the same command again goes on with it
failed      it has said why, in failure.txt
not begun   it was asked for, and has no folder, or one in which there is nothing yet
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig

from lowerbound.claim import is_claimed
from lowerbound.errors import reading
from lowerbound.folder import CONFIG, FAILURE, LAST, RESULTS, STUDY, SWEEP, read_text, read_yaml
from lowerbound.runs import Run, not_begun, read_runs
from lowerbound.wording import say

STATES = DONE, RUNNING, STOPPED, FAILED, NOT_BEGUN = "done", "running", "stopped", "failed", "not begun"


def status(config: DictConfig) -> None:
    """`lowerbound-sweep status`: print how far each sweep is.

    Raises:
        ValueError: a folder is that of no sweep.
    """
    folders = [config.folder] if isinstance(config.folder, str) else list(config.folder)
    for folder in map(Path, folders):
        say([*([f"{folder}:"] if len(folders) > 1 else []), *describe(folder)])


def describe(folder: Path) -> Iterator[str]:
    """A line for each run, one of counts, and of an Optuna sweep those of its trials and the best.

    Raises:
        ValueError: it is the folder of no sweep.
    """
    runs = read_runs(folder)
    if not runs and not (folder / SWEEP).is_file():
        wrong = "there is no such folder" if not folder.is_dir() else "that is the folder of no sweep"
        raise ValueError(f"{folder}: {wrong}. A sweep's folder looks like outputs/<sweep>.")
    states = [(run.name, *state(run)) for run in runs] + [(name, NOT_BEGUN, "") for name in not_begun(folder, runs)]
    yield from _aligned([(word, f"{name}: {why}" if why else name) for name, word, why in states])
    counts = Counter(word for _, word, _ in states)
    counted = ", ".join(f"{counts[word]} {word}" for word in STATES if counts[word])
    yield f"runs: {counted}, of {len(states)}" if states else "runs: none yet"
    if (folder / STUDY).is_file():
        yield from _trials(folder)


def state(run: Run) -> tuple[str, str]:
    """One of `STATES`, and of a run that failed why."""
    if is_claimed(run.folder):
        return RUNNING, ""
    if run.results is not None:
        return DONE, ""
    if (run.folder / FAILURE).is_file():
        return FAILED, why(read_text(run.folder / FAILURE, errors="replace"))
    if (run.folder / RESULTS).is_file():
        return FAILED, f"{RESULTS} is damaged"
    has_begun = any((run.folder / name).is_file() for name in (CONFIG, LAST))
    return (STOPPED if has_begun else NOT_BEGUN), ""


def why(failure: str) -> str:
    """The last line of what a run said when it failed, after the first, which names the error."""
    lines = [line.strip() for line in failure.splitlines() if line.strip()] or ["it does not say why"]
    return " ... ".join(dict.fromkeys([lines[0], lines[-1]]))


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(word) for word, _ in rows), default=0)
    return [f"{word.ljust(width)}  {rest}" for word, rest in rows]


def _trials(folder: Path) -> Iterator[str]:
    """How far the search is.

    Raises:
        ValueError: Optuna is not installed.
    """
    try:
        from lowerbound import trials
    except ImportError as error:
        raise ValueError(f"{folder / STUDY} needs an extra to be read: {error}\npip install 'lowerbound[sweep]'") from error
    path = folder / SWEEP
    with reading(path):
        wanted = read_yaml(path)["hydra"]["sweeper"]["n_trials"] if path.is_file() else None
    first, *rest = trials.told(trials.read_study(folder / STUDY))
    yield first if wanted is None else f"{first}, of {wanted}"
    yield from rest
