"""Every source: what it reads, what it refuses, and its YAML."""

import inspect
import os
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torchvision import datasets

from lowerbound.data import BernoulliMixtureData, Digits, InMemory, LinearGaussianData, MixtureData, Preparation, Table, TorchvisionImages

CONF = Path(__file__).parents[1] / "conf" / "data"
ROWS = np.random.default_rng(0).normal(size=(30, 4))
LABELS = np.arange(30) % 3
SIX = 6.0  # standard errors


def configured(name: str, **options):
    config = OmegaConf.create({"seed": 5, "data": OmegaConf.load(CONF / f"{name}.yaml")})
    OmegaConf.set_struct(config, True)
    for key, value in options.items():
        OmegaConf.update(config, f"data.{key.replace('__', '.')}", value, force_add=False)
    return hydra.utils.instantiate(config.data)


def read(path: Path, **options):
    return Table(path=str(path), dim=4, **options).read()


class TestArrays:
    def test_memory(self):
        for x in (ROWS, torch.from_numpy(ROWS), ROWS.tolist()):
            source = InMemory(x=x, labels=LABELS, dim=4).read()
            assert torch.equal(source.train, torch.from_numpy(ROWS))
            assert source.train_labels.tolist() == LABELS.tolist()

    def test_images_become_flat_rows_of_any_number_type(self):
        x = np.arange(48).reshape(4, 3, 2, 2)
        for kind in (np.uint8, np.int32, np.float32, np.uint16, bool, ">f4"):
            source = InMemory(x=x.astype(kind), dim=12).read()
            assert source.train.shape == (4, 12)
            assert source.train.double().tolist() == x.astype(kind).reshape(4, 12).astype(float).tolist()

    @pytest.mark.parametrize("labels", [["b", "a", "b"], [1.5, 0.5, 1.5], [True, False, True], [1.0, 0.0, 1.0]])
    def test_labels_become_class_numbers(self, labels):
        source = InMemory(x=np.zeros((3, 1)), labels=labels, dim=1).read()
        assert source.train_labels.dtype == torch.int64
        assert source.train_labels.tolist() == [1, 0, 1]

    @pytest.mark.parametrize("x", [np.zeros(3), np.zeros((3, 2), complex), np.array([["a"]])])
    def test_what_is_no_table_of_numbers_is_refused(self, x):
        with pytest.raises(ValueError, match="numbers"):
            InMemory(x=x, dim=2).read()


class TestFiles:
    def test_npy(self, tmp_path):
        np.save(tmp_path / "x.npy", ROWS.reshape(30, 2, 2))
        np.save(tmp_path / "labels.npy", LABELS)
        for memory_map in (False, True):
            source = read(tmp_path / "x.npy", labels=str(tmp_path / "labels.npy"), memory_map=memory_map)
            assert source.is_mapped == memory_map
            np.testing.assert_array_equal(source.train, ROWS)
            assert source.train_labels.tolist() == LABELS.tolist()
        assert read(tmp_path / "x.npy").train_labels is None

    def test_npz(self, tmp_path):
        np.savez(tmp_path / "x.npz", rows=ROWS, kind=LABELS)
        source = read(tmp_path / "x.npz", labels="kind")
        np.testing.assert_array_equal(source.train, ROWS)
        assert source.train_labels.tolist() == LABELS.tolist()
        np.testing.assert_array_equal(read(tmp_path / "x.npz", array="rows").train, ROWS)
        for options in ({}, {"array": "column"}, {"labels": "column", "array": "rows"}):
            with pytest.raises(ValueError, match=r"set data.(array|labels) to one of its arrays: rows, kind"):
                read(tmp_path / "x.npz", **options)

    def test_csv_with_header_and_labels(self, tmp_path):
        lines = ["width,kind,height", "1.5,cat,2", '-1e3,"dog, small",nan', " ,cat,0.25"]
        (tmp_path / "x.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
        source = read(tmp_path / "x.csv", labels="kind")
        np.testing.assert_array_equal(source.train, [[1.5, 2], [-1000, np.nan], [np.nan, 0.25]])
        assert source.train_labels.tolist() == [0, 1, 0]
        with pytest.raises(ValueError, match=r"column kind holds 'cat'.*data.labels=kind"):
            read(tmp_path / "x.csv")
        with pytest.raises(ValueError, match=r"data.labels=species is none of its columns: width, kind, height"):
            read(tmp_path / "x.csv", labels="species")

    def test_csv_without_header(self, tmp_path):
        np.savetxt(tmp_path / "x.csv", np.column_stack([ROWS, LABELS]), delimiter=",", fmt="%.17g")
        source = read(tmp_path / "x.csv", labels="4")
        np.testing.assert_array_equal(source.train, ROWS)
        assert source.train_labels.tolist() == LABELS.tolist()
        assert read(tmp_path / "x.csv").train.shape == (30, 5)

    def test_csv_with_a_short_line_is_refused(self, tmp_path):
        (tmp_path / "x.csv").write_text("1,2\n3\n")
        with pytest.raises(ValueError, match=r"data.path=.*x.csv.*row 2"):
            read(tmp_path / "x.csv")

    @pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.csv"])
    def test_a_missing_file_is_named_with_its_option(self, tmp_path, name):
        with pytest.raises(ValueError, match=rf"data.path=.*{name} cannot be read: "):
            read(tmp_path / name)

    def test_missing_labels_are_named_with_their_option(self, tmp_path):
        np.save(tmp_path / "x.npy", ROWS)
        with pytest.raises(ValueError, match=r"data.labels=.*nowhere.npy cannot be read"):
            read(tmp_path / "x.npy", labels=str(tmp_path / "nowhere.npy"))

    @pytest.mark.parametrize("memory_map", [False, True])
    def test_pickles_are_refused(self, tmp_path, memory_map):
        np.save(tmp_path / "x.npy", np.array([[print, 1]], dtype=object), allow_pickle=True)
        with pytest.raises(ValueError, match=r"data.path=.*x.npy: .*[Oo]bject"):
            read(tmp_path / "x.npy", memory_map=memory_map)
        np.savez(tmp_path / "x.npz", rows=np.array([[print]], dtype=object))
        with pytest.raises(ValueError, match=r"data.path=.*allow_pickle=False"):
            read(tmp_path / "x.npz")

    def test_options_that_do_not_fit_the_file_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"data.memory_map=true needs an .npy"):
            read(tmp_path / "x.csv", memory_map=True)
        with pytest.raises(ValueError, match=r"x.parquet is none of .npy, .npz, .csv"):
            read(tmp_path / "x.parquet")


