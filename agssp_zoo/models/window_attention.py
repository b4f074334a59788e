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
from agssp_zoo.models.cpu_linear import Linear, rows_at_once, runs_plainly

APART = -100.0
"""Added to the logits of two tokens that only the shift brought into one window, as the paper's code does."""

FEW_FILLED_UP = 1.05
"""Up to so many places of windows for every token, few are filled up."""

KEPT_PLANS = 8
"""Input sizes whose plans are kept; more are computed anew."""


@dataclass(frozen=True)
class WindowPart:
    """Windows of a batch of maps that are attended in one go.

    Attributes:
        inside: for every place of every window, the row of the batch's tokens (B * H * W, C) that stands there,
            (windows, N) int64; B * H * W where none does.
        apart: what is added to the logits of two places, (1 or windows, 1, N, N) float32; ``None``: nothing.
    """

    inside: Tensor
    apart: Tensor | None


@dataclass(frozen=True)
class WindowPlan:
    """How a batch of maps of one size is cut into windows.

    Windows that reach over the map's end are filled up with zero tokens, which are attended to like others.

    Attributes:
        parts: the windows.
        back: for every token, its place among all places of all parts, (B, H * W) int64.
        whole: whether there is a token at every place.
    """

    parts: tuple[WindowPart, ...]
    back: Tensor
    whole: bool

    def to(self, device: torch.device) -> WindowPlan:
        """The same on another device."""
        parts = tuple(
            WindowPart(part.inside.to(device), None if part.apart is None else part.apart.to(device))
            for part in self.parts
        )
        return WindowPlan(parts, self.back.to(device), self.whole)


def make_plan(
    shape: tuple[int, int, int], window: int, shift: int, device: torch.device, largest: int | None = None
) -> WindowPlan:
    """Cuts maps into windows.

    A map is filled up to whole windows on the right and at the bottom, then moved up and left by ``shift``, what
    leaves on one side coming back on the other; also where a single window covers the map, as in mmdet's Swin. Only
    the windows of the last row and column then hold tokens that are no neighbours. So windows are sorted by what is
    to be kept apart in them, one matrix a kind, unless a graph is captured.

    Args:
        shape: number, height and width of the maps.
        window: side of a window, in tokens.
        shift: in tokens, 0 or more.
        device: of the plan.
        largest: at most about this many places a part; ``None``: any number.
    """
    batch, height, width = shape
    rows, row_region = _axis(height, window, shift, device)
    columns, column_region = _axis(width, window, shift, device)
    # (windows down, places down, windows across, places across) -> (windows, places)
    token = (rows[:, :, None, None] * width + columns).transpose(1, 2).flatten(2).flatten(0, 1)
    outside = ((rows >= height)[:, :, None, None] | (columns >= width)).transpose(1, 2).flatten(2).flatten(0, 1)
    region = (row_region[:, :, None, None] * 3 + column_region).transpose(1, 2).flatten(2).flatten(0, 1)
    end = batch * height * width
    token = token + torch.arange(batch, device=device)[:, None, None] * (height * width)
    token = token.masked_fill(outside, end)
    apart = torch.where(region[:, None, :, None] == region[:, None, None, :], 0.0, APART) if shift else None
    if is_capturing():
        apart = apart.repeat(batch, 1, 1, 1) if apart is not None else None
        parts: tuple[WindowPart, ...] = (WindowPart(token.flatten(0, 1), apart),)
    else:
        parts = _sorted_parts(token, region if shift else region * 0, apart, largest)
    target = torch.cat([part.inside.flatten() for part in parts])
    place = torch.arange(target.shape[0], device=device)
    back = torch.zeros(end + 1, dtype=torch.int64, device=device).scatter(0, target, place)
    return WindowPlan(parts, back[:-1].view(batch, height * width), not is_capturing() and not bool(outside.any()))


