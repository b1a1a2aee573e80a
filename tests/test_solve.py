"""Closed forms on real fits: against scikit-learn, by every route, over ranks, from any loader, and what is refused."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lowerbound
import worker_of_sums
from lowerbound.data import InMemory, Table
from lowerbound.em import EMFit
from lowerbound.fit import Fit
from lowerbound.gradient import GradientFit
from lowerbound.model import LatentVariableModel
from lowerbound.solve import ClosedFormFit
from lowerbound.statistics import Triangle
from processes import two_ranks

D, L = 6, 2


def toy(count: int = 60, dim: int = D, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(3, dim, generator=generator, dtype=torch.float64)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64) @ mixing
    return x + 0.3 * torch.randn(count, dim, generator=generator, dtype=torch.float64) + 2


def model_of(kind: str = "ppca", dim: int = D, seed: int = 0) -> LatentVariableModel:
    torch.manual_seed(seed)
    return getattr(lowerbound, kind)(dim, L)


def trainer(**options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(**({"accelerator": "cpu", "max_epochs": 3, "num_sanity_val_steps": 0} | quiet | options))


def fitted(fit: Fit, x: Tensor | pl.LightningDataModule | None = None, **options: Any) -> pl.Trainer:
    """The trainer after a fit to rows, or to a data module."""
    runner = trainer(**options)
    runner.fit(fit, datamodule=x if isinstance(x, pl.LightningDataModule) else InMemory(toy() if x is None else x, batch_size=8))
    return runner


def loader(x: Tensor, batch_size: int = 7) -> DataLoader:
    return DataLoader(TensorDataset(x), batch_size=batch_size)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def scikit(x: np.ndarray) -> PCA:
    """scikit-learn's PCA with variances over n, and with the noise of all D - L directions, also those that the rows do not span."""
    found, (n, dim) = PCA(L, svd_solver="full").fit(x), x.shape
    found.explained_variance_ = found.explained_variance_ * (n - 1) / n
    found.noise_variance_ *= (n - 1) / n * (min(n, dim) - L) / (dim - L)
    return found


# The maximum


@pytest.mark.parametrize("method", ["auto", "eigen", "svd"])
@pytest.mark.parametrize("dim", [D, 80])
def test_the_fit_is_that_of_scikit_learn(method: str, dim: int) -> None:
    """Also with more dimensions than rows."""
    x = toy(dim=dim)
    data, fit = InMemory(x), ClosedFormFit(model_of(dim=dim), method)
    runner = fitted(fit, data)
    found = scikit(data.part("train").x.numpy())
    assert runner.global_step == fit.clock.now == runner.current_epoch == 1
    assert fit.rows_seen == data.count("train")
    for part in ("train", "val"):
        expected = found.score(data.part(part).x.numpy())
        assert runner.callback_metrics[f"{part}/log_evidence"].item() == pytest.approx(expected, abs=1e-9)
    assert found.score_samples(x.numpy()) == pytest.approx(fit.model.log_prob(x).detach().numpy(), abs=1e-9)


@pytest.mark.parametrize("method", ["auto", "eigen", "svd"])
def test_pca_reports_its_squared_error(method: str) -> None:
    data, fit = InMemory(toy()), ClosedFormFit(model_of("pca"), method)
    runner = fitted(fit, data)
    for part in ("train", "val"):
        x = data.part(part).x.numpy()
        found = PCA(L).fit(data.part("train").x.numpy())
        error = ((x - found.inverse_transform(found.transform(x))) ** 2).sum(1).mean()
        expected = -(error + D * np.log(2 * np.pi)) / 2
        assert runner.callback_metrics[f"{part}/reconstruction"].item() == pytest.approx(expected, abs=1e-9)
        assert f"{part}/kl" not in runner.callback_metrics


def test_auto_takes_singular_vectors_where_rows_are_few() -> None:
    """In float64 both give the same model; the factor of 42 rows in 80 dimensions is a third of the moments."""
    few, many = ClosedFormFit(model_of(dim=80)), ClosedFormFit(model_of())
    fitted(few, toy(dim=80))
    fitted(many, toy())
    assert few._kind.__name__ == "Triangle"
    assert many._kind.__name__ == "Moments"


