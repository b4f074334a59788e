"""Pretrained backbones: one line from a name to feature maps."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.config import Preprocess
from agssp_zoo.engines.base import ONNX_FILE, WEIGHTS_FILE, choose_engine
from agssp_zoo.errors import EngineError, InvalidArgumentError, MissingDependencyError, SourceError
from agssp_zoo.features import FeatureInfo, check_indices
from agssp_zoo.file_names import user_path
from agssp_zoo.folder import CONFIG
from agssp_zoo.geometry import prepare
from agssp_zoo.images import ChannelOrder
from agssp_zoo.sources import iter_sources

if TYPE_CHECKING:
    from agssp_zoo.config import ModelConfig
    from agssp_zoo.engines.onnx import OnnxModel
    from agssp_zoo.models import Backbone as Backbone


def __getattr__(name: str) -> Any:
    """``Backbone`` is the module's class; it comes with torch, so only when it is asked for."""
    if name != "Backbone":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _need_torch()
    from agssp_zoo.models import Backbone

    return Backbone


@overload
def load_backbone(
    name_or_path: str | os.PathLike[str],
    *,
    weights: bool = True,
    out_indices: Sequence[int] | None = None,
    device: str = "cpu",
    engine: Literal["pytorch"] = "pytorch",
    **hub: Any,
) -> Backbone: ...


@overload
def load_backbone(
    name_or_path: str | os.PathLike[str],
    *,
    weights: bool = True,
    out_indices: Sequence[int] | None = None,
    device: str = "cpu",
    engine: Literal["onnx"],
    **hub: Any,
) -> OnnxBackbone: ...


@overload
def load_backbone(
    name_or_path: str | os.PathLike[str],
    *,
    weights: bool = True,
    out_indices: Sequence[int] | None = None,
    device: str = "cpu",
    engine: str,
    **hub: Any,
) -> Backbone | OnnxBackbone: ...


def load_backbone(
    name_or_path: str | os.PathLike[str],
    *,
    weights: bool = True,
    out_indices: Sequence[int] | None = None,
    device: str = "cpu",
    engine: str = "pytorch",
    **hub: Any,
) -> Backbone | OnnxBackbone:
    """Finds a backbone, verifies its files and loads it, in evaluation mode.

    Args:
        name_or_path: a registered name, a bare architecture, a model folder, or ``hf://owner/repo[@revision]``; with
            ``engine="onnx"`` also an ``.onnx`` file. A detector's folder gives the detector's backbone.
        weights: ``False`` builds the architecture with newly drawn weights; nothing is looked for on the Hub then.
        out_indices: the stages whose maps are wanted, from 0, ascending, negative ones from the end; default the last
            three (all four of a detector that takes all four), with ``engine="onnx"`` all that the file has.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` ...
        engine: ``"pytorch"``, or ``"onnx"``, which needs no torch.
        **hub: ``revision``, ``cache_dir``, ``token``, ``local_files_only``, ``force_download``, as in huggingface_hub.

    Returns:
        An ordinary ``torch.nn.Module``: ``module(x)`` with x float (B, 3, H, W) answers a list of maps
        (B, C_i, H / s_i, W / s_i); ``.feature_info`` tells C_i and s_i, ``.preprocess(source)`` reads images. With
        ``engine="onnx"`` an :class:`OnnxBackbone`.

    Raises:
        ModelNotFoundError: no such model; WeightsNotPublishedError where its weights are published nowhere yet.
        HubError, IntegrityError, ConfigError, CheckpointError: its files cannot be had or are wrong.
        EngineError: the device is not there, or the file does not suit.
        MissingDependencyError: PyTorch is not installed.
        InvalidArgumentError: a keyword that makes no sense, or an ONNX file without ``engine="onnx"``.
    """
    from agssp_zoo.detector import check_loading

    check_loading(name_or_path, device, hub)
    if not isinstance(weights, bool):
        raise InvalidArgumentError(f"weights={weights!r}: give True, or False for newly drawn ones.")
    if engine == "onnx":
        if not weights:
            raise InvalidArgumentError("weights=False needs engine='pytorch': an ONNX file comes with its weights.")
        return _load_onnx(name_or_path, out_indices, device, hub)
    if engine != "pytorch":
        raise InvalidArgumentError(f"engine={engine!r}; choose 'pytorch' or 'onnx'.")
    path = user_path(name_or_path)
    if path.suffix == ".onnx" and not (path / CONFIG).is_file() and not os.fspath(name_or_path).startswith("hf://"):
        raise InvalidArgumentError(f"{path} is an ONNX file; take engine='onnx', or give a model folder.")
    _need_torch()
    from agssp_zoo.engines.pytorch import find_device

    where = find_device(device)
    module = _load_module(name_or_path, hub) if weights else _build_module(name_or_path, hub)
    if out_indices is not None:
        module.set_out_indices(out_indices)
    return module.to(where).eval()


