"""From decoded boxes and scores to detections: thresholding and class-wise non-maximum suppression, in torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def select_detections(
    boxes: Tensor,
    scores: Tensor,
    *,
    conf: float | Sequence[float],
    iou: float,
    max_det: int,
    max_candidates: int,
    multi_label: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keeps the best boxes of every image.

    Args:
        boxes: (B, N, 4) xyxy, in pixels; or (B, N, C, 4), a box for each class.
        scores: (B, N, C), in 0-1.
        conf: only scores above this; or C numbers, one a class. What lies below takes no place.
        iou: of two boxes of one class that overlap by more than this IoU, the better one stays.
        max_det: at most this many detections an image.
        max_candidates: at most this many candidates, the best, enter the suppression.
        multi_label: every class of a box is a candidate of its own; else only its best class is, above or not.

    Returns:
        boxes (B, max_det, 4), scores (B, max_det), labels int64 (B, max_det) and count int64 (B,); sorted by score,
        the entries from count on are zero, their labels -1.
    """
    batch = boxes.shape[0]
    thresholds = torch.as_tensor(conf, dtype=scores.dtype, device=scores.device).reshape(-1).expand(scores.shape[2])
    out_boxes = boxes.new_zeros((batch, max_det, 4))
    out_scores = scores.new_zeros((batch, max_det))
    out_labels = torch.full((batch, max_det), -1, dtype=torch.int64, device=boxes.device)
    count = torch.zeros(batch, dtype=torch.int64, device=boxes.device)
    for i in range(batch):
        chosen = _select(boxes[i], scores[i], thresholds, iou, max_det, max_candidates, multi_label)
        number = len(chosen[1])
        out_boxes[i, :number], out_scores[i, :number], out_labels[i, :number] = chosen
        count[i] = number
    return out_boxes, out_scores, out_labels, count


def _select(
    boxes: Tensor, scores: Tensor, thresholds: Tensor, iou: float, max_det: int, max_candidates: int, multi_label: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`select_detections` of one image, with (C,) thresholds: boxes, scores and labels of the kept ones."""
    num_classes = scores.shape[1]
    boxes_a_row = boxes.shape[1] if boxes.ndim == 3 else 1
    boxes = boxes.reshape(-1, 4)
    if multi_label and num_classes > 1:
        candidates = (scores > thresholds).reshape(-1).nonzero()[:, 0]
        values = scores.reshape(-1)[candidates]
    else:
        best, best_labels = scores.max(dim=1)
        candidates = (best > thresholds[best_labels]).nonzero()[:, 0]
        values = best[candidates]
        candidates = candidates * num_classes + best_labels[candidates]
    total = min(len(values), max_candidates)
    # Greedy suppression decides on a box by better boxes alone. So what is kept of the best few candidates is kept of
    # all, and most of the time these are enough. Its cost is quadratic, so doubling costs a third more at most.
    size = min(total, 2 * max_det)
    while True:
        # Of equal scores the first candidates are taken, and in their order, as in the exported graph; topk promises
        # neither.
        order = (values >= values.topk(size).values[-1:]).nonzero()[:, 0]
        top, within = values[order].sort(descending=True, stable=True)
        top, order = top[:size], order[within[:size]]
        rows, labels = candidates[order] // num_classes, candidates[order] % num_classes
        if boxes_a_row > 1:
            rows = rows * boxes_a_row + labels
        kept = nms(boxes[rows], top, labels, iou)
        if len(kept) >= max_det or size == total:
            kept = kept[:max_det]
            return boxes[rows[kept]], top[kept], labels[kept]
        size = min(total, 2 * size)


def nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Class-wise non-maximum suppression.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        labels: (N,) int64.
        iou: boxes of one class that overlap a better one by more than this are dropped.

    Returns:
        the indices of the kept boxes, by falling score.
    """
    from torchvision.ops import nms as torchvision_nms  # its import costs as much as torch's

    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    # Each class is moved to a place of its own. In double precision, because the move would eat the last bits of a
    # float32 coordinate, and with them the agreement with other implementations (MPS has no doubles).
    exact = boxes.to(torch.float32 if boxes.device.type == "mps" else torch.float64)
    span = exact.max() - exact.min() + 1
    kept: Tensor = torchvision_nms(exact + labels[:, None] * span, scores.to(exact.dtype), iou)
    return kept