def _sorted_parts(token: Tensor, region: Tensor, apart: Tensor | None, largest: int | None) -> tuple[WindowPart, ...]:
    """The windows by kind.

    Args:
        token: (B, windows, N).
        region: (windows, N).
        apart: (windows, 1, N, N).
        largest: see :func:`make_plan`.
    """
    parts = []
    most = max(1, largest // token.shape[2]) if largest else token.shape[0] * token.shape[1]
    for kind in torch.unique(region[:, -1]).tolist():  # the regions of its last place tell what a window is made of
        chosen = (region[:, -1] == kind).nonzero()[:, 0]
        own = apart[chosen[:1]] if apart is not None and kind else None
        parts += [WindowPart(some, own) for some in torch.split(token[:, chosen].flatten(0, 1), most)]
    return tuple(parts)


def _axis(length: int, window: int, shift: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Along one axis, which token stands at each place, and to which of three regions the place belongs.

    Returns:
        two int64 (windows, window). Tokens from ``length`` on are none. Places of one window are neighbours in the
        map only if they are of one region.
    """
    count = (length + window - 1) // window
    place = torch.arange(count * window, device=device)
    token = torch.cat((place[shift:], place[:shift])) if shift else place
    region = (place >= (count - 1) * window).long() + (place >= count * window - shift).long()
    return token.view(count, window), region.view(count, window)


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
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)
        # On the CPU even inside `with torch.device("meta")`: it is in no weights file.
        self.register_buffer("pairs", _relative_positions(window), persistent=False)
        self._kept: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, plan: WindowPlan) -> Tensor:
        """Attends.

        Args:
            x: tokens of a map, (B, H * W, C).
            plan: of the map's size and this module's window and shift.

        Returns:
            (B, H * W, C).
        """
        batch, length, channels = x.shape
        rows = x.reshape(batch * length, channels)
        if not plan.whole:
            rows = F.pad(rows, (0, 0, 0, 1))  # the token that stands where there is none
        bias = self.position_bias()
        gathers_first = _gathers_first(rows, plan)
        if gathers_first:
            parts = [self.proj(self._attend(self.qkv(_gather(part, rows)), part, bias)) for part in plan.parts]
        else:
            qkv = self.qkv(rows)
            parts = [self._attend(_gather(part, qkv), part, bias) for part in plan.parts]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        out = F.embedding(plan.back, out.view(-1, channels))
        return out if gathers_first else self.proj(out)

    def _attend(self, qkv: Tensor, part: WindowPart, bias: Tensor) -> Tensor:
        """(windows, N, 3 C) and the bias (1, heads, N, N) -> what the places of a part answer, (windows, N, C)."""
        own = qkv.unflatten(2, (3, self.heads, -1))  # type: ignore[no-untyped-call]
        q, k, v = own.permute(2, 0, 3, 1, 4).unbind()
        if part.apart is not None:
            bias = bias + part.apart
        if is_capturing():  # written out: the tracer mistakes the memory order of the other's answer
            weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias.to(q.dtype)
            out = weights.softmax(-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype))
        attended: Tensor = out.transpose(1, 2).flatten(2)
        return attended

    def position_bias(self) -> Tensor:
        """The bias of every pair of places of a window, (1, heads, N, N); kept where nothing learns."""
        table = self.bias_table
        if not runs_plainly(table):
            return self._spread(table)
        kept = self._kept
        if kept is None or not torch.equal(kept[0], table):  # by its values, in whatever way they were changed
            with torch.inference_mode(False):
                own = table.detach().clone()
                kept = self._kept = own, self._spread(own).contiguous()  # as the attention wants it
        return kept[1]

    def _spread(self, table: Tensor) -> Tensor:
        area = self.window**2
        return table.index_select(0, self.pairs).view(1, area, area, self.heads).permute(0, 3, 1, 2)


def _gather(part: WindowPart, rows: Tensor) -> Tensor:
    """What stands at the places of a part, (windows, N, C) of rows (tokens, C)."""
    found: Tensor = F.embedding(part.inside, rows)
    return found


def _gathers_first(rows: Tensor, plan: WindowPlan) -> bool:
    """Whether to gather tokens, and not what is computed of them, which is three times as wide.

    Everything then happens while a part is in the cache; that pays when all parts together are not, if few places are
    filled up, for which it is all computed too.
    """
    tokens, channels = rows.shape
    if not runs_plainly(rows) or tokens <= 2 * rows_at_once(3 * channels):
        return False
    return sum(part.inside.numel() for part in plan.parts) <= FEW_FILLED_UP * tokens


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
        channels: of the tokens.
    """

    def __init__(self, window: int, channels: int) -> None:
        super().__init__()
        self.window = window
        self.largest = rows_at_once(3 * channels)
        self._kept: dict[tuple[tuple[int, int, int], torch.device], tuple[WindowPlan, WindowPlan]] = {}

    def forward(self, shape: tuple[int, int, int], device: torch.device) -> tuple[WindowPlan, WindowPlan]:
        """The plans without and with a shift for maps of this number, height and width.

        Inside a graph that is captured, they are made there.
        """
        if is_capturing():
            return self._make(shape, device)
        key = (shape, device)
        plans = self._kept.get(key)
        if plans is None:
            with torch.inference_mode(False), torch.no_grad():  # for training too, whoever asked first
                plans = self._make(shape, device)
            while len(self._kept) >= KEPT_PLANS:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[key] = plans
        return plans

    def _make(self, shape: tuple[int, int, int], device: torch.device) -> tuple[WindowPlan, WindowPlan]:
        largest = self.largest if device.type == "cpu" else None
        # Made on the CPU, so that nobody waits for another device, nor for one without data (meta).
        where = device if is_capturing() else torch.device("cpu")
        plain, shifted = (make_plan(shape, self.window, shift, where, largest) for shift in (0, self.window // 2))
        return (plain, shifted) if where == device else (plain.to(device), shifted.to(device))
