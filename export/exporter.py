"""One call from a model to a verified ONNX file."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from agssp_zoo.engines.base import ONNX_FILE, WEIGHTS_FILE
from agssp_zoo.errors import ExportError, InvalidArgumentError, MissingDependencyError
from agssp_zoo.file_names import user_path
from agssp_zoo.folder import (
    CARD,
    CONFIG,
    ModelFolder,
    read_checksums,
    sha256_file,
    update_checksums,
    write_text,
)

if TYPE_CHECKING:
    import onnx

    from agssp_zoo.config import ModelConfig
    from agssp_zoo.models import DetectorModule, ZooModule

    from .candidates import Source

RAW_FILE = "model_raw.onnx"
OPSET = 18
"""The oldest operator set that has all we use, for the widest choice of runtimes."""
CONTRACT_VERSION = 1
"""Of the inputs and outputs that :func:`export_onnx` promises."""
NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime")


def export_onnx(
    model: ZooModule | ModelFolder | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    raw: bool = False,
    opset: int = OPSET,
    verify: bool = True,
) -> Path:
    """Writes a model as one ONNX file and checks that it answers what PyTorch answers.

    The graph takes ``images``, uint8 RGB (batch, height, width, 3); batch, height and width are free, height and width
    multiples of the config's stride (DINO: any, from 72 pixels on; its maps must hold as many pixels as it has
    queries). Normalising is part of the graph. Outputs:

    * detector: ``boxes`` float32 (batch, max_det, 4) xyxy in input pixels, ``scores`` float32 (batch, max_det) falling,
      ``labels`` int64 (batch, max_det), ``count`` int64 (batch,). From ``count`` on, boxes and scores are 0, labels -1.
      The optional inputs ``conf_threshold``, float32 (1,) for all classes or (classes,), one each, and
      ``iou_threshold``, float32 (1,), default to the config's values (ONNX Runtime mentions such inputs in its log when
      it opens the file; a log level of 3 silences it).
      Where padding follows normalising (Faster R-CNN, DINO), so is ``sizes`` int64 (batch, 2): the valid height and
      width of each image, from its top left corner; one row stands for all images, the default is all of them.
    * detector with ``raw``: the raw outputs, named as in its ``raw_names``. For YOLOv8 these are, for every level of
      stride s, the logits ``class_logits_s`` (batch, classes, height / s, width / s) and ``box_logits_s`` (batch,
      4 * bins, height / s, width / s), sides left, top, right, bottom.
    * backbone: one map an output, named as in its ``feature_info``.

    The file's metadata: ``config`` (the text of config.json), ``class_names`` (JSON), ``task``, ``outputs``
    (``detections``, ``raw`` or ``features``), ``agssp_zoo_version`` and ``contract_version``.

    Args:
        model: a module of :mod:`agssp_zoo.models`, a model folder, or a model's name or path.
        out: the file; ``None`` takes ``model.onnx`` (``raw``: ``model_raw.onnx``) in the model's own folder. Where the
            file's folder has a card that lists its files, or checksums, they are brought up to date.
        raw: leave decoding and NMS out.
        opset: ONNX operator set, 18 or newer.
        verify: compare with PyTorch on several sizes first; the file is put in place only when they agree.

    Returns:
        The file.

    Raises:
        MissingDependencyError: the ``export`` extra is not installed.
        InvalidArgumentError: no place for the file, or one of the model's own files lies there, or an operator set that
            is too old or unknown.
        ExportError: the model cannot be exported, or not with that operator set, or the file does not answer what
            PyTorch answers.
        ModelNotFoundError, HubError, IntegrityError, CheckpointError: the model cannot be loaded.
    """
    need_packages()
    if opset < OPSET:
        raise InvalidArgumentError(f"opset={opset}: the graph needs operator set {OPSET} or newer.")
    from onnx.defs import onnx_opset_version

    if opset > onnx_opset_version():
        raise InvalidArgumentError(
            f"opset={opset}: the installed onnx knows operator sets up to {onnx_opset_version()}."
        )
    module, folder = _load(model)
    target = target_file(out, folder, RAW_FILE if raw else ONNX_FILE)
    # Only now, since this imports torch and the exporter.
    from agssp_zoo.models import DetectorModule

    from .graph import unify_opset
    from .network import default_sizes, takes_sizes, trace
    from .verification import verify_file

    with building(target) as temporary:
        if raw or not isinstance(module, DetectorModule):
            graph = trace(module, raw=raw, opset=opset)
        else:
            graph = _detector_graph(module, opset)
        if takes_sizes(module):
            # An initialiser that is also a graph input: a default that a caller may override.
            graph.graph.initializer.append(default_sizes())
        unify_opset(graph)
        made = next(entry.version for entry in graph.opset_import if entry.domain == "")
        if made != opset:
            raise ExportError(f"opset={opset}: torch's exporter made operator set {made} of it; ask for another.")
        _describe(graph, module.config, raw=raw)
        import onnx

        onnx.save(graph, temporary)
        if verify:
            verify_file(temporary, module, raw=raw)
    enter(target, module.config.task)
    return target


def enter(target: Path, task: str) -> None:
    """Enters a file that was made in a model folder into the folder's card and checksums, where it has them.

    A card that lists no files as :func:`agssp_zoo.card.render_card` does, or differs from its checksum, is left alone.

    Args:
        target: the file.
        task: of the model that it holds, ``"detector"`` or ``"backbone"``.

    Raises:
        IntegrityError: the folder's checksums.json cannot be read.
    """
    from agssp_zoo.card import with_file

    folder = target.parent
    card, changed = folder / CARD, [target.name]
    sums = read_checksums(folder)
    if (folder / CONFIG).is_file() and card.is_file() and (not sums or sums.get(CARD) == sha256_file(card)):
        with contextlib.suppress(UnicodeDecodeError):
            text = card.read_bytes().decode("utf-8")
            listed = with_file(text, target.name, task)
            if listed != text:
                write_text(card, listed)
                changed.append(CARD)
    if sums:
        update_checksums(folder, changed)


def _load(model: ZooModule | ModelFolder | str | os.PathLike[str]) -> tuple[ZooModule, ModelFolder | None]:
    """A float32 copy of the module on the CPU in evaluation mode, and the folder it comes from."""
    import copy

    from agssp_zoo.models import ZooModule, load

    if isinstance(model, ZooModule):
        return copy.deepcopy(model).cpu().float().eval(), None
    if not isinstance(model, ModelFolder):
        from agssp_zoo.hub import resolve

        model = resolve(model)
    return load(model.config, model.file(WEIGHTS_FILE)), model


def need_packages() -> None:
    """Raises MissingDependencyError when the ``export`` extra is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"Exporting needs {', '.join(missing)}; run `pip install 'agssp-zoo[export]'`.")


