"""Missing entries from the data to what is filled in: hiding, learning from what is left, the error against the truth, pictures."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from scipy import stats
from sklearn.impute import SimpleImputer
from torch import Tensor

import lowerbound
import oracles
import worker_of_missing
import zoo
from lowerbound.amortization import AmortizationGap
from lowerbound.callbacks import Pictures
from lowerbound.cli import main
from lowerbound.covariances import Diagonal
from lowerbound.data import Digits, InMemory, Missing, Preparation, Table
from lowerbound.data.batches import Place, TensorBatches
from lowerbound.data.missing import as_real, never_observed
from lowerbound.data.source import Source
from lowerbound.decoding import DeadAreas, DecoderUnits, NoiseScale
from lowerbound.distributions import DenseNormal, bernoulli, diagonal_normal
from lowerbound.em import EMFit
from lowerbound.errors import Remark
from lowerbound.gradient import GradientFit
from lowerbound.instantiate import instantiate
from lowerbound.likelihoods import Bernoulli, FixedNoise, Gaussian
from lowerbound.model import LatentVariableModel
from lowerbound.networks import MaskedMLP, MLPDecoder
from lowerbound.objectives import ELBO, IWAE, Objective, Reconstruction, ScoreFunctionELBO
from lowerbound.posteriors import Delta, DiagonalGaussian, FullGaussian
from lowerbound.priors import Flat, StandardNormal
from lowerbound.run import learn
from lowerbound.schedules import Step
from lowerbound.studies import BruteForce, GradientVariance, Study
from lowerbound.wording import unit
from processes import two_ranks

SIX = 6.0
NAN = float("nan")
PARTS = ("train", "val", "test")
QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}


def rows(count: int = 300, dim: int = 6, seed: int = 0) -> Tensor:
    """Correlated rows in (0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    weight = torch.randn(2, dim, generator=generator, dtype=torch.float64)
    return torch.sigmoid(z @ weight + 0.5 * torch.randn(count, dim, generator=generator, dtype=torch.float64))


def holes_of(missing: Missing, count: int, dim: int, shape: tuple[int, ...] | None = None) -> Tensor:
    return missing.hide(Source(torch.zeros(count, dim)), shape).train.isnan()


# Hiding


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.9])
def test_the_fraction_of_every_part_is_within_six_standard_errors(fraction: float) -> None:
    data = Digits(missing=Missing(fraction))
    for part in PARTS:
        holes = data.part(part).x.isnan()
        assert abs(holes.double().mean().item() - fraction) < SIX * (fraction * (1 - fraction) / holes.numel()) ** 0.5
        assert (holes.double().mean(0) - fraction).abs().max() < SIX * (fraction * (1 - fraction) / len(holes)) ** 0.5, "each column"


def test_entries_are_hidden_one_by_one_and_whatever_they_are() -> None:
    """Completely at random: neighbours in a row or a column, and the value itself, say nothing about a hole."""
    x = rows(5000)
    holes = Missing(0.3).hide(Source(x)).train.isnan().double()
    for one, other in ((holes[:, 1:], holes[:, :-1]), (holes[1:], holes[:-1]), (holes, x)):
        correlation = np.corrcoef(one.flatten(), other.flatten())[0, 1]
        assert abs(correlation) < SIX / one.numel() ** 0.5


@pytest.mark.parametrize("share", [0.1, 0.25, 0.8])
def test_a_block_of_a_table_is_one_run_anywhere(share: float) -> None:
    holes = holes_of(Missing(block=share), 6000, 20).numpy()
    length = round(20 * share)
    assert (holes.sum(1) == length).all()
    steps = np.diff(np.pad(holes.astype(int), ((0, 0), (1, 1))), axis=1)
    assert ((steps == 1).sum(1) == 1).all(), "one beginning in every row"
    starts = np.bincount((steps == 1).argmax(1), minlength=20 - length + 1)
    places = 20 - length + 1
    assert len(starts) == places
    assert (np.abs(starts / 6000 - 1 / places) < SIX * (1 / places / 6000) ** 0.5).all()


