"""Linear layers that are as fast as the CPU allows when nothing is learned.

PyTorch multiplies float32 matrices with MKL, which on CPUs of other makers than Intel is slower than oneDNN, the
library that its convolutions use. oneDNN also applies the activation while the product is in the cache, and is quicker
still with weights in an order of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from agssp_zoo.models.base import is_capturing
from agssp_zoo.models.snapshot import Snapshot, can_be_watched

PIECE = 8 * 2**20
"""Bytes that the widest intermediate result of a piece of rows may have, so that it stays in the cache."""


def runs_plainly(x: Tensor) -> bool:
    """Whether float32 on the CPU is only to be computed: no gradients of either mode, no graph, no mixed precision."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and getattr(forward_ad, "_current_level", -1) < 0  # inside jvp() or dual_level(), whatever no_grad says
        and not is_capturing()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        and not torch.is_autocast_enabled("cpu")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """Multiplies by a layer's weight, and GELU behind it if asked for.

    Args:
        x: (..., in), float.
        weight: (out, in).
        bias: (out,).
        gelu: whether the exact GELU follows (Hendrycks and Gimpel, arXiv 1606.08415).

    Returns:
        (..., out).
    """
    if runs_plainly(x) and weight.dtype == torch.float32 and has_onednn("_linear_pointwise"):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")
        return out
    out = F.linear(x, weight, bias)
    return F.gelu(out) if gelu else out


class Linear(nn.Linear):
    """A linear layer that keeps its weight a second time, in the order that oneDNN multiplies with, while it can.

    From the first call that only computes (:func:`runs_plainly`) until one that does not; made anew when the weight has
    changed. That is no part of its state; copies and pickles have none. It saves 3 % of a Swin's time for the
    memory of its weights.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self._ordered = OrderedWeight()

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """(..., in) -> (..., out); see :func:`linear`."""
        return linear(x, self._ordered(x, self.weight), self.bias, gelu=gelu)


class OrderedWeight:
    """A layer's weight in oneDNN's order, kept while it stays as it is; copies and pickles are empty."""

    def __init__(self) -> None:
        self._kept: tuple[Snapshot, Tensor] | None = None

    def __reduce__(self) -> tuple[type[OrderedWeight], tuple[()]]:
        return OrderedWeight, ()

    @property
    def is_kept(self) -> bool:
        """Whether there is one now."""
        return self._kept is not None

    def __call__(self, x: Tensor, weight: Any) -> Any:
        """The weight for an input of :func:`linear`: in order where that is possible, otherwise as it is.

        Args:
            x: (..., in).
            weight: (out, in).
        """
        if runs_plainly(x) and x.numel() and can_reorder() and can_be_watched(weight):
            kept = self._kept
            if kept is None or not kept[0].holds((weight,)):
                with torch.inference_mode(False), torch.no_grad():
                    order: Any = torch.ops.mkldnn._reorder_linear_weight
                    ordered = order(weight.detach().contiguous(), x.numel() // x.shape[-1])
                    kept = self._kept = Snapshot.take((weight,), compared=1), ordered
            return kept[1]
        if not is_capturing():
            self._kept = None
        return weight


def rows_at_once(width: int) -> int:
    """Into pieces of how many rows to cut what becomes ``width`` numbers a row on the way."""
    return max(1, PIECE // (4 * width))


def can_reorder() -> bool:
    """Whether weights can be kept in oneDNN's order, on processors where that was measured and tested."""
    return has_onednn("_reorder_linear_weight") and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def has_onednn(operator: str) -> bool:
    """Whether PyTorch has oneDNN, in use (``torch.backends.mkldnn``), and this private operator of it."""
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return there and bool(torch.backends.mkldnn.enabled) and hasattr(torch.ops.mkldnn, operator)