@pytest.mark.parametrize("kind", ["ppca", "pca"])
def test_a_start_changes_nothing_and_so_does_the_seed(kind: str) -> None:
    one, other, none = ClosedFormFit(model_of(kind)), ClosedFormFit(model_of(kind, seed=1)), ClosedFormFit(model_of(kind), start=None)
    for fit in (one, other, none):
        fitted(fit)
    assert same(one.model, other.model)
    assert same(one.model, none.model)


def test_a_fit_of_the_same_model_again_gives_the_same_bits() -> None:
    fit = ClosedFormFit(model_of())
    fitted(fit)
    before = {name: value.clone() for name, value in fit.model.state_dict().items()}
    runner = fitted(fit)
    assert all(torch.equal(value, before[name]) for name, value in fit.model.state_dict().items())
    assert runner.global_step == fit.clock.now == 1


def test_float32_rows_are_summed_in_float64() -> None:
    """What float32 holds of the rows is fitted to the 1e-6 of products in float32, in a block."""
    x = toy(500).float()
    one, other = ClosedFormFit(model_of()), ClosedFormFit(model_of())
    fitted(one, x)
    fitted(other, x.double())
    torch.testing.assert_close(one.model.likelihood.weight, other.model.likelihood.weight, atol=1e-5, rtol=0)
    assert one.model.likelihood.weight.dtype == torch.float64


# Any loader


class Stream(IterableDataset):
    """Rows that do not say how many they are."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self):
        return iter(self.x)


EM = partial(EMFit, tolerance=0.0, steps_per_execution=5, start=None)


@pytest.mark.parametrize("kind", ["list", "stream"])
@pytest.mark.parametrize("make", [ClosedFormFit, partial(ClosedFormFit, method="svd"), EM])
def test_a_loader_of_the_users_gives_the_fit_of_a_data_module(make, kind: str) -> None:
    module, one, other = InMemory(toy()), make(model_of()), make(model_of())
    runner, again = fitted(one, module), trainer()
    x, val = module.part("train").x, module.part("val").x
    again.fit(other, DataLoader(Stream(x), batch_size=7) if kind == "stream" else loader(x), loader(val))
    for key in ("train/log_evidence", "val/log_evidence", "step"):
        assert again.callback_metrics[key].item() == pytest.approx(runner.callback_metrics[key].item(), abs=1e-10)
    assert other.num_data == len(x)


@pytest.mark.parametrize("make", [ClosedFormFit, EM])
def test_only_as_many_batches_as_the_trainer_allows_are_taken(make) -> None:
    x = toy()
    x[14:] = torch.nan  # not looked at
    one, other = make(model_of()), make(model_of())
    trainer(limit_train_batches=2).fit(one, loader(x), loader(x[:14]))
    trainer().fit(other, loader(x[:14]), loader(x[:14]))
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], value, atol=1e-10, rtol=0)


@pytest.mark.parametrize("make", [ClosedFormFit, EM])
def test_integers_of_a_loader_are_data_like_any_others(make) -> None:
    x = (10 * toy()).round()
    one, other = make(model_of()), make(model_of())
    trainer().fit(one, loader(x.int()), loader(x.int()))
    trainer().fit(other, loader(x), loader(x))
    assert same(one.model, other.model)


# What is refused


def test_missing_entries_have_no_closed_form() -> None:
    """Also if a loader of the user's hands them out last, after rows that have none."""
    x = toy()
    x[-1, 0] = torch.nan
    for data in (InMemory(x, split_seed=1), InMemory(x, split_seed=2)):
        if data.part("train").x.isnan().any():
            with pytest.raises(ValueError, match="missing entries .NaN., and so no closed form; choose fit=em or fit=gradient"):
                fitted(ClosedFormFit(model_of()), data)
    with pytest.raises(ValueError, match="missing entries .NaN., and so no closed form; choose fit=em or fit=gradient"):
        trainer().fit(ClosedFormFit(model_of()), loader(x), loader(x[:5]))


