"""The contract of a backbone: feature maps at several strides, and stages that can be frozen."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from agssp_zoo.config import ModelConfig
from agssp_zoo.errors import InvalidArgumentError
from agssp_zoo.features import FeatureInfo as FeatureInfo
from agssp_zoo.features import check_indices
from agssp_zoo.models.base import ZooModule

if TYPE_CHECKING:
    from agssp_zoo.images import ChannelOrder


class Backbone(ZooModule):
    """Base class of backbones: an ordinary module from a normalised image to a list of feature maps.

    Args:
        config: the model's configuration.
        stage_info: channels, stride and name of every stage, in order.
        out_indices: which stages' maps :meth:`forward` answers; default the last three (strides 8, 16, 32).

    Attributes:
        has_tokens: whether the stem's answer is a grid of tokens, of which some can be replaced by another.
    """

    has_tokens: ClassVar[bool] = False

    def __init__(
        self, config: ModelConfig, stage_info: Sequence[FeatureInfo], out_indices: Sequence[int] | None = None
    ) -> None:
        super().__init__(config)
        self.stage_info = tuple(stage_info)
        self.set_out_indices(
            range(len(self.stage_info) - 3, len(self.stage_info)) if out_indices is None else out_indices
        )
        self._num_frozen = 0

    @property
    @abstractmethod
    def stem_modules(self) -> tuple[nn.Module, ...]:
        """What comes before the first stage."""

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        """The stages in order; ``stages[i]`` makes the map of out index i, which :meth:`output_map` hands out."""
        return tuple(self.get_submodule(info.name) for info in self.stage_info)

    @abstractmethod
    def forward_stem(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> the input of the first stage."""

    @property
    def out_indices(self) -> tuple[int, ...]:
        """The stages whose maps :meth:`forward` answers, ascending."""
        return self._out_indices

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Channels, stride and name of each map that :meth:`forward` answers, in order."""
        return tuple(self.stage_info[i] for i in self._out_indices)

    def set_out_indices(self, out_indices: Sequence[int]) -> None:
        """Chooses the maps that :meth:`forward` answers.

        Args:
            out_indices: stage numbers from 0; negative ones count from the end.

        Raises:
            InvalidArgumentError: no such stage, none at all, not ascending, or no numbers.
        """
        self._out_indices = check_indices(out_indices, len(self.stage_info))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Computes the feature maps.

        Args:
            x: normalised images, float, (B, 3, H, W).

        Returns:
            one (B, channels, H / reduction, W / reduction) for every entry of :attr:`feature_info`, sides rounded up.
            Stages beyond the last one asked for are not computed.
        """
        x = self.forward_stem(x)
        maps = []
        for index, stage in enumerate(self.stages[: self._out_indices[-1] + 1]):
            x = stage(x)
            if index in self._out_indices:
                maps.append(self.output_map(index, x))
        return maps

    def output_map(self, index: int, x: Tensor) -> Tensor:
        """What a stage hands out of what it hands on: the same, or the same behind a norm of its own.

        Args:
            index: of the stage, from 0.
            x: what the stage answered, (B, C, H, W).
        """
        return x

    def optional_entries(self, used: Sequence[int]) -> dict[str, Tensor]:
        """What weights may lack when only some maps are wanted.

        Args:
            used: the stages, from 0, whose maps are wanted.

        Returns:
            names of :meth:`state_dict`, and the values that change nothing.
        """
        return {}

    def set_drop_path(self, rate: float) -> None:
        """Leaves residual branches out in training, at random, for a share of the images.

        Args:
            rate: of the last block, 0-1; it rises evenly from the first block's 0.

        Raises:
            InvalidArgumentError: a rate above 0 for a backbone that has no such blocks.
        """
        if rate:
            raise InvalidArgumentError(
                f"{self.config.architecture} leaves out no residual branches; set drop_path to 0."
            )

    def set_checkpointing(self, enabled: bool) -> None:
        """Whether a training step computes blocks twice instead of keeping what they computed: less memory, more time.

        Raises:
            InvalidArgumentError: enabled for a backbone that cannot.
        """
        if enabled:
            raise InvalidArgumentError(
                f"{self.config.architecture} cannot compute its blocks twice; turn checkpointing off."
            )

    def preprocess(self, source: Any, *, channel_order: ChannelOrder = "rgb") -> Tensor:
        """Reads images as the config says.

        Args:
            source: an image, or a list of them; anything that ``Detector.predict`` takes.
            channel_order: of arrays.

        Returns:
            the module's input, float, (B, 3, H, W), on its device.

        Raises:
            InvalidArgumentError: the images' canvases differ in size; one by one they can be read.
            SourceError: an image cannot be read.
        """
        from agssp_zoo.backbone import read_batch  # numpy and Pillow, which training on tensors has no need of

        images = torch.from_numpy(read_batch(source, self.config.preprocess, channel_order))
        return self.normalize(images.to(self.pixel_mean.device))

    def freeze_stages(self, count: int) -> Self:
        """Freezes the stem and the first stages.

        Their parameters get no gradients, and their BatchNorm statistics stay as they are in training mode too.

        Args:
            count: how many stages; 0 freezes nothing (and thaws what was frozen).

        Raises:
            InvalidArgumentError: more stages than there are, or fewer than none.
        """
        if not 0 <= count <= len(self.stages):
            raise InvalidArgumentError(f"freeze_stages({count}): the backbone has {len(self.stages)} stages.")
        for module in self._first(self._num_frozen):
            module.requires_grad_(True)
        self._num_frozen = count
        for module in self._first(count):
            module.requires_grad_(False)
        return self.train(self.training)

    @property
    def num_frozen_stages(self) -> int:
        """How many stages :meth:`freeze_stages` has frozen."""
        return self._num_frozen

    def train(self, mode: bool = True) -> Self:
        """As in :class:`torch.nn.Module`, except that frozen stages stay in evaluation mode."""
        super().train(mode)
        for module in self._first(self._num_frozen):
            module.eval()
        return self

    def _first(self, count: int) -> tuple[nn.Module, ...]:
        """The stem and the first ``count`` stages; nothing for 0."""
        return (*self.stem_modules, *self.stages[:count]) if count else ()
