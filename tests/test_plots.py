"""Pictures: what is drawn is what was given, checked on the artists of the figures."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score
from torch import Tensor

from lowerbound import plots


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def grid(figure: Figure) -> np.ndarray:
    """The image grid of a figure, one channel."""
    return np.asarray(figure.axes[0].images[0].get_array())[..., 0]


def tile(image: np.ndarray, row: int, column: int, height: int, width: int) -> np.ndarray:
    top, left = 1 + row * (height + 1), 1 + column * (width + 1)
    return image[top : top + height, left : left + width]


def points(figure: Figure) -> list[np.ndarray]:
    """The clouds of a figure, each [n, 2]."""
    return [np.stack([np.asarray(line.get_xdata()), np.asarray(line.get_ydata())], 1) for line in figure.axes[0].lines]


def test_images_stand_over_their_reconstructions(x: Tensor) -> None:
    image = grid(plots.reconstructions(x, 1 - x, [1, 2, 3]))
    for column in range(4):
        np.testing.assert_allclose(tile(image, 0, column, 2, 3), x[column].view(2, 3))
        np.testing.assert_allclose(tile(image, 1, column, 2, 3), 1 - x[column].view(2, 3))


def test_images_beyond_the_unit_interval_are_scaled_alike(x: Tensor) -> None:
    image = grid(plots.reconstructions(4 * x - 2, 4 * x - 2, [1, 2, 3]))
    low, high = (4 * x - 2).min(), max((4 * x - 2).max(), torch.tensor(1.0))
    for row in (0, 1):
        np.testing.assert_allclose(tile(image, row, 2, 2, 3), ((4 * x[2] - 2 - low) / (high - low)).view(2, 3))


def test_missing_entries_are_orange(x: Tensor) -> None:
    x[1, 4] = math.nan
    axes = plots.reconstructions(x, torch.zeros_like(x), [1, 2, 3]).axes[0]
    image = np.asarray(axes.images[0].get_array())
    assert tile(image, 0, 1, 2, 3)[1, 1] == pytest.approx(mpl.colors.to_rgb(plots.ORANGE))
    np.testing.assert_allclose(tile(image, 0, 0, 2, 3)[..., 1], x[0].view(2, 3))
    figure = plots.reconstructions(x, torch.zeros_like(x))
    assert len(figure.axes[0].collections[0].get_offsets()) == x.numel() - 1


def test_holes_stand_over_what_fills_them_and_the_truth(x: Tensor) -> None:
    holes = torch.zeros_like(x, dtype=torch.bool)
    holes[:, 2] = True
    image = np.asarray(plots.filled_in(x.masked_fill(holes, math.nan), 1 - x, x, [1, 2, 3]).axes[0].images[0].get_array())
    for column in range(4):
        assert tile(image, 0, column, 2, 3)[0, 2] == pytest.approx(mpl.colors.to_rgb(plots.ORANGE))
        for row, expected in ((1, 1 - x), (2, x)):
            np.testing.assert_allclose(tile(image, row, column, 2, 3)[..., 0], expected[column].view(2, 3))
    cloud = plots.filled_in(x.masked_fill(holes, math.nan), 1 - x, x).axes[0]
    np.testing.assert_allclose(cloud.collections[0].get_offsets(), torch.stack([x[:, 2], 1 - x[:, 2]], 1))
    assert (cloud.get_xlabel(), cloud.get_ylabel()) == ("truth", "filled in")


def test_colours_keep_their_channels() -> None:
    x = torch.rand(2, 3 * 4 * 4)
    shown = np.asarray(plots.samples(x, [3, 4, 4]).axes[0].images[0].get_array())
    np.testing.assert_allclose(shown[1:5, 6:10], x[1].view(3, 4, 4).permute(1, 2, 0))


def test_tables_state_the_explained_variance(x: Tensor) -> None:
    outputs = x + 0.1 * torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = r2_score(x, outputs, multioutput="variance_weighted")
    assert plots.reconstructions(x, outputs).axes[0].get_title("left").endswith(f"= {expected:.3f}")


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_samples_of_tables_lie_over_the_data(dim: int) -> None:
    figure = plots.samples(torch.randn(30, dim), None, torch.randn(50, dim))
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["data", "samples"]
    if dim > 1:
        assert [len(cloud) for cloud in points(figure)] == [50, 30]


def test_the_plane_of_codes_is_that_of_the_principal_components() -> None:
    codes = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1])
    figure = plots.latent_plane(codes)
    oracle = PCA(2).fit(codes.double())
    expected = oracle.transform(codes.double())
    (shown,) = points(figure)
    signs = np.sign((shown * expected).sum(0))  # a component is known up to its sign
    np.testing.assert_allclose(shown, expected * signs, rtol=0, atol=1e-6)  # sklearn's solver against an SVD, float64
    assert f"({100 * oracle.explained_variance_ratio_[0]:.0f}% of" in figure.axes[0].get_xlabel()
    assert f"({100 * oracle.explained_variance_ratio_[1]:.0f}% of" in figure.axes[0].get_ylabel()


def test_two_codes_are_drawn_as_they_are_and_by_label() -> None:
    codes, labels = torch.randn(40, 2), torch.arange(40) % 3
    clouds = points(plots.latent_plane(codes, labels))
    for label, cloud in enumerate(clouds):
        np.testing.assert_allclose(cloud, codes[labels == label].double())


def test_many_labels_are_values_on_a_bar() -> None:
    assert len(plots.latent_plane(torch.randn(40, 2), torch.arange(40)).axes) == 2


@pytest.mark.parametrize("labels", [None, torch.arange(40) % 3, torch.rand(40)])
def test_one_code_is_a_histogram(labels: Tensor | None) -> None:
    axes = plots.latent_plane(torch.randn(40, 1), labels).axes[0]
    heights = [patch.get_height() for container in axes.containers for patch in container]
    assert sum(heights) == 40


def curves(*names: str) -> dict[str, list[float]]:
    return {"step": [1.0, 2.0, 3.0]} | {f"{part}/{name}": [-300.0, -3.0, -2.0] for part in ("train", "val") for name in names}


def test_learning_curves_have_a_panel_for_each_quantity() -> None:
    figure = plots.learning_curves(curves("elbo", "reconstruction", "kl", "loss"))
    assert [axes.get_title("left") for axes in figure.axes] == ["ELBO", "reconstruction", "KL"]
    assert figure.axes[0].get_ylabel() == "nats per datum"
    for axes in figure.axes:
        assert axes.get_xlabel() == "optimizer steps"
        assert [list(line.get_ydata()) for line in axes.lines] == [[-300.0, -3.0, -2.0]] * 2


def test_a_model_without_a_bound_has_one_panel() -> None:
    assert [axes.get_title("left") for axes in plots.learning_curves(curves("reconstruction", "loss")).axes] == ["reconstruction"]


def test_the_climb_of_the_first_steps_does_not_flatten_the_curves() -> None:
    values = [-1e6] + [-10.0 + 0.01 * i for i in range(19)]
    low, high = plots.learning_curves({"step": list(range(20)), "val/elbo": values}).axes[0].get_ylim()
    assert -10.1 < low < -9.9
    assert -9.9 < high < -9.7


def test_kl_is_sorted_and_its_collapsed_dimensions_are_counted() -> None:
    kl = torch.tensor([[0.5, 0.0, 2.0], [1.5, 0.002, 4.0]])  # means 1, 0.001 and 3
    figure = plots.kl_spectrum(kl)
    used, collapsed, threshold = (line.get_ydata() for line in figure.axes[0].lines)
    np.testing.assert_allclose(used, [3.0, 1.0])
    np.testing.assert_allclose(collapsed, [0.001])
    assert list(threshold) == [0.01, 0.01]
    assert figure.axes[0].get_title("left") == "2 of 3 latent dimensions above 0.01 nats; 4.00 nats in all"


def test_one_datum_has_a_place_in_the_plane() -> None:
    """It has no principal components; a validation part of one row is legal."""
    (axes,) = plots.latent_plane(torch.tensor([[1.0, 2.0, 3.0]])).axes
    assert [np.asarray(line.get_xydata()).tolist() for line in axes.lines] == [[[1.0, 2.0]]]


def test_drawing_leaves_no_trace_in_matplotlib(x: Tensor) -> None:
    before = dict(mpl.rcParams)
    image = plots.pixels(plots.reconstructions(x, x, [1, 2, 3]))
    assert dict(mpl.rcParams) == before
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    from matplotlib import pyplot as plt

    assert plt.get_fignums() == []
