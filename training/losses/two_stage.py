"""The training loss of Faster R-CNN (Ren et al., arXiv 1506.01497, equation 1), of both stages together.

In each stage cross entropy on a drawn sample and the absolute difference of the box deltas on what answers for a box,
both divided by the size of the sample. The paper's smooth L1 is taken with its bend at 0, as the authors of AGSSP do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from agssp_zoo.models.box_coder import encode
from agssp_zoo.models.heads.rpn import RPNHead, RPNOutput
from agssp_zoo.models.heads.two_stage import TwoStageTraining
from agssp_zoo.models.matching import MatchRule, SampleRule, match, sample, step_generator
from agssp_zoo.models.targets import Targets

from .detection import LossSums

ANCHORS = MatchRule(positive=0.7, negative=0.3, best_from=0.3)
"""Which anchors answer for a labelled box (section 3.1.2); the best one of each box does from an IoU of 0.3 on."""
ANCHOR_SAMPLE = SampleRule(count=256, positive_share=0.5)
"""Anchors an image that a step learns from (section 3.1.3)."""
PARTS = ("rpn_cls_loss", "rpn_box_loss", "cls_loss", "box_loss")
"""Of the loss: objectness and boxes of the first stage, classes and boxes of the second."""


class TwoStageLoss:
    """Both stages' losses, added up.

    Args:
        rpn: the network's first stage, which knows its anchors.
        num_classes: C, the label of background.
    """

    def __init__(self, rpn: RPNHead, num_classes: int) -> None:
        self.rpn = rpn
        self.num_classes = num_classes

    def __call__(
        self,
        raw: TwoStageTraining,
        targets: Targets,
        *,
        reduce_sum: Callable[[Tensor], Tensor] | None = None,
        processes: int = 1,
    ) -> LossSums:
        """The loss of one batch.

        Args:
            raw: what the network answered in training.
            targets: the labelled boxes, the same that the network was given.
            reduce_sum: adds the sizes of the samples up over all processes; none needed for one.
            processes: how many processes average their gradients.
        """
        first, first_count = self._first_stage(raw.rpn, targets)
        second, second_count = self._second_stage(raw)
        counts = torch.tensor([first_count, second_count], dtype=torch.float32, device=first[0].device)
        if reduce_sum is not None:
            counts = reduce_sum(counts)
        counts = counts.clamp(min=1) / processes
        parts = [*(part / counts[0] for part in first), *(part / counts[1] for part in second)]
        return LossSums(torch.stack(parts).sum(), torch.stack([part.detach() for part in parts]))

    def _first_stage(self, rpn: RPNOutput, targets: Targets) -> tuple[tuple[Tensor, Tensor], int]:
        """Sums over the sampled anchors of all images: objectness and boxes; and how many anchors these are."""
        objectness, deltas, anchors = self.rpn.anchors(rpn)
        generator = step_generator()
        of_objects, of_boxes = objectness.sum() * 0.0, deltas.sum() * 0.0
        count = 0
        for image in range(len(objectness)):
            true = targets.boxes[image][targets.mask[image]]
            matched = match(anchors, true, ANCHORS)
            positive, negative = sample(matched, ANCHOR_SAMPLE, generator)
            chosen = torch.cat([positive, negative])
            wanted = torch.zeros(len(chosen), device=objectness.device)
            wanted[: len(positive)] = 1.0
            of_objects = of_objects + functional.binary_cross_entropy_with_logits(
                objectness[image, chosen], wanted, reduction="sum"
            )
            if len(positive):
                goal = encode(true[matched[positive]], anchors[positive])
                of_boxes = of_boxes + (deltas[image, positive] - goal).abs().sum()
            count += len(chosen)
        return (of_objects, of_boxes), count

    def _second_stage(self, raw: TwoStageTraining) -> tuple[tuple[Tensor, Tensor], int]:
        """Sums over the sampled regions of all images: classes and boxes; and how many regions these are."""
        labels = raw.regions.labels
        classes = functional.cross_entropy(raw.class_logits.float(), labels, reduction="sum")
        positive = (labels < self.num_classes).nonzero()[:, 0]
        deltas = raw.box_deltas.float()
        of_class = deltas[positive, labels[positive]]
        boxes = deltas.sum() * 0.0 + (of_class - raw.regions.deltas[positive]).abs().sum()
        return (classes, boxes), len(labels)
