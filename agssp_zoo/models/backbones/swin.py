"""Swin Transformer (Liu et al., arXiv 2103.14030) as detectors use it: any input size, a norm behind every map.

Maps travel between the stages as (B, C, H, W) with channels last in memory, so that tokens and maps are views of each
other and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from agssp_zoo.config import ModelConfig
from agssp_zoo.errors import ConfigError
from agssp_zoo.models.backbones.base import Backbone, FeatureInfo
from agssp_zoo.models.base import is_capturing
from agssp_zoo.models.cpu_linear import Linear, linear, rows_at_once, runs_plainly
from agssp_zoo.models.drop_path import DropPath
from agssp_zoo.models.level_operators import rename_sides
from agssp_zoo.models.window_attention import WindowAttention, WindowPlan, WindowPlans

PATCH = 4
MLP_RATIO = 4


class PatchEmbed(nn.Module):
    """Patches of 4x4 pixels to tokens; the image is filled up with zeros on the right and at the bottom.

    Args:
        channels: of the tokens.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, PATCH, PATCH)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, ceil(H / 4), ceil(W / 4)), channels last."""
        x = fill_up(x, PATCH, (2, 3))
        tokens: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return tokens.permute(0, 3, 1, 2)


class PatchMerging(nn.Module):
    """Four neighbouring tokens become one of twice the channels; odd sides are filled up with zeros.

    The weights' order is that of ``torch.nn.Unfold``: each channel's four neighbours, row by row. Tokens are gathered
    neighbour by neighbour instead, which moves whole rows of memory, and the weights are brought into that order.

    Args:
        channels: of the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 C)."""
        x = fill_up(x, 2, (1, 2))
        batch, height, width, channels = x.shape
        x = x.view(batch, height // 2, 2, width // 2, 2, channels).transpose(2, 3).flatten(3)
        scale, offset = (v.view(channels, 4).t().flatten() for v in (self.norm.weight, self.norm.bias))
        weight = self.reduction.weight.view(-1, channels, 4).transpose(1, 2).flatten(1)
        return linear(F.layer_norm(x, (4 * channels,), scale, offset, self.norm.eps), weight, None)


class SwinBlock(nn.Module):
    """Attention within windows and a two-layer perceptron, each behind a norm and with a residual path around it.

    Args:
        channels: of the tokens.
        heads: of the attention.
        window: side of a window, in tokens.
        shift: of the windows, in tokens.
    """

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.fc1 = Linear(channels, MLP_RATIO * channels)
        self.fc2 = Linear(MLP_RATIO * channels, channels)
        self.drop_path = DropPath()

    def forward(self, x: Tensor, plan: WindowPlan) -> Tensor:
        """(B, N, C) tokens of a map, and the plan of its size -> (B, N, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x), plan))
        if not runs_plainly(x):
            out: Tensor = x + self.drop_path(self._perceptron(x))
            return out
        for piece in torch.split(x.view(-1, x.shape[2]), rows_at_once(self.fc1.out_features)):
            piece += self._perceptron(piece)
        return x

    def _perceptron(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.fc1(self.norm2(x), gelu=True))
        return out


