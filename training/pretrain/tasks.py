"""What a backbone learns beside the anomaly maps: names of data sets, hidden patches, or which views match."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agssp_zoo.errors import SettingError
from agssp_zoo.models import Backbone

from .settings import PretrainSettings
from .stages import StageRunner


class Task(nn.Module, ABC):
    """A task: runs the stages in its own way and adds a loss of its own.

    Attributes:
        views: views of an image that it needs.
    """

    views = 1

    @abstractmethod
    def forward(
        self, stages: StageRunner, images: Tensor, labels: Tensor, hidden: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """Runs the stages.

        Args:
            stages: the backbone.
            images: normalised, (V * B, 3, S, S).
            labels: (B,) int64.
            hidden: (B, P, P) bool.

        Returns:
            the maps of all stages, the task's loss, and, where the task hides parts of the images, what is visible:
            (B, 1, P, P) float, 0 or 1.
        """

    def after_move(self, stages: StageRunner, progress: float) -> None:
        """Called when the weights have moved; ``progress``: 0-1 of the run."""


def build_task(settings: PretrainSettings, backbone: Backbone, classes: int) -> Task:
    """The task of a run.

    Args:
        settings: of the run.
        backbone: its backbone; the tasks' layers fit its last stage.
        classes: number of names that task ``cls`` tells apart.

    Raises:
        SettingError: the task does not suit the backbone or the sizes.
    """
    channels = backbone.stage_info[-1].channels
    if settings.active_task == "cls":
        return Classification(channels, classes, settings.label_smoothing)
    if settings.active_task == "simmim":
        return (MaskedTokens if backbone.has_tokens else MaskedModelling)(backbone, settings)
    if settings.active_task == "mocov3":
        return MoCo(backbone, settings)
    return NoTask()


class NoTask(Task):
    """Nothing but the maps."""

    def forward(
        self, stages: StageRunner, images: Tensor, labels: Tensor, hidden: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """Runs the stages."""
        return stages(images), images.new_zeros((), dtype=torch.float32), None


class Classification(Task):
    """Cross entropy over names, from the mean of the last stage's map.

    Args:
        channels: of the last stage.
        classes: how many names.
        smoothing: of the labels, 0-1.
    """

    def __init__(self, channels: int, classes: int, smoothing: float = 0.0) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
        self.smoothing = smoothing

    def forward(
        self, stages: StageRunner, images: Tensor, labels: Tensor, hidden: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """Runs the stages and classifies."""
        maps = stages(images)
        logits = self.fc(maps[-1].mean((2, 3)))
        return maps, F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing), None


class MaskedTokens(Task):
    """SimMIM (Xie et al., arXiv 2111.09886): one learned token stands for every hidden one; the pixels are foretold.

    A linear layer foretells them from the last stage. The loss is the mean absolute difference over hidden pixels, in
    the normalised input's units. The whole map is expected of the stages, since tokens respond where they are hidden,
    too.

    Args:
        backbone: of tokens.
        settings: size of input and patch.

    Raises:
        SettingError: the patch is no multiple of the last stage's stride, or the input none of the patch.
    """

    def __init__(self, backbone: Backbone, settings: PretrainSettings) -> None:
        super().__init__()
        check_patch(backbone, settings)
        first, last = backbone.stage_info[0], backbone.stage_info[-1]
        self.stride = last.reduction
        self.token = nn.Parameter(torch.zeros(1, first.channels, 1, 1))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.decoder = nn.Conv2d(last.channels, 3 * self.stride**2, 1)

    def forward(
        self, stages: StageRunner, images: Tensor, labels: Tensor, hidden: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """Runs the stages with hidden tokens replaced, and foretells the pixels."""
        visible = 1 - hidden[:, None].to(torch.float32)

        def replace(stages_done: int, x: Tensor) -> Tensor:
            if stages_done:
                return x
            seen = F.interpolate(visible, x.shape[-2:], mode="nearest").to(x.dtype)
            return x * seen + self.token.to(x.dtype) * (1 - seen)

        maps = stages(images, replace)
        foretold = F.pixel_shuffle(self.decoder(maps[-1]).float(), self.stride)
        return maps, hidden_difference(foretold, images, visible), None


class MaskedModelling(Task):
    """SimMIM (Xie et al., arXiv 2111.09886) for convolutional backbones: the hidden patches' pixels are foretold.

    A convolution would carry what is visible into hidden patches, stage by stage, until little is hidden. So hidden
    places are set to zero after the stem and every stage, as sparse convolutions would leave them (the way of
    Tian et al., SparK, arXiv 2301.03580); a token takes their place before the layers that foretell pixels.
    The loss is the mean absolute difference over hidden pixels, in the normalised input's units.

    Args:
        backbone: whose every stage divides the patch.
        settings: size of input and patch.

    Raises:
        SettingError: the patch is no multiple of the last stage's stride, or the input none of the patch.
    """

    def __init__(self, backbone: Backbone, settings: PretrainSettings) -> None:
        super().__init__()
        last = backbone.stage_info[-1]
        check_patch(backbone, settings)
        self.stride = last.reduction
        self.token = nn.Parameter(torch.zeros(1, last.channels, 1, 1))
        nn.init.trunc_normal_(self.token, std=0.02)
        width = min(256, last.channels)
        self.decoder = nn.Sequential(
            nn.Conv2d(last.channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 3 * self.stride**2, 1),
        )

    def forward(
        self, stages: StageRunner, images: Tensor, labels: Tensor, hidden: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """Runs the stages on what is visible and foretells the rest."""
        visible = 1 - hidden[:, None].to(torch.float32)

        def hide(_: int, x: Tensor) -> Tensor:
            return x * F.interpolate(visible, x.shape[-2:], mode="nearest").to(x.dtype)

        maps = stages(hide(0, images), hide)
        seen = F.interpolate(visible, maps[-1].shape[-2:], mode="nearest")
        filled = maps[-1] + self.token * (1 - seen).to(maps[-1].dtype)
        foretold = F.pixel_shuffle(self.decoder(filled).float(), self.stride)
        return maps, hidden_difference(foretold, images, visible), visible


def check_patch(backbone: Backbone, settings: PretrainSettings) -> None:
    """Raises SettingError when patches cannot be hidden, or do not fit the backbone's last map or the input."""
    if not backbone.has_tokens and not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()):
        raise SettingError(
            f"--task simmim hides patches between convolutions, and {settings.model} has none; take --task cls, "
            "mocov3 or none."
        )
    stride = backbone.stage_info[-1].reduction
    if settings.mask_patch % stride or settings.size % settings.mask_patch:
        raise SettingError(
            f"--task simmim: --mask-patch {settings.mask_patch} must be a multiple of the backbone's stride {stride} "
            f"and divide --size {settings.size}."
        )


