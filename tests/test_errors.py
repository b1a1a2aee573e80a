"""What was probably meant."""

import numpy as np
import pytest

from lowerbound.errors import near_matches, real, whole

KEYS = [
    "seed",
    "latent_dim",
    "data",
    "data.dim",
    "fit.optimizer",
    "fit.optimizer.lr",
    "trainer.max_epochs",
    "trainer.max_steps",
    "network.encoder.sizes",
]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr", "fit.optimizer.lr"),
        ("optimizer.lr", "fit.optimizer.lr"),
        ("fit.optimiser.lr", "fit.optimizer.lr"),
        ("fit.optimizer.lrr", "fit.optimizer.lr"),
        ("trainer.max_epoch", "trainer.max_epochs"),
        ("max_epochs", "trainer.max_epochs"),
        ("dim", "data.dim"),
        ("sizes", "network.encoder.sizes"),
        ("sede", "seed"),
    ],
)
def test_the_best_match_is_what_was_meant(typed: str, meant: str) -> None:
    assert near_matches(typed, KEYS)[0] == meant


def test_nothing_alike_is_not_guessed() -> None:
    assert near_matches("wibble", KEYS) == []
    assert near_matches("lr", []) == []


def test_the_parent_of_a_key_is_no_correction() -> None:
    assert near_matches("data.colour", ["data"]) == []


def test_the_order_of_what_is_known_does_not_matter() -> None:
    assert near_matches("x.dim", KEYS, limit=5) == near_matches("x.dim", KEYS[::-1], limit=5)


def test_the_numbers_of_numpy_are_numbers() -> None:
    assert [type(number) for number in (whole(np.int64(3), "n"), real(np.float32(0.5), "r"))] == [int, float]
    for wrong in (np.float64(3.0), np.int64(0), np.bool_(True), True):
        with pytest.raises(ValueError, match="n="):
            whole(wrong, "n")
    with pytest.raises(ValueError, match="r="):
        real(np.float64("nan"), "r")
