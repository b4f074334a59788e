"""The region proposal network (Ren et al., "Faster R-CNN", arXiv 1506.01497, section 3.1).

A small convolutional head slides over every level of a pyramid. For each anchor it says whether there is an object, and
how the anchor has to move to fit it; the best boxes that do not overlap each other are the proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agssp_zoo.models.anchors import RATIOS, anchors_of
from agssp_zoo.models.base import is_capturing
from agssp_zoo.models.box_coder import clip
from agssp_zoo.models.operators import best_anchors, flatten_anchors, suppress


class RPNOutput(NamedTuple):
    """What the network says, as maps of each level.

    Attributes:
        objectness: for each level logits (B, 3, h_i, w_i), a channel for each shape of anchors.
        deltas: for each level (B, 3 * 4, h_i, w_i).
    """

    objectness: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]


class Proposals(NamedTuple):
    """Boxes that may hold an object, filled up to the same number P for every image.

    Attributes:
        boxes: (B, P, 4) xyxy, in input pixels, best first; zero where filled up.
        scores: (B, P) in 0-1; -1 where filled up.
    """

    boxes: Tensor
    scores: Tensor


@dataclass(frozen=True)
class ProposalRule:
    """How proposals are chosen.

    Attributes:
        best_of_level: boxes of each level that enter the suppression, at most.
        keep: proposals an image, at most.
        iou: of two boxes of a level that overlap by more than this the worse is dropped.
    """

    best_of_level: int = 1000
    keep: int = 1000
    iou: float = 0.7


class RPNHead(nn.Module):
    """The head that all levels share.

    Args:
        channels: of the maps.
        strides: of the levels, in input pixels.
    """

    def __init__(self, channels: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, len(RATIOS), 1)
        self.deltas = nn.Conv2d(channels, 4 * len(RATIOS), 1)

    def reset_parameters(self) -> None:
        """Draws new weights: normal with deviation 0.01, biases zero (the paper's section 3.1.3)."""
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> RPNOutput:
        """[(B, C, h_i, w_i)], finest first -> what is said of every anchor."""
        hidden = [F.relu(self.conv(x)) for x in maps]
        return RPNOutput(tuple(self.objectness(x) for x in hidden), tuple(self.deltas(x) for x in hidden))

    def anchors(self, output: RPNOutput) -> tuple[Tensor, Tensor, Tensor]:
        """What is said of every anchor, for the loss.

        Returns:
            logits (B, A), deltas (B, A, 4) and the anchors themselves (A, 4) xyxy, in input pixels; float32.
        """
        maps = output.objectness
        flat = [flatten_anchors(*level) for level in zip(*output, strict=True)]
        logits, deltas = (torch.cat(parts, dim=1).float() for parts in zip(*flat, strict=True))
        return logits, deltas, torch.cat(anchors_of([x.shape[-2:] for x in maps], self.strides, maps[0].device))

    @torch.no_grad()
    def propose(self, output: RPNOutput, sizes: Tensor, rule: ProposalRule) -> Proposals:
        """The best boxes of every image, apart from each other.

        Args:
            output: what :meth:`forward` answered.
            sizes: (B, 2) height and width of each image, that boxes are cut off at.
            rule: how many.
        """
        find = torch.ops.agssp_zoo.best_anchors if is_capturing() else best_anchors
        levels = zip(*output, self.strides, strict=True)
        found = [find(logits, deltas, stride, rule.best_of_level) for logits, deltas, stride in levels]
        boxes, score = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        boxes = clip(boxes, sizes)
        sides = boxes[..., 2:] - boxes[..., :2]
        score = torch.where((sides > 0).all(-1), score, -1.0)  # what lies outside has no area left
        numbers = torch.arange(len(found) * rule.best_of_level, device=boxes.device) // rule.best_of_level
        choose = torch.ops.agssp_zoo.suppress if is_capturing() else suppress
        kept = choose(boxes, score, numbers, rule.iou, rule.keep, len(found))
        if not is_capturing():
            kept = kept[:, : int((kept >= 0).sum(1).max())]
        there = kept >= 0
        place = kept.clamp(min=0)
        chosen = boxes.gather(1, place[..., None].expand(-1, -1, 4)) * there[..., None]
        return Proposals(chosen, torch.where(there, score.gather(1, place), -1.0))
