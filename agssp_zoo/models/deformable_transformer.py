"""The encoder and decoder of DINO.

Layers as in Zhu et al., "Deformable DETR" (arXiv 2010.04159, section 4); the decoder's queries carry boxes, encoded as
in Liu et al., "DAB-DETR" (arXiv 2201.12329), and every layer refines those of the one before it, with gradients as in
"look forward twice" of Zhang et al., "DINO" (arXiv 2203.03605, section 3.5). Norms follow the residual sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agssp_zoo.models.deformable_attention import DeformableAttention, Shapes
from agssp_zoo.models.sine_positions import encode_boxes

REFERENCE_EPS = 1e-3
"""How near to 0 and 1 a reference's sides may come before a layer's correction is added to their logits."""


def logit(share: Tensor, eps: float) -> Tensor:
    """The inverse of the sigmoid, with numerator and denominator at least ``eps``: (...) in 0-1 -> (...)."""
    share = share.clamp(0, 1)
    return (share.clamp(min=eps) / (1 - share).clamp(min=eps)).log()


class FeedForward(nn.Module):
    """Two linear layers around a ReLU: (..., C) -> (..., C).

    Args:
        channels: of input and output.
        hidden: of the layer between.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, hidden)
        self.reduce = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the layers, without a residual path."""
        out: Tensor = self.reduce(F.relu(self.expand(x), inplace=True))
        return out


class EncoderLayer(nn.Module):
    """The pixels of all maps look at each other.

    Args:
        channels: C.
        heads: of the attention.
        hidden: of the feed-forward part.
        levels: number of maps.
    """

    def __init__(self, channels: int, heads: int, hidden: int, levels: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(channels, heads, levels)
        self.ffn = FeedForward(channels, hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))

    def forward(self, x: Tensor, positions: Tensor, references: Tensor, shapes: Shapes, valid: Tensor | None) -> Tensor:
        """See :class:`Encoder`."""
        x = self.norms[0](x + self.self_attn(x + positions, x, references, shapes, valid))
        out: Tensor = self.norms[1](x + self.ffn(x))
        return out


class Encoder(nn.Module):
    """A row of encoder layers; arguments as for :class:`EncoderLayer`, ``depth`` is their number."""

    def __init__(self, depth: int, channels: int, heads: int, hidden: int, levels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(channels, heads, hidden, levels) for _ in range(depth))

    def forward(self, x: Tensor, positions: Tensor, references: Tensor, shapes: Shapes, valid: Tensor | None) -> Tensor:
        """Encodes.

        Args:
            x: (B, N, C), the pixels of all maps.
            positions: (B or 1, N, C).
            references: (B or 1, N, L, 2), where each pixel lies in every level's map.
            shapes: of the levels.
            valid: (B or 1, N) bool, which pixels are no padding; ``None``: all.

        Returns:
            (B, N, C).
        """
        for layer in self.layers:
            x = layer(x, positions, references, shapes, valid)
        return x


class SelfAttention(nn.MultiheadAttention):
    """Attention among the queries, under the names of :class:`torch.nn.MultiheadAttention` (Vaswani et al., 3.2.2)."""

    def attend(self, x: Tensor, positions: Tensor, hidden: Tensor | None) -> Tensor:
        """(B, Q, C) and its positions -> (B, Q, C).

        Args:
            x: the queries.
            positions: added to them where they are compared, not where they are summed.
            hidden: (Q, Q) bool, true where a row must not look at a column.
        """
        weight, bias = self.in_proj_weight, self.in_proj_bias
        compared, summed = torch.split(weight, [2 * self.embed_dim, self.embed_dim])
        compared_bias, summed_bias = torch.split(bias, [2 * self.embed_dim, self.embed_dim])
        query, key = F.linear(x + positions, compared, compared_bias).chunk(2, -1)
        value = F.linear(x, summed, summed_bias)
        query, key, value = (
            torch.unflatten(part, -1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value)
        )
        mask = None if hidden is None else ~hidden
        answer = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.out_proj(answer.transpose(1, 2).flatten(2))
        return out


class DecoderLayer(nn.Module):
    """Queries look at each other, then at the encoded maps; arguments as for :class:`EncoderLayer`."""

    def __init__(self, channels: int, heads: int, hidden: int, levels: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(channels, heads, batch_first=True)
        self.cross_attn = DeformableAttention(channels, heads, levels)
        self.ffn = FeedForward(channels, hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        memory: Tensor,
        references: Tensor,
        shapes: Shapes,
        valid: Tensor | None,
        hidden: Tensor | None,
    ) -> Tensor:
        """See :class:`Decoder`; ``references`` here are (B, Q, L, 4)."""
        x = self.norms[0](x + self.self_attn.attend(x, positions, hidden))
        x = self.norms[1](x + self.cross_attn(x + positions, memory, references, shapes, valid))
        out: Tensor = self.norms[2](x + self.ffn(x))
        return out


class Decoder(nn.Module):
    """A row of decoder layers; arguments as for :class:`EncoderLayer`, ``depth`` is their number."""

    def __init__(self, depth: int, channels: int, heads: int, hidden: int, levels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(channels, heads, hidden, levels) for _ in range(depth))
        self.norm = nn.LayerNorm(channels)
        self.position_layers = nn.ModuleList([nn.Linear(2 * channels, channels), nn.Linear(channels, channels)])

    def forward(
        self,
        x: Tensor,
        references: Tensor,
        memory: Tensor,
        shapes: Shapes,
        ratios: Tensor,
        refine: Sequence[nn.Module],
        valid: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Decodes.

        Args:
            x: (B, Q, C) contents of the queries.
            references: (B, Q, 4) boxes of the queries, cx, cy, w, h relative to the valid image, without gradients.
            memory: (B, N, C) the encoded pixels.
            shapes: of the levels.
            ratios: (B or 1, L, 2) valid share of each level's width and height.
            refine: of each layer, what makes corrections of the boxes' logits (B, Q, 4) out of its answer.
            valid: (B or 1, N) bool, which pixels are no padding; ``None``: all.
            hidden: (Q, Q) bool, true where a query must not look at another; ``None``: nowhere.

        Returns:
            of each layer the normalised answer (B, Q, C), and the boxes (B, Q, 4) that the next layer begins with:
            the given ones and those of all layers but the last. Gradients flow through a layer's boxes into its own
            correction, not into those before it.
        """
        answers, boxes = [], [references]
        last = len(self.layers) - 1
        for index, (layer, correct) in enumerate(zip(self.layers, refine, strict=True)):
            placed = references[:, :, None] * torch.cat([ratios, ratios], -1)[:, None]
            encoded = encode_boxes(placed[:, :, 0], 2 * x.shape[-1]).to(x.dtype)
            positions = self.position_layers[1](F.relu(self.position_layers[0](encoded)))
            x = layer(x, positions, memory, placed, shapes, valid, hidden)
            answers.append(self.norm(x))
            if index < last:
                refined = (correct(x).float() + logit(references, REFERENCE_EPS)).sigmoid()
                boxes.append(refined)
                references = refined.detach()
        return answers, boxes
