"""Pictures of many runs: what is drawn is what was given."""

from __future__ import annotations

import numpy as np

from lowerbound.sweep_plots import Curve, Point, colors, learning_curves, rate_distortion


def test_rate_and_distortion_are_ordered_by_beta_and_beta_one_is_marked() -> None:
    points = [Point(4.0, [5.0], [90.0]), Point(0.5, [20.0], [70.0]), Point(1.0, [10.0], [75.0])]
    (axes,) = rate_distortion({"": points}).axes
    curve, mark, *_ = (np.asarray(line.get_xydata()).tolist() for line in axes.lines)
    assert curve == [[20.0, 70.0], [10.0, 75.0], [5.0, 90.0]]
    assert mark == [[10.0, 75.0]]
    (entry,) = axes.get_legend().get_texts()
    assert entry.get_text() == "ELBO = -85.00 nats"


def test_curves_go_through_the_means_over_seeds_which_are_dots() -> None:
    curves = {"L=2": [Point(2.0, [4.0, 6.0], [8.0, 9.0]), Point(3.0, [1.0, 2.0], [10.0, 12.0])], "L=3": [Point(2.0, [7.0], [6.0])]}
    (axes,) = rate_distortion(curves).axes
    drawn = [np.asarray(line.get_xydata()).tolist() for line in axes.lines]
    assert drawn == [[[5.0, 8.5], [1.5, 11.0]], [[4.0, 8.0], [6.0, 9.0]], [[1.0, 10.0], [2.0, 12.0]], [[7.0, 6.0]]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["L=2", "L=3"]
    assert axes.lines[0].get_color() != axes.lines[-1].get_color()


def test_runs_of_one_configuration_share_a_colour_and_a_name() -> None:
    curves = {"a": [Curve([1, 2], [0.0, 1.0]), Curve([1, 2], [0.5, 1.5])], "b": [Curve([1, 2, 3], [3.0, float("nan"), 2.0])]}
    (axes,) = learning_curves(curves, "ELBO").axes
    assert [np.asarray(line.get_ydata()).tolist() for line in axes.lines[:2]] == [[0.0, 1.0], [0.5, 1.5]]
    first, second, third = (line.get_color() for line in axes.lines)
    assert first == second != third
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    low, high = axes.get_ylim()
    assert low < 0
    assert high > 3


def test_any_number_of_configurations_has_as_many_colours() -> None:
    for count in (1, 2, 10, 11, 40):
        assert len(set(map(str, colors(count)))) == count