class SwinStage(nn.Module):
    """Blocks of one resolution, with windows shifted in every other one; all stages but the first merge patches before.

    Attributes:
        checkpointing: recompute the blocks in the backward pass instead of keeping what they computed.
        norm: the norm behind the stage's map, for whoever takes the map; the next stage takes what is before it.

    Args:
        channels: of the stage.
        depth: number of blocks.
        heads: of the attention.
        window: side of a window, in tokens.
        merge: whether patches are merged first.
    """

    def __init__(self, channels: int, depth: int, heads: int, window: int, *, merge: bool) -> None:
        super().__init__()
        self.downsample = PatchMerging(channels // 2) if merge else None
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, window, window // 2 if block % 2 else 0) for block in range(depth)
        )
        self.norm = nn.LayerNorm(channels)
        self.plans = WindowPlans(window, channels)
        self.checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, or after merging (B, 2 C, ceil(H / 2), ceil(W / 2)); channels last, no norm yet."""
        x = x.permute(0, 2, 3, 1)
        if self.downsample is not None:
            x = self.downsample(x)
        height, width = x.shape[1:3]
        plans = self.plans((x.shape[0], height, width), x.device)
        x = x.flatten(1, 2)
        keep_little = self.checkpointing and self.training and torch.is_grad_enabled()
        for number, block in enumerate(self.blocks):
            plan = plans[number % 2]
            x = checkpoint(block, x, plan, use_reentrant=False) if keep_little else block(x, plan)
        return x.view(x.shape[0], height, width, -1).permute(0, 3, 1, 2)


class Swin(Backbone):
    """Swin Transformer; the maps are the four stages', each behind a norm of its own (strides 4, 8, 16, 32).

    Args:
        config: the model's configuration; its options ``embed_dim`` (channels of the first stage), ``depths`` (blocks
            of each stage) and ``heads`` (of each stage, both as in ``"2,2,18,2"``) make smaller or larger networks.
        window: side of a window, in tokens.
        out_indices: see :class:`Backbone`.

    Raises:
        ConfigError: options that make no network.
    """

    has_tokens: ClassVar[bool] = True
    stem: PatchEmbed

    def __init__(self, config: ModelConfig, *, window: int, out_indices: Sequence[int] | None = None) -> None:
        width = int(config.options.get("embed_dim", 128))
        depths = _numbers(config, "depths", "2,2,18,2")
        heads = _numbers(config, "heads", "4,8,16,32")
        channels = [width * 2**i for i in range(len(depths))]
        if len(heads) != len(depths) or width < 1 or any(c % h for c, h in zip(channels, heads, strict=True)):
            raise ConfigError(
                f"{config.name}: options embed_dim={width}, depths={depths}, heads={heads}: give as many heads as "
                "depths, and heads that divide their stage's channels (embed_dim, then twice as many a stage)."
            )
        info = [FeatureInfo(c, PATCH * 2**i, f"stage{i + 1}") for i, c in enumerate(channels)]
        super().__init__(config, info, out_indices)
        self.stem = PatchEmbed(width)
        for index, depth in enumerate(depths):
            stage = SwinStage(channels[index], depth, heads[index], window, merge=index > 0)
            self.add_module(f"stage{index + 1}", stage)
        self._settle_norms()

    def reset_parameters(self) -> None:
        """Draws new weights: normal with deviation 0.02, as in the paper's code."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.bias_table, std=0.02)

    @property
    def stem_modules(self) -> tuple[nn.Module, ...]:
        """The patches' embedding."""
        return (self.stem,)

    def forward_stem(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, ceil(H / 4), ceil(W / 4))."""
        out: Tensor = self.stem(x)
        return out

    def output_map(self, index: int, x: Tensor) -> Tensor:
        """A stage's map behind its norm, (B, C, H, W), channels last."""
        normed: Tensor = self._norm(index)(x.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)

    def optional_entries(self, used: Sequence[int]) -> dict[str, Tensor]:
        """The norms of the other stages; see :meth:`Backbone.optional_entries`."""
        found = {}
        for index, info in enumerate(self.stage_info):
            if index not in used:
                found[f"{info.name}.norm.weight"] = torch.ones(info.channels, device="cpu")
                found[f"{info.name}.norm.bias"] = torch.zeros(info.channels, device="cpu")
        return found

    def set_out_indices(self, out_indices: Sequence[int]) -> None:
        """See :meth:`Backbone.set_out_indices`; the norms of stages that are not taken get no gradients."""
        super().set_out_indices(out_indices)
        if hasattr(self, "stem"):
            self._settle_norms()

    def freeze_stages(self, count: int) -> Self:
        """See :meth:`Backbone.freeze_stages`; the merging behind the last frozen stage is frozen too, as in mmdet."""
        for stage in self.stages[1:]:
            stage.get_submodule("downsample").requires_grad_(True)
        super().freeze_stages(count)
        if 0 < count < len(self.stages):
            self.stages[count].get_submodule("downsample").requires_grad_(False)
        self._settle_norms()
        return self

    def set_drop_path(self, rate: float) -> None:
        """See :meth:`Backbone.set_drop_path`."""
        blocks = [module for module in self.modules() if isinstance(module, SwinBlock)]
        for number, block in enumerate(blocks):
            block.drop_path.rate = rate * number / max(1, len(blocks) - 1)

    def set_checkpointing(self, enabled: bool) -> None:
        """See :meth:`Backbone.set_checkpointing`; only the blocks' inputs are kept."""
        for stage in self.modules():
            if isinstance(stage, SwinStage):
                stage.checkpointing = enabled

    def _norm(self, index: int) -> nn.Module:
        return self.stages[index].get_submodule("norm")

    def _settle_norms(self) -> None:
        """Only the norms that maps go through learn: what gets no gradient at all stops several processes.

        Nor do those of stages that are frozen, by :meth:`freeze_stages` or by ``requires_grad_(False)``.
        """
        for index, stage in enumerate(self.stages):
            frozen = not any(parameter.requires_grad for parameter in stage.get_submodule("blocks").parameters())
            self._norm(index).requires_grad_(index in self.out_indices and not frozen)


def fill_up(x: Tensor, multiple: int, axes: tuple[int, int]) -> Tensor:
    """Zeros behind the last row and column, up to multiples; ``axes`` are those of height and width."""
    missing = [-x.shape[axis] % multiple for axis in axes]
    if not is_capturing() and not any(missing):
        return x
    x = F.pad(x, [0, 0] * (x.ndim - 1 - axes[1]) + [0, missing[1], 0, missing[0]])
    return rename_sides(x, axes, multiple) if torch.compiler.is_exporting() else x


def _numbers(config: ModelConfig, key: str, default: str) -> tuple[int, ...]:
    """An option such as ``"2,2,18,2"``."""
    text = str(config.options.get(key, default))
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{config.name}: option {key} is {text!r}; give numbers above 0, such as {default!r}.")
    return tuple(int(part) for part in parts)
