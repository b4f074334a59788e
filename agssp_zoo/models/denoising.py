"""Contrastive denoising: noisy copies of the labelled boxes that DINO's decoder is trained to repair.

Zhang et al., "DINO" (arXiv 2203.03605, section 3.3), after Li et al., "DN-DETR" (arXiv 2203.01305). Every group holds
two copies of each labelled box. One, moved by less than half a box, has to come back to it; the other one, moved by
more than that, has to be told apart from an object.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agssp_zoo.models.matching import step_generator
from agssp_zoo.models.targets import Targets


@dataclass(frozen=True)
class Denoising:
    """Noisy queries of a batch, G groups of 2 M each: first the M copies to repair, then the M to reject.

    Attributes:
        labels: (B, 2 G M) int64, partly wrong classes.
        boxes: (B, 2 G M, 4) float32 cx, cy, w, h in 0-1, moved.
        groups: G.
        truth: the labelled boxes that the copies are of, M rows an image.
        hidden: (2 G M + Q, 2 G M + Q) bool, true where a query must not look at another: Q matched queries at no
            noisy one, which would tell them the answer, and noisy ones at no other group.
    """

    labels: Tensor
    boxes: Tensor
    groups: int
    truth: Targets
    hidden: Tensor


def make_denoising(
    targets: Targets,
    input_size: tuple[int, int],
    num_classes: int,
    num_queries: int,
    *,
    noisy_queries: int = 100,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
) -> Denoising | None:
    """Draws noisy queries.

    Args:
        targets: the labelled boxes.
        input_size: height and width of the input.
        num_classes: classes to draw wrong ones from.
        num_queries: Q, of matched queries that follow the noisy ones.
        noisy_queries: about so many pairs of queries are made, in as many groups as that allows, one at least.
        label_noise: twice the share of copies whose class is drawn anew.
        box_noise: largest move of a copy to repair, as a share of the box's half sides; 1 is the box's own border.

    Returns:
        ``None`` where no image has a box.
    """
    generator = step_generator()  # drawn always, so that all processes draw as often
    batch, most = targets.labels.shape
    counts = targets.mask.sum(1)
    if batch == 0 or most == 0 or int(counts.max()) == 0:
        return None
    most = int(counts.max())
    device = targets.boxes.device
    groups = max(1, noisy_queries // most)
    # Rows that only fill up are moved behind the boxes, so that M is no larger than it has to be.
    order = targets.mask.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    mask = targets.mask.gather(1, order)
    boxes = targets.boxes.gather(1, order[..., None].expand(-1, -1, 4))
    truth = Targets(torch.where(mask, targets.labels.gather(1, order), 0), boxes, mask)
    labels = truth.labels.repeat(1, 2 * groups)
    height, width = input_size
    boxes = boxes / boxes.new_tensor([width, height, width, height])
    boxes = torch.where(mask[..., None], boxes, 0.5).repeat(1, 2 * groups, 1)

    count = 2 * groups * most
    wrong = torch.rand(batch, count, generator=generator) < label_noise / 2
    drawn = torch.randint(0, num_classes, (batch, count), generator=generator)
    labels = torch.where(wrong.to(device), drawn.to(device), labels)
    move = torch.rand(batch, groups, 2, most, 4, generator=generator)
    move[:, :, 1] += 1.0
    sign = torch.randint(0, 2, move.shape, generator=generator) * 2 - 1
    move = (move * sign).view(batch, count, 4).to(device)
    half = (boxes[..., 2:] - boxes[..., :2]) / 2
    boxes = (boxes + box_noise * move * torch.cat([half, half], -1)).clamp(0, 1)
    corners, others = boxes.chunk(2, -1)
    boxes = torch.cat([(corners + others) / 2, others - corners], -1)

    group = torch.arange(count, device=device) // (2 * most)
    hidden = torch.zeros(count + num_queries, count + num_queries, dtype=torch.bool, device=device)
    hidden[:count, :count] = group[:, None] != group
    hidden[count:, :count] = True
    return Denoising(labels, boxes, groups, truth, hidden)
