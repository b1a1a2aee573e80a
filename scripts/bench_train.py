"""Images per second of `GradientFit` against a bare PyTorch loop, on MNIST.

The same networks (784-512-10, Bernoulli), Adam, batches of 128 from memory, float32; all logging on in `GradientFit`. The two
take turns, an epoch each, in one process; the figure is the ratio of the medians of images per second in training.

    python scripts/bench_train.py [--root DATA] [--epochs 7] [--precision bf16-mixed] [--device cuda]
"""

from __future__ import annotations

import argparse
import tempfile
from statistics import median
from time import perf_counter
from typing import Any

import lowerbound  # isort: skip  before lightning, whose import it mends beside a CPU build of torch
import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from lowerbound.callbacks import BestWeights, LastCheckpoint
from lowerbound.data import TorchvisionImages
from lowerbound.data.prepare import Preparation
from lowerbound.folder import device_name
from lowerbound.tracking import MetricsFile

BATCH, HIDDEN, LATENT = 128, 512, 10


class BareLoop:
    """What a careful researcher writes without a framework."""

    def __init__(self, x: Tensor, half: bool) -> None:
        self.x, self.half, self.losses = x, half, []
        self.encoder = nn.Sequential(nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT)).to(x.device)
        self.decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 784)).to(x.device)
        self.optimizer = torch.optim.Adam([*self.encoder.parameters(), *self.decoder.parameters()], lr=1e-3)

    def loss(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half):
            mean, log_scale = (part.float() for part in self.encoder(x).chunk(2, -1))
            logits = self.decoder(mean + log_scale.exp() * torch.randn_like(mean)).float()
        reconstruction = -binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
        kl = (mean.square() + (2 * log_scale).exp() - 2 * log_scale - 1).sum(-1) / 2
        return (kl - reconstruction).mean()

    def epoch(self) -> float:
        """Images per second of one epoch."""
        synchronize(self.x.device)
        started = perf_counter()
        for rows in torch.randperm(len(self.x), device=self.x.device).split(BATCH):
            loss = self.loss(self.x[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.detach())
        synchronize(self.x.device)
        return len(self.x) / (perf_counter() - started)


class Turns(pl.Callback):
    """Before each epoch of the fit, one of the bare loop; the fit's clock runs from its first block to its last."""

    def __init__(self, bare: BareLoop) -> None:
        self.bare, self.rates = bare, {"bare": [], "fit": []}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.rates["bare"].append(self.bare.epoch())
        self.started = perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_last_batch:
            synchronize(pl_module.device)
            self.rates["fit"].append(len(self.bare.x) / (perf_counter() - self.started))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(data: TorchvisionImages, options: argparse.Namespace, precision: str, steps: int) -> dict[str, float]:
    """Median images per second of both, the first epoch (warming up) left out."""
    turns = Turns(BareLoop(data.part("train").x.to(options.device), precision.startswith("bf16")))
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [MetricsFile(), BestWeights(), LastCheckpoint(every_seconds=10.0), turns]
        trainer = pl.Trainer(
            accelerator="gpu" if options.device == "cuda" else "cpu",
            devices=1,
            precision=precision,
            max_epochs=options.epochs + 1,
            callbacks=callbacks,
            default_root_dir=folder,
            logger=pl.loggers.CSVLogger(folder),
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_model_summary=False,
        )
        model = lowerbound.vae(784, LATENT, likelihood="bernoulli", sizes=[HIDDEN])
        trainer.fit(lowerbound.GradientFit(model, steps_per_execution=steps), datamodule=data)
    return {name: median(rates[1:]) for name, rates in turns.rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=None, help="folder that holds MNIST")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--val-fraction", type=float, default=0.1, help="the rest is an epoch")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", nargs="+", default=["32-true"])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 8], help="steps_per_execution")
    options = parser.parse_args()
    data = TorchvisionImages(
        dataset="MNIST",
        dim=784,
        root=options.root,
        batch_size=BATCH,
        val_fraction=options.val_fraction,
        test_fraction=0.0,
        prepare=Preparation(levels=256),
    )
    data.prepare_data()
    print(f"{device_name(torch.device(options.device))}, torch {torch.__version__}")
    for precision in options.precision:
        for steps in options.steps:
            rate = compare(data, options, precision, steps)
            ratio = rate["fit"] / rate["bare"]
            rates = f"GradientFit {rate['fit']:>9,.0f} images/s, bare loop {rate['bare']:>9,.0f}"
            print(f"{precision:>12}, K = {steps}: {rates}, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
