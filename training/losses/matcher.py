"""Which query answers for which labelled box: the one-to-one matching of least cost, over all of an image at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from agssp_zoo.models.targets import Targets

from .focal import ALPHA, GAMMA
from .iou import generalized_iou

CLASS_COST, BOX_COST, IOU_COST = 2.0, 5.0, 2.0
"""Weights of the parts of the cost (Zhang et al., "DINO", arXiv 2203.03605, appendix D)."""
WORST = 1e6
"""Of a cost that is no number; the loss is none either, and ends the run with a message of its own."""


@dataclass(frozen=True)
class Matches:
    """K pairs of queries and labelled boxes.

    Attributes:
        layer: (K,) int64, the set of predictions.
        image: (K,) int64.
        query: (K,) int64.
        box: (K,) int64, row of the image's labelled boxes.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    box: Tensor


@torch.no_grad()
def match_least_cost(logits: Tensor, boxes: Tensor, targets: Targets, true_boxes: Tensor) -> Matches:
    """Hungarian matching (Carion et al., "DETR", arXiv 2005.12872, section 3.1), for every set of predictions apart.

    The cost of a pair: focal loss of the class if it is there less that if it is not (Zhu et al., "Deformable DETR",
    arXiv 2010.04159), the sum of the sides' absolute differences, and the negative generalized IoU.

    Args:
        logits: (L, B, Q, C) float32.
        boxes: (L, B, Q, 4) float32 cx, cy, w, h in 0-1.
        targets: the labelled boxes, M rows an image.
        true_boxes: (B, M, 4) float32, theirs as cx, cy, w, h in 0-1.

    Returns:
        every labelled box once for every set, unless there are more of them than queries.
    """
    from scipy.optimize import linear_sum_assignment

    most = int(targets.mask.sum(1).max()) if targets.mask.numel() else 0
    if most == 0:
        none = torch.zeros(0, dtype=torch.int64, device=logits.device)
        return Matches(none, none, none, none)
    score = logits.sigmoid()
    there = ALPHA * (1 - score) ** GAMMA * -functional.logsigmoid(logits)
    not_there = (1 - ALPHA) * score**GAMMA * -functional.logsigmoid(-logits)
    labels = torch.where(targets.mask, targets.labels, 0)[None, :, None].expand(*logits.shape[:3], -1)
    cost = CLASS_COST * (there - not_there).gather(-1, labels)  # (L, B, Q, M)
    cost += BOX_COST * (boxes[:, :, :, None] - true_boxes[:, None]).abs().sum(-1)
    cost -= IOU_COST * generalized_iou(to_corners(boxes)[:, :, :, None], to_corners(true_boxes)[:, None])
    plain = np.nan_to_num(cost.cpu().numpy(), nan=WORST, posinf=WORST, neginf=WORST)
    pairs = []
    for image, mask in enumerate(targets.mask.cpu().numpy()):
        columns = np.flatnonzero(mask)
        for layer in range(len(plain)):
            query, place = linear_sum_assignment(plain[layer, image][:, columns])
            where = np.broadcast_to([[layer], [image]], (2, len(query)))
            pairs.append(np.concatenate([where, query[None], columns[place][None]]))
    found = torch.from_numpy(np.concatenate(pairs, axis=1)).to(logits.device)
    return Matches(*found.unbind())


def to_corners(boxes: Tensor) -> Tensor:
    """(..., 4) cx, cy, w, h -> x1, y1, x2, y2."""
    centres, sides = boxes.chunk(2, -1)
    return torch.cat([centres - sides / 2, centres + sides / 2], -1)


def to_centres(boxes: Tensor, input_size: tuple[int, int]) -> Tensor:
    """(..., 4) x1, y1, x2, y2 in pixels -> cx, cy, w, h relative to (height, width)."""
    height, width = input_size
    low, high = (boxes / boxes.new_tensor([width, height, width, height])).chunk(2, -1)
    return torch.cat([(low + high) / 2, high - low], -1)
