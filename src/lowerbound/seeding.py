"""Where the components of a mixture begin, and where those begin again that have lost all their data."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

TRIES, STEPS = 5, 10  # ten separate clusters in ten dimensions were found by 96% of starts; by 70% with one try


def centres(x: Tensor, count: int) -> Tensor:
    """`count` means ``[count, D]`` of rows x ``[n, D]``, missing entries taken as column means.

    By k-means, a few steps from each of some draws of k-means++ (Arthur & Vassilvitskii 2007), of which the best is kept.

    Raises:
        ValueError: there are fewer rows than that.
    """
    from sklearn.cluster import KMeans  # here, so that no other model waits for it
    from sklearn.exceptions import ConvergenceWarning

    if len(x) < count:
        raise ValueError(f"num_components={count} needs as many training rows, and there are {len(x)}")
    filled = torch.where(x.isnan(), x.nanmean(0).nan_to_num(0.0), x)
    state = int(torch.randint(2**31, ()))
    search = KMeans(count, n_init=TRIES, max_iter=STEPS, random_state=state)  # pyright: ignore[reportArgumentType] a number too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than components
        return torch.from_numpy(search.fit(filled.cpu().numpy()).cluster_centers_).to(x)


def directions(mean: Tensor) -> Tensor:
    """K unit vectors ``[K, D]``, the same at every call and on every rank."""
    drawn = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (drawn / drawn.norm(dim=1, keepdim=True)).to(mean)
