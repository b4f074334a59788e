"""The training loss of DINO (Zhang et al., arXiv 2203.03605): classes, sides and overlap of matched predictions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from agssp_zoo.models.denoising import Denoising
from agssp_zoo.models.heads.dino import TrainingAnswer
from agssp_zoo.models.targets import Targets

from .detection import LossSums
from .focal import focal_loss
from .iou import generalized_iou
from .matcher import Matches, match_least_cost, to_centres, to_corners

PARTS = ("box_loss", "cls_loss", "giou_loss")
"""Of the loss: absolute differences of the sides, focal loss of the classes, generalized IoU."""
WEIGHTS = (5.0, 1.0, 2.0)
"""Of the parts (appendix D)."""


class SetPredictionLoss:
    """The same loss for every decoder layer, for the proposals that became queries, and for the noisy queries.

    Of each set of predictions the sums are divided by the number of labelled boxes (of copies to repair, for the noisy
    ones), at least 1. Predictions that answer for no box are trained to see no class.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def __call__(
        self,
        raw: TrainingAnswer,
        targets: Targets,
        *,
        reduce_sum: Callable[[Tensor], Tensor] | None = None,
        processes: int = 1,
    ) -> LossSums:
        """The loss of one batch.

        Args:
            raw: what the network answered in training.
            targets: the labelled boxes, the same that the network was given.
            reduce_sum: adds the number of boxes up over all processes; none needed for one.
            processes: how many processes average their gradients.
        """
        noisy = 0 if raw.denoising is None else raw.denoising.labels.shape[1]
        logits = torch.cat([raw.logits[:, :, noisy:], raw.proposed_logits[None].float()])
        boxes = torch.cat([raw.boxes[:, :, noisy:], raw.proposed_boxes[None]])
        true = to_centres(targets.boxes, raw.input_size)
        matches = match_least_cost(logits.detach(), boxes.detach(), targets, true)
        parts = _sums(logits, boxes, matches, targets.labels, true)
        groups = torch.zeros((), device=logits.device)
        if raw.denoising is not None:
            known = _known_matches(raw.denoising, len(raw.logits))
            truth = raw.denoising.truth
            repaired = _sums(
                raw.logits[:, :, :noisy],
                raw.boxes[:, :, :noisy],
                known,
                truth.labels,
                to_centres(truth.boxes, raw.input_size),
            )
            groups = groups + raw.denoising.groups
        number = targets.mask.sum().float()
        counts = torch.stack([number, number * groups])
        if reduce_sum is not None:
            counts = reduce_sum(counts)
        counts = counts.clamp(min=1) / processes
        parts = parts / counts[0]
        if raw.denoising is not None:
            parts = parts + repaired / counts[1]
        parts = parts * parts.new_tensor(WEIGHTS)
        return LossSums(parts.sum(), parts.detach())


def _sums(logits: Tensor, boxes: Tensor, matches: Matches, labels: Tensor, true_boxes: Tensor) -> Tensor:
    """(3,) sums over all sets of predictions, in the order of :data:`PARTS`.

    Args:
        logits: (L, B, Q, C) float32.
        boxes: (L, B, Q, 4) float32 cx, cy, w, h in 0-1.
        matches: which of them answer for which labelled box.
        labels: (B, M) int64.
        true_boxes: (B, M, 4) float32 cx, cy, w, h in 0-1.
    """
    at = (matches.layer, matches.image, matches.query)
    wanted = torch.zeros_like(logits)
    wanted[(*at, labels[matches.image, matches.box])] = 1.0
    found, true = boxes[at], true_boxes[matches.image, matches.box]
    overlap = generalized_iou(to_corners(found), to_corners(true))
    return torch.stack([(found - true).abs().sum(), focal_loss(logits, wanted).sum(), (1 - overlap).sum()])


def _known_matches(denoising: Denoising, layers: int) -> Matches:
    """The copies to repair, in every layer: what each of them is a copy of needs no search."""
    mask = denoising.truth.mask
    device, most = mask.device, mask.shape[1]
    image, box = mask.nonzero(as_tuple=True)
    group = torch.arange(denoising.groups, device=device)
    query = (group[:, None] * (2 * most) + box).flatten()
    image, box = image.repeat(denoising.groups), box.repeat(denoising.groups)
    layer = torch.arange(layers, device=device).repeat_interleave(len(query))
    return Matches(layer, image.repeat(layers), query.repeat(layers), box.repeat(layers))
