"""Self-attention within windows, plain and shifted (Liu et al., "Swin Transformer", arXiv 2103.14030, section 3.2).

Which token stands where in which window depends on the map's size alone. A :class:`WindowPlan` holds that as lists of
token numbers, so that padding, shifting and cutting into windows are one gathering of rows, and the way back another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agssp_zoo.models.base import is_capturing

APART = -100.0
"""Added to the logits of two tokens that only the shift brought into one window, as the paper's code does."""

KEPT_PLANS = 8
"""Input sizes whose plans are kept; more are computed anew."""


@dataclass(frozen=True)
class WindowPlan:
    """How a map of one size is cut into windows.

    Windows that reach over the map's end are filled up with zero tokens, which are attended to like others.

    Attributes:
        inside: for every place of every window, the token that stands there, (windows * N,) int64; 0 where none does.
        outside: where none does, (windows * N, 1) bool; ``None`` if there is no such place.
        back: for every token, its place, (H * W,) int64.
        apart: what is added to the logits of two places of a window, (windows, 1, N, N) float32; ``None``: nothing.
    """

    inside: Tensor
    outside: Tensor | None
    back: Tensor
    apart: Tensor | None


def make_plan(height: int, width: int, window: int, shift: int, device: torch.device) -> WindowPlan:
    """Cuts a map into windows.

    The map is filled up to whole windows on the right and at the bottom, then moved up and left by ``shift``, what
    leaves on one side coming back on the other. Also where a single window covers the map, as in mmdet's Swin.

    Args:
        height: of the map.
        width: of the map.
        window: side of a window, in tokens.
        shift: in tokens, 0 or more.
        device: of the plan.
    """
    rows, row_region = _axis(height, window, shift, device)
    columns, column_region = _axis(width, window, shift, device)
    # (windows down, places down, windows across, places across) -> windows, then places
    token = (rows[:, :, None, None] * width + columns).transpose(1, 2).flatten()
    outside = ((rows >= height)[:, :, None, None] | (columns >= width)).transpose(1, 2).flatten()
    place = torch.arange(token.shape[0], device=device).view(rows.shape[0], columns.shape[0], window, window)
    place = place.transpose(1, 2).reshape(rows.shape[0] * window, columns.shape[0] * window)
    place = place.roll((shift, shift), (0, 1)) if shift else place
    apart = None
    if shift:
        region = (row_region[:, :, None, None] * 3 + column_region).transpose(1, 2).flatten(2).flatten(0, 1)
        apart = torch.where(region[:, None, :, None] == region[:, None, None, :], 0.0, APART)
    filled = is_capturing() or height % window != 0 or width % window != 0
    return WindowPlan(
        inside=token.masked_fill(outside, 0),
        outside=outside[:, None] if filled else None,
        back=place[:height, :width].flatten(),
        apart=apart,
    )


def _axis(length: int, window: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Along one axis, which token stands at each place, and to which of three regions the place belongs.

    Returns:
        two int64 (windows, window). Tokens from ``length`` on are none. Places of one window are neighbours in the
        map only if they are of one region.
    """
    count = (length + window - 1) // window
    place = torch.arange(count * window, device=device)
    region = (place >= (count - 1) * window).long() + (place >= count * window - shift).long()
    return ((place + shift) % (count * window)).view(count, window), region.view(count, window)


class WindowAttention(nn.Module):
    """Multi-head self-attention among the tokens of each window, with a learned bias for their relative position.

    Args:
        channels: of the tokens.
        heads: number of heads; divides the channels.
        window: side of a window, in tokens.
        shift: how far the windows are shifted, in tokens.
    """

    pairs: Tensor

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.shift = shift
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        # On the CPU even inside `with torch.device("meta")`: it is in no weights file.
        self.register_buffer("pairs", _relative_positions(window), persistent=False)

    def forward(self, x: Tensor, plan: WindowPlan) -> Tensor:
        """Attends.

        Args:
            x: tokens of a map, (B, H * W, C).
            plan: of the map's size and this module's window and shift.

        Returns:
            (B, H * W, C).
        """
        batch, _, channels = x.shape
        area = self.window**2
        windows = x.index_select(1, plan.inside)
        if plan.outside is not None:
            windows = windows.masked_fill(plan.outside, 0.0)
        qkv = self.qkv(windows).view(batch, -1, area, 3, self.heads, channels // self.heads)
        # Windows and heads share an axis, so that one bias serves the whole batch.
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3).unbind()
        bias = self.position_bias()
        if plan.apart is not None:
            bias = bias + plan.apart
        else:
            bias = bias.expand(windows.shape[1] // area, -1, -1, -1)
        out = F.scaled_dot_product_attention(q, k, v, bias.flatten(0, 1)[None].to(q.dtype))
        out = out.view(batch, -1, self.heads, area, channels // self.heads).transpose(2, 3).reshape(batch, -1, channels)
        attended: Tensor = self.proj(out.index_select(1, plan.back))
        return attended

    def position_bias(self) -> Tensor:
        """The bias of every pair of places of a window, (1, heads, N, N)."""
        area = self.window**2
        return self.bias_table.index_select(0, self.pairs).view(1, area, area, self.heads).permute(0, 3, 1, 2)


def _relative_positions(window: int) -> Tensor:
    """The row of the bias table for every pair of places of a window, (N * N,) int64 on the CPU."""
    side = torch.arange(window, device="cpu")
    place = torch.cartesian_prod(side, side)
    offset = place[:, None] - place[None] + window - 1
    return (offset[..., 0] * (2 * window - 1) + offset[..., 1]).flatten()


class WindowPlans(nn.Module):
    """The plans of one stage's blocks, kept for the sizes that were seen last.

    Args:
        window: side of a window, in tokens.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self._kept: dict[tuple[int, int, torch.device], tuple[WindowPlan, WindowPlan]] = {}

    def forward(self, height: int, width: int, device: torch.device) -> tuple[WindowPlan, WindowPlan]:
        """The plans without and with a shift for a map of this size; inside a graph that is captured, made there."""
        if is_capturing():
            return self._make(height, width, device)
        key = (height, width, device)
        plans = self._kept.get(key)
        if plans is None:
            with torch.inference_mode(False), torch.no_grad():  # for training too, whoever asked first
                plans = self._make(height, width, device)
            while len(self._kept) >= KEPT_PLANS:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[key] = plans
        return plans

    def _make(self, height: int, width: int, device: torch.device) -> tuple[WindowPlan, WindowPlan]:
        plain, shifted = (make_plan(height, width, self.window, shift, device) for shift in (0, self.window // 2))
        return plain, shifted
