"""Each step of a preparation against autograd, quadrature and counting."""

import numpy as np
import pytest
import torch
from torch.autograd.functional import jacobian

from lowerbound.data.prepare import Preparation
from lowerbound.data.steps import BernoulliDraw, Dequantize, Scale, Standardize, Step, Threshold, uniform

LEVELS = 17
SIX = 6.0  # standard errors


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def integers(levels: int = LEVELS, n: int = 400, d: int = 5) -> torch.Tensor:
    return torch.randint(levels, (n, d), generator=generator(1), dtype=torch.uint8)


def fitted(**options) -> Preparation:
    prepare = Preparation(**options)
    prepare.fit(integers(options.get("levels") or LEVELS))
    return prepare


INVERTIBLE = {
    "identity": {"levels": None},
    "scale": {"levels": LEVELS},
    "dequantize": {"levels": LEVELS, "dequantize": True},
    "dequantize_only": {"levels": LEVELS, "dequantize": True, "scale": False},
    "standardize": {"levels": LEVELS, "standardize": True},
    "standardize_raw": {"standardize": True},
    "all": {"levels": LEVELS, "dequantize": True, "standardize": True},
}


@pytest.mark.parametrize("options", INVERTIBLE.values(), ids=INVERTIBLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_gives_the_original_back(options, dtype):
    prepare, x = fitted(**options), integers()
    back = prepare.inverse(prepare(x.to(dtype), generator()))
    assert back.dtype == dtype
    if options.get("dequantize"):
        assert torch.equal(back, x.to(dtype))  # exactly: an integer is recovered by rounding down
    else:
        torch.testing.assert_close(back, x.to(dtype), rtol=0, atol=LEVELS * 4 * torch.finfo(dtype).eps)  # four roundings


@pytest.mark.parametrize(("levels", "standardize"), [(2, False), (17, True), (256, False), (256, True)])
def test_dequantized_values_never_leave_their_interval_in_float32(levels, standardize):
    """Near v + 1 float32 has fewer digits than the noise: without care one in 10^5 values of 255 becomes 256."""
    x = torch.tensor([0, levels - 1]).repeat(500_000, 1)
    prepare = Preparation(levels, dequantize=True, standardize=standardize)
    prepare.fit(integers(levels, d=2))
    y = prepare(x, generator())
    assert torch.equal(prepare.inverse(y), x.float())
    if not standardize:
        assert 0 < y.min() < y.max() < 1


@pytest.mark.parametrize("options", INVERTIBLE.values(), ids=INVERTIBLE)
def test_log_jacobian_is_that_of_autograd(options):
    prepare, x = fitted(**options), integers(n=3).double()
    reported = prepare.log_jacobian(prepare(x, generator()))
    assert reported.dtype == torch.float64
    for row, value in zip(x, reported, strict=True):
        matrix = jacobian(lambda v: prepare(v[None], generator())[0], row)
        torch.testing.assert_close(value, torch.linalg.slogdet(matrix).logabsdet, rtol=0, atol=1e-10)  # algebra in float64


class Logit(Step):
    """A step that is not affine: where its Jacobian is taken matters."""

    def forward(self, x, generator=None):
        return x.logit()

    def inverse(self, y):
        return y.sigmoid()

    def log_jacobian(self, x):
        return -(x * (1 - x)).log().sum(-1)


def test_log_jacobian_of_a_chain_with_a_curved_step():
    prepare = Preparation(LEVELS, dequantize=True)
    prepare.steps.extend([Logit(), Scale(3.0)])
    x = integers(n=3).double()
    for row, value in zip(x, prepare.log_jacobian(prepare(x, generator())), strict=True):
        noisy = prepare.chain[1].inverse(Logit().inverse(prepare(x, generator()) * 3))[(x == row).all(-1)][0]
        matrix = jacobian(lambda w: Scale(3.0)(Logit()(w / LEVELS)), noisy)
        torch.testing.assert_close(value, torch.linalg.slogdet(matrix).logabsdet, rtol=0, atol=1e-9)  # through the inverse


def test_log_jacobian_by_finite_differences():
    prepare, x, h = fitted(levels=LEVELS, standardize=True), integers(n=4).double(), 1e-3
    slopes = (prepare(x + h) - prepare(x - h)) / (2 * h)  # column by column: the map is diagonal, and affine
    torch.testing.assert_close(prepare.log_jacobian(prepare(x)), slopes.log().sum(-1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("step", [Dequantize(5), Scale(5.0), Standardize()], ids=lambda step: type(step).__name__)
def test_each_step_reports_its_own_jacobian(step: Step):
    x = torch.tensor([[1.0, 4.0, 2.0], [0.0, float("nan"), 3.0]], dtype=torch.float64)
    if isinstance(step, Standardize):
        step.fit([torch.randn(50, 3, generator=generator(), dtype=torch.float64) * torch.tensor([0.5, 2.0, 3.0])])
    for row, value in zip(x, step.log_jacobian(x), strict=True):
        seen = ~row.isnan()
        matrix = jacobian(lambda v: step(v[None], generator())[0], row)[seen][:, seen]
        torch.testing.assert_close(value, torch.linalg.slogdet(matrix).logabsdet, rtol=0, atol=1e-10)


def test_density_of_the_original_integrates_to_one():
    """Change of variables: p(original) = p(prepared) |d prepared / d original| is a density, by the trapezium rule."""
    prepare = Preparation(5, dequantize=True, standardize=True)
    prepare.fit(integers(5, d=1))
    density = torch.distributions.Normal(0.3, 0.8)
    w = torch.linspace(-40, 45, 20_001, dtype=torch.float64)[:, None]  # v + u, on the whole line
    y = w
    for step in prepare.chain[1:]:
        y = step(y)
    p = (density.log_prob(y).sum(-1) + prepare.log_jacobian(y)).exp()
    assert abs(torch.trapezoid(p, w[:, 0]).item() - 1) < 1e-6  # the rule's error is far below: the integrand is smooth


def test_dequantized_log_density_bounds_the_log_probability_of_the_integer():
    """E_u log p(v + u) <= log P(v) = log of the integral of p over [v, v + 1] (Theis et al. 2016), in the original units."""
    prepare = Preparation(5, dequantize=True)
    density = torch.distributions.Normal(0.5, 0.2)
    for v in range(5):
        y = prepare(torch.full((20_000, 1), v, dtype=torch.float64), generator())
        log_p = density.log_prob(y).sum(-1) + prepare.log_jacobian(y)
        log_mass = (density.cdf(torch.tensor((v + 1) / 5)) - density.cdf(torch.tensor(v / 5))).log()
        assert log_p.mean() < log_mass
        mass = log_p.exp().mean()  # E_u p(v + u) = P(v): the dequantized density has the mass of the integer
        assert abs(mass - log_mass.exp()) < SIX * log_p.exp().std() / 20_000**0.5


def test_noise_is_uniform():
    n = 200_000
    u = Preparation(2, dequantize=True, scale=False)(torch.zeros(n, 1), generator())
    counts = np.histogram(u.numpy(), bins=16, range=(0, 1))[0]
    assert (abs(counts - n / 16) < SIX * (n / 16 * 15 / 16) ** 0.5).all()
    lagged = np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]  # neighbours come from one word of the generator
    assert abs(lagged) < SIX / n**0.5


def test_noise_lies_on_midpoints():
    cells = uniform(torch.empty(100_003), generator()).double() * 2**16 - 0.5
    assert torch.equal(cells, cells.round())
    assert 0 <= cells.min() < 20  # no draw in the lowest 20 cells: a chance of e^-30
    assert 2**16 - 20 <= cells.max() < 2**16


def test_dynamic_binarization_has_the_probabilities():
    n = 100_000
    p = torch.tensor([0.0, 1 / 255, 0.1, 0.5, 254 / 255, 1.0])
    bits = BernoulliDraw()(p.expand(n, -1), generator())
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    assert not torch.signbit(bits).any()
    error = (bits.double().mean(0) - p).abs()
    assert (error <= SIX * (p * (1 - p) / n).sqrt() + 1e-7).all()  # exactly 0 and 1 at the ends, and float32's own p
    assert error[0] == error[-1] == 0


def test_draws_are_fresh_and_belong_to_the_generator():
    prepare, x = Preparation(LEVELS, binarize="dynamic"), integers()
    one = generator()
    first, second = prepare(x, one), prepare(x, one)
    assert not torch.equal(first, second)
    assert torch.equal(first, prepare(x, generator()))
    assert not torch.equal(first, prepare(x, generator(1)))


def test_threshold_is_at_one_half():
    x = torch.tensor([[0.0, 0.25, 0.49, 0.5, 0.75, 1.0]])
    assert Threshold()(x).tolist() == [[0, 0, 0, 1, 1, 1]]
    assert Preparation(17, binarize="threshold")(torch.tensor([[7, 8, 9]])).tolist() == [[0, 1, 1]]
    assert Preparation(256, binarize="threshold")(torch.tensor([[0, 127, 128, 255]])).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("binarize", ["threshold", "dynamic"])
def test_bits_have_no_jacobian_and_are_their_own_inverse(binarize):
    prepare = Preparation(LEVELS, binarize=binarize)
    y = prepare(integers(), generator())
    assert prepare.is_discrete
    assert not prepare.log_jacobian(y).any()
    assert torch.equal(prepare.inverse(y), y * (LEVELS - 1))


@pytest.mark.parametrize(
    "options", [*INVERTIBLE.values(), {"levels": LEVELS, "binarize": "dynamic"}, {"levels": LEVELS, "binarize": "threshold"}]
)
def test_missing_entries_stay_missing(options):
    prepare, x = fitted(**options), integers(n=6).float()
    hole = torch.rand(x.shape, generator=generator()) < 0.3
    x[hole] = float("nan")
    y = prepare(x, generator())
    assert torch.equal(y.isnan(), hole)
    assert torch.equal(prepare.inverse(y).isnan(), hole)
    if not prepare.is_discrete:
        stretch = prepare.log_jacobian(prepare(torch.eye(5) * 0, generator())[:1]) / 5  # per entry where all are alike
        if not options.get("standardize"):
            torch.testing.assert_close(prepare.log_jacobian(y), (~hole).sum(-1) * stretch, rtol=0, atol=1e-10)


def test_the_fixed_steps_then_the_random_ones_are_all_steps():
    names = {
        "dequantize": ([], ["Dequantize", "Scale", "Standardize"], {"levels": 4, "dequantize": True, "standardize": True}),
        "dynamic": (["Scale"], ["BernoulliDraw"], {"levels": 4, "binarize": "dynamic"}),
        "threshold": (["Scale", "Threshold"], [], {"levels": 4, "binarize": "threshold"}),
        "bits": ([], [], {"levels": 2}),
    }
    for fixed, random, options in names.values():
        prepare = Preparation(**options)
        assert [type(step).__name__ for step in prepare.fixed] == fixed
        assert [type(step).__name__ for step in prepare.random] == random
        assert prepare.is_random == bool(random)
        assert prepare.chain == prepare.fixed + prepare.random


def test_discrete_means_bits_or_integers():
    discrete = [{"levels": 2}, {"levels": 9, "scale": False}, {"levels": 9, "binarize": "threshold"}, {"binarize": "threshold"}]
    assert all(Preparation(**options).is_discrete for options in discrete)
    assert not any(Preparation(**options).is_discrete for options in INVERTIBLE.values())


class TestStandardize:
    def test_statistics_are_those_of_the_given_rows(self):
        x = torch.randn(2500, 4, generator=generator(), dtype=torch.float64) * torch.tensor([1.0, 10.0, 1e-3, 5.0]) + 1e6
        rows = torch.arange(0, 2500, 2)
        prepare = Preparation(standardize=True)
        prepare.fit(x, rows)
        y = prepare(x[rows])
        oracle = x[rows].numpy()
        np.testing.assert_allclose(prepare.chain[0].mean, oracle.mean(0), rtol=1e-14)
        np.testing.assert_allclose(prepare.chain[0].scale, oracle.std(0), rtol=1e-6)  # 1e-3 on top of 1e6 leaves seven digits
        assert y.mean(0).abs().max() < 1e-6
        assert abs(prepare(x[1::2]).mean()) > 1e-4  # the others have other statistics

    def test_missing_entries_do_not_count(self):
        x = torch.randn(3500, 3, generator=generator(), dtype=torch.float64)
        x[::3, 1], x[:1500, 2] = float("nan"), float("nan")  # the last is missing from a whole chunk
        prepare = Preparation(standardize=True)
        prepare.fit(x)
        np.testing.assert_allclose(prepare.chain[0].mean, np.nanmean(x, 0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(prepare.chain[0].scale, np.nanstd(x, 0), rtol=1e-12)

    def test_constant_columns_get_scale_one_and_one_warning(self):
        x = torch.randn(50, 4, generator=generator())
        x[:, 1], x[:, 2] = 0.1, float("nan")
        prepare = Preparation(standardize=True)
        with pytest.warns(UserWarning, match="2 columns .* constant") as warnings:
            prepare.fit(x)
        assert len(warnings) == 1
        assert prepare.chain[0].scale[1:3].tolist() == [1, 1]
        assert prepare(x)[:, 1].abs().max() < 1e-6

    def test_dequantized_constant_columns_have_the_noise_as_scale(self):
        x = torch.zeros(5000, 1, dtype=torch.uint8)
        prepare = Preparation(4, dequantize=True, standardize=True)
        prepare.fit(x)
        assert abs(prepare.chain[-1].scale.item() - (1 / 12) ** 0.5 / 4) < SIX * (1 / 12) ** 0.5 / 4 / 5000**0.5

    def test_state_is_restored_into_a_new_one(self):
        prepare, x = fitted(levels=LEVELS, standardize=True), integers()
        other = Preparation(LEVELS, standardize=True)
        assert not other.is_fitted
        with pytest.raises(ValueError, match="no statistics yet"):
            other(x)
        other.load_state_dict(prepare.state_dict())
        assert other.is_fitted
        assert torch.equal(other(x), prepare(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 4, "binarize": "dynamic", "dequantize": True}, "dequantize=true does not apply"),
        ({"levels": 4, "binarize": "threshold", "standardize": True}, "standardize=true does not apply"),
        ({"dequantize": True}, "data.prepare.levels"),
        ({"scale": True}, "data.prepare.levels"),
        ({"binarize": "dynamic"}, "data.prepare.levels"),
        ({"binarize": "sometimes"}, "none, threshold, dynamic"),
        ({"levels": 1}, "at least 2"),
        ({"levels": 4, "binarize": "threshold", "scale": False}, "scale=true"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Preparation(**options)


@pytest.mark.parametrize(
    ("options", "x", "message"),
    [
        ({"levels": 4}, [0, 1, 16], r"integers in \[0, 16\].*levels=4 .*0 to 3.\nSet data.prepare.levels=17"),
        ({"levels": 4}, [0, 4], r"integers in \[0, 4\].*\nSet data.prepare.levels=5"),
        ({"levels": 4}, [0.0, 0.5], r"numbers in \[0, 0.5\].*\nSet data.prepare.levels=null"),
        ({"levels": 4}, [-1, 3], r"integers in \[-1, 3\].*\nSet data.prepare.levels=null"),
        ({"binarize": "threshold"}, [0.0, 1.5], r"\[0, 1.5\].*threshold takes numbers in \[0, 1\]"),
        ({}, [0.0, float("inf")], "infinite"),
        ({}, [float("nan")], "no observed value"),
    ],
)
def test_data_that_the_options_do_not_describe_are_refused(options, x, message):
    with pytest.raises(ValueError, match=message):
        Preparation(**options).check(torch.tensor(x)[:, None])


def test_data_that_fit_are_accepted():
    Preparation(4).check(torch.tensor([[0.0, 3.0], [float("nan"), 1.0]]))
    Preparation(binarize="threshold").check(torch.tensor([[0.0, 1.0]]))
    Preparation().check(torch.tensor([[-1e30, 1e30]]))