def hidden_difference(foretold: Tensor, images: Tensor, visible: Tensor) -> Tensor:
    """The mean absolute difference over hidden pixels.

    Args:
        foretold: (B, 3, S, S) float32.
        images: normalised, of the same shape.
        visible: (B, 1, P, P), 1 for what can be seen and 0 for the rest.
    """
    weight = F.interpolate(1 - visible, images.shape[-2:], mode="nearest")
    difference = (foretold - images.float()).abs() * weight
    return difference.sum() / (weight.sum() * images.shape[1] + 1e-5)


class MoCo(Task):
    """MoCo v3 (Chen et al., arXiv 2104.02057): two views of an image answer alike, others do not.

    A second encoder, the running mean of the first, gives the keys; a predictor follows the first encoder only. The
    other images of the step, over all processes, are the negatives.

    Args:
        backbone: it is copied.
        settings: momentum, temperature, and width of the heads.
        dim: of what is compared.
    """

    views = 2

    def __init__(self, backbone: Backbone, settings: PretrainSettings, dim: int = 256) -> None:
        super().__init__()
        # As in the paper for a ResNet: two layers each, a BatchNorm at the projector's end and none at the predictor's.
        width = settings.moco_width
        self.projector = nn.Sequential(
            *_layer(backbone.stage_info[-1].channels, width), nn.Linear(width, dim, bias=False), _plain_norm(dim)
        )
        self.predictor = nn.Sequential(*_layer(dim, width), nn.Linear(width, dim, bias=False))
        self.key_stages = StageRunner(copy.deepcopy(backbone), len(backbone.stages)).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.momentum = settings.moco_momentum
        self.temperature = settings.moco_temperature

    def forward(
        self, stages: StageRunner, images: Tensor, labels: Tensor, hidden: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """Runs the stages on both views, and the second encoder."""
        maps = stages(images)
        queries = self.predictor(self.projector(maps[-1].mean((2, 3))))
        with torch.no_grad():
            keys = self.key_projector(self.key_stages(images)[-1].mean((2, 3)))
        first, second = F.normalize(queries.float(), dim=1).chunk(2)
        key_first, key_second = F.normalize(keys.float(), dim=1).chunk(2)
        loss = self._contrast(first, key_second) + self._contrast(second, key_first)
        return maps, loss, None

    def _contrast(self, queries: Tensor, keys: Tensor) -> Tensor:
        rank, everyone = _gather(keys)
        logits = queries @ everyone.T / self.temperature
        own = torch.arange(len(queries), device=queries.device) + rank * len(queries)
        return F.cross_entropy(logits, own) * (2 * self.temperature)

    @torch.no_grad()
    def after_move(self, stages: StageRunner, progress: float) -> None:
        """Moves the second encoder towards the first; its momentum rises to 1 along a cosine."""
        momentum = 1 - (1 - self.momentum) * 0.5 * (1 + math.cos(math.pi * progress))
        for mine, other in ((self.key_stages, stages), (self.key_projector, self.projector)):
            pairs = zip(mine.parameters(), other.parameters(), strict=True)
            keys, values = zip(*((key.data, value.data) for key, value in pairs), strict=True)
            torch._foreach_lerp_(list(keys), list(values), 1 - momentum)


def _layer(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """A linear layer with BatchNorm and ReLU."""
    return nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)


def _plain_norm(channels: int) -> nn.Module:
    """A BatchNorm without weights of its own."""
    return nn.BatchNorm1d(channels, affine=False)


def _gather(keys: Tensor) -> tuple[int, Tensor]:
    """This process's number, and the keys of all processes."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return 0, keys
    parts = [torch.empty_like(keys) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, keys.contiguous())
    return distributed.get_rank(), torch.cat(parts)
