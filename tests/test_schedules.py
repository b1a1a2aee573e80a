"""Law 14: a schedule is a pure function of the step, and one that does not end inside the run is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowerbound.schedules import Constant, Cyclical, Geometric, Linear, Step, as_schedule


@given(st.integers(0, 500), st.integers(1, 300))
def test_warm_up_is_linear_then_constant(now: int, steps: int) -> None:
    value = Linear(start=0.5, end=2.0, steps=steps)(Step(now))
    assert value == pytest.approx(np.interp(now, [0, steps], [0.5, 2.0]))


@given(st.integers(0, 1000))
def test_a_fraction_of_the_run_is_that_many_steps(now: int) -> None:
    assert Linear(fraction=0.25)(Step(now, 1000)) == Linear(steps=250)(Step(now, 1000))


def test_a_geometric_schedule_multiplies_by_the_same_factor() -> None:
    rate = Geometric(start=1.0, end=0.01, fraction=0.5)
    assert [rate(Step(now, 200)) for now in (0, 25, 50, 100, 150)] == pytest.approx([1, 0.1**0.5, 0.1, 0.01, 0.01])
    with pytest.raises(ValueError, match="above 0"):
        Geometric(end=0.0, fraction=1.0)


def test_cycles_start_over_and_end_at_the_end() -> None:
    beta = Cyclical(end=3.0, cycles=4, rise=0.5, steps=80)
    assert [beta(Step(now)) for now in (0, 5, 10, 19, 20, 25, 79, 80, 500)] == [0, 1.5, 3, 3, 0, 1.5, 3, 3, 3]


@pytest.mark.parametrize("schedule", [Linear(steps=101), Cyclical(steps=101), Geometric(0.1, steps=101)])
def test_a_warm_up_longer_than_the_run_is_refused(schedule: Linear | Cyclical | Geometric) -> None:
    schedule.check(101)
    with pytest.raises(ValueError, match="does not end inside a run of 100"):
        schedule.check(100)


def test_a_fraction_of_an_unknown_length_is_refused() -> None:
    Linear(steps=10).check(None)
    with pytest.raises(ValueError, match="fraction=0.3"):
        Linear(fraction=0.3).check(None)


@pytest.mark.parametrize("options", [{}, {"steps": 3, "fraction": 0.1}, {"steps": 0}, {"fraction": 0.0}, {"fraction": 1.5}])
def test_a_duration_is_stated_once_and_positive(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="steps|fraction"):
        Linear(**options)


@pytest.mark.parametrize("value", [-1, float("nan"), "4", True, None])
def test_what_is_no_weight_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"objective\.beta"):
        as_schedule(value, "objective.beta")


def test_a_number_is_a_constant_schedule() -> None:
    assert as_schedule(4, "beta")(Step(17)) == 4.0
    assert isinstance(as_schedule(4, "beta"), Constant)
