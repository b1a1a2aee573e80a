"""Networks: functions of z or x to the numbers that a distribution needs.

A configuration holds a network as a recipe, a constructor that lacks only `outputs`, because only the distribution
that uses it knows how many numbers it takes. Every network maps ``[..., inputs]`` to ``[..., outputs]``. One whose inputs may be
missing (NaN) says so by an attribute ``accepts_missing = True``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from lowerbound.errors import sizes as checked
from lowerbound.errors import whole

Recipe = Callable[[int], nn.Module]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
}


def activation_module(name: str) -> nn.Module:
    """The activation of that name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r} is unknown: one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class Linear(nn.Module):
    """One affine map, x -> W x + b."""

    def __init__(self, outputs: int, *, inputs: int) -> None:
        super().__init__()
        whole(inputs, "inputs")
        whole(outputs, "outputs")
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., inputs]`` to ``[..., outputs]``."""
        return self.linear(x)


class MLP(nn.Module):
    """A multi-layer perceptron with hidden layers of the given sizes."""

    def __init__(self, outputs: int, *, inputs: int, sizes: Sequence[int], activation: str = "relu") -> None:
        super().__init__()
        widths = [whole(inputs, "inputs"), *checked(sizes, "network.encoder.sizes")]
        hidden = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), activation_module(activation))]
        self.layers = nn.Sequential(*hidden, nn.Linear(widths[-1], outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., inputs]`` to ``[..., outputs]``."""
        return self.layers(x)


class MLPDecoder(nn.Module):
    """An `MLP` with the hidden layers of its encoder in reverse order: `sizes` are stated once, from the data's side."""

    def __init__(self, outputs: int, *, inputs: int, sizes: Sequence[int], activation: str = "relu") -> None:
        super().__init__()
        self.network = MLP(outputs, inputs=inputs, sizes=checked(sizes, "network.encoder.sizes")[::-1], activation=activation)

    def forward(self, z: Tensor) -> Tensor:
        """``[..., inputs]`` to ``[..., outputs]``."""
        return self.network(z)


class MaskedMLP(nn.Module):
    """An `MLP` of [x, m] for x with missing entries (NaN): 0 in their place, and m is 1 where x is observed, else 0."""

    accepts_missing = True

    def __init__(self, outputs: int, *, inputs: int, sizes: Sequence[int], activation: str = "relu") -> None:
        super().__init__()
        self.network = MLP(outputs, inputs=2 * whole(inputs, "inputs"), sizes=sizes, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., inputs]`` to ``[..., outputs]``."""
        missing = x.isnan()
        return self.network(torch.cat([x.masked_fill(missing, 0.0), (~missing).to(x)], -1))  # [..., 2 inputs]


def takes_missing(network: nn.Module) -> bool:
    """Whether a network says that its inputs may hold NaN, by an attribute `accepts_missing`."""
    return getattr(network, "accepts_missing", None) is True


def image_shape(shape: Sequence[int] | None) -> tuple[int, int, int]:
    """The shape ``[C, H, W]`` of images that a convolutional network takes.

    Raises:
        ValueError: there is no shape, or its sizes are outside what was tested: 8 to 64 pixels, 1 or 3 channels.
    """
    if shape is None or len(shape) != 3:
        raise ValueError(f"a convolutional network needs images, and data.shape is {shape}: set data.shape=[C,H,W] or choose network=mlp")
    channels, height, width = (int(size) for size in shape)
    if channels not in (1, 3) or not (8 <= height <= 64 and 8 <= width <= 64):
        raise ValueError(f"data.shape={list(shape)}: network=conv takes 1 or 3 channels and 8 to 64 pixels each way; choose network=mlp")
    return channels, height, width


def halved(size: int, times: int) -> list[int]:
    """The sizes that strided convolutions see: each is half the one before, rounded up."""
    sizes = [size]
    for _ in range(times):
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


class ConvEncoder(nn.Module):
    """Strided 3 x 3 convolutions, each halving the image, then a linear layer."""

    def __init__(self, outputs: int, *, shape: Sequence[int] | None, channels: Sequence[int], activation: str = "relu") -> None:
        super().__init__()
        self.shape = image_shape(shape)
        widths = [self.shape[0], *checked(channels, "network.encoder.channels")]
        layers = [nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), activation_module(activation)) for a, b in pairwise(widths)]
        height, width = (halved(size, len(channels))[-1] for size in self.shape[1:])
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * height * width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C * H * W]`` to ``[..., outputs]``."""
        h = self.layers(x.reshape(-1, *self.shape))  # [N, outputs]
        return h.reshape(*x.shape[:-1], h.shape[-1])


class ConvDecoder(nn.Module):
    """A linear layer, then transposed 3 x 3 convolutions that undo the sizes of `ConvEncoder`."""

    def __init__(
        self, outputs: int, *, inputs: int, shape: Sequence[int] | None, channels: Sequence[int], activation: str = "relu"
    ) -> None:
        super().__init__()
        _, height, width = image_shape(shape)
        if outputs % (height * width):
            raise ValueError(f"a convolutional decoder writes whole images: {outputs} outputs are no multiple of {height} x {width} pixels")
        widths = [*reversed(checked(channels, "network.encoder.channels")), outputs // (height * width)]
        sizes = list(zip(halved(height, len(channels)), halved(width, len(channels)), strict=True))[::-1]
        layers: list[nn.Module] = [nn.Linear(inputs, widths[0] * prod(sizes[0])), nn.Unflatten(-1, (widths[0], *sizes[0]))]
        for (a, b), (height, width) in zip(pairwise(widths), sizes[1:], strict=True):
            # A size that was odd comes back as 2 h - 1, an even one as 2 h.
            padding = (1 - height % 2, 1 - width % 2)
            layers += [activation_module(activation), nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=padding)]
        self.layers = nn.Sequential(*layers, nn.Flatten())

    def forward(self, z: Tensor) -> Tensor:
        """``[..., inputs]`` to ``[..., outputs]``."""
        h = self.layers(z.reshape(-1, z.shape[-1]))  # [N, outputs]
        return h.reshape(*z.shape[:-1], h.shape[-1])
