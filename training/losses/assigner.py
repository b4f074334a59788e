"""Which points of the feature maps answer for which labelled box: the task-aligned assigner of TOOD."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .iou import complete_iou


@dataclass(frozen=True)
class Assignment:
    """What every point is trained to answer.

    Attributes:
        foreground: (B, P) bool, the points that answer for a box.
        box_index: (B, P) int64, which of the image's boxes; 0 where ``foreground`` is false.
        scores: (B, P, C) float, the soft classification target; zero for background.
    """

    foreground: Tensor
    box_index: Tensor
    scores: Tensor


@torch.no_grad()
def assign_task_aligned(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    true_labels: Tensor,
    true_boxes: Tensor,
    true_mask: Tensor,
    *,
    top_k: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
    eps: float = 1e-9,
) -> Assignment:
    """Task-aligned assignment (Feng et al., "TOOD", ICCV 2021, section 3.2).

    A point's alignment with a box is ``t = s^alpha * u^beta``: s the predicted score of the box's class, u the overlap
    (complete IoU, cut at 0) of the predicted with the labelled box. Each box takes the ``top_k`` best aligned among the
    points inside it; a point that several boxes want goes to the one that it overlaps most. The targets are t, scaled
    for each box so that its largest is the largest overlap among its points.

    Args:
        scores: (B, P, C) predicted probabilities.
        boxes: (B, P, 4) predicted boxes, xyxy in input pixels.
        points: (P, 2) x, y of the points in input pixels.
        true_labels: (B, M) int64 classes of the labelled boxes.
        true_boxes: (B, M, 4) labelled boxes, xyxy in input pixels.
        true_mask: (B, M) bool, which of the M rows are boxes and which only fill up.
        top_k: points a box.
        alpha: exponent of the score.
        beta: exponent of the overlap.
        eps: keeps divisions finite.
    """
    batch, count, _ = scores.shape
    most = true_boxes.shape[1]
    if most == 0:
        none = torch.zeros(batch, count, dtype=torch.bool, device=scores.device)
        return Assignment(none, none.long(), torch.zeros_like(scores))
    x, y = points.unbind(-1)
    inside = (
        torch.stack(
            [
                x - true_boxes[..., 0:1],
                y - true_boxes[..., 1:2],
                true_boxes[..., 2:3] - x,
                true_boxes[..., 3:4] - y,
            ]
        ).amin(0)
        > eps
    )
    inside &= true_mask[..., None]  # (B, M, P)
    overlaps = complete_iou(true_boxes[:, :, None], boxes[:, None]).clamp_(min=0) * inside
    of_class = scores.transpose(1, 2).gather(1, true_labels[..., None].expand(-1, -1, count))  # (B, M, P)
    alignment = of_class.pow(alpha) * overlaps.pow(beta)

    best = alignment.topk(min(top_k, count), dim=-1).indices
    chosen = torch.zeros_like(inside).scatter_(-1, best, True)
    chosen &= alignment > 0  # a point without overlap would be trained for nothing, with weight 0

    # A point wanted by several boxes goes to the one it overlaps most: of all the boxes around it, not only those.
    contested = chosen.sum(1, keepdim=True) > 1
    nearest = torch.zeros_like(chosen).scatter_(1, overlaps.argmax(1, keepdim=True), True)
    chosen = torch.where(contested, nearest, chosen)

    foreground = chosen.any(1)
    box_index = chosen.int().argmax(1)
    alignment *= chosen
    scale = (overlaps * chosen).amax(-1, keepdim=True) / (alignment.amax(-1, keepdim=True) + eps)
    value = (alignment * scale).amax(1)  # (B, P)
    targets = torch.zeros_like(scores)
    targets.scatter_(-1, true_labels.gather(1, box_index)[..., None], (value * foreground)[..., None])
    return Assignment(foreground, box_index, targets)
