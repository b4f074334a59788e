"""Linear layers that are as fast as the CPU allows when nothing is learned.

PyTorch multiplies float32 matrices with MKL, which on CPUs of other makers than Intel is slower than oneDNN, the
library that its convolutions use. oneDNN also applies the activation while the product is in the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from agssp_zoo.models.base import is_capturing

PIECE = 8 * 2**20
"""Bytes that the widest intermediate result of a piece of rows may have, so that it stays in the cache."""


def runs_plainly(x: Tensor) -> bool:
    """Whether float32 on the CPU is only to be computed: no gradients, no graph, no mixed precision."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
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


def rows_at_once(width: int) -> int:
    """Into pieces of how many rows to cut what becomes ``width`` numbers a row on the way."""
    return max(1, PIECE // (4 * width))


def has_onednn(operator: str) -> bool:
    """Whether PyTorch has oneDNN, in use (``torch.backends.mkldnn``), and this private operator of it."""
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return there and bool(torch.backends.mkldnn.enabled) and hasattr(torch.ops.mkldnn, operator)
