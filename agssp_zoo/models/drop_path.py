"""Stochastic depth (Huang et al., "Deep Networks with Stochastic Depth", arXiv 1603.09382)."""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """Leaves a residual branch out for some images, drawn anew each time; in training mode only.

    What is kept is divided by the share that is kept, so that its mean stays.

    Args:
        rate: share of the images whose branch is left out, 0-1; may be changed at any time.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """A branch's output, (B, ...) -> the same shape."""
        if not self.training or not self.rate:
            return x
        keep = 1 - self.rate
        return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep).div_(keep)
