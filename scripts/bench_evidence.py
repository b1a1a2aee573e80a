"""Seconds of the importance-weighted bound on log p(x) of a VAE: `lowerbound.evidence` against pythae's `VAE.get_nll`.

Both have the same weights, the same 200 test images of MNIST, binarized by draws with a fixed seed, and take 1000 samples of q(z | x)
for each image. They take turns in one process; the figure is the ratio of the medians. pythae is without gradients, which it would
otherwise keep, and has a turn for each of `--batch-size`; the faster of them counts. Its `get_nll` gives the mean over the images it is
given, so it is given one at a time, as its own loop takes them. Without RUN, the folder of a finished run of
`experiment=burda2016_1layer`, the networks (784-200-200-50, tanh) are trained for `--steps` steps.

pythae is no dependency of lowerbound; version 0.1.2 works when it is installed beside it without the backport `dataclasses`:

    pip install --no-deps pythae && pip install cloudpickle imageio pydantic tqdm
    OMP_NUM_THREADS=2 python scripts/bench_evidence.py [RUN] [--root DATA] [--turns 5]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter, sleep

import lowerbound  # isort: skip  before lightning, whose import it mends beside a CPU build of torch
import torch
from torch import Tensor, nn

from lowerbound.bounds import importance_weighted_bound
from lowerbound.data import TorchvisionImages
from lowerbound.data.prepare import Preparation
from lowerbound.evidence import CHUNK, WEIGHTED_ROWS
from lowerbound.folder import device_name
from lowerbound.likelihoods import Bernoulli
from lowerbound.model import LatentVariableModel
from lowerbound.networks import MLP, MLPDecoder
from lowerbound.posteriors import DiagonalGaussian
from lowerbound.priors import StandardNormal

try:
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
except ImportError as error:
    sys.exit(f"pythae cannot be imported ({error}): pip install --no-deps pythae && pip install cloudpickle imageio pydantic tqdm")

REST = 0.1  # seconds between turns: idle threads wait busily for more work, and would take the other's processor


class Encoder(BaseEncoder):
    """The network of q(z | x), with the log-variance that pythae expects in place of the log-scale."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> ModelOutput:
        mean, log_scale = self.network(x).chunk(2, -1)
        return ModelOutput(embedding=mean, log_covariance=2 * log_scale)


class Decoder(BaseDecoder):
    """The network of p(x | z), with the probabilities that pythae expects in place of the logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.network(z).sigmoid())


def reference(model: LatentVariableModel) -> VAE:
    """pythae's VAE with the networks of a model, the same tensors."""
    encoder, decoder = model.posterior_rule, model.likelihood
    known = isinstance(encoder, DiagonalGaussian) and encoder.log_scale is None and isinstance(decoder, Bernoulli)
    if not known or not isinstance(encoder.network, MLP) or not isinstance(decoder.network, MLPDecoder):
        sys.exit("the run must be a VAE with MLPs, a Bernoulli likelihood and a diagonal posterior: experiment=burda2016_1layer is one")
    if not isinstance(model.prior, StandardNormal):
        sys.exit("the run must have the prior N(0, I), the only one that pythae's VAE has")
    config = VAEConfig(input_dim=(model.data_dim,), latent_dim=model.latent_dim, reconstruction_loss="bce")
    return VAE(config, Encoder(encoder.network), Decoder(decoder.network)).eval()


def trained(x: Tensor, steps: int) -> LatentVariableModel:
    """The model of `experiment=burda2016_1layer` after so many steps of Adam on rows of x."""
    layers = {"sizes": (200, 200), "activation": "tanh"}
    model = LatentVariableModel(
        StandardNormal(50),
        Bernoulli(partial(MLPDecoder, inputs=50, **layers), 50, 784),
        DiagonalGaussian(partial(MLP, inputs=784, **layers), 50),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        loss = -model.log_weight(x[torch.randint(len(x), (100,))].bernoulli()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def ours(model: LatentVariableModel, x: Tensor, options: argparse.Namespace) -> Tensor:
    """Nats ``[N]``."""
    return torch.cat([importance_weighted_bound(model, rows, options.samples, options.chunk) for rows in x.split(options.rows)])


@torch.no_grad()
def theirs(vae: VAE, x: Tensor, samples: int, batch_size: int) -> Tensor:
    """Nats ``[N]``."""
    return torch.tensor([vae.get_nll(row, n_samples=samples, batch_size=batch_size) for row in x.split(1)], dtype=torch.float64)


def told(values: Tensor) -> str:
    """A mean over images with its standard error."""
    return f"{values.mean():.3f} ± {values.std() / len(values) ** 0.5:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="a run folder of experiment=burda2016_1layer")
    parser.add_argument("--root", default=None, help="folder that holds MNIST")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--samples", type=int, default=1000, help="a multiple of each batch size")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[100, 1000], help="samples that pythae takes at once")
    parser.add_argument("--rows", type=int, default=WEIGHTED_ROWS, help="images that lowerbound takes at once")
    parser.add_argument("--chunk", type=int, default=CHUNK["cpu"], help="samples of each that lowerbound takes at once; likewise")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000, help="of training, where there is no run")
    options = parser.parse_args()
    if any(options.samples % size for size in options.batch_size):
        parser.error(f"--samples {options.samples} must be a multiple of each --batch-size: pythae takes whole batches")
    torch.manual_seed(0)
    data = TorchvisionImages(dataset="MNIST", dim=784, root=options.root, prepare=Preparation(levels=256))
    data.prepare_data()
    # The images are bits: of grey values, both would give the same cross-entropy, which is no log-probability.
    x = data.part("test").x[: options.images].bernoulli()
    model = lowerbound.load(options.run).model if options.run else trained(data.part("train").x, options.steps)
    vae = reference(model)
    ways: dict[str, Callable[[], Tensor]] = {"lowerbound": lambda: ours(model, x, options)}
    for size in options.batch_size:
        ways[f"pythae, batch_size {size}"] = lambda size=size: theirs(vae, x, options.samples, size)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    values: dict[str, list[Tensor]] = {name: [] for name in ways}
    print(f"{device_name(torch.device('cpu'))}, torch {torch.__version__}; {len(x)} images, {options.samples} samples", flush=True)
    for turn in range(options.turns + 1):
        for name, way in ways.items():
            sleep(REST)
            started = perf_counter()
            found = way()
            if turn:  # the first turn warms up
                seconds[name].append(perf_counter() - started)
                values[name].append(found)
    for name in ways:
        spread = f"{min(seconds[name]):.2f} to {max(seconds[name]):.2f}"
        print(f"{name:>24}: log p(x) >= {told(torch.stack(values[name]).mean(0))} nats, {median(seconds[name]):.2f} s ({spread})")
    # The standard error is over images, of the differences: both estimate the same number of each image.
    faster = min(list(ways)[1:], key=lambda name: median(seconds[name]))
    difference = torch.stack(values["lowerbound"]).mean(0) - torch.stack(values[faster]).mean(0)
    print(f"difference {told(difference)} nats; ratio of medians {median(seconds[faster]) / median(seconds['lowerbound']):.2f} ({faster})")


if __name__ == "__main__":
    main()
