"""Convolutions that are as fast as the CPU allows when nothing is learned.

A convolution, the BatchNorm behind it and the activation are one step of oneDNN: the norm is folded into the weights, a
bias is left of it, and the activation is applied while the sums are in the cache. PyTorch also brings the weights into
the order that oneDNN computes with at every call; here that is done once. 3x3 convolutions of many channels need fewer
multiplications (:mod:`agssp_zoo.models.winograd`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from agssp_zoo.models import winograd
from agssp_zoo.models.base import is_capturing
from agssp_zoo.models.cpu_linear import can_reorder, has_onednn, runs_plainly
from agssp_zoo.models.snapshot import Snapshot, can_be_watched

ACTIVATIONS: Mapping[type, str] = MappingProxyType({nn.SiLU: "swish", nn.ReLU: "relu", NoneType: "none"})
"""What oneDNN calls them."""


class FoldedConv:
    """Runs a convolution, its BatchNorm and an activation, and keeps them folded while they stay as they are.

    Folded weights take as much memory as the weights that they were made of, 1.8 times as much for a 3x3 convolution
    of many channels (:func:`agssp_zoo.models.winograd.pays`), both when it sees large and small maps. They are kept
    from the first call that can use them until one that cannot (training, another device), and made anew when the
    convolution or the norm has changed (:class:`~agssp_zoo.models.snapshot.Snapshot`; changes that PyTorch does not
    count are seen when they concern the norm's scale or mean, or more than a few of the convolution's weights).

    It is no part of a module's state; copies and pickles are empty. Several threads may use it.
    """

    def __init__(self) -> None:
        self._kept: Mapping[bool, _Folded] = {}  # with and without fewer products

    def __reduce__(self) -> tuple[type[FoldedConv], tuple[()]]:
        return FoldedConv, ()

    @property
    def is_kept(self) -> bool:
        """Whether folded weights are kept now."""
        return bool(self._kept)

    def __call__(
        self, x: Tensor, conv: nn.Module, norm: nn.Module, act: nn.Module | None = None, other: Tensor | None = None
    ) -> Tensor:
        """``act(norm(conv(x)) + other)``.

        Folded only for maps whose channels are last in memory, as those of the zoo's own input are, so that the
        answer's memory order is what the modules answer; and never around what somebody has hooked to a module.

        Args:
            x: (B, in, H, W).
            conv: folded if a plain :class:`torch.nn.Conv2d` without bias; may be any module.
            norm: folded if a plain :class:`torch.nn.BatchNorm2d` that is evaluated; may be any module.
            act: folded if SiLU or ReLU; may be any module, or ``None`` for no activation.
            other: of the result's shape; ``None`` adds nothing.

        Returns:
            (B, out, H', W').
        """
        if runs_plainly(x) and x.dim() == 4 and x.stride(1) == 1 and not _hooked(conv, norm, act):
            fewer = _needs_fewer_products(conv, x.shape)
            kept = self._kept.get(fewer)
            if kept is None or not kept.is_of(conv, norm, act):
                others = {} if kept is not None else self._kept
                kept = _fold(conv, norm, act, tuple(x.shape), fewer=fewer)
                self._kept = {} if kept is None else {**others, fewer: kept}
            if kept is not None:
                return kept.run(x, conv, other)
        elif not is_capturing():
            self._kept = {}
        out: Tensor = norm(conv(x))
        if other is not None:
            out = out + other
        return out if act is None else act(out)


@dataclass(frozen=True)
class _Folded:
    """A convolution, a norm and an activation in one, and what tells whether they still are what they were.

    Attributes:
        weight: for oneDNN; several for fewer products.
        bias: (out,).
        act: type of the activation.
        eps: the norm's.
        snapshot: of :func:`_parts`; compared are the weight, and the norm's scale and mean, which BatchNorm changes
            uncounted.
    """

    weight: Tensor | tuple[Tensor, ...]
    bias: Tensor
    act: type
    eps: float
    snapshot: Snapshot

    def is_of(self, conv: Any, norm: Any, act: nn.Module | None) -> bool:
        """Whether it is what the three amount to now."""
        return (
            self.act is type(act)
            and self.eps == norm.eps
            and not norm.training
            and self.snapshot.holds(_parts(conv, norm))
        )

    def run(self, x: Tensor, conv: Any, other: Tensor | None) -> Tensor:
        """Applies it; see :meth:`FoldedConv.__call__`."""
        name = ACTIVATIONS[self.act]
        if isinstance(self.weight, tuple):
            return winograd.convolve(x, self.weight, self.bias, name, other)
        apply: Any = torch.ops.mkldnn._convolution_pointwise
        places = (conv.padding, conv.stride, conv.dilation, conv.groups)
        if other is None:
            out: Tensor = apply(x, self.weight, self.bias, *places, name, [], "")
        else:
            out = apply.binary(x, other, self.weight, self.bias, *places, "add", None, name, [], "")
        return out


def _fold(conv: Any, norm: Any, act: nn.Module | None, shape: tuple[int, ...], *, fewer: bool) -> _Folded | None:
    """Folds the three and brings the weights into oneDNN's order for an input of a shape; ``None``: not possible.

    For fewer products if so wanted.

    An input of another shape may want another order. For larger kernels that costs no more than bringing plain weights
    into order at every call; for 1x1 it takes several times as long, so these are left as they are.
    """
    if not _can_fold(conv, norm, act, shape):
        return None
    parts = _parts(conv, norm)
    with torch.inference_mode(False), torch.no_grad():
        kernel, scale, mean, offset, variance = (part.detach() for part in parts)
        factor = scale * (variance + norm.eps).rsqrt()
        weight: Any = kernel * factor.view(-1, 1, 1, 1)
        if fewer:
            weight = winograd.transform_weight(weight)
        elif conv.kernel_size != (1, 1):
            order: Any = torch.ops.aten.mkldnn_reorder_conv2d_weight
            weight = weight.contiguous().to_mkldnn()
            weight = order(weight, conv.padding, conv.stride, conv.dilation, conv.groups, shape)
        return _Folded(weight, offset - mean * factor, type(act), norm.eps, Snapshot.take(parts, compared=3))


def _needs_fewer_products(conv: Any, shape: Sequence[int]) -> bool:
    """Whether it is of the kind, and sees a map of the size, for which that is quicker."""
    return (
        type(conv) is nn.Conv2d
        and conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and winograd.pays(conv.out_channels, conv.in_channels, shape)
    )


def _can_fold(conv: Any, norm: Any, act: nn.Module | None, shape: tuple[int, ...]) -> bool:
    return (
        type(conv) is nn.Conv2d
        and type(norm) is nn.BatchNorm2d
        and type(act) in ACTIVATIONS
        and 0 not in shape
        and conv.groups == 1
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and not norm.training
        and all(map(can_be_watched, _parts(conv, norm)))
        and can_reorder()
        and has_onednn("_convolution_pointwise")
    )


def _parts(conv: nn.Module, norm: nn.Module) -> tuple[Any, ...]:
    """The convolution's weight and the norm's scale, mean, offset and variance; ``None`` for what is not there.

    From where modules keep them, since asking for them as attributes takes several times as long.
    """
    weight, vectors, statistics = conv._parameters.get("weight"), norm._parameters, norm._buffers
    return (
        weight,
        vectors.get("weight"),
        statistics.get("running_mean"),
        vectors.get("bias"),
        statistics.get("running_var"),
    )


def _hooked(conv: nn.Module, norm: nn.Module, act: nn.Module | None) -> bool:
    """Whether somebody wants to see what goes into a module or comes out of it."""
    return bool(
        conv._forward_hooks
        or conv._forward_pre_hooks
        or norm._forward_hooks
        or norm._forward_pre_hooks
        or (act is not None and (act._forward_hooks or act._forward_pre_hooks))
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
    )