def _load_module(name_or_path: str | os.PathLike[str], hub: dict[str, Any]) -> Backbone:
    """The module with its weights; of a detector its backbone."""
    from agssp_zoo import hub as hub_module
    from agssp_zoo.models import load

    folder = hub_module.resolve(name_or_path, **hub)
    return _backbone_of(load(folder.config, folder.file(WEIGHTS_FILE)))


def _build_module(name_or_path: str | os.PathLike[str], hub: dict[str, Any]) -> Backbone:
    """The module with new weights, by the config of a folder, or of an architecture alone."""
    from agssp_zoo.models import ARCHITECTURES, build, default_config

    name = os.fspath(name_or_path)
    architecture = name.split(".", 1)[0]
    if architecture in ARCHITECTURES and not (user_path(name) / CONFIG).is_file():
        return _backbone_of(build(default_config(architecture)))
    from agssp_zoo import hub as hub_module

    asked = {**hub, "local_files_only": True, "force_download": False}
    return _backbone_of(build(hub_module.resolve(name_or_path, **asked).config))


def _backbone_of(module: Any) -> Backbone:
    from agssp_zoo.models import Backbone, DetectorModule

    inner = module.backbone if isinstance(module, DetectorModule) else module
    if not isinstance(inner, Backbone):
        raise InvalidArgumentError(f"{module.config.name} is no backbone and has none.")
    return inner


def _need_torch() -> None:
    """Raises MissingDependencyError where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise MissingDependencyError(
            "A backbone is a PyTorch module; run `pip install 'agssp-zoo[torch]'`, or take engine='onnx'."
        )


# --- without torch ----------------------------------------------------------------------------------------------


class OnnxBackbone:
    """A backbone in ONNX Runtime.

    Attributes:
        config: the model's configuration.
        out_indices: the stages whose maps are answered, from 0, as of a :class:`Backbone`. A file holds the maps of
            some stages only; their names end in the stage's number, from 1.
    """

    def __init__(self, model: OnnxModel, out_indices: Sequence[int] | None = None) -> None:
        if model.outputs != "features":
            raise EngineError(f"{model.path} answers no feature maps; export a backbone.")
        self.model = model
        self.config: ModelConfig = model.config
        self._stages = _stages(model.output_names)
        self.out_indices = tuple(self._stages)
        if out_indices is not None:
            self.out_indices = self._choose(out_indices)

    def _choose(self, out_indices: Sequence[int]) -> tuple[int, ...]:
        """The stages that were asked for; InvalidArgumentError where the file does not have their maps."""
        with contextlib.suppress(InvalidArgumentError):
            indices = check_indices(out_indices, max(self._stages) + 1)
            if self._stages.keys() >= set(indices):
                return indices
        raise InvalidArgumentError(
            f"out_indices={out_indices!r}: {self.model.path} has the maps {', '.join(self._stages.values())} of the "
            f"stages {', '.join(map(str, self._stages))}; give ascending numbers of these, or take engine='pytorch', "
            "which has all."
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the maps that are answered."""
        return tuple(self._stages[i] for i in self.out_indices)

    @cached_property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Channels, stride and name of every map that is answered."""
        side = 2 * self.config.preprocess.stride
        maps = self.run(np.zeros((1, side, side, 3), np.uint8))
        return tuple(
            FeatureInfo(m.shape[1], side // m.shape[2], name) for m, name in zip(maps, self.names, strict=True)
        )

    def preprocess(self, source: Any, *, channel_order: ChannelOrder = "rgb") -> NDArray[np.uint8]:
        """Images -> (B, H, W, 3) uint8 canvases, which :meth:`run` takes; errors as for :func:`read_batch`."""
        return read_batch(source, self.config.preprocess, channel_order)

    def run(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Canvases (B, H, W, 3) uint8 -> a list of maps (B, C_i, H / s_i, W / s_i) float32."""
        return self.model.run({"images": images}, self.names)

    def extract(self, source: Any, *, channel_order: ChannelOrder = "rgb") -> list[NDArray[np.float32]]:
        """Images -> feature maps.

        Args:
            source: an image, or a list of them; anything that ``Detector.predict`` takes.
            channel_order: of arrays.

        Returns:
            A list of maps (B, C_i, H / s_i, W / s_i) float32.

        Raises:
            InvalidArgumentError: the images' canvases differ in size.
            SourceError: an image cannot be read.
            EngineError: the network cannot be run.
        """
        return self.run(self.preprocess(source, channel_order=channel_order))