@pytest.mark.parametrize(
    ("shape", "share"), [((1, 8, 8), 0.25), ((3, 10, 6), 0.3), ((1, 1, 7), 0.5), ((1, 9, 9), 0.001), ((1, 4, 4), 0.99)]
)
def test_a_block_of_an_image_is_a_rectangle_in_all_channels(shape: tuple[int, int, int], share: float) -> None:
    holes = holes_of(Missing(block=share), 200, int(np.prod(shape)), shape).view(200, *shape)
    assert (holes == holes[:, :1]).all(), "the same in every channel"
    down, across = holes[:, 0].any(2), holes[:, 0].any(1)  # [N, H], [N, W]
    assert torch.equal(holes[:, 0], down.unsqueeze(2) & across.unsqueeze(1))
    for line in (down, across):
        assert (np.abs(np.diff(np.pad(line.int().numpy(), ((0, 0), (1, 1))), axis=1)).sum(1) == 2).all(), "contiguous"
    area = holes[:, 0].sum((1, 2)).unique()
    assert len(area) == 1
    assert area.item() >= 1
    assert abs(area.item() - share * shape[1] * shape[2]) <= max(shape[1], shape[2])
    assert len(down.unique(dim=0)) * len(across.unique(dim=0)) > 1 or share > 0.9, "not always the same place"


def test_both_kinds_hide_what_either_hides() -> None:
    alone, both = holes_of(Missing(0.2), 500, 12), holes_of(Missing(0.2, 0.25), 500, 12)
    assert (both | ~alone).all()
    block = both & ~alone
    assert (block.sum(1) <= 3).all()
    assert block.any(1).double().mean() > 0.9


def test_what_was_missing_stays_so_and_the_source_is_left_alone() -> None:
    x = rows()
    x[::3, 1] = NAN
    before = x.clone()
    data = InMemory(x, missing=Missing(0.3, 0.2))
    for part in PARTS:
        hidden, truth = data.part(part).x, data.unhidden(part)
        assert truth.isnan().any()
        assert hidden[truth.isnan()].isnan().all()
    assert torch.equal(x.nan_to_num(7.0), before.nan_to_num(7.0))


@pytest.mark.parametrize("missing", [Missing(), Missing(seed=3)])
def test_hiding_nothing_changes_nothing(missing: Missing) -> None:
    data, plain = Digits(missing=missing), Digits()
    for part in PARTS:
        assert torch.equal(data.part(part).x, plain.part(part).x)
        assert torch.equal(data.unhidden(part), plain.part(part).x)
    for one, other in zip(data.train_dataloader(), plain.train_dataloader(), strict=True):
        assert torch.equal(one, other)


def test_the_seed_alone_decides_the_holes() -> None:
    def holes(**options: Any) -> Tensor:
        """The holes of all rows, in the order of the source."""
        x = torch.arange(2500.0).unsqueeze(1).expand(-1, 4) + torch.arange(4) / 8
        data = InMemory(x, missing=options.pop("missing", Missing(0.4, 0.25)), **options)
        found = torch.cat([data.part(part).x for part in PARTS])
        names = torch.cat([data.unhidden(part) for part in PARTS])[:, 0]
        return found.isnan()[names.argsort()]

    first = holes()
    for same in ({"split_seed": 4}, {"seed": 9, "batch_size": 7, "eval_batch_size": 11}, {"val_fraction": 0.5, "test_fraction": 0.1}):
        assert torch.equal(first, holes(**same))
    assert torch.equal(first[:1500], holes(missing=Missing(0.4, 0.25))[:1500])
    assert not torch.equal(first, holes(missing=Missing(0.4, 0.25, seed=1)))
    assert not torch.equal(first[:1000], first[1000:2000]), "every thousand rows have holes of their own"


def test_a_test_part_of_its_own_has_holes_of_its_own() -> None:
    source = Source(torch.zeros(200, 8), test=torch.zeros(200, 8, dtype=torch.uint8))
    hidden = Missing(0.5).hide(source)
    assert hidden.test is not None
    assert abs(hidden.test.isnan().double().mean() - 0.5) < SIX * (0.25 / 1600) ** 0.5
    assert not torch.equal(hidden.train.isnan(), hidden.test.isnan())
    assert not source.train.isnan().any()