@pytest.mark.parametrize("make", [ClosedFormFit, EMFit, partial(EMFit, update="batch")])
def test_infinite_values_are_refused(make) -> None:
    x = toy()
    x[-1, 0] = torch.inf
    with pytest.raises(ValueError, match="infinite values cannot be prepared; a missing entry is NaN"):
        fitted(make(model_of()), x)
    with pytest.raises(ValueError, match="1 infinite values: remove them, or write NaN"):
        trainer().fit(make(model_of()), loader(x), loader(x[:5]))


def test_models_without_a_closed_form_are_refused() -> None:
    for kind in ("vae", "linear_vae", "linear_autoencoder"):
        with pytest.raises(ValueError, match="has no closed form; choose fit=em or fit=gradient, or model=pca, ppca or gaussian"):
            ClosedFormFit(model_of(kind))
    with pytest.raises(ValueError, match="factor analysis .noise=per_dimension. has no closed form: choose fit=em, or noise=shared"):
        fitted(ClosedFormFit(model_of("factor_analysis")))


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="fit.method='qr' is unknown: auto, eigen or svd"):
        ClosedFormFit(model_of(), "qr")


def test_fewer_rows_than_components_are_refused() -> None:
    x = toy(4)
    with pytest.raises(ValueError, match="2 training rows span at most 1 directions: latent_dim=2 must be lower"):
        fitted(ClosedFormFit(model_of()), InMemory(x, val_fraction=0.25, test_fraction=0.25))


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
@pytest.mark.parametrize("make", [ClosedFormFit, EMFit])
def test_precisions_that_a_solution_does_not_have_are_refused(make, precision: str) -> None:
    if precision == "16-mixed":  # which Lightning takes for bf16-mixed on a CPU, and says so
        with pytest.warns(UserWarning, match="not supported on CPU"), pytest.raises(ValueError, match="trainer.precision=bf16-mixed"):
            fitted(make(model_of()), precision=precision)
        return
    with pytest.raises(
        ValueError, match=f"trainer.precision={precision}: .*Fit solves in float64; set trainer.precision=32-true or 64-true"
    ):
        fitted(make(model_of()), precision=precision)


@pytest.mark.parametrize("kind", ["ppca", "linear_vae"])
def test_a_float64_model_is_not_trained_in_a_mixed_precision_that_would_do_nothing(kind: str) -> None:
    with pytest.raises(ValueError, match="trainer.precision=bf16-mixed has no effect on this model, which computes in float64"):
        fitted(GradientFit(model_of(kind)), precision="bf16-mixed")


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_whole_precisions_give_the_same_bits(precision: str) -> None:
    one, other = ClosedFormFit(model_of()), ClosedFormFit(model_of())
    fitted(one, precision=precision)
    fitted(other)
    assert same(one.model, other.model)


def test_half_precision_is_for_networks_in_float32() -> None:
    """The refusal is of float64 alone."""
    runner = fitted(GradientFit(lowerbound.vae(D, L, sizes=[8])), toy().float(), precision="bf16-mixed", max_epochs=1)
    assert runner.callback_metrics["val/elbo"].isfinite()


# Edges


def test_duplicate_rows_count_as_often_as_they_are_there() -> None:
    x = toy(30)
    one, other = ClosedFormFit(model_of()), ClosedFormFit(model_of())
    trainer().fit(one, loader(x), loader(x))
    trainer().fit(other, loader(torch.cat([x, x])), loader(x))
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], value, atol=1e-10, rtol=0)


@pytest.mark.parametrize("method", ["eigen", "svd"])
def test_rows_on_a_plane_are_fitted_at_the_floor_and_said_so(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, L, generator=generator).double() @ torch.randn(L, D, generator=generator).double()
    x[:, 3] = 7.0  # and a constant column
    fit = ClosedFormFit(model_of(), method)
    runner = fitted(fit, x)
    sentence = fit.model.likelihood.floored()
    assert sentence is not None
    assert "1 of 1 noise scales ended at the floor noise.min_scale=0.001" in sentence
    assert runner.callback_metrics["val/log_evidence"].isfinite()


# Law 12


