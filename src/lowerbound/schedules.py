"""Schedules: numbers that depend on the optimizer step, and on nothing else.

A schedule is a pure function of `Step`, so a resumed run and a validation see the value that belongs to the step. Its
length is `steps` in optimizer steps, or `fraction` of the run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from lowerbound.errors import real, whole


@dataclass(frozen=True)
class Step:
    """The optimizer steps taken so far, and how many the run will take (None: not known beforehand)."""

    now: int = 0
    total: int | None = None


class Schedule(ABC):
    """A number for each step. Implement `__call__`; override `check` where the run may be too short."""

    @abstractmethod
    def __call__(self, step: Step) -> float:
        """The value at that step."""

    def check(self, total: int | None) -> None:
        """Refuse a run of `total` optimizer steps that this schedule does not fit.

        Raises:
            ValueError: the schedule does not end inside the run, or needs a length that the run does not state.
        """
        return


def length(steps: int | None, fraction: float | None, total: int | None) -> int:
    """Optimizer steps of a duration stated in steps or as a fraction of the run.

    Raises:
        ValueError: a fraction of a run whose length is not known.
    """
    if steps is not None:
        return steps
    if total is None:
        raise ValueError(f"fraction={fraction} of a run whose length is unknown: set trainer.max_epochs or max_steps, or steps= instead")
    assert fraction is not None
    return max(1, round(fraction * total))


def one_of(steps: int | None, fraction: float | None) -> None:
    """Refuse a duration that is stated twice, not at all, or not positively.

    Raises:
        ValueError: as said.
    """
    if (steps is None) == (fraction is None):
        raise ValueError(f"steps={steps}, fraction={fraction}: state the duration once, in optimizer steps or as a fraction of the run")
    if steps is not None:
        whole(steps, "steps")
    if fraction is not None and real(fraction, "fraction", above=0) > 1:
        raise ValueError(f"fraction={fraction} of the run must be at most 1")


class Constant(Schedule):
    """The same value at every step."""

    def __init__(self, value: float, what: str = "value") -> None:
        self.value = real(value, what, least=0)

    def __call__(self, step: Step) -> float:
        """The value."""
        return self.value


class Linear(Schedule):
    """From `start` at step 0 to `end` after `steps` (or that `fraction` of the run), and `end` from there on."""

    def __init__(self, end: float = 1.0, start: float = 0.0, steps: int | None = None, fraction: float | None = None) -> None:
        one_of(steps, fraction)
        self.start, self.end, self.steps, self.fraction = real(start, "start", least=0), real(end, "end", least=0), steps, fraction

    def __call__(self, step: Step) -> float:
        """The value at that step."""
        if step.now == 0:
            return self.start  # whatever the length, which a first validation may not know yet
        share = min(1.0, step.now / length(self.steps, self.fraction, step.total))
        return self.start + (self.end - self.start) * share

    def check(self, total: int | None) -> None:
        """Raise ValueError if the warm-up does not end inside the run."""
        steps = length(self.steps, self.fraction, total)
        if total is not None and steps > total:
            raise ValueError(f"a warm-up of {steps} optimizer steps does not end inside a run of {total}: lower steps, or set fraction=")


class Geometric(Schedule):
    """From `start` to `end` by the same factor at each of `steps` steps (or that `fraction` of the run), and `end` from there on."""

    def __init__(self, end: float, start: float = 1.0, steps: int | None = None, fraction: float | None = None) -> None:
        self.start, self.ratio = real(start, "start", above=0), real(end, "end", above=0) / start
        self.share = Linear(start=0.0, end=1.0, steps=steps, fraction=fraction)

    def __call__(self, step: Step) -> float:
        """The value at that step."""
        return self.start * self.ratio ** self.share(step)

    def check(self, total: int | None) -> None:
        """Raise ValueError if the schedule does not end inside the run."""
        self.share.check(total)


class Cyclical(Schedule):
    """`cycles` equal periods; in each, linear from `start` to `end` over the share `rise`, then `end` (Fu et al. 2019).

    The periods fill `steps` optimizer steps (or that `fraction` of the run); the value stays at `end` afterwards.
    """

    def __init__(
        self,
        end: float = 1.0,
        start: float = 0.0,
        cycles: int = 4,
        rise: float = 0.5,
        steps: int | None = None,
        fraction: float | None = None,
    ) -> None:
        one_of(steps, fraction)
        if real(rise, "rise", above=0) > 1:
            raise ValueError(f"rise={rise} is a share of each cycle and must be at most 1")
        self.start, self.end = real(start, "start", least=0), real(end, "end", least=0)
        self.cycles, self.rise = whole(cycles, "cycles"), rise
        self.steps, self.fraction = steps, fraction

    def __call__(self, step: Step) -> float:
        """The value at that step."""
        if step.now == 0:
            return self.start
        steps = length(self.steps, self.fraction, step.total)
        if step.now >= steps:
            return self.end
        position = (step.now * self.cycles / steps) % 1.0
        return self.start + (self.end - self.start) * min(1.0, position / self.rise)

    def check(self, total: int | None) -> None:
        """Raise ValueError if the cycles do not end inside the run."""
        Linear(steps=self.steps, fraction=self.fraction).check(total)


def as_schedule(value: float | Schedule, what: str) -> Schedule:
    """A number as the constant schedule; a schedule as itself.

    Raises:
        ValueError: neither, or a negative number.
    """
    if isinstance(value, Schedule):
        return value
    if isinstance(value, str):
        raise ValueError(f"{what}={value!r} must be a number of at least 0, or a schedule: beta=warm_up or beta=cyclical")
    return Constant(value, what)
