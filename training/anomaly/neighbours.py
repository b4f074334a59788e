"""Nearest neighbours by cosine among many features, in blocks, so that memory stays bounded."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1 << 24
"""At most this many similarities are held at once."""


def nearest(queries: Tensor, bank: Tensor) -> Tensor:
    """The highest similarity of each query to a bank.

    Args:
        queries: (Q, C), L2-normalised.
        bank: (M, C), L2-normalised.

    Returns:
        (Q,), -1 to 1.
    """
    best = torch.full((len(queries),), -1.0, device=queries.device)
    for part in torch.split(bank, max(1, BLOCK // max(1, len(queries)))):
        best = torch.maximum(best, (queries.to(part.dtype) @ part.T).amax(dim=1).float())
    return best


def nearest_by_image(queries: Tensor, bank: Tensor) -> Tensor:
    """The highest similarity of each query to the patches of each image of a bank.

    Args:
        queries: (Q, C), L2-normalised.
        bank: (R, P, C), L2-normalised.

    Returns:
        (Q, R), -1 to 1.
    """
    images, places, channels = bank.shape
    step = max(1, BLOCK // max(1, len(queries) * places))
    found = []
    for part in torch.split(bank, step):
        similar = queries.to(part.dtype) @ part.reshape(-1, channels).T
        found.append(similar.reshape(len(queries), -1, places).amax(dim=2).float())
    return torch.cat(found, dim=1) if found else queries.new_zeros(len(queries), images)


def coreset(features: Tensor, count: int, seed: int) -> Tensor:
    """Indices of ``count`` features that cover all others: greedily, the one farthest from those chosen comes next.

    Source: Roth et al., Towards total recall in industrial anomaly detection, CVPR 2022, algorithm 1
    (``arXiv:2106.08265``); as there, distances are taken after a random projection.

    Args:
        features: (M, C).
        count: how many; all where there are no more.
        seed: of the projection and of the first one.

    Returns:
        int64 (count,).
    """
    total = len(features)
    if count >= total:
        return torch.arange(total, device=features.device)
    generator = torch.Generator().manual_seed(seed)
    width = min(64, features.shape[1])
    projection = torch.randn(features.shape[1], width, generator=generator).to(features.device) / width**0.5
    small = torch.cat([part.float() @ projection for part in torch.split(features, 1 << 16)])
    lengths = small.square().sum(1)
    chosen = torch.empty(count, dtype=torch.int64, device=features.device)
    chosen[0] = torch.randint(total, (1,), generator=generator).to(features.device)
    away = torch.full((total,), float("inf"), device=features.device)
    for step in range(1, count):
        last = small[chosen[step - 1]]
        away = torch.minimum(away, lengths - 2 * (small @ last) + last.square().sum())
        away[chosen[step - 1]] = -float("inf")
        chosen[step] = away.argmax()
    return chosen