@pytest.mark.parametrize("method", ["eigen", "svd"])
def test_a_resumed_fit_has_the_bits_of_an_uninterrupted_one(tmp_path: Path, method: str) -> None:
    """The one epoch that there is done, there is nothing left to do, and nothing is."""
    fit = ClosedFormFit(model_of(), method)
    runner = fitted(fit)
    runner.save_checkpoint(tmp_path / "last.ckpt")
    resumed, again = ClosedFormFit(model_of(seed=3), method), trainer()
    again.fit(resumed, datamodule=InMemory(toy(), batch_size=8), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert again.global_step == 1
    again.validate(resumed, datamodule=InMemory(toy(), batch_size=8), verbose=False)
    assert again.callback_metrics["val/log_evidence"] == runner.callback_metrics["val/log_evidence"]
    assert same(fit.model, resumed.model)


# Law 6 over ranks


@pytest.fixture(scope="module")
def ranks(processes: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks make of every fit of `worker_of_sums.py`, in one launch."""
    folder = tmp_path_factory.mktemp("sums")
    two_ranks(processes, worker_of_sums.__file__, folder, 2)
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.process
@pytest.mark.parametrize("name", worker_of_sums.FITS)
def test_two_ranks_find_what_one_finds(ranks: list[dict[str, Any]], name: str) -> None:
    """With 19 and 18 rows; sums in another order, and nothing else. The two are equal to the last bit."""
    alone, (first, second) = worker_of_sums.fitted(name, 1), (rank[name] for rank in ranks)
    assert alone["steps"] == first["steps"] == second["steps"]
    for key, value in alone["state"].items():
        assert torch.equal(first["state"][key], second["state"][key])
        torch.testing.assert_close(first["state"][key], value, atol=1e-12, rtol=1e-12)
    for key, value in alone["metrics"].items():
        assert first["metrics"][key] == pytest.approx(value, rel=1e-12), key


# Memory


def anonymous() -> float:
    """The memory of this process that is no file's, in MB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


def peak_of(fit: Fit, path: Path) -> float:
    """What a fit to a mapped file takes at most beyond what was taken before, in MB."""
    seen, done = [before := anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        fitted(fit, Table(path=str(path), dim=256, memory_map=True), max_epochs=1)
    finally:
        done.set()
        watcher.join()
    return max(seen) - before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read from /proc")
def test_the_memory_of_the_moments_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """A mapped file of 480 MB takes less than half of that beyond the file: what is allocated for the first time, and the moments."""
    block, path, blocks = np.random.default_rng(0).normal(size=(1000, 256)).astype(np.float32), tmp_path / "rows.npy", 480
    table = np.lib.format.open_memmap(path, "w+", np.float32, (1000 * blocks, 256))
    for index in range(blocks):
        table[1000 * index : 1000 * (index + 1)] = block
    table.flush()
    for kind, fit in (("pca", ClosedFormFit), ("factor_analysis", EMFit)):
        assert peak_of(fit(model_of(kind, dim=256)), path) < 240, kind


@pytest.mark.parametrize(("count", "route"), [(D, "Triangle"), (D + 1, "Moments")])
def test_auto_takes_singular_vectors_up_to_as_many_rows_as_dimensions(count: int, route: str) -> None:
    fit, x = ClosedFormFit(model_of()), toy(count)
    trainer().fit(fit, loader(x), loader(x))
    assert fit._kind.__name__ == route


def test_ranks_with_different_numbers_of_few_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors of 5 and 3 rows of 20 numbers: the shorter one is filled up, and nothing is cut off."""
    x = torch.randn(8, 20, generator=torch.Generator().manual_seed(0)).double() + 3
    parts = [Triangle.of(x[:5]), Triangle.of(x[5:])]
    gathered = {0: lambda _: torch.tensor([5, 3]), 1: lambda _: torch.stack([part.offset for part in parts])}
    gathered[2] = lambda own: torch.stack([part.padded(len(own)).factor for part in parts])
    fit = ClosedFormFit(lowerbound.ppca(20, L), "svd")
    monkeypatch.setattr(fit, "_of_ranks", lambda tensor: gathered[tensor.ndim](tensor))
    for own in parts:
        found, alone = fit._all(own), Triangle.of(x)
        torch.testing.assert_close(found.count, alone.count)
        torch.testing.assert_close(found.mean, alone.mean, atol=1e-12, rtol=0)
        torch.testing.assert_close(found.centred.T @ found.centred, alone.centred.T @ alone.centred, atol=1e-10, rtol=0)
