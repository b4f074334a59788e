"""Networks that describe patches, for maps without text: a Vision Transformer of timm, or a CNN backbone of the zoo.

>>> encoder = load_encoder()                                                # ViT-S/14, DINOv2, from the Hub
>>> encoder = load_encoder("vit_small_patch14_dinov2", "vit_s14.safetensors", size=336)
>>> encoder = load_encoder("resnet50.imagenet")                             # a model of the zoo, by name or folder
>>> encoder.fit(2.5)                                                        # for images 2.5 times as high as wide
"""

from __future__ import annotations

import abc
import difflib
import math
import os
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from agssp_zoo.errors import (
    CheckpointError,
    HubError,
    InvalidArgumentError,
    MissingDependencyError,
    ModelNotFoundError,
    UnsafeCheckpointError,
)
from agssp_zoo.file_names import user_path
from agssp_zoo.hub import huggingface_hub

from .clip_weights import hash_state

if TYPE_CHECKING:
    from agssp_zoo.models import Backbone

DEFAULT_ENCODER = "vit_small_patch14_dinov2"
"""Small, and self-supervised: its patches tell textures apart without having learnt any labels."""
DEFAULT_SIZE = 224
SMALLEST_SIZE = 32
"""What :class:`~.settings.MapSettings` takes at least."""
NO_WEIGHTS = "none"
"""Newly drawn weights, for tests and for measuring speed."""

