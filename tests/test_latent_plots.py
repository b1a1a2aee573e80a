"""Pictures of the latent dimensions: ways between codes by geometry, and what is drawn by the artists of the figures."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import lowerbound.models as models
from lowerbound import latent_plots, pictures, plots
from lowerbound.distributions import kl_per_dimension
from lowerbound.latent_plots import collapsed_share, spherical, straight
from lowerbound.linear_gaussian import linear
from lowerbound.model import LatentVariableModel
from test_plots import grid, tile

SHAPE = [1, 2, 3]
ALGEBRA = 1e-12  # float64
WAYS = (straight, spherical)


def draws(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(axes: Axes, label: str) -> np.ndarray:
    """The points [n, 2] of the line of that label."""
    (line,) = [line for line in axes.lines if str(line.get_label()).startswith(label)]
    return np.stack([np.asarray(line.get_xdata()), np.asarray(line.get_ydata())], 1)


def tick_names(axes: Axes) -> tuple[list[str], list[str]]:
    return [text.get_text() for text in axes.get_xticklabels()], [text.get_text() for text in axes.get_yticklabels()]


# The ways between codes


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_way_begins_and_ends_at_the_codes(way: Callable[[Tensor, Tensor, int], Tensor], dtype: torch.dtype) -> None:
    a, b = draws(5, 4).to(dtype), draws(5, 4, seed=1).to(dtype)
    between = way(a, b, 7)
    assert between.shape == (5, 7, 4)
    assert between.dtype == dtype
    for end, expected in ((0, a), (-1, b)):
        torch.testing.assert_close(between[:, end], expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_the_straight_way_has_equal_steps() -> None:
    a, b = draws(5, 4), draws(5, 4, seed=1)
    torch.testing.assert_close(straight(a, b, 5)[:, 2], (a + b) / 2, rtol=0, atol=ALGEBRA)
    torch.testing.assert_close(straight(a, b, 5)[:, 1], 0.75 * a + 0.25 * b, rtol=0, atol=ALGEBRA)


def test_codes_of_one_norm_are_joined_on_their_sphere_at_equal_angles() -> None:
    a, b = (3 * torch.nn.functional.normalize(code) for code in (draws(5, 4), draws(5, 4, seed=1)))
    way = spherical(a, b, 6)
    torch.testing.assert_close(way.norm(dim=-1), torch.full((5, 6), 3.0).double(), rtol=0, atol=ALGEBRA)
    cosines = (way[:, 1:] * way[:, :-1]).sum(-1) / 9
    expected = (((a * b).sum(-1) / 9).acos() / 5).cos()
    torch.testing.assert_close(cosines, expected.unsqueeze(1).expand(5, 5), rtol=0, atol=ALGEBRA)


def test_the_norm_goes_in_equal_steps_from_one_code_to_the_other() -> None:
    way = spherical(torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 4.0]]).double(), 4)
    torch.testing.assert_close(way.norm(dim=-1), torch.tensor([[1.0, 2.0, 3.0, 4.0]]).double(), rtol=0, atol=ALGEBRA)
    torch.testing.assert_close(way[0, 1], torch.tensor([2 * math.cos(math.pi / 6), 1.0], dtype=torch.float64), rtol=0, atol=ALGEBRA)


@pytest.mark.parametrize("factor", [2.0, 1.0, 0.0, -1.5])
def test_codes_on_a_line_through_zero_are_joined_by_it(factor: float) -> None:
    a = draws(3, 4)
    assert torch.equal(spherical(a, factor * a, 5), straight(a, factor * a, 5))
    assert torch.equal(spherical(factor * a, a, 5), straight(factor * a, a, 5))


# Interpolation


def test_images_on_the_straight_line_stand_above_those_on_the_arc() -> None:
    lines, arcs = torch.rand(3, 5, 6).double(), torch.rand(3, 5, 6).double()
    figure = latent_plots.interpolation(lines, arcs, SHAPE, torch.rand(9, 6))
    image = grid(figure)
    for pair in range(3):
        for step in range(5):
            np.testing.assert_allclose(tile(image, 2 * pair, step, 2, 3), lines[pair, step].view(2, 3))
            np.testing.assert_allclose(tile(image, 2 * pair + 1, step, 2, 3), arcs[pair, step].view(2, 3))
    columns, rows = tick_names(figure.axes[0])
    assert rows == ["straight", "spherical"] * 3
    assert columns == ["one datum", "", "", "", "the other"]


def test_images_are_in_the_grey_levels_of_the_data() -> None:
    images, data = torch.rand(1, 2, 6), 4 * torch.rand(9, 6) - 2
    data[0, :2], data[3, 4] = torch.tensor([-2.0, 2.0]), math.nan
    values = torch.tensor([0.0, 1.0])
    for figure in (
        latent_plots.interpolation(images, images, SHAPE, data),
        latent_plots.traversal(images, ["a"], values, "z", SHAPE, data),
    ):
        np.testing.assert_allclose(tile(grid(figure), 0, 1, 2, 3), ((images[0, 1].double() + 2) / 4).view(2, 3))


def test_paths_of_tables_lie_in_the_plane_of_the_data() -> None:
    data, lines, arcs = draws(40, 5) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1]), draws(2, 4, 5, seed=1), draws(2, 4, 5, seed=2)
    holes = data.clone()
    holes[5, 2] = math.nan
    axes = latent_plots.interpolation(lines, arcs, None, holes).axes[0]
    complete = torch.cat([data[:5], data[6:]])
    expected, names = plots.plane(torch.cat([complete, lines[1], arcs[0]]), "x", 39)
    cloud, *paths = [np.stack([line.get_xdata(), line.get_ydata()], 1) for line in axes.lines]
    np.testing.assert_allclose(cloud, expected[:39])
    np.testing.assert_allclose(paths[1], expected[39:43])  # straight, straight, spherical, spherical
    np.testing.assert_allclose(paths[2], expected[43:])
    assert [axes.get_xlabel(), axes.get_ylabel()] == names
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["data", "straight", "spherical"]


def test_paths_of_one_dimension_are_drawn_over_the_share_of_the_way() -> None:
    data, lines, arcs = draws(9, 1), draws(2, 3, 1, seed=1), draws(2, 3, 1, seed=2)
    axes = latent_plots.interpolation(lines, arcs, None, data).axes[0]
    np.testing.assert_allclose(points(axes, "data")[:, 0], data[:, 0])
    np.testing.assert_allclose(points(axes, "spherical"), torch.stack([arcs[0, :, 0], torch.tensor([0.0, 0.5, 1.0])], 1))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("$x_1$", "share of the way")


def test_paths_are_drawn_where_no_row_is_complete() -> None:
    figure = latent_plots.interpolation(draws(2, 3, 4), draws(2, 3, 4), None, torch.full((5, 4), math.nan))
    assert len(figure.axes[0].lines) == 5


# Traversal


def test_images_along_a_dimension_stand_in_its_row() -> None:
    decoded, values = torch.rand(2, 3, 6).double(), torch.tensor([-3.0, 0.0, 3.0])
    figure = latent_plots.traversal(decoded, ["$z_3$ (2.1 nats)", "$z_1$ (1 nats)"], values, "z of the prior", SHAPE, torch.rand(4, 6))
    for row in range(2):
        for column in range(3):
            np.testing.assert_allclose(tile(grid(figure), row, column, 2, 3), decoded[row, column].view(2, 3))
    assert tick_names(figure.axes[0]) == (["-3", "0", "3"], ["$z_3$ (2.1 nats)", "$z_1$ (1 nats)"])
    assert figure.axes[0].get_xlabel() == "z of the prior"


def test_tables_have_a_panel_for_each_dimension_and_a_line_for_each_value() -> None:
    decoded, values, data = draws(2, 3, 4), torch.tensor([-3.0, 0.0, 3.0]), draws(21, 4, seed=1)
    data[0, 0] = math.nan
    *panels, bar = latent_plots.traversal(decoded, ["a", "b"], values, "z of the prior", None, data).axes
    for axes, curves, name in zip(panels, decoded, ("a", "b"), strict=True):
        assert axes.get_title("left") == name
        np.testing.assert_allclose([line.get_ydata() for line in axes.lines], curves)
        np.testing.assert_allclose(axes.lines[0].get_xdata(), [1, 2, 3, 4])
        assert len({line.get_color() for line in axes.lines}) == 3
        for dimension, patch in enumerate(axes.patches):
            low, high = np.nanquantile(data[:, dimension], [0.05, 0.95])
            assert patch.get_y() == pytest.approx(low)
            assert patch.get_y() + patch.get_height() == pytest.approx(high)
    assert bar.get_ylabel() == "z of the prior"
    assert bar.get_ylim() == (-3, 3)


# Eigenvalues


def test_the_eigenvalues_of_the_model_are_those_of_its_covariance() -> None:
    weight, noise = draws(6, 3) * torch.tensor([1.0, 0.5, 1e-3]), 0.04  # the third carries 0.0001 nats at most
    variances = torch.tensor([3.0, 1.0, 0.1, 0.01, 1e-3, 0.0])
    axes = latent_plots.eigenvalue_spectrum(variances, weight, noise).axes[0]
    oracle = np.linalg.eigvalsh((weight @ weight.T + noise * torch.eye(6, dtype=torch.float64)).numpy())[::-1]
    np.testing.assert_allclose(points(axes, "covariance of the model")[:, 1], oracle, rtol=1e-10)
    np.testing.assert_allclose(
        points(axes, "covariance of the data")[:, 1], [3.0, 1.0, 0.1, 0.01, 1e-3, 3e-6]
    )  # no zero on a logarithmic axis
    assert points(axes, "noise variance")[:, 1].tolist() == [noise, noise]
    assert axes.get_title("left") == "2 of the model's 3 directions lie above the noise"
    assert axes.get_yscale() == "log"


def test_a_direction_above_the_noise_carries_a_hundredth_of_a_nat() -> None:
    for factor, above in ((1.03, 1), (1.01, 0)):  # log(factor) / 2 is 0.015 and 0.005 nats
        weight = torch.tensor([[math.sqrt(factor - 1)], [0.0]])
        title = latent_plots.eigenvalue_spectrum(torch.ones(2), weight, 1.0).axes[0].get_title("left")
        assert title.startswith(f"{above} of")


# The bound against its samples


def test_the_bound_rises_to_what_else_is_known() -> None:
    others = {f"other {i}": (-90.0 + i, 0.5 + i) for i in range(5)}
    axes = latent_plots.importance_weighted_curve([1, 10, 100], [-93.0, -92.0, -91.0], [0.3, 0.2, 0.1], others).axes[0]
    (bars,) = axes.containers
    line, caps, _ = bars.lines
    np.testing.assert_allclose(np.asarray(line.get_xydata(), float), [[1, -93.0], [10, -92.0], [100, -91.0]])
    np.testing.assert_allclose([np.asarray(cap.get_ydata(), float) for cap in caps], [[-93.3, -92.2, -91.1], [-92.7, -91.8, -90.9]])
    for band, (name, (mean, error)) in zip(axes.patches, others.items(), strict=True):
        assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((mean - error, mean + error))
        assert points(axes, name)[:, 1].tolist() == [mean, mean]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "10", "100"]
    assert (axes.get_xscale(), axes.get_ylabel()) == ("log", "nats per datum")
    assert "other 0: -90.00 ± 0.50" in [text.get_text() for text in axes.get_legend().get_texts()]


# Collapse

KL = torch.stack([torch.full((100,), 0.001), torch.linspace(0.01, 1, 100), torch.full((100,), 2.0)], 1).double()  # [100, 3]


@pytest.mark.parametrize(
    ("epsilon", "delta", "expected"),
    [
        (0.001, 0.0, 0),  # not below it
        (0.0011, 0.0, 1),
        (1.0, 0.0, 1),
        (1.0, 0.01, 2),  # one of a hundred is spared
        (0.905, 0.1, 2),  # the second dimension is below it for ninety of a hundred
        (0.895, 0.1, 1),
        (3.0, 0.01, 3),
        (1.5, 1.0, 2),  # spared all, but for the smallest
    ],
)
def test_a_collapsed_dimension_has_a_small_kl_for_nearly_all_data(epsilon: float, delta: float, expected: int) -> None:
    assert collapsed_share(KL, torch.tensor([epsilon]).double(), delta).tolist() == pytest.approx([expected / 3])


@pytest.mark.parametrize("count", [1, 7, 10, 100, 1000])
@pytest.mark.parametrize("delta", [0.01, 0.1, 0.29])
def test_the_share_is_what_its_definition_counts(count: int, delta: float) -> None:
    kl, epsilon = draws(count, 8).exp(), torch.logspace(-2, 1, 50, dtype=torch.float64)
    below = (kl.unsqueeze(0) < epsilon.view(-1, 1, 1)).double().mean(1)  # [E, L]
    expected = (below >= 1 - delta - 1e-12).double().mean(1)  # of rounding: 1 - 0.1 is not 0.9
    assert torch.equal(collapsed_share(kl, epsilon, delta), expected)


def test_the_panels_of_collapse_show_what_was_given() -> None:
    mean_variance, posterior_variance = torch.tensor([1e-4, 0.4, 0.95]), torch.tensor([0.99, 0.6, 0.05])
    spectrum, activity, share = latent_plots.collapse_panel(KL, mean_variance, posterior_variance).axes
    np.testing.assert_allclose(np.concatenate([line.get_ydata() for line in spectrum.lines[:2]]), [2.0, 0.505, 0.001])
    np.testing.assert_allclose(points(activity, "not active"), [[0.99, 1e-4]], rtol=1e-6)
    np.testing.assert_allclose(activity.lines[0].get_xydata(), [[0.6, 0.4], [0.05, 0.95]], rtol=1e-6)
    np.testing.assert_allclose(points(activity, "prior"), [[1, 0]])
    assert points(activity, "active: above")[:, 1].tolist() == [0.01, 0.01]
    assert activity.get_title("left").startswith("2 of 3 dimensions active")
    for delta in (0.01, 0.1):
        epsilon, drawn = points(share, f"δ = {delta:g}").T
        np.testing.assert_allclose(drawn, 100 * collapsed_share(KL, torch.tensor(epsilon), delta))
        assert drawn[-1] == 100


def test_the_prior_stands_at_its_corner_when_everything_has_collapsed() -> None:
    _, activity, share = latent_plots.collapse_panel(torch.zeros(5, 2), torch.zeros(2), torch.ones(2)).axes
    np.testing.assert_allclose(points(activity, "not active"), [[1, 0], [1, 0]])
    assert activity.get_ylim()[0] < 0  # the corner is inside
    assert set(points(share, "δ = 0.1")[:, 1]) == {100.0}


# Which pictures a model has, and what they are computed from


def drawn(model: LatentVariableModel, x: Tensor, shape: list[int] | None = None) -> dict[str, Figure]:
    with torch.no_grad():
        return dict(pictures.of_model(model, x.to(next(model.parameters())), None, shape, None, 4))


COMMON = {"reconstructions", "latent_plane", "interpolation", "latent_traversal"}
EXPECTED = {
    "vae": (models.vae(12, 3, sizes=(8,)), COMMON | {"samples", "kl_per_dimension"}),
    "autoencoder": (models.autoencoder(12, 3, sizes=(8,)), COMMON),
    "ppca": (models.ppca(12, 3), COMMON | {"samples", "loadings", "eigenvalue_spectrum"}),
    "linear_vae": (models.linear_vae(12, 3), COMMON | {"samples", "loadings", "kl_per_dimension", "eigenvalue_spectrum"}),
    "factor_analysis": (models.factor_analysis(12, 3), COMMON | {"samples", "loadings"}),
    "pca": (models.pca(12, 3), COMMON | {"loadings"}),
    "mixture": (models.gaussian_mixture(12, 3), {"reconstructions", "components"}),
}


@pytest.mark.parametrize("shape", [None, [1, 3, 4]])
@pytest.mark.parametrize("name", EXPECTED)
def test_every_model_has_its_pictures(name: str, shape: list[int] | None) -> None:
    model, expected = EXPECTED[name]
    assert set(drawn(model, torch.rand(9, 12), shape)) == expected


@pytest.mark.parametrize("name", ["vae", "autoencoder"])
def test_interpolation_begins_and_ends_at_reconstructions(name: str) -> None:
    (model, _), x = EXPECTED[name], torch.rand(6, 12)
    axes = drawn(model, x, [1, 3, 4])["interpolation"]
    with torch.no_grad():
        again = model.reconstruct(x)
    for pair in range(3):
        for row in (2 * pair, 2 * pair + 1):
            np.testing.assert_allclose(tile(grid(axes), row, 0, 3, 4), again[pair].view(3, 4).clamp(0, 1), atol=1e-5)
            np.testing.assert_allclose(tile(grid(axes), row, 9, 3, 4), again[pair + 3].view(3, 4).clamp(0, 1), atol=1e-5)


def test_one_datum_has_no_way_to_another() -> None:
    assert "interpolation" not in drawn(models.vae(12, 2, sizes=(8,)), torch.rand(1, 12), [1, 3, 4])


def lines_of(figure: Figure) -> list[np.ndarray]:
    """The decoded means [V, D] of each panel but the colour bar's."""
    return [np.stack([np.asarray(line.get_ydata()) for line in axes.lines]) for axes in figure.axes[:-1]]


