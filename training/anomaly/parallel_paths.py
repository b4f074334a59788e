"""One pass of a CLIP image tower that computes its usual path and the parallel V-V path of KeAD.

In the blocks after the first tap, a second stream of tokens is carried along, which attends by values alone and skips
the feed-forward part::

    usual:     x    <- x + out_proj(softmax(Q K^T / sqrt(d)) V);   x <- x + mlp(ln_2(x))
    parallel:  x_vv <- x_vv + out_proj(softmax(V V^T / sqrt(d)) V)      Q, K, V of ln_1(x), the usual path's tokens

It begins with the usual path's tokens (KeAD, Liu et al. 2026, section 3; the V-V attention is that of Li et al., CLIP
Surgery, 2023). The parallel stream never feeds the usual one, and of the last block the usual path gives nothing but
the class token; so the work that the second stream adds, about 11 %, is in large part saved there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agssp_zoo.errors import InvalidArgumentError

TAPS = 4
"""Features are taken after each quarter of the blocks."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """What the pass gives, in the space that images and texts share, L2-normalised.

    Attributes:
        image: (B, D), the image's embedding, as the plain encoder gives it.
        patches: for each tap (B, N, D), patches row by row: the first of the usual path, the others of the V-V path.
    """

    image: Tensor
    patches: tuple[Tensor, ...]


def default_taps(depth: int) -> tuple[int, ...]:
    """The blocks, from 1, after which features are taken: every quarter of the depth.

    With 12 blocks these are 3, 6, 9, 12 and the V-V path runs through the last nine, as the authors have it; a deeper
    tower keeps the proportions: with 24 blocks (ViT-L) 6, 12, 18, 24 and the last eighteen.
    """
    return tuple(dict.fromkeys(max(1, round(depth * quarter / TAPS)) for quarter in range(1, TAPS + 1)))


class ParallelPaths(nn.Module):
    """Both paths of an open_clip image tower.

    Args:
        visual: the tower: a ``VisionTransformer`` of open_clip with a class token.
        taps: blocks, from 1, after which patch features are taken, ascending; the V-V path begins after the first one.
            Left out: :func:`default_taps`.
        name: of the model, for messages.

    Attributes:
        taps: as above.
        grid: rows and columns of patches.

    Raises:
        InvalidArgumentError: the tower has another structure, or there are no such blocks.
    """

    def __init__(self, visual: Any, taps: Sequence[int] | None = None, name: str = "this model") -> None:
        super().__init__()
        if missing := _what_is_missing(visual):
            raise InvalidArgumentError(
                f"KeAD cannot use {name}: its image tower {missing}. Choose a CLIP vision transformer with a class "
                "token, such as ViT-B-16-plus-240, ViT-B-16 or ViT-L-14-336."
            )
        depth = len(visual.transformer.resblocks)
        self.taps = default_taps(depth) if taps is None else tuple(taps)
        if len(self.taps) < 2 or list(self.taps) != sorted(set(self.taps)) or self.taps[0] < 1 or self.taps[-1] > depth:
            raise InvalidArgumentError(
                f"taps {list(self.taps)}: give two or more blocks of {name} in ascending order, out of 1-{depth}."
            )
        self.grid: tuple[int, int] = tuple(visual.grid_size)
        self.visual = visual.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tokens:
        """Both paths' features.

        Args:
            images: float (B, 3, S, S), normalised as CLIP wants it.
        """
        tower = self.visual
        x = tower.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([tower.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        x = tower.ln_pre(x + tower.positional_embedding.to(x.dtype))
        blocks = tower.transformer.resblocks
        first, last = self.taps[0], self.taps[-1]
        taken: list[Tensor] = []
        parallel = x[:, 1:]
        for number, block in enumerate(blocks, 1):
            if first < number <= last:
                x, added = _both_paths(block, x, only_class_token=number == len(blocks))
                parallel = parallel + added
            else:
                x = block(x)
                parallel = x[:, 1:] if number == first else parallel
            if number in self.taps:
                taken.append(parallel)
        return Tokens(self._embed(x[:, 0]), tuple(self._embed(tokens) for tokens in taken))

    def _embed(self, tokens: Tensor) -> Tensor:
        """Tokens (..., width) in the space that images and texts share, (..., D)."""
        return F.normalize((self.visual.ln_post(tokens) @ self.visual.proj).float(), dim=-1)


def _both_paths(block: Any, x: Tensor, *, only_class_token: bool) -> tuple[Tensor, Tensor]:
    """One block.

    Args:
        block: the block.
        x: (B, 1 + N, width), tokens of the usual path; the class token comes first.
        only_class_token: of the usual path nothing else is needed any more.

    Returns:
        The usual path's tokens after the block, (B, 1 + N or 1, width); and what the block adds to the patches of the
        V-V path, (B, N, width). Its class token is left out: nothing depends on it.
    """
    attention = block.attn
    wanted = slice(0, 1 if only_class_token else None)
    normed = block.ln_1(x)
    width = normed.shape[-1]
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if only_class_token:
        q = F.linear(normed[:, wanted], weight[:width], bias[:width])
        k, v = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
    else:
        q, k, v = F.linear(normed, weight, bias).chunk(3, dim=-1)
    q, k, v = (part.reshape(*part.shape[:2], attention.num_heads, -1).transpose(1, 2) for part in (q, k, v))
    usual = F.scaled_dot_product_attention(q, k, v)
    by_values = F.scaled_dot_product_attention(v[:, :, 1:], v, v)
    x = x[:, wanted] + _project(block, usual)
    x = x + block.ls_2(block.mlp(block.ln_2(x)))
    return x, _project(block, by_values)


def _project(block: Any, heads: Tensor) -> Tensor:
    """Joins heads, (B, heads, T, d) -> (B, T, width), and puts them through the output projection."""
    projected: Tensor = block.ls_1(block.attn.out_proj(heads.transpose(1, 2).flatten(2)))
    return projected


def _what_is_missing(visual: Any) -> str:
    """What keeps a tower from being used; empty when nothing does."""
    if hasattr(visual, "trunk"):
        return (
            f"is a timm model ({type(visual.trunk).__name__}), as SigLIP's are, without CLIP's class token and blocks"
        )
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if blocks is None or getattr(visual, "class_embedding", None) is None:
        return f"({type(visual).__name__}) is no vision transformer with a class token"
    if getattr(visual, "attn_pool", None) is not None or getattr(visual, "pool_type", "tok") != "tok":
        return "takes its embedding not from the class token but from a pool over the patches"
    if getattr(visual, "proj", None) is None:
        return "has no projection into the space of the texts"
    for block in blocks:
        attention = getattr(block, "attn", None)
        if not isinstance(attention, nn.MultiheadAttention) or attention.in_proj_weight is None:
            return f"has attention of another kind ({type(attention).__name__}), without in_proj and out_proj"
        if attention.in_proj_bias is None or not attention.batch_first:
            return "has attention without biases, or is of an open_clip_torch before 2.30"
    return ""
