"""The training loss of the anchor-free detectors: BCE, CIoU and DFL on task-aligned targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from agssp_zoo.models.targets import Targets

from .assigner import assign_task_aligned
from .dfl import distribution_focal_loss
from .iou import complete_iou

RawLevel = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LossSums:
    """The loss of a batch.

    Attributes:
        total: scalar with gradient, the weighted sum of the parts for one image.
        parts: (P,) detached, weighted, in the order in which the detector's family names them; here box (CIoU),
            classes (BCE) and distances (DFL).
    """

    total: Tensor
    parts: Tensor


class DetectionLoss:
    """BCE on soft class targets, CIoU and DFL on the assigned points.

    All three are sums over the batch divided by the sum of the target scores (at least 1); CIoU and DFL weigh a point
    by its target score. Weights 7.5 (box), 0.5 (class), 1.5 (distance; mean over the four sides) are the family's
    published ones, as are the assigner's 10, 0.5, 6.

    Args:
        strides: input pixels between the points of each level.
        num_classes: C.
        reg_max: bins of the distance distribution.
        box_weight: weight of CIoU.
        class_weight: weight of BCE.
        distance_weight: weight of DFL.
        top_k: points a box in the assigner.
        alpha: exponent of the score in the assigner.
        beta: exponent of the overlap in the assigner.
        class_balance: (C,) factor on the BCE of the points that answer for a class, or ``None``.
    """

    def __init__(
        self,
        strides: Sequence[int],
        num_classes: int,
        reg_max: int = 16,
        *,
        box_weight: float = 7.5,
        class_weight: float = 0.5,
        distance_weight: float = 1.5,
        top_k: int = 10,
        alpha: float = 0.5,
        beta: float = 6.0,
        class_balance: Tensor | None = None,
    ) -> None:
        self.strides = tuple(strides)
        self.num_classes = num_classes
        self.reg_max = reg_max
        self.weights = (box_weight, class_weight, distance_weight)
        self.assigner = {"top_k": top_k, "alpha": alpha, "beta": beta}
        self.class_balance = class_balance
        self._points: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def __call__(
        self,
        raw: Sequence[RawLevel],
        targets: Targets,
        *,
        reduce_sum: Callable[[Tensor], Tensor] | None = None,
        processes: int = 1,
    ) -> LossSums:
        """The loss of one batch.

        Args:
            raw: for each level the class logits (B, C, h, w) and the distance logits (B, 4 * reg_max, h, w).
            targets: the labelled boxes.
            reduce_sum: adds the sum of the target scores up over all processes; none needed for one.
            processes: how many processes average their gradients. Together they then compute what one would on all
                of their images.
        """
        points, stride = self._grid(raw)
        # Losses in float32 whatever the network computes in: the assigner's 6th power underflows in half precision.
        logits = torch.cat([c.flatten(2) for c, _ in raw], 2).transpose(1, 2).float()  # (B, P, C)
        sides = torch.cat([b.flatten(2) for _, b in raw], 2).transpose(1, 2).float()
        sides = sides.reshape(*sides.shape[:2], 4, self.reg_max)  # (B, P, 4, bins)

        with torch.no_grad():
            bins = torch.arange(self.reg_max, dtype=torch.float32, device=sides.device)
            distances = (sides.softmax(-1) @ bins) * stride
            boxes = _around(points, distances)
            assigned = assign_task_aligned(
                logits.sigmoid(),
                boxes,
                points,
                targets.labels,
                targets.boxes,
                targets.mask,
                **self.assigner,  # type: ignore[arg-type]
            )
            total_score = assigned.scores.sum()
            if reduce_sum is not None:
                total_score = reduce_sum(total_score)
            total_score = total_score.clamp(min=1.0) / processes

        bce = functional.binary_cross_entropy_with_logits(logits, assigned.scores, reduction="none")
        image, point = assigned.foreground.nonzero(as_tuple=True)
        row = assigned.box_index[image, point]
        if self.class_balance is not None:
            factor = torch.ones(logits.shape[:2], device=logits.device)
            factor[image, point] = self.class_balance.to(logits.device)[targets.labels[image, row]]
            bce = bce * factor[..., None]
        classes = bce.sum() / total_score

        if image.numel():
            score = assigned.scores[image, point].sum(-1)
            true = targets.boxes[image, row]
            at, scale = points[point], stride[point]
            chosen = sides[image, point]  # (F, 4, bins)
            predicted = _around(at, (chosen.softmax(-1) @ bins) * scale)
            box = ((1 - complete_iou(predicted, true)) * score).sum() / total_score
            distance = torch.cat([at - true[:, :2], true[:, 2:] - at], -1) / scale
            # The last bin is never reached exactly, so that there always is one on its right.
            distance = distance.clamp(0, self.reg_max - 1 - 0.01)
            dfl = (distribution_focal_loss(chosen, distance).mean(-1) * score).sum() / total_score
        else:
            box = dfl = sides.sum() * 0.0
        parts = [w * part for w, part in zip(self.weights, (box, classes, dfl), strict=True)]
        return LossSums(parts[0] + parts[1] + parts[2], torch.stack([p.detach() for p in parts]))

    def _grid(self, raw: Sequence[RawLevel]) -> tuple[Tensor, Tensor]:
        """Points (P, 2) at the cells' centres in input pixels and their strides (P, 1), kept for the last sizes."""
        device = raw[0][0].device
        key = (device, *(level[0].shape[2:] for level in raw))
        if key not in self._points:
            if len(self._points) > 32:
                self._points.clear()
            points, strides = [], []
            for (logits, _), step in zip(raw, self.strides, strict=True):
                height, width = logits.shape[2:]
                y, x = torch.meshgrid(
                    torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij"
                )
                points.append(torch.stack([x, y], -1).flatten(0, 1) * step)
                strides.append(torch.full((height * width, 1), float(step), device=device))
            self._points[key] = (torch.cat(points), torch.cat(strides))
        return self._points[key]


def _around(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes xyxy from points (..., 2) and their distances left, top, right, bottom (..., 4)."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)