LONGEST = 16.0
"""Inputs are no longer than so many times their width, whatever the images are."""

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Encoder(nn.Module):
    """A network that gives every patch of an image one feature vector at each of several layers.

    Attributes:
        name: of the architecture.
        depth: number of layers there are to choose of, counted from 1.
        size: side of the input in pixels where it is a square; other inputs have about as many pixels.
        shape: height and width of the input; a square until :meth:`fit` changes it.
        step: height and width are multiples of this many pixels.
        grid: rows and columns of patches.
        sha256: of the weights.
        mixed: the type of mixed precision that it computes in; ``None``: float32.
        square: the input stays a square, whatever the images are.
    """

    name: str
    depth: int
    size: int
    shape: tuple[int, int]
    step: int
    grid: tuple[int, int]
    sha256: str
    mixed: torch.dtype | None = None
    square: bool = False

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], step: int = 1) -> None:
        super().__init__()
        self.size, self.shape, self.step = size, (size, size), step
        self._mean, self._std = (np.asarray(values, np.float32).reshape(3, 1, 1) * 255 for values in (mean, std))

    @abc.abstractmethod
    def features(self, batch: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Features of the patches, row by row.

        Args:
            batch: float (B, 3, H, W), as :meth:`preprocess` makes it.
            layers: which, ascending, from 1 to ``depth``.

        Returns:
            float32 (B, P, C) for each layer, L2-normalised over C.
        """

    @abc.abstractmethod
    def pick(self, *shares: float) -> tuple[int, ...]:
        """The layers at some shares of the depth, 0-1."""

    def fit(self, aspect: float) -> None:
        """Gives the input the proportions of some images, with about as many patches as the square has.

        Defects of long images, squashed onto a square, look like nothing that the network has learnt. Not while
        another thread runs :meth:`preprocess`.

        Args:
            aspect: height / width of the images.
        """
        shape = (self.size, self.size) if self.square else shape_of(aspect, self.size, self.step)
        if shape != self.shape:
            self.shape = shape
            self.reshape()

    @abc.abstractmethod
    def reshape(self) -> None:
        """Makes the network take inputs of :attr:`shape`, and sets :attr:`grid`."""

    def preprocess(self, image: NDArray[np.uint8]) -> Tensor:
        """Resizes an image (H, W, 3) to :attr:`shape` (bicubic) and normalises it; float32 (3, height, width)."""
        picture = Image.fromarray(image)
        if picture.size != self.shape[::-1]:
            picture = picture.resize(self.shape[::-1], Image.Resampling.BICUBIC)
        values = np.asarray(picture, np.float32).transpose(2, 0, 1)
        return torch.from_numpy((values - self._mean) / self._std)


def shape_of(aspect: float, size: int, step: int) -> tuple[int, int]:
    """Height and width of an input for images of some proportions.

    Args:
        aspect: height / width of the images; taken for at most :data:`LONGEST`, and at least its inverse.
        size: side of the square that has as many patches, give or take half a row or column.
        step: side of a patch; of what is returned both are multiples.
    """
    cells = size / step
    rows = max(1, round(cells * math.sqrt(min(max(aspect, 1 / LONGEST), LONGEST))))
    return rows * step, max(1, round(cells * cells / rows)) * step


class VitEncoder(Encoder):
    """A Vision Transformer of timm: layer i is the patch tokens after block i, through the final norm.

    Args:
        module: the model, without a head, for inputs of any size that it can take.
        name: its name.
        size: side of the input.
        mean: of the channels, 0-1, RGB.
        std: likewise.
    """

    def __init__(self, module: Any, name: str, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(size, mean, std, int(module.patch_embed.feat_ratio(as_scalar=True)))
        self.module, self.name, self.depth = module.eval().requires_grad_(False), name, len(module.blocks)
        # What was learnt of places is resized from what it was at first, not from what it was resized to before.
        self._first = tuple(module.patch_embed.img_size)
        self._places = None if module.pos_embed is None else module.pos_embed.detach().clone()
        self.reshape()
        self.sha256 = hash_state(module)

    def reshape(self) -> None:
        """As in :class:`Encoder`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self._places is not None:
                self.module.set_input_size(img_size=self._first)
                places = self._places.to(self.module.pos_embed.device)
                self.module.pos_embed = nn.Parameter(places.clone(), requires_grad=False)
            self.module.set_input_size(img_size=self.shape)
        self.grid = tuple(self.module.patch_embed.grid_size)

    def features(self, batch: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """As in :class:`Encoder`; blocks beyond the last layer asked for are not computed."""
        tokens = self.module.forward_intermediates(
            batch,
            indices=[layer - 1 for layer in layers],
            norm=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return [F.normalize(layer.float(), dim=-1) for layer in tokens]

    def pick(self, *shares: float) -> tuple[int, ...]:
        """Blocks, as in :class:`Encoder`."""
        return tuple(sorted({max(1, round(share * self.depth)) for share in shares}))


class CnnEncoder(Encoder):
    """A backbone of the zoo: layer i is the map of stage i, its 3x3 neighbourhoods averaged, on the grid of stride 16.

    Averaging over the neighbourhood: Roth et al., Towards total recall in industrial anomaly detection, CVPR 2022,
    section 3.1 (``arXiv:2106.08265``).

    Args:
        module: the backbone.
        size: side of the input, a multiple of its stride.
    """

    def __init__(self, module: Backbone, size: int) -> None:
        preprocess = module.config.preprocess
        mean, std = ([value / 255 for value in values] for values in (preprocess.mean, preprocess.std))
        step = max(info.reduction for info in module.stage_info)
        super().__init__(size, mean, std, step)
        self.module, self.name = module.eval().requires_grad_(False), module.config.name
        self.depth = len(module.stages)
        self.reshape()
        self.sha256 = hash_state(module)

    def reshape(self) -> None:
        """As in :class:`Encoder`."""
        cell = min(16, self.step)
        self.grid = (self.shape[0] // cell, self.shape[1] // cell)

    def features(self, batch: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """As in :class:`Encoder`."""
        self.module.set_out_indices([layer - 1 for layer in layers])
        found = []
        for stage in self.module(batch):
            smooth = F.avg_pool2d(stage.float(), 3, 1, 1, count_include_pad=False)
            if smooth.shape[-1] > self.grid[1]:
                smooth = F.adaptive_avg_pool2d(smooth, self.grid)
            elif smooth.shape[-1] < self.grid[1]:
                smooth = F.interpolate(smooth, self.grid, mode="bilinear", align_corners=False)
            found.append(F.normalize(smooth.flatten(2).transpose(1, 2), dim=-1))
        return found

    def pick(self, *shares: float) -> tuple[int, ...]:
        """Stages: the early ones see edges only and the last one objects, so of four stages 2 and 3 serve for all."""
        del shares
        return tuple(range(max(1, self.depth - 2), max(2, self.depth)))


def load_encoder(name: str = "", weights: str = "", *, size: int = 0, square: bool = False) -> Encoder:
    """Finds an encoder and its weights.

    Args:
        name: a Vision Transformer's name in timm, or a backbone of the zoo: its name or model folder. Left out:
            :data:`DEFAULT_ENCODER`.
        weights: a file (.safetensors, .pt, .pth, .bin) for a model of timm; left out, timm's own, downloaded once;
            ``"none"`` draws new ones, each time the same.
        size: side of the input in pixels, a multiple of the patch or stride; 0: 224, or the next multiple.
        square: :meth:`Encoder.fit` is to change nothing.

    Raises:
        InvalidArgumentError: an unknown name, or a size that does not suit.
        MissingDependencyError: timm is not installed.
        CheckpointError: the weights do not fit; UnsafeCheckpointError where the file holds more than tensors.
        ModelNotFoundError, HubError: the weights cannot be had.
    """
    name = name or DEFAULT_ENCODER
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # new weights are the same in each process, and in a run that goes on
        if name.startswith("vit_") or name.startswith("timm/"):
            encoder: Encoder = _load_vit(name.removeprefix("timm/"), weights, size)
        else:
            encoder = _load_cnn(name, weights, size)
    encoder.square = square
    return encoder


def _load_cnn(name: str, weights: str, size: int) -> CnnEncoder:
    from agssp_zoo.backbone import load_backbone

    if weights not in ("", NO_WEIGHTS):
        raise InvalidArgumentError(
            f"--encoder-weights is for models of timm; {name} is looked for in the zoo: give its model folder as "
            "--encoder (agssp-zoo convert makes one of a checkpoint)."
        )
    try:
        module = load_backbone(name, weights=weights != NO_WEIGHTS)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{error} Vision Transformers are called as in timm: vit_...") from None
    stride = max(info.reduction for info in module.stage_info)
    return CnnEncoder(module, _settle_size(size, stride, name))


def _load_vit(name: str, weights: str, size: int) -> VitEncoder:
    try:
        import timm
    except ImportError:
        raise MissingDependencyError("Vision Transformers need timm; run `pip install 'agssp-zoo[train]'`.") from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models("vit_*"), n=5)
        hint = f"; there are {', '.join(near)}" if near else ""
        raise InvalidArgumentError(f"--encoder {name}: timm {timm.__version__} has no such model{hint}.")
    try:
        probe: Any = timm.create_model(name, pretrained=False, num_classes=0, depth=1)
        step = int(probe.patch_embed.feat_ratio(as_scalar=True))
    except (RuntimeError, TypeError, AttributeError) as error:  # an unknown tag; a network of another kind
        raise InvalidArgumentError(
            f"--encoder {name}: cannot be built as a Vision Transformer ({error}); take a vit_ model of timm."
        ) from None
    size = _settle_size(size, step, name)
    download = weights == ""
    if download:
        huggingface_hub()  # switches its telemetry off before timm imports it
    file = None if weights in ("", NO_WEIGHTS) else user_path(weights)
    state = {} if file is None else _read_weights(file, name)
    # As it was trained, where that is known: what was learnt of places is then resized only once.
    trained: dict[str, Any] = {} if download else {"img_size": _trained_size(state, step) or size}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module: Any = timm.create_model(name, pretrained=download, num_classes=0, **trained)
    except Exception as error:  # whatever the client raises: no network, no access, a full disk
        if not download:
            raise
        raise HubError(
            f"The weights of {name} are not on this machine and cannot be downloaded ({error}); bring a file here by "
            "other means and give it as --encoder-weights FILE."
        ) from None
    if not all(hasattr(module, name) for name in ("forward_intermediates", "set_input_size", "blocks")):
        raise InvalidArgumentError(f"--encoder {name}: is no plain Vision Transformer; take another vit_ model.")
    if file is not None:
        _take_weights(module, state, file, name)
    mean, std = (module.pretrained_cfg.get(key) or value for key, value in zip(("mean", "std"), _IMAGENET, strict=True))
    return VitEncoder(module, name, size, mean, std)


def _settle_size(size: int, step: int, name: str) -> int:
    if not size:
        return -(-DEFAULT_SIZE // step) * step
    if size % step:
        near = max(size // step, -(-SMALLEST_SIZE // step)) * step
        raise InvalidArgumentError(f"--size {size}: {name} takes multiples of {step}, as {near}.")
    return size


def _trained_size(state: dict[str, Tensor], step: int) -> int:
    """Side of the square input that weights were trained with; 0 where they do not tell."""
    places = state.get("pos_embed")
    side = 0 if places is None or places.ndim != 3 else math.isqrt(places.shape[1])
    # Up to five tokens besides the patches (class, registers) leave the root of the number where it is.
    return side * step


def _read_weights(file: Path, name: str) -> dict[str, Tensor]:
    """Reads a file; of a pickle only tensors and plain containers are made."""
    if not file.is_file():
        raise CheckpointError(f"--encoder-weights {os.fspath(file)}: there is no such file.")
    try:
        return {key: value.float() for key, value in _tensors(file).items()}
    except pickle.UnpicklingError:
        raise UnsafeCheckpointError(
            f"{file}: holds more than tensors, or is damaged; nothing of it was executed. Give safetensors."
        ) from None
    except Exception as error:  # a damaged file can fail in any way
        raise _unfit(file, name, error) from None


def _unfit(file: Path, name: str, error: Exception) -> CheckpointError:
    detail = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return CheckpointError(f"{file}: cannot be read as weights of {name} ({detail}).")


def _take_weights(module: Any, state: dict[str, Tensor], file: Path, name: str) -> None:
    from timm.models.vision_transformer import checkpoint_filter_fn

    try:
        state = checkpoint_filter_fn(state, module)
        missing, unexpected = module.load_state_dict(state, strict=False)
    except Exception as error:  # tensors of other shapes, or of another network
        raise _unfit(file, name, error) from None
    unexpected = [key for key in unexpected if not key.startswith(("head.", "fc_norm."))]
    if missing or unexpected:
        some = ", ".join([*missing, *unexpected][:3])
        raise CheckpointError(
            f"{file}: is not of {name}: {len(missing)} tensors are missing and {len(unexpected)} unknown ({some})."
        )


def _tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file; of a checkpoint, those of the model."""
    from safetensors.torch import load_file

    if file.suffix == ".safetensors":
        return load_file(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what it then refuses
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        found = found[key] if isinstance(found.get(key), dict) else found
    return {name.removeprefix("module."): value for name, value in found.items() if isinstance(value, Tensor)}
