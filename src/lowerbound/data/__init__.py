"""Data: sources, their preparation, and the loaders that hand them out."""

from lowerbound.data.batches import EvaluationBatches, TensorBatches
from lowerbound.data.images import Digits, TorchvisionImages
from lowerbound.data.missing import Missing
from lowerbound.data.module import TensorDataModule
from lowerbound.data.prepare import Preparation
from lowerbound.data.source import Part, Source
from lowerbound.data.synthetic import BernoulliMixtureData, LinearGaussianData, MixtureData
from lowerbound.data.tables import InMemory, Table

__all__ = [
    "BernoulliMixtureData",
    "Digits",
    "EvaluationBatches",
    "InMemory",
    "LinearGaussianData",
    "Missing",
    "MixtureData",
    "Part",
    "Preparation",
    "Source",
    "Table",
    "TensorBatches",
    "TensorDataModule",
    "TorchvisionImages",
]