def test_traversal_follows_the_dimensions_of_the_largest_kl_from_minus_three_to_three() -> None:
    torch.manual_seed(0)
    model, x = models.linear_vae(12, 6), torch.rand(9, 12)
    figure, p = drawn(model, x)["latent_traversal"], linear(model)
    with torch.no_grad():
        kl = kl_per_dimension(model.posterior(x.double()), model.prior()).mean(0)
        for panel, curves, j in zip(figure.axes, lines_of(figure), kl.argsort(descending=True)[:4].tolist(), strict=False):
            np.testing.assert_allclose(curves, p.bias + torch.linspace(-3, 3, 13).double().unsqueeze(1) * p.weight[:, j], atol=1e-6)
            assert panel.get_title("left") == f"$z_{{{j + 1}}}$ ({kl[j].item():.2g} nats)"
    assert len(figure.axes) == 5


def test_traversal_under_a_flat_prior_is_scaled_by_the_codes() -> None:
    model, x = models.pca(12, 2), torch.rand(30, 12).double()
    figure, p = drawn(model, x)["latent_traversal"], linear(model)
    with torch.no_grad():
        codes = model.encode(x)
        first = int(codes.var(0).argmax())
        z = codes.mean(0).expand(13, 2).clone()
        z[:, first] += torch.linspace(-3, 3, 13).double() * codes.std(0, correction=0)[first]
        np.testing.assert_allclose(lines_of(figure)[0], p(z).mean, atol=1e-6)
    assert figure.axes[0].get_title("left") == f"$z_{{{first + 1}}}$ (variance {codes.var(0, correction=0)[first].item():.2g})"
    assert figure.axes[-1].get_ylabel().endswith("the codes")


@pytest.mark.parametrize("count", [30, 9])
def test_the_eigenvalues_of_the_data_are_those_of_complete_rows(count: int) -> None:
    model, x = models.ppca(12, 3), torch.rand(count, 12).double()
    holes = x.clone()
    holes[4, 2] = math.nan
    (axes,) = drawn(model, holes)["eigenvalue_spectrum"].axes
    oracle = np.linalg.eigvalsh(np.cov(np.delete(x.numpy(), 4, 0), rowvar=False, bias=True))[::-1][: count - 1]
    oracle = np.maximum(oracle, 1e-6 * oracle[0])  # no zero on a logarithmic axis
    np.testing.assert_allclose(points(axes, "covariance of the data")[:, 1], oracle, rtol=1e-8)
    holes[1:, 3] = math.nan  # one row is complete
    assert "eigenvalue_spectrum" not in drawn(model, holes)
