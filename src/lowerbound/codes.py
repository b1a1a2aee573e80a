"""What codes are good for: one use of a dimension reduction, measured.

Codes are posterior means; in the case of PCA, projections. They are made without labels, and neighbours among them are asked for labels.
"""

from __future__ import annotations

from typing import final

import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from lowerbound import plots
from lowerbound.data.module import TensorDataModule
from lowerbound.errors import whole
from lowerbound.fit import Fit
from lowerbound.studies import Answer, Study, copied, rows_of


def knn_accuracy(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, neighbors: int) -> float:
    """The share of test rows ``[M, L]`` whose label is that of most of the nearest training rows ``[N, L]``."""
    classifier = KNeighborsClassifier(neighbors).fit(train.cpu().numpy(), labels.cpu().numpy())
    return float(classifier.score(test.cpu().numpy(), truth.cpu().numpy()))


def probe_accuracy(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> float:
    """The share of test rows ``[M, L]`` whose label a logistic regression on training rows ``[N, L]``, each column standardized, finds."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(train.cpu().numpy(), labels.cpu().numpy())
    return float(classifier.score(test.cpu().numpy(), truth.cpu().numpy()))


@final
class LabelledCodes(Study):
    """The codes of test data in a plane, by label, and how often the labels of the `neighbors` nearest training codes are right.

    Beside it the same of the data themselves, all D numbers of them.
    """

    name = "labelled_codes"

    def __init__(self, neighbors: int = 5) -> None:
        self.neighbors = whole(neighbors, "neighbors")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse data without labels.

        Raises:
            ValueError: there are none.
        """
        super().on_fit_start(trainer, pl_module)
        data = getattr(trainer, "datamodule", None)
        assert isinstance(data, TensorDataModule)
        if data.part("train", 1).labels is None:
            raise ValueError(
                "LabelledCodes asks neighbours for their labels, and these data have none: choose data=digits, or set data.labels"
            )

    @torch.no_grad()
    def answer(self, fit: Fit, data: TensorDataModule) -> Answer:
        """Encode, and ask the neighbours."""
        model = copied(fit)
        labels, truth = data.part("train").labels, data.part("test").labels
        assert labels is not None
        assert truth is not None
        train, test = (rows_of(data, part, model) for part in ("train", "test"))
        codes = model.encode(test)  # [M, L]
        accuracy = knn_accuracy(model.encode(train), labels, codes, truth, self.neighbors)
        numbers = {
            "knn_accuracy": accuracy,
            "data_accuracy": knn_accuracy(train, labels, test, truth, self.neighbors),
            "squared_error": (test - model.reconstruct(test)).square().sum(-1).mean().item(),
        }
        figure = plots.latent_plane(codes, truth)
        title = f"{model.latent_dim} of {model.data_dim} numbers: {100 * accuracy:.1f}% right by {self.neighbors} neighbours"
        figure.axes[0].set_title(title, fontsize=10, loc="left")
        return Answer(numbers, figure)