@pytest.mark.parametrize("world", [1, 2])
def test_every_epoch_and_rank_sees_the_same_holes(world: int) -> None:
    x = torch.arange(75.0).unsqueeze(1).expand(-1, 4) + torch.arange(4) / 8
    data = InMemory(x, missing=Missing(0.3))
    data.setup()
    training = data.train_dataloader()
    assert isinstance(training, TensorBatches)
    ranks = [replace(training, batch_size=5, steps_per_block=3, place=Place(rank=rank, world=world)) for rank in range(world)]
    seen: dict[int, set[tuple[bool, ...]]] = {}
    for _ in range(2):
        for block in (block for rank in ranks for block in rank):
            for row in block.flatten(0, 1):
                number = int(row[~row.isnan()][0]) if (~row.isnan()).any() else -1
                seen.setdefault(number, set()).add(tuple(row.isnan().tolist()))
    seen.pop(-1, None)
    assert len(seen) > 45
    assert all(len(holes) == 1 for holes in seen.values())


PREPARATIONS = {
    "dequantize": {"levels": 17, "dequantize": True},
    "dynamic": {"levels": 17, "binarize": "dynamic"},
    "threshold": {"levels": 17, "binarize": "threshold"},
    "as it is": {},
}


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.float16, torch.float64, torch.bool])
@pytest.mark.parametrize("name", PREPARATIONS)
def test_the_truth_is_what_would_be_there_had_nothing_been_hidden(name: str, kind: torch.dtype) -> None:
    x = torch.randint(17, (400, 5), generator=torch.Generator().manual_seed(0)).to(kind)
    hiding, plain = (InMemory(x, prepare=Preparation(**PREPARATIONS[name]), missing=missing) for missing in (Missing(0.3, 0.2), Missing()))
    for part in PARTS:
        hidden, truth = hiding.part(part).x, hiding.unhidden(part)
        assert torch.equal(truth, plain.part(part).x)
        assert torch.equal(hidden[~hidden.isnan()], truth[~hidden.isnan()]), "the same draws, to the bit"
        assert hidden.isnan().any()
        assert torch.equal(hiding.unhidden(part, 7), truth[:7])


