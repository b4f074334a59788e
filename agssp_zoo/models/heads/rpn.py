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
from agssp_zoo.models.box_coder import clip, decode
from agssp_zoo.models.operators import suppress


class RPNOutput(NamedTuple):
    """What the network says of all anchors, level by level.

    Attributes:
        objectness: for each level logits (B, A_i).
        deltas: for each level (B, A_i, 4).
        anchors: for each level (A_i, 4) xyxy, in input pixels.
    """

    objectness: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]
    anchors: tuple[Tensor, ...]


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
        objectness, deltas = [], []
        for x in maps:
            hidden = F.relu(self.conv(x))
            objectness.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(hidden).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4))
        anchors = anchors_of([x.shape[-2:] for x in maps], self.strides, maps[0].device)
        return RPNOutput(tuple(objectness), tuple(deltas), anchors)

    @torch.no_grad()
    def propose(self, output: RPNOutput, sizes: Tensor, rule: ProposalRule) -> Proposals:
        """The best boxes of every image, apart from each other.

        Args:
            output: what :meth:`forward` answered.
            sizes: (B, 2) height and width of each image, that boxes are cut off at.
            rule: how many.
        """
        boxes, scores, levels = [], [], []
        for level, (logits, deltas, anchors) in enumerate(zip(*output, strict=True)):
            best, index = logits.float().topk(_at_most(rule.best_of_level, logits.shape[1]), dim=1)
            chosen = deltas.gather(1, index[..., None].expand(-1, -1, 4))
            boxes.append(decode(chosen, anchors[index]))
            scores.append(best.sigmoid())
            levels.append(torch.full_like(index[0], level))
        every, score = clip(torch.cat(boxes, dim=1), sizes), torch.cat(scores, dim=1)
        sides = every[..., 2:] - every[..., :2]
        score = torch.where((sides > 0).all(-1), score, -1.0)  # what lies outside has no area left
        find = torch.ops.agssp_zoo.suppress if is_capturing() else suppress
        kept = find(every, score, torch.cat(levels), rule.iou, rule.keep)
        if not is_capturing():
            kept = kept[:, : int((kept >= 0).sum(1).max())]
        there = kept >= 0
        place = kept.clamp(min=0)
        found = every.gather(1, place[..., None].expand(-1, -1, 4)) * there[..., None]
        return Proposals(found, torch.where(there, score.gather(1, place), -1.0))


def _at_most(most: int, count: int) -> int:
    """The smaller number, where the second may be a symbol."""
    return torch.sym_min(most, count) if is_capturing() else min(most, count)  # type: ignore[no-any-return]
