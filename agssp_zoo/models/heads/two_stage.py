"""The head of Faster R-CNN (Ren et al., arXiv 1506.01497): proposals, and what is in each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agssp_zoo.models.box_coder import encode
from agssp_zoo.models.heads.roi import BOX_STD, RoIHead, images_of
from agssp_zoo.models.heads.rpn import ProposalRule, Proposals, RPNHead, RPNOutput
from agssp_zoo.models.matching import MatchRule, SampleRule, match, sample, step_generator
from agssp_zoo.models.targets import Targets

DETECTING = ProposalRule()
TRAINING = ProposalRule(best_of_level=2000)
REGIONS = MatchRule(positive=0.5, negative=0.5)
"""Proposals with half of a labelled box in common are of its class, all others are background."""
REGION_SAMPLE = SampleRule(count=512, positive_share=0.25)


class TwoStageOutput(NamedTuple):
    """The raw outputs in detection; P proposals an image.

    Attributes:
        proposals: (B, P, 4) xyxy, in input pixels.
        proposal_scores: (B, P) in 0-1; -1 where proposals are filled up.
        class_logits: (B, P, C + 1), background last.
        box_deltas: (B, P, C, 4).
        sizes: (B, 2) int64, height and width that boxes are cut off at.
    """

    proposals: Tensor
    proposal_scores: Tensor
    class_logits: Tensor
    box_deltas: Tensor
    sizes: Tensor


class Regions(NamedTuple):
    """Boxes that the second stage is trained on, those of all images in one row of K.

    Attributes:
        boxes: (K, 4) xyxy, in input pixels.
        images: (K,) int64, the image of each.
        labels: (K,) int64, its class, or the number of classes for background.
        deltas: (K, 4), what leads to the labelled box; zero for background.
    """

    boxes: Tensor
    images: Tensor
    labels: Tensor
    deltas: Tensor


class TwoStageTraining(NamedTuple):
    """The raw outputs in training.

    Attributes:
        rpn: what the first stage says of every anchor.
        regions: what the second stage was asked.
        class_logits: (K, C + 1), its answer.
        box_deltas: (K, C, 4), its answer.
    """

    rpn: RPNOutput
    regions: Regions
    class_logits: Tensor
    box_deltas: Tensor


class TwoStageHead(nn.Module):
    """Region proposals and their classification.

    Args:
        channels: of the maps.
        num_classes: C, without background.
        strides: of the maps, finest first. All but the last are pooled from.
        region_width: of the second stage's fully connected layers.
    """

    def __init__(self, channels: int, num_classes: int, strides: Sequence[int], *, region_width: int = 1024) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.rpn = RPNHead(channels, strides)
        self.roi = RoIHead(channels, num_classes, strides[:-1], width=region_width)

    def reset_parameters(self) -> None:
        """Draws new weights."""
        self.rpn.reset_parameters()
        self.roi.reset_parameters()

    def forward(
        self, maps: Sequence[Tensor], sizes: Tensor, targets: Targets | None = None
    ) -> TwoStageOutput | TwoStageTraining:
        """Proposes and classifies.

        Args:
            maps: [(B, channels, h_i, w_i)], finest first.
            sizes: (B, 2) int64 height and width of each image, in input pixels.
            targets: with labelled boxes the answer is what the loss takes.
        """
        output = self.rpn(maps)
        proposals = self.rpn.propose(output, sizes, DETECTING if targets is None else TRAINING)
        if targets is not None:
            regions = choose_regions(proposals, targets, self.num_classes)
            logits, deltas = self.roi(maps, regions.boxes, regions.images)
            return TwoStageTraining(output, regions, logits, deltas)
        boxes = proposals.boxes
        logits, deltas = self.roi(maps, boxes.reshape(-1, 4), images_of(boxes))
        batch, count = boxes.shape[:2]
        return TwoStageOutput(
            *proposals,
            logits.reshape(batch, count, self.num_classes + 1),
            deltas.reshape(batch, count, self.num_classes, 4),
            sizes,
        )


@torch.no_grad()
def choose_regions(proposals: Proposals, targets: Targets, num_classes: int) -> Regions:
    """Draws the boxes that the second stage learns from: some proposals, and labelled boxes among them.

    The labelled boxes themselves count as proposals, so that there is something to learn before the first stage has
    learnt anything.

    Args:
        proposals: of the first stage.
        targets: the labelled boxes.
        num_classes: the label of background.
    """
    generator = step_generator()
    parts: list[Regions] = []
    for image, (boxes, scores) in enumerate(zip(*proposals, strict=True)):
        true = targets.boxes[image][targets.mask[image]]
        labels = targets.labels[image][targets.mask[image]]
        every = torch.cat([true, boxes[scores >= 0]])
        matched = match(every, true, REGIONS)
        positive, negative = sample(matched, REGION_SAMPLE, generator)
        chosen = torch.cat([positive, negative])
        label = torch.full_like(chosen, num_classes)
        deltas = every.new_zeros((len(chosen), 4))
        if len(positive):
            index = matched[positive]
            label[: len(positive)] = labels[index]
            deltas[: len(positive)] = encode(true[index], every[positive], BOX_STD)
        parts.append(Regions(every[chosen], torch.full_like(chosen, image), label, deltas))
    return Regions(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
