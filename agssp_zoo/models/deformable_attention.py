"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", arXiv 2010.04159, equation 3).

Every query looks at a few points of every level's map. Where they lie around the query's reference, and how much each
of them counts, are linear functions of the query; between pixels the map is interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shapes = Sequence[tuple[int, int]] | Tensor
"""(height, width) of each level; (L, 2) int64 where sizes may be symbols."""


class DeformableAttention(nn.Module):
    """Attention to a few sampled points of several maps.

    Args:
        channels: of queries and maps.
        heads: channels are divided among them.
        levels: number of maps.
        points: sampled in each map by each head.
    """

    def __init__(self, channels: int, heads: int = 8, levels: int = 4, points: int = 4) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)

    def reset_parameters(self) -> None:
        """Heads look in different directions at first, their points at growing distances, with equal weights."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ring = torch.stack([angles.cos(), angles.sin()], -1)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        offsets = (ring[:, None, None] * steps[:, None]).expand(-1, self.levels, -1, -1)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.reshape(-1))
        for zero in (self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(zero)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        memory: Tensor,
        references: Tensor,
        shapes: Shapes,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Attends.

        Args:
            query: (B, Q, C), with its position added.
            memory: (B, N, C), the pixels of all maps, level by level, row by row.
            references: (B, Q, L, 2) points x, y or (B, Q, L, 4) boxes cx, cy, w, h, relative to each level's whole
                map. Offsets count pixels of the level around points, and half sides of the box divided by the number
                of points around boxes.
            shapes: (height, width) of each level; as a tensor where an exporter reads the code.
            valid: (B, N) bool, false where a pixel is padding; it then counts as zero.

        Returns:
            (B, Q, C).
        """
        value = self.value_proj(memory)
        if valid is not None:
            value = value * valid[..., None]
        # Positions in float32 whatever the network computes in: bfloat16 cannot tell neighbouring pixels apart.
        offsets = self.sampling_offsets(query).float().unflatten(-1, (self.heads, self.levels, self.points, 2))
        weights = self.attention_weights(query).float().unflatten(-1, (self.heads, -1)).softmax(-1)
        around = references.float()[:, :, None, :, None]
        if references.shape[-1] == 2:
            sides = torch.as_tensor(shapes, device=query.device)[:, None].flip(-1)  # (L, 1, 2) width, height
            locations = around + offsets / sides
        else:
            locations = around[..., :2] + offsets * around[..., 2:] * (0.5 / self.points)
        value = value.unflatten(-1, (self.heads, -1))
        weights = torch.unflatten(weights, -1, (self.levels, self.points))
        if isinstance(shapes, Tensor):
            numbers = (self.levels, self.heads, self.points)
            sampled = torch.ops.agssp_zoo.sample_levels(value, locations, weights, shapes, *numbers)
        elif value.device.type == "cpu" and not torch.is_grad_enabled():
            sampled = gather_points(value, locations, weights, shapes)
        else:
            sampled = sample_points(value, locations, weights, shapes)
        out: Tensor = self.output_proj(sampled.to(value.dtype))
        return out


def sample_points(value: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """The weighted sum of interpolated points, by ``grid_sample``: with gradients, and quick on a GPU.

    Args:
        value: (B, N, heads, D), the pixels of all levels.
        locations: (B, Q, heads, L, P, 2) x, y, relative to each level's map; outside of it are zeros.
        weights: (B, Q, heads, L, P).
        shapes: (height, width) of each level.

    Returns:
        (B, Q, heads * D) float32.
    """
    batch, _, heads, depth = value.shape
    count = locations.shape[1]
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B * heads, Q, L, P, 2)
    share = weights.transpose(1, 2).flatten(0, 1)  # (B * heads, Q, L, P)
    planes = value.float().permute(0, 2, 3, 1).flatten(0, 1)  # (B * heads, D, N)
    total = torch.zeros((), device=value.device)
    for level, (plane, (height, width)) in enumerate(
        zip(torch.split(planes, [h * w for h, w in shapes], dim=2), shapes, strict=True)
    ):
        sampled = F.grid_sample(
            torch.unflatten(plane, 2, (height, width)), grid[:, :, level], mode="bilinear", align_corners=False
        )  # (B * heads, D, Q, P)
        total = total + (sampled * share[:, None, :, level]).sum(-1)
    return total.view(batch, heads * depth, count).transpose(1, 2)


def gather_points(value: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """As :func:`sample_points` without gradients, by weighted sums of rows (``embedding_bag``), the quick way on a CPU.

    A bag are the four pixels around each point that one head of one query looks at.
    """
    batch, pixels, heads, depth = value.shape
    count, levels, points = locations.shape[1], len(shapes), locations.shape[4]
    device = value.device
    bags = (batch, count, heads, levels, 4, points)
    rows = torch.empty(bags, dtype=torch.int32, device=device)
    amounts = torch.empty(bags, dtype=torch.float32, device=device)
    image = torch.arange(batch, dtype=torch.int32, device=device).view(-1, 1, 1, 1) * (pixels * heads)
    start = image + torch.arange(heads, dtype=torch.int32, device=device).view(-1, 1)
    for level, (height, width) in enumerate(shapes):
        place = locations[:, :, :, level]
        columns, across = _neighbours(place[..., 0], width)
        lines, down = _neighbours(place[..., 1], height)
        for i, (line, part) in enumerate(zip(lines, down, strict=True)):
            line = line * (width * heads) + start
            part = part * weights[:, :, :, level]
            for j, (column, share) in enumerate(zip(columns, across, strict=True)):
                torch.add(line, column, alpha=heads, out=rows[:, :, :, level, 2 * i + j])
                torch.mul(part, share, out=amounts[:, :, :, level, 2 * i + j])
        start = start + height * width * heads
    table = value.float().reshape(-1, depth)
    rows, amounts = rows.flatten(3).flatten(0, 2), amounts.flatten(3).flatten(0, 2)
    summed = F.embedding_bag(rows, table, mode="sum", per_sample_weights=amounts)
    return summed.view(batch, count, heads * depth)


def _neighbours(place: Tensor, side: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The pixels before and behind points on an axis, and how much each counts: nothing outside of 0 to ``side - 1``.

    Args:
        place: (...) in 0-1.
        side: pixels of the axis.
    """
    # Points far outside count nothing wherever they are, and their pixels' numbers stay small.
    place = (place * side - 0.5).clamp_(-2, side + 1)
    before = place.floor()
    share = place - before
    first = before.int()
    second = first + 1
    amounts = [part * ((pixel >= 0) & (pixel < side)) for part, pixel in ((1 - share, first), (share, second))]
    return (first.clamp_(0, side - 1), second.clamp_(0, side - 1)), (amounts[0], amounts[1])