class TestImages:
    def test_digits(self):
        module = Digits()
        parts = [module.part(name) for name in ("train", "val", "test")]
        assert sum(len(part.x) for part in parts) == 1797
        assert all(part.x.shape == (len(part.labels), 64) and 0 < part.x.min() < part.x.max() < 1 for part in parts)
        assert module.prepare.inverse(parts[0].x).unique().tolist() == list(range(17))
        with pytest.raises(ValueError, match=r"data.prepare.levels=17"):
            Digits(prepare=Preparation(levels=256)).setup()

    def test_mnist_is_what_its_files_hold(self, data_root):
        """Against the bytes of the files, whose format is four big-endian integers and then the pixels."""
        module = TorchvisionImages(dataset="MNIST", root=str(data_root), download=False, dim=784, prepare=Preparation(256))
        module.setup()
        raw = data_root / "MNIST" / "raw"
        test = np.frombuffer((raw / "t10k-images-idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(10_000, 784)
        labels = np.frombuffer((raw / "t10k-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
        part = module.part("test")
        np.testing.assert_allclose(part.x, test / 255, rtol=1e-7)
        assert part.labels.tolist() == labels.tolist()
        assert [len(module.part(name, None).labels) for name in ("train", "val")] == [54_000, 6_000]

    def test_the_folder_is_root_else_the_environment_else_data(self, monkeypatch):
        monkeypatch.setenv("LOWERBOUND_DATA", "/elsewhere")
        assert TorchvisionImages(dataset="KMNIST", dim=784, root="/here").folder == Path("/here")
        assert TorchvisionImages(dataset="KMNIST", dim=784).folder == Path("/elsewhere")
        monkeypatch.delenv("LOWERBOUND_DATA")
        assert TorchvisionImages(dataset="KMNIST", dim=784).folder == Path("data")

    @pytest.mark.parametrize("dataset", ["MNIST", "FashionMNIST", "KMNIST", "CIFAR10"])
    def test_absent_images_are_named_with_folder_and_options(self, tmp_path, dataset):
        module = TorchvisionImages(dataset=dataset, root=str(tmp_path), download=False, dim=784)
        for act in (module.setup, module.prepare_data):
            with pytest.raises(ValueError, match=rf"{dataset} is not in {tmp_path}.*\n.*data.root.*LOWERBOUND_DATA.*data.download=true"):
                act()

    def test_a_failed_download_is_told_the_same_way(self, tmp_path, monkeypatch):
        def refuse(*_, **__):
            raise OSError("no network")

        monkeypatch.setattr(datasets, "MNIST", refuse)
        with pytest.raises(ValueError, match=rf"MNIST is not in {tmp_path} \(no network\)"):
            TorchvisionImages(dataset="MNIST", root=str(tmp_path), dim=784).setup()

    def test_colours_become_channel_row_column(self, monkeypatch):
        pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)

        class Cifar:
            data, targets = pixels, [3] * 20

            def __init__(self, *_, **__) -> None: ...

        monkeypatch.setattr(datasets, "CIFAR10", Cifar)
        module = TorchvisionImages(dataset="CIFAR10", dim=3072, shape=(3, 32, 32))
        images = module.prepare.inverse(module.part("test").x).view(20, *module.shape)
        assert images[4, 2, 10, 11] == pixels[4, 10, 11, 2]

    def test_an_unknown_set_is_refused(self):
        with pytest.raises(ValueError, match=r"data.dataset=ImageNet is none of"):
            TorchvisionImages(dataset="ImageNet", dim=3)


class TestSynthetic:
    def test_linear_gaussian_moments_are_those_of_the_truth(self):
        module = LinearGaussianData(num_data=50_000, dim=4, latent_dim=2, noise_variance=[0.1, 0.5, 1.0, 2.0])
        x, (weight, bias, noise) = module.read().train, module.truth
        covariance = weight @ weight.T + noise.diag()
        assert (abs(x.mean(0) - bias) < SIX * (covariance.diagonal() / len(x)).sqrt()).all()
        variances = covariance.diagonal()
        error = ((variances[:, None] * variances + covariance**2) / len(x)).sqrt()  # of a Gaussian's sample covariance
        assert (abs(x.T.cov() - covariance) < SIX * error).all()
        assert noise.tolist() == [0.1, 0.5, 1.0, 2.0]

    def test_mixture_components_are_those_of_the_truth(self):
        module = MixtureData(num_data=40_000, dim=3, noise_variance=0.25)
        source, truth = module.read(), module.truth
        assert abs(truth.probabilities.sum() - 1) < 1e-12
        for k, (probability, mean) in enumerate(zip(truth.probabilities, truth.means, strict=True)):
            rows = source.train[source.train_labels == k]
            assert abs(len(rows) / 40_000 - probability) < SIX * (probability * (1 - probability) / 40_000) ** 0.5
            assert (abs(rows.mean(0) - mean) < SIX * 0.5 / len(rows) ** 0.5).all()
            assert (abs(rows.var(0) - 0.25) < SIX * 0.25 * (2 / len(rows)) ** 0.5).all()

    def test_bernoulli_mixture_components_are_those_of_the_truth(self):
        module = BernoulliMixtureData(num_data=40_000)
        source, truth = module.read(), module.truth
        for k, mean in enumerate(truth.means):
            rows = source.train[source.train_labels == k].double()
            assert (abs(rows.mean(0) - mean) < SIX * (mean * (1 - mean) / len(rows)).sqrt() + 1e-9).all()
        assert module.prepare.is_discrete
        assert module.part("val").x.unique().tolist() == [0, 1]

    @pytest.mark.parametrize("kind", [LinearGaussianData, MixtureData, BernoulliMixtureData])
    def test_truth_and_draws_belong_to_the_data_seed(self, kind):
        first, again, other, shuffled = kind(), kind(), kind(data_seed=1), kind(seed=1)
        assert torch.equal(first.read().train, again.read().train)
        assert torch.equal(first.read().train, first.read().train)
        assert torch.equal(first.read().train, shuffled.read().train)
        assert torch.equal(first.truth[1], again.truth[1])
        assert not torch.equal(first.truth[1], other.truth[1])
        assert not torch.equal(first.read().train, other.read().train)

    def test_noise_of_another_length_is_refused(self):
        with pytest.raises(ValueError, match=r"data.noise_variance="):
            LinearGaussianData(dim=3, noise_variance=[1.0, 2.0])


class TestConfigs:
    @pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
    def test_every_option_of_the_constructor_is_listed(self, path):
        """Struct mode: what is not listed cannot be set. Images have a test part, so test_fraction would change nothing."""
        config = OmegaConf.load(path)
        options = set(inspect.signature(hydra.utils.get_class(config._target_)).parameters)
        unused = {"test_fraction"} if "torchvision" in config._target_.lower() else set()
        assert set(config) - {"_target_"} == options - unused
        assert set(config.prepare) - {"_target_"} == set(inspect.signature(Preparation).parameters)
        assert path.read_text().startswith("# ")

    @pytest.mark.parametrize("name", ["digits", "linear_gaussian", "mixture", "bernoulli_mixture"])
    def test_embedded_data_hand_out_a_batch(self, name):
        module = configured(name)
        assert module.seed == 5
        block = next(iter(module.train_dataloader()))
        assert block.shape == (1, 128, module.dim)
        assert block.isfinite().all()

    @pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist", "cifar10"])
    def test_images_are_constructed_and_say_what_is_missing(self, name, tmp_path):
        module = configured(name, root=str(tmp_path), download=False)
        with pytest.raises(ValueError, match=f"{module.dataset} is not in"):
            module.setup()

    def test_mnist_hands_out_bits(self, data_root):
        options = {"prepare__binarize": "dynamic", "prepare__dequantize": False}
        module = configured("mnist", root=os.fspath(data_root), download=False, **options)
        block = next(iter(module.train_dataloader()))
        assert block.shape == (1, 128, 784)
        assert block.unique().tolist() == [0, 1]

    def test_a_table_of_ones_own(self, tmp_path):
        np.save(tmp_path / "x.npy", np.zeros((50, 28, 20), dtype=np.uint8))
        module = configured("table", path=str(tmp_path / "x.npy"), dim=560, shape=[1, 28, 20], prepare__levels=256)
        assert next(iter(module.train_dataloader())).shape == (1, 35, 560)
        assert module.shape == (1, 28, 20)

    def test_noise_may_be_a_list(self):
        assert configured("linear_gaussian", dim=2, noise_variance=[1, 2]).truth.noise_variance.tolist() == [1, 2]
