"""What can go wrong in a run, and what was probably meant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from functools import wraps
from math import inf, log10
from numbers import Integral, Real
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

STUMBLES = (TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, RuntimeError)  # over what has another shape

_ALIKE = 0.6  # of the letters in common and in order: `vea` is like `vae`, `dim` is not like `name`
_AS_GOOD = 0.05  # less alike than the best match and still named beside it


class FaultError(ValueError):
    """A run that could not go on, through no mistake in its command; the message says what, where, and what would help."""


class NonFiniteError(FaultError):
    """A loss became NaN or infinite; the message names the step, the term, the rows and the last good checkpoint."""


def to_its_end(method: Callable[P, T]) -> Callable[P, T]:
    """A step of learning or measuring that a StopIteration does not end: Lightning takes one for the end of the data, and goes on.

    Raises:
        FaultError: there was one.
    """

    @wraps(method)
    def guarded(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return method(*arguments, **options)
        except StopIteration as error:
            raise FaultError("a StopIteration in a step: look for next(...) in a model or an objective of your own") from error

    return guarded


@contextmanager
def reading(what: object) -> Iterator[None]:
    """Around what reads the files of others, or builds from them, and nothing else: what it stumbles over is damage of theirs.

    Raises:
        ValueError: in the place of an error that says nothing to a user; the message begins with `what`.
    """
    try:
        yield
    except STUMBLES as error:
        raise ValueError(f"{what} is damaged: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


class OccupiedError(ValueError):
    """The run folder belongs to another process, or to a run of another configuration."""


class TooLargeError(ValueError):
    """A file says that it holds more than there is memory for."""


class Remark(UserWarning):
    """Something about the data or the fit that a reader of the numbers must know; the command line prints it beside them."""


def near_matches(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """The known dotted names that `name` was probably meant to be, best first.

    Names with the same last segment come first (`lr`: `fit.optimizer.lr`), then those with a similar last segment or
    a similar whole.
    """
    scored = sorted((_unlikeness(name, other), other) for other in set(known) if not name.startswith(f"{other}."))
    worst = min(1 - _ALIKE, scored[0][0][0] + _AS_GOOD) if scored else 0.0
    return [other for (unlikeness, _), other in scored if unlikeness <= worst][:limit]


def _unlikeness(name: str, other: str) -> tuple[float, float]:
    """In [0, 1], the better of last segments and wholes, then wholes."""
    whole = 1 - SequenceMatcher(None, name, other).ratio()
    last = 1 - SequenceMatcher(None, name.rpartition(".")[2], other.rpartition(".")[2]).ratio()
    return min(whole, last), whole


def size(count: float) -> str:
    """A number of bytes as it is read: 12.3 MB."""
    power = min(int(log10(max(count, 1)) // 3), 4)
    return f"{count / 1000**power:.{1 if power else 0}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def whole(value: object, what: str, least: int = 1) -> int:
    """The value as an int, if it is a whole number of at least `least`; NumPy's numbers are numbers.

    Raises:
        ValueError: it is not; `what` names the option.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise ValueError(f"{what}={value!r} must be a whole number of at least {least}")
    return int(value)


def flag(value: object, what: str) -> bool:
    """The value, if it is true or false.

    Raises:
        ValueError: it is neither; `what` names the option.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{what}={value!r} must be true or false")
    return value


def sizes(values: object, what: str) -> tuple[int, ...]:
    """The values, if they are a list of positive whole numbers.

    Raises:
        ValueError: they are not; `what` names the option.
    """
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"{what}={values!r} must be a list of whole numbers, such as [512,256]")
    return tuple(whole(value, f"{what}={[*values]}: {value!r} of it") for value in values)


def one(value: object, what: str) -> str:
    """The value, if it is one word.

    Raises:
        ValueError: it is several; `what` names the option.
    """
    if not isinstance(value, str):
        raise ValueError(f"{what}={value}: give one folder, not several")
    return value


def real(value: object, what: str, above: float = -inf, least: float = -inf, below: float = inf) -> float:
    """The value as a float, if it is a number above `above`, at least `least` and below `below`; NumPy's numbers are numbers.

    Raises:
        ValueError: it is not; `what` names the option.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not (above < float(value) < below and float(value) >= least):
        bounds = {"above": above, "of at least": least, "below": below}
        stated = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if abs(bound) != inf)
        raise ValueError(f"{what}={value!r} must be a number {stated}".rstrip())
    return float(value)