def target_file(
    out: str | os.PathLike[str] | None, folder: ModelFolder | None, name: str, source: Path | None = None
) -> Path:
    """Where a file goes: ``out``, or ``name`` in the model's own folder.

    Args:
        out: what the user has said.
        folder: of the model, if it has one.
        name: of the file there.
        source: the file that the new one is made of.

    Raises:
        InvalidArgumentError: there is no such place, or what the file is made of lies there.
    """
    if out is not None:
        target = user_path(out)
        if target.is_dir():
            raise InvalidArgumentError(f"{target} is a folder; give the name of a file, such as {target / name}.")
        made_of = [folder.path / one for one in (CONFIG, WEIGHTS_FILE)] if folder is not None else []
        for one in (*made_of, *((source,) if source is not None else ())):
            if target.exists() and one.exists() and target.samefile(one):
                raise InvalidArgumentError(
                    f"{target} is what the new file is made of and would be lost; give another name, such as "
                    f"{target.with_name(name)}."
                )
        return target
    if folder is None or folder.fetch is not None:
        raise InvalidArgumentError("The model is not in a folder of its own on this disk; say with out where to write.")
    return folder.path / name


@contextlib.contextmanager
def building(target: Path) -> Iterator[Path]:
    """A temporary name beside ``target``, renamed to it at the end, or removed when anything fails."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(target)
    except OSError as error:
        if error.filename is None:  # not about a file
            raise
        raise ExportError(
            f"{target} cannot be written ({error.strerror}); give another --out, or make room."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _detector_graph(module: DetectorModule, opset: int) -> onnx.ModelProto:
    """A detector's network with the choosing of detections behind it; YOLOv8 decodes its candidates alone."""
    from agssp_zoo.models.detectors.yolov8 import YOLOv8

    from .candidates import distributions
    from .network import trace

    if not isinstance(module, YOLOv8):
        return _with_selection(trace(module, raw=False, opset=opset), module.config)
    source = distributions(len(module.config.class_names), module.reg_max, module.strides)
    ends = {name: name for name in module.raw_names}
    return _with_selection(trace(module, raw=True, opset=opset), module.config, source, ends)


def _with_selection(
    network: onnx.ModelProto, config: ModelConfig, source: Source | None = None, ends: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """A network with the choosing of detections behind it.

    Args:
        network: its graph.
        config: of the model.
        source: what candidates are chosen from; by default the outputs ``boxes`` and ``scores``.
        ends: the network's outputs, each with its name in that source.

    Raises:
        ExportError: the config says nothing about choosing.
    """
    from onnx import TensorProto, compose, helper

    from .candidates import NETWORK, decoded
    from .selection import selection_model

    settings = config.postprocess
    if settings is None:
        raise ExportError(f"{config.name}: a detector's config needs postprocess.")
    classes = len(config.class_names)
    if source is None or ends is None:
        boxes = next(output for output in network.graph.output if output.name == "boxes")
        source = decoded(classes, box_of_class=len(boxes.type.tensor_type.shape.dim) == 4)
        ends = {"boxes": "all_boxes", "scores": "all_scores"}
    selection = selection_model(
        classes,
        settings,
        source=source,
        opset=network.opset_import[0].version,
        ir_version=network.ir_version,
    )
    # The prefix keeps the two graphs' names apart.
    network = compose.add_prefix(network, NETWORK, rename_inputs=False)
    merged = compose.merge_models(
        network,
        selection,
        io_map=[(NETWORK + one, other) for one, other in ends.items()],
        outputs=[output.name for output in selection.graph.output],
    )
    defaults = {"conf_threshold": settings.thresholds(config.class_names), "iou_threshold": (settings.iou,)}
    for name, values in defaults.items():
        # An initialiser that is also a graph input: a default that a caller may override.
        merged.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [len(values)], values))
    return merged


def _describe(graph: onnx.ModelProto, config: ModelConfig, *, raw: bool) -> None:
    """Writes names and metadata into the model."""
    from onnx import helper

    from agssp_zoo import __version__

    graph.producer_name = "agssp-zoo"
    graph.producer_version = __version__
    graph.graph.name = config.name
    helper.set_model_props(
        graph,
        {
            "config": config.to_json(),
            "class_names": json.dumps(list(config.class_names), ensure_ascii=False),
            "task": config.task,
            "outputs": "features" if config.task == "backbone" else "raw" if raw else "detections",
            "agssp_zoo_version": __version__,
            "contract_version": str(CONTRACT_VERSION),
        },
    )
