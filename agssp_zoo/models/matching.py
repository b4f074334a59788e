"""Which reference boxes are to answer for which labelled box, and which of them a step learns from.

The rules are those of Ren et al., "Faster R-CNN" (arXiv 1506.01497), sections 3.1.2 and 3.1.3, with the thresholds that
have become the standard recipe.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BACKGROUND = -1
IGNORED = -2


@dataclass(frozen=True)
class MatchRule:
    """How overlap decides.

    Attributes:
        positive: a reference answers for the labelled box that it overlaps most, from this IoU on.
        negative: it is background below this IoU; between the two it is ignored.
        best_from: a labelled box takes the references that overlap it most, from this IoU on, even if they reach no
            ``positive``; 1.0 and more switches this off.
    """

    positive: float
    negative: float
    best_from: float = 2.0


@dataclass(frozen=True)
class SampleRule:
    """How many references an image a step learns from.

    Attributes:
        count: of all, at most.
        positive_share: largest share of those that answer for a box; background fills the rest.
    """

    count: int
    positive_share: float


def match(references: Tensor, boxes: Tensor, rule: MatchRule) -> Tensor:
    """Matches references with the labelled boxes of one image.

    Args:
        references: (N, 4) xyxy.
        boxes: (M, 4) xyxy, of positive area; M may be 0.
        rule: the thresholds.

    Returns:
        (N,) int64: the index of a box, :data:`BACKGROUND` or :data:`IGNORED`.
    """
    from torchvision.ops import box_iou  # its import costs as much as torch's

    if len(boxes) == 0:
        return torch.full((len(references),), BACKGROUND, dtype=torch.int64, device=references.device)
    overlaps: Tensor = box_iou(boxes, references)  # (M, N)
    most, index = overlaps.max(dim=0)
    matched = torch.where(most >= rule.positive, index, IGNORED)
    matched = torch.where(most < rule.negative, BACKGROUND, matched)
    best = overlaps.amax(dim=1, keepdim=True)
    taken = (overlaps == best) & (best >= rule.best_from)
    # Of several boxes that take one reference, the last gets it.
    last = taken.shape[0] - 1 - taken.flip(0).int().argmax(dim=0)
    return torch.where(taken.any(dim=0), last, matched)


def sample(matched: Tensor, rule: SampleRule, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws what one image's step learns from.

    Args:
        matched: (N,) as :func:`match` answers.
        rule: how many.
        generator: on the CPU, so that a run on any device draws the same and can be resumed.

    Returns:
        indices of those that answer for a box, and of background; int64.
    """
    positive = _draw((matched >= 0).nonzero()[:, 0], int(rule.count * rule.positive_share), generator)
    negative = _draw((matched == BACKGROUND).nonzero()[:, 0], rule.count - len(positive), generator)
    return positive, negative


def step_generator() -> torch.Generator:
    """A generator for the draws of one step.

    It takes exactly one number from torch's own generator on the CPU, whose state a run saves: all processes of a run
    therefore keep the same state, however many boxes their images have.
    """
    seed = int(torch.randint(2**62, (), device="cpu"))
    return torch.Generator(device="cpu").manual_seed(seed)


def _draw(indices: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """At most so many of the indices, drawn without replacement."""
    if len(indices) <= most:
        return indices
    return indices[torch.randperm(len(indices), generator=generator)[:most].to(indices.device)]