def _stages(names: Sequence[str]) -> dict[int, str]:
    """Stage, from 0 -> name of its map in a file.

    Names that do not end in rising numbers from 1, as those of the zoo's backbones do, are taken for the first stages'.
    """
    numbers = [re.search(r"[1-9][0-9]*$", name) for name in names]
    stages = [int(number.group()) - 1 for number in numbers if number]
    if len(stages) < len(names) or stages != sorted(set(stages)):
        stages = list(range(len(names)))
    return dict(zip(stages, names, strict=True))


def _load_onnx(
    name_or_path: str | os.PathLike[str], out_indices: Sequence[int] | None, device: str, hub: dict[str, Any]
) -> OnnxBackbone:
    """An :class:`OnnxBackbone` of a folder, or of a file of its own."""
    path = user_path(name_or_path)
    if path.suffix == ".onnx":
        if not path.is_file():
            raise EngineError(f"There is no file {path}; make one with `agssp-zoo export`.")
        if hub.get("revision") is not None:
            raise InvalidArgumentError(f"{path} is a file on disk, which has no revisions; leave out revision.")
        from agssp_zoo.engines.onnx import OnnxModel

        return OnnxBackbone(OnnxModel(path, device=device), out_indices)
    from agssp_zoo import hub as hub_module

    folder = hub_module.resolve(name_or_path, **hub)
    choose_engine(folder, "onnx", device)
    from agssp_zoo.engines.onnx import OnnxModel

    return OnnxBackbone(OnnxModel(folder.file(ONNX_FILE), device=device, config=folder.config), out_indices)


def read_batch(source: Any, preprocess: Preprocess, channel_order: ChannelOrder = "rgb") -> NDArray[np.uint8]:
    """All images of a source as one batch.

    Args:
        source: an image, or a list of them.
        preprocess: how they become canvases.
        channel_order: of arrays.

    Returns:
        (B, H, W, 3) uint8 RGB.

    Raises:
        InvalidArgumentError: no image at all, or their canvases differ in size.
        SourceError: an image cannot be read.
    """
    canvases = []
    for item in iter_sources(source, channel_order=channel_order):
        if isinstance(item.image, SourceError):
            raise item.image
        canvases.append(prepare(item.image, preprocess)[0])
    if not canvases:
        raise InvalidArgumentError("There is no image in the source.")
    if len({canvas.shape for canvas in canvases}) > 1:
        raise InvalidArgumentError(
            "The images have canvases of different sizes; read them one by one, or give the config's "
            "preprocess.size as (height, width)."
        )
    return np.stack(canvases)