def test_the_training_rows_of_a_solving_fit_are_as_fine_as_without_holes() -> None:
    fits = [EMFit(lowerbound.ppca(5, 2)) for _ in range(2)]
    x = torch.randint(17, (400, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = []
    for fit, missing in zip(fits, (Missing(0.3), Missing()), strict=True):
        data = InMemory(x, prepare=Preparation(levels=17, dequantize=True), missing=missing)
        Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_model_summary=False, **QUIET).fit(fit, datamodule=data)
        found.append(data.part("train").x)
    assert {x.dtype for x in found} == {torch.float64}
    assert torch.equal(found[0][~found[0].isnan()], found[1][~found[0].isnan()])


def test_statistics_of_the_preparation_are_those_of_what_is_observed() -> None:
    x = rows()
    data = InMemory(x, prepare=Preparation(standardize=True), missing=Missing(0.4))
    data.setup()
    hidden = InMemory(x, missing=Missing(0.4)).part("train").x.double()
    mean, scale = hidden.nanmean(0), (hidden - hidden.nanmean(0)).square().nanmean(0).sqrt()
    expected = (InMemory(x).part("test").x.double() - mean) / scale
    torch.testing.assert_close(data.unhidden("test").double(), expected, atol=1e-5, rtol=0)  # rows are float32


def test_integers_keep_their_digits() -> None:
    for value, kind in ((2**24 + 1, torch.float64), (2**24, torch.float32), (-(2**24) - 1, torch.float64)):
        assert as_real(torch.tensor([[value]])).dtype == kind
        assert as_real(torch.tensor([[value]])).item() == value
    assert as_real(torch.tensor([[True]])).dtype == torch.float32
    assert as_real(torch.zeros(1, 1, dtype=torch.uint16)).dtype == torch.float32
    assert as_real(torch.zeros(1, 1, dtype=torch.float16)).dtype == torch.float16


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fraction": 1.0}, r"data\.missing\.fraction=1\.0 .*below 1"),
        ({"fraction": -0.1}, r"data\.missing\.fraction"),
        ({"fraction": "much"}, r"data\.missing\.fraction"),
        ({"block": 1}, r"data\.missing\.block"),
        ({"block": NAN}, r"data\.missing\.block"),
        ({"seed": -1}, r"data\.missing\.seed"),
        ({"seed": 0.5}, r"data\.missing\.seed"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Missing(**options)


def test_entries_of_a_file_on_disk_are_not_hidden(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows().numpy())
    with pytest.raises(ValueError, match=r"data\.memory_map=false"):
        Table(path=str(tmp_path / "x.npy"), dim=6, memory_map=True, missing=Missing(0.1)).setup()
    Table(path=str(tmp_path / "x.npy"), dim=6, memory_map=True).setup()


# Networks that take missing entries


def masked_vae(dim: int = 6, bits: bool = False, posterior: type = DiagonalGaussian, latent_dim: int = 2) -> LatentVariableModel:
    decoder = partial(MLPDecoder, inputs=latent_dim, sizes=[8], activation="tanh")
    likelihood = Bernoulli(decoder, latent_dim, dim) if bits else Gaussian(decoder, latent_dim, dim, FixedNoise(dim, 0.3))
    prior = Flat(latent_dim) if posterior is Delta else StandardNormal(latent_dim)
    encoder = partial(MaskedMLP, inputs=dim, sizes=[8], activation="tanh")
    return LatentVariableModel(prior, likelihood, posterior(encoder, latent_dim))


def with_holes(x: Tensor, fraction: float = 0.3) -> Tensor:
    """Holes at random, one row and one column of them, and complete rows."""
    x = x.masked_fill(torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < fraction, NAN)
    x[1], x[:, 2], x[-3:] = NAN, NAN, x[-3:].nan_to_num(0.5)
    return x


def test_a_masked_network_sees_zeros_and_what_is_observed() -> None:
    network = MaskedMLP(3, inputs=4, sizes=[5])
    x = torch.tensor([[1.0, NAN, 3.0, NAN]])
    expected = network.network(torch.tensor([[1.0, 0.0, 3.0, 0.0, 1.0, 0.0, 1.0, 0.0]]))
    assert torch.equal(network(x), expected)
    assert not torch.equal(network(x), network(x.nan_to_num(0.0))), "a missing entry is no zero"


@pytest.mark.parametrize("posterior", [DiagonalGaussian, FullGaussian, Delta])
def test_a_posterior_takes_what_its_network_takes(posterior: type) -> None:
    assert masked_vae(posterior=posterior).accepts_missing
    assert not posterior(partial(MLPDecoder, inputs=6, sizes=[8]), 2).accepts_missing


@pytest.mark.parametrize("p", [diagonal_normal(torch.randn(9, 6), torch.rand(9, 6) + 0.5), bernoulli(torch.randn(9, 6))], ids=["N", "B"])
def test_the_observed_density_of_complete_rows_is_the_density_to_the_bit(p: Any) -> None:
    x = torch.rand(9, 6).round()
    assert torch.equal(p.observed_log_prob(x), p.log_prob(x))
    dense = DenseNormal(torch.zeros(6), torch.eye(6) + 0.1)
    assert torch.equal(dense.observed_log_prob(x), dense.log_prob(x))


def test_the_observed_density_of_a_dense_normal_is_its_marginal() -> None:
    factor = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tril() + 3 * torch.eye(6)
    p, x = DenseNormal(torch.arange(6.0).double(), scale_tril=factor), with_holes(rows(12))
    covariance = (factor @ factor.T).numpy()
    for row, found in zip(x, p.observed_log_prob(x), strict=True):
        seen = ~row.isnan().numpy()
        block = covariance[np.ix_(seen, seen)]
        expected = stats.multivariate_normal(np.arange(6.0)[seen], block).logpdf(row[seen]) if seen.any() else 0.0
        assert found.item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("posterior", [DiagonalGaussian, FullGaussian])
def test_no_nan_is_no_mask(posterior: type) -> None:
    """Complete rows have the same terms to the bit beside complete rows and beside rows with holes."""
    model, x = masked_vae(posterior=posterior), rows(20).float()
    holes = x.clone()
    holes[:10, ::2] = NAN
    for objective in (ELBO(), IWAE(5)):
        terms = []
        for data in (x, holes):
            torch.manual_seed(0)
            terms.append(objective(model, data, Step()))
        for one, other in zip(*terms, strict=True):
            assert torch.equal(one[10:], other[10:])
            assert not torch.equal(one[:10], other[:10])
    assert torch.equal(model.impute(x).mean, x)


@pytest.mark.parametrize("bits", [False, True])
def test_a_vae_maximises_the_elbo_of_what_is_observed(bits: bool) -> None:
    model, x = masked_vae(bits=bits).double(), with_holes(rows(12))
    x = x.round() if bits else x
    torch.manual_seed(0)
    found = ELBO()(model, x, Step())
    torch.manual_seed(0)
    draw = model.draw(x)
    outputs = model.likelihood.network(draw.z[0]).detach().numpy()
    data = x.numpy()
    if bits:
        terms = [oracles.bernoulli_log_density(np.nan_to_num(data[:, [d]]), outputs[:, [d]]) for d in range(6)]
        expected = np.where(np.isnan(data).T, 0.0, terms).sum(0)
    else:
        expected = oracles.gaussian_log_density(data, outputs, np.array(0.3))
    np.testing.assert_allclose(found.reconstruction.detach(), expected, rtol=0, atol=1e-10)
    assert found.kl is not None
    mean, scale = draw.q.mean.detach().numpy(), draw.q.stddev.detach().numpy()
    kl = [oracles.gaussian_kl(m, np.diag(s**2), np.zeros(2), np.eye(2)) for m, s in zip(mean, scale, strict=True)]
    np.testing.assert_allclose(found.kl.detach(), kl, rtol=0, atol=1e-10)


OBJECTIVES: list[tuple[Objective, type]] = [
    (ELBO(), DiagonalGaussian),
    (ELBO(free_bits=0.1), DiagonalGaussian),
    (ELBO(kl="sampled"), FullGaussian),
    (IWAE(4), DiagonalGaussian),
    (IWAE(4), FullGaussian),
    (IWAE(4, doubly_reparameterized=True), DiagonalGaussian),
    (ScoreFunctionELBO(3), DiagonalGaussian),
    (Reconstruction(), Delta),
]


@pytest.mark.parametrize(("objective", "posterior"), OBJECTIVES)
@pytest.mark.parametrize("bits", [False, True])
def test_gradients_are_finite_and_come_from_what_is_observed(objective: Objective, posterior: type, bits: bool) -> None:
    torch.manual_seed(0)
    model, x = masked_vae(bits=bits, posterior=posterior), with_holes(rows(12).float())
    x[:, 2] = NAN  # in every row
    objective(model, x.round() if bits else x, Step()).value.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    last = model.likelihood.network.network.layers[-1]
    assert (last.bias.grad[2] == 0).all()
    assert (last.bias.grad[[0, 1, 3, 4, 5]] != 0).all()


def test_a_network_that_cannot_see_holes_refuses_them_by_name() -> None:
    with pytest.raises(ValueError, match="network=masked_mlp"):
        learn(lowerbound.vae(6, 2, sizes=[8]), GradientFit, InMemory(rows(), missing=Missing(0.1)), max_epochs=1, **QUIET)


# The error against the truth


def dense_fill(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """E[x_missing | x_observed] row by row, by conditioning the dense Gaussian."""
    filled = x.copy()
    for row in filled:
        m = np.isnan(row)
        gain = np.linalg.solve(covariance[np.ix_(~m, ~m)], covariance[np.ix_(~m, m)])
        row[m] = mean[m] + (row[~m] - mean[~m]) @ gain
    return filled


def test_the_logged_error_is_that_of_the_conditional_mean() -> None:
    data = InMemory(rows(1000), missing=Missing(0.3), test_fraction=0.5, eval_batch_size=70)
    model = lowerbound.factor_analysis(6, 2)
    found = learn(model, EMFit, data, max_epochs=5, **QUIET)
    x, truth = data.part("test").x.double().numpy(), data.unhidden("test").double().numpy()
    p = model.likelihood
    filled = dense_fill(x, p.bias.detach().numpy(), p.covariance.detach().numpy())
    error = (filled - truth)[np.isnan(x)]
    assert found["test/imputation_rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-6)  # test rows are float32


def test_only_what_was_hidden_counts() -> None:
    """Entries that were missing before have no truth; where all of them are there is no error to tell."""
    x = rows(200)
    x[:, 0] = NAN
    found = learn(lowerbound.ppca(6, 2), EMFit, InMemory(x, missing=Missing(0.2)), max_epochs=1, **QUIET)
    assert np.isfinite(found["test/imputation_rmse"])
    assert "test/imputation_rmse" not in learn(lowerbound.ppca(6, 2), EMFit, InMemory(x), max_epochs=1, **QUIET)
    sparse = InMemory(rows(20), missing=Missing(1e-9))
    assert "test/imputation_rmse" not in learn(lowerbound.ppca(6, 2), EMFit, sparse, max_epochs=1, **QUIET)


def test_the_error_of_a_vae_does_not_depend_on_batches() -> None:
    model = masked_vae()
    found = []
    for size in (7, 1000):
        trainer = Trainer(logger=False, enable_checkpointing=False, enable_model_summary=False, **QUIET)
        data = InMemory(rows(1500), missing=Missing(0.3), eval_batch_size=size)
        found += trainer.test(GradientFit(model), datamodule=data, verbose=False)
    assert found[0]["test/imputation_rmse"] == pytest.approx(found[1]["test/imputation_rmse"], rel=1e-12)
    assert found[0]["test/imputation_rmse"] > 0


@pytest.mark.process
def test_the_error_is_that_of_the_rows_of_all_ranks(processes: Any, tmp_path: Path) -> None:
    """Two ranks with 38 and 37 rows and another number of holes each."""
    two_ranks(processes, worker_of_missing.__file__, tmp_path, 2)
    worker_of_missing.main(tmp_path, 1)
    alone, *both = (torch.load(tmp_path / name, weights_only=True) for name in ("0_of_1.pt", "0_of_2.pt", "1_of_2.pt"))
    for rank in both:
        assert rank["test/imputation_rmse"] == pytest.approx(alone["test/imputation_rmse"], rel=1e-12)


def test_a_run_folder_has_it_and_the_line_says_no_nats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("model=ppca", "fit=em", "data=linear_gaussian", "data.num_data=200", "data.missing.fraction=0.3", "trainer.max_epochs=3")
    monkeypatch.setattr(sys, "argv", ["lowerbound-train", *options, f"hydra.run.dir={tmp_path}/run", "latent_dim=2"])
    assert main() == 0
    found = json.loads((tmp_path / "run" / "results.json").read_text())["test/imputation_rmse"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "imputation_rmse" in line]
    assert line.split() == ["test/imputation_rmse", f"{found:.4f}"]
    assert (tmp_path / "run" / "figures" / "filled_in.png").is_file()


def test_it_is_no_number_of_nats() -> None:
    assert unit("test/imputation_rmse") == ""
    assert unit("test/elbo") == " nats"


# Every model, a whole row and a whole column missing

SOLVED = ("gaussian", "mixture", "pca", "ppca", "factor_analysis", "bernoulli")
EVERY = {
    **{f"{model} by em": (f"model={model}", "fit=em") for model in SOLVED},
    **{f"{model} by gradient": (f"model={model}", "fit=gradient") for model in SOLVED},
    **{f"mixture, {kind}": ("model=mixture", f"covariance={kind}") for kind in zoo.choices("covariance")},
    "mixture of bits": ("model=mixture", "likelihood=bernoulli_components"),
    "stepwise": ("model=factor_analysis", "fit.update=batch"),
    "sampled": ("model=ppca", "fit=em", "fit.e_step=sampled"),
    "vae": ("model=vae", "network=masked_mlp"),
    "vae of bits": ("model=vae", "network=masked_mlp", "likelihood=bernoulli"),
    "vae, full posterior": ("model=vae", "network=masked_mlp", "posterior=full_gaussian", "objective=iwae"),
    "vae, network noise": ("model=vae", "network=masked_mlp", "noise=network"),
    "autoencoder": ("model=autoencoder", "network=masked_mlp"),
    "linear vae": ("model=linear_vae", "network=masked_mlp"),
    "linear autoencoder": ("model=linear_autoencoder", "network=masked_mlp"),
}
REFUSED = {
    "closed form": (("model=ppca", "fit=closed_form"), "fit=em"),
    "closed form of pca": (("model=pca",), "fit=em"),
    "closed form of bits": (("model=bernoulli",), "fit=em"),
    **{
        f"{model} without a mask": ((f"model={model}",), "masked_mlp")
        for model in ("vae", "autoencoder", "linear_vae", "linear_autoencoder")
    },
}


def small(*overrides: str) -> tuple[LatentVariableModel, Any]:
    """A model of the command line in 6 dimensions, and its way of learning."""
    size = ("num_components=3",) if any(name in "".join(overrides) for name in ("mixture",)) else ()
    network = ("network.encoder.sizes=[8]",) if "network=masked_mlp" in overrides else ()
    torch.manual_seed(0)
    config = zoo.composed(*overrides, "data=table", "data.path=x.npy", "data.dim=6", "latent_dim=2", *size, *network)
    return instantiate(config.model), instantiate(config.fit)


def gapped(bits: bool) -> InMemory:
    """Rows of which every part has an empty one, and all an empty column."""
    x = rows(120).round() if bits else rows(120)
    x[::4], x[:, 2] = NAN, NAN
    return InMemory(x, missing=Missing(0.2), batch_size=20)


@pytest.mark.parametrize("name", EVERY)
def test_a_whole_row_and_a_whole_column_missing_leave_finite_numbers(name: str) -> None:
    model, fit = small(*EVERY[name])
    data = gapped("bits" in name or "bernoulli" in name)
    found = learn(model, fit, data, max_epochs=2, **QUIET)
    assert all(np.isfinite(value) for value in found.values()), found
    assert "test/imputation_rmse" in found
    with torch.no_grad():
        x = data.part("test").x
        empty = x.isnan().all(1)
        assert empty.any()
        filled = model.impute(x)
        assert filled.mean.isfinite().all()
        assert filled.std is None or filled.std.isfinite().all()
        assert model.encode(x).isfinite().all()
        assert model.reconstruct(x).isfinite().all()
        if model.is_exact:
            torch.testing.assert_close(model.log_prob(x)[empty], torch.zeros(int(empty.sum()), dtype=torch.float64), atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_learn_from_holes_says_what_can(name: str) -> None:
    overrides, words = REFUSED[name]
    model, fit = small(*overrides)
    with pytest.raises(ValueError, match=words):
        learn(model, fit, gapped("bits" in name), max_epochs=1, **QUIET)


# Digits with 30% of their entries hidden, end to end


@pytest.fixture(scope="module")
def digits() -> InMemory:
    """Five hundred of them: a full covariance costs the inverse of a matrix for each row."""
    data = InMemory(Digits().part("train").x[:500], missing=Missing(0.3))
    data.setup()
    return data


DIGITS = {
    "pca": (lambda: lowerbound.pca(64, 8), 10),
    "ppca": (lambda: lowerbound.ppca(64, 12), 8),
    "factor_analysis": (lambda: lowerbound.factor_analysis(64, 12), 8),
    "mixture": (lambda: lowerbound.gaussian_mixture(64, 10, Diagonal(10, 64)), 15),
    "gaussian": (lambda: lowerbound.gaussian(64), 4),
}


@pytest.mark.parametrize("name", DIGITS)
def test_digits_are_filled_in_better_than_by_means_and_have_their_exact_density(name: str, digits: InMemory) -> None:
    make, epochs = DIGITS[name]
    torch.manual_seed(0)
    model = make()
    found = learn(model, EMFit, digits, max_epochs=epochs, **QUIET)
    x, truth = digits.part("test").x.double(), digits.unhidden("test").double()
    means = SimpleImputer().fit(digits.part("train").x.numpy()).transform(x.numpy())
    error = np.sqrt(((means - truth.numpy())[np.isnan(x.numpy())] ** 2).mean())
    assert found["test/imputation_rmse"] < 0.85 * error
    if model.is_exact:
        shown = x[:40]
        with torch.no_grad():
            np.testing.assert_allclose(model.log_prob(shown), dense_marginal(model, shown.numpy()), rtol=0, atol=1e-8)


def dense_marginal(model: LatentVariableModel, x: np.ndarray) -> np.ndarray:
    """log p of the observed entries of each row, of the dense Gaussian or mixture that the model is."""
    likelihood = model.likelihood
    if hasattr(likelihood, "weight"):
        means, covariances = likelihood.bias.detach()[None].numpy(), likelihood.covariance.detach()[None].numpy()
        weights = np.ones(1)
    else:
        means, weights = likelihood.mean.detach().numpy(), model.prior.logits.detach().softmax(0).numpy()
        identity = torch.eye(len(means), dtype=torch.float64)
        p = likelihood(identity)
        covariances = (p.covariance_matrix if isinstance(p, DenseNormal) else torch.diag_embed(p.variance)).detach().numpy()
    densities = []
    for row in x:
        seen = ~np.isnan(row)
        blocks = [(m[seen], c[np.ix_(seen, seen)]) for m, c in zip(means, covariances, strict=True)]
        logs = [stats.multivariate_normal(*block).logpdf(row[seen]) for block in blocks]
        densities.append(np.logaddexp.reduce(np.log(weights) + logs))
    return np.array(densities)


# Pictures and studies


def fitted(model: LatentVariableModel, data: Any, folder: Path, callbacks: list[Any], epochs: int = 1) -> tuple[Trainer, GradientFit]:
    fit = GradientFit(model)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "default_root_dir": folder}
    trainer = Trainer(max_epochs=epochs, callbacks=callbacks, **quiet, **QUIET)
    trainer.fit(fit, datamodule=data)
    return trainer, fit


@pytest.mark.parametrize(("shape", "hides"), [(None, True), ((1, 2, 3), True), ((1, 2, 3), False)])
def test_pictures_of_data_with_holes(shape: tuple[int, ...] | None, hides: bool, tmp_path: Path) -> None:
    x = rows()
    x[::5, 1] = NAN
    pictures = Pictures()
    data = InMemory(x, shape=shape, missing=Missing(0.3 if hides else 0.0))
    pictures.draw(*fitted(masked_vae(), data, tmp_path, [pictures]))
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    common = {"reconstructions", "latent_plane", "samples", "kl_per_dimension", "interpolation", "latent_traversal"}
    assert drawn == common | ({"filled_in"} if hides else set())


STUDIES = {
    "brute force": BruteForce(points=(5, 9), num_samples=(1, 5), num_data=10),
    "gradient variance": GradientVariance(repeats=3, num_data=10),
    "amortization": AmortizationGap(num_data=8, num_samples=20, points=9, steps=3, training_steps=40, batch_size=8),
    "dead areas": DeadAreas(num_draws=20, num_images=4),
    "noise scale": NoiseScale(),
    "decoder units": DecoderUnits(num_images=4),
}


@pytest.mark.parametrize("name", STUDIES)
def test_studies_of_data_with_holes_give_finite_numbers(name: str, tmp_path: Path) -> None:
    study: Study = STUDIES[name]
    data = InMemory(rows(90), missing=Missing(0.3), shape=(1, 2, 3))
    trainer, fit = fitted(masked_vae(), data, tmp_path, [study])
    numbers = study.conclude(trainer, fit)
    assert numbers
    assert all(np.isfinite(value) for value in numbers.values()), numbers
    assert numbers.get("study/squared_error", 1.0) > 0


def test_what_was_never_observed_is_said() -> None:
    x = torch.rand(50, 4)
    assert not list(never_observed(x.split(7)))
    x[3] = torch.nan
    (sentence,) = never_observed(x.split(7))
    assert sentence.startswith("1 of 50 training rows hold no observed entry")
    x[:, 2] = torch.nan
    columns, _ = never_observed(x.split(7))
    assert columns.startswith("column 2 (counted from 0) is never observed")


def test_a_fit_says_what_was_never_observed() -> None:
    x = np.random.default_rng(0).normal(size=(60, 4))
    x[:, 1] = np.nan
    fit = lowerbound.EMFit(lowerbound.ppca(4, 2), tolerance=0.1)
    with pytest.warns(Remark, match="column 1"):
        Trainer(max_epochs=3, logger=False, enable_checkpointing=False, enable_model_summary=False, **QUIET).fit(
            fit, datamodule=InMemory(x)
        )
    assert any("column 1" in remark for remark in fit.remarks)
