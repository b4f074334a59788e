"""Does an ONNX file answer what PyTorch answers?

A detector is compared in two steps, since a box at the very edge of a threshold may fall on either side of it for a
rounding error's sake. The network's boxes and scores, before anything is chosen, are compared with PyTorch's, element
by element, within a tolerance. Then the file's detections are compared with what
:func:`agssp_zoo.models.select_detections` chooses from the file's own boxes and scores, which must be the same ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agssp_zoo.errors import ExportError
from agssp_zoo.models import DetectorModule, ZooModule, select_detections

from .candidates import add_outputs
from .network import FromImages, output_names, takes_sizes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from agssp_zoo.config import ModelConfig, Postprocess

    Array = NDArray[Any]

SIZES = ((1, 640, 640), (3, 128, 640), (2, 416, 352))
"""Batch, height and width of what is compared."""
ANY_SIZES = ((1, 640, 640), (3, 133, 601), (2, 411, 350))
"""The same for models that take any height and width."""
TOLERANCE = 1e-3
"""Largest difference of an element: of scores absolute, of boxes in units of 250 pixels, of other outputs relative to
the output's root mean square."""
SAME_DETECTIONS = 0.99
"""Share of the detections that must be the same to the last bit. Not all: an IoU may lie within a rounding error of the
threshold, where float32 and float64 disagree."""
SAME_ROW = 0.1
"""Pixels that a side of a row's box may differ by for the row to be the same."""
SAME_ROWS = 0.97
"""Share of the rows that both sides must have, where rows are chosen by an overlap."""
DETECTIONS = ("boxes", "scores", "labels", "count")
CANDIDATES = (None, 200, 5000)
"""How many candidates of an image the thresholds let through, in turn; ``None``: the config's own thresholds."""


def verify_file(path: Path, module: ZooModule, *, raw: bool) -> None:
    """Compares a file with the module it was made from, on noise and on drawn surfaces, in three sizes.

    Args:
        path: the ONNX file.
        module: in evaluation mode, float32, on the CPU.
        raw: whether the file was exported so.

    Raises:
        ExportError: the file is no valid ONNX, does not run, or answers otherwise; the message gives the worst
            difference and where it is.
    """
    import onnx
    import onnxruntime

    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path)
        detects = any(output.name == "count" for output in model.graph.output)
        names = output_names(module, raw=raw)
        if detects:
            names = ["network/" + name for name in names]
            add_outputs(model, names)
            defaults = {
                tensor.name: tuple(onnx.numpy_helper.to_array(tensor).ravel().tolist())
                for tensor in model.graph.initializer
                if tensor.name in ("conf_threshold", "iou_threshold")
            }
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        provider = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=provider)
        del model
    except Exception as error:  # both raise errors of their own kinds
        raise ExportError(f"{path.name}: not a valid ONNX file: {error}") from error
    if detects:
        for name, values in _thresholds(module.config).items():
            if defaults.get(name) != tuple(np.array(values, np.float32).tolist()):
                raise ExportError(f"{path.name}: {name} is {defaults.get(name)}, but the config says {values}.")
    network = FromImages(module, raw=raw)
    sizes = SIZES if module.config.preprocess.stride > 1 else ANY_SIZES
    inputs = [
        (f"{kind} of {'x'.join(map(str, size))}", images) for size in sizes for kind, images in example_inputs(size)
    ]
    for (where, images), candidates in zip(inputs, itertools.cycle(CANDIDATES), strict=False):
        feeds = {"images": images}
        if takes_sizes(module) and where.startswith("noise"):  # on the other images all is valid, without being told
            feeds["sizes"] = _valid_sizes(images)
        with torch.inference_mode():
            expected = [out.numpy() for out in network(*map(torch.from_numpy, feeds.values()))]
        wanted = names
        if detects:
            wanted = [*names, *DETECTIONS]
            thresholds = _thresholds(module.config)
            if candidates is not None:
                thresholds = _other_thresholds(expected[1], candidates)
                feeds |= {name: np.array(values, np.float32) for name, values in thresholds.items()}
        try:
            found = session.run(wanted, feeds)
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            raise ExportError(f"{path.name}: does not run on {where}: {error}") from error
        if isinstance(module, DetectorModule) and module.rows_are_queries:
            pairs = _same_queries(names, expected, found, where)
        else:
            pairs = _in_one_order(names, expected, found, where)
        for name, one, other in zip(names, *pairs, strict=False):
            _compare(name.removeprefix("network/"), one, other, where)
        if detects:
            boxes, scores, detections = found[0], found[1], found[len(names) :]
            _compare_detections(module.config, thresholds, boxes, scores, detections, where)


def _thresholds(config: ModelConfig) -> dict[str, tuple[float, ...]]:
    """The thresholds that a file has when its caller gives none."""
    settings = _postprocess(config)
    return {"conf_threshold": settings.thresholds(config.class_names), "iou_threshold": (settings.iou,)}


def _other_thresholds(scores: Array, candidates: int) -> dict[str, tuple[float, ...]]:
    """Thresholds, another one for each class, of which the lowest lets about so many candidates of an image through."""
    ranked = np.sort(scores.reshape(len(scores), -1), axis=1)[:, ::-1]
    lowest = float(ranked[:, min(candidates, ranked.shape[1] - 1)].max())
    classes = scores.shape[-1]
    steps = (lowest + (1 - lowest) * 0.1 * ((i + 1) % classes) / classes for i in range(classes))
    return {"conf_threshold": tuple(np.array(list(steps), np.float32).tolist()), "iou_threshold": (0.53,)}


def _compare_detections(
    config: ModelConfig,
    thresholds: dict[str, tuple[float, ...]],
    boxes: Array,
    scores: Array,
    detections: Sequence[Array],
    where: str,
) -> None:
    """The file's detections against those that PyTorch chooses from the file's own boxes and scores."""
    settings = _postprocess(config)
    expected = select_detections(
        torch.from_numpy(boxes),
        torch.from_numpy(scores),
        conf=thresholds["conf_threshold"],
        iou=thresholds["iou_threshold"][0],
        max_det=settings.max_det,
        max_candidates=settings.max_candidates,
        multi_label=settings.multi_label,
    )
    for name, one, other in zip(DETECTIONS, expected, detections, strict=True):
        if one.shape != other.shape:
            raise ExportError(f"Output {name} on {where} has shape {other.shape}, not {tuple(one.shape)}.")
    pairs = list(zip(_rows([out.numpy() for out in expected]), _rows(detections), strict=True))
    total = sum(max(len(one), len(other)) for one, other in pairs)
    same = sum(len(one & other) for one, other in pairs)
    if same < SAME_DETECTIONS * total:
        raise ExportError(f"The file's detections differ from PyTorch's on {where}: {total - same} of {total}.")


def _rows(detections: Sequence[Array]) -> list[set[bytes]]:
    """The detections of every image, box, score and label of each as bytes."""
    boxes, scores, labels, count = detections
    return [
        {boxes[i, j].tobytes() + scores[i, j].tobytes() + labels[i, j].tobytes() for j in range(count[i])}
        for i in range(len(count))
    ]


def _valid_sizes(images: Array) -> Array:
    """Sizes smaller than the canvas, another one for each image; at least half of it."""
    batch, height, width, _ = images.shape
    rows = [(height - 3 - 5 * i, width - 19 - 7 * i) for i in range(batch)]
    return np.maximum(np.array(rows, np.int64), [height // 2, width // 2])


def _in_one_order(
    names: Sequence[str], expected: Sequence[Array], found: Sequence[Array], where: str
) -> tuple[list[Array], list[Array]]:
    """The network's outputs, the rows that both have side by side, where rows come in no fixed order.

    Rows belong together whose ``row_boxes`` are the same, as near as makes no difference. A few may be missing on
    either side: a box whose overlap with a better one lies at the threshold.
    """
    ends = [name.rpartition("/")[2] for name in names]
    if "row_boxes" not in ends:
        return list(expected), list(found)[: len(ends)]
    place = ends.index("row_boxes")
    pairs, total = [], 0
    for image, (one, other) in enumerate(zip(expected[place], found[place], strict=True)):
        mine, theirs = (np.flatnonzero((rows[:, 2:] > rows[:, :2]).all(1)) for rows in (one, other))
        total += max(len(mine), len(theirs))
        near = np.abs(one[mine][:, None] - other[theirs][None]).max(2) <= SAME_ROW
        for row, candidates in zip(mine, near, strict=True):
            if candidates.any():  # equal boxes have equal answers, so that any of them will do
                first = int(candidates.argmax())
                pairs.append((image, int(row), int(theirs[first])))
                near[:, first] = False
    if len(pairs) < SAME_ROWS * total:
        raise ExportError(f"The file's proposals differ from PyTorch's on {where}: {total - len(pairs)} of {total}.")
    images, ours, files = np.array(pairs, np.int64).reshape(-1, 3).T
    return [array[images, ours] for array in expected], [array[images, files] for array in found[: len(ends)]]


def _same_queries(
    names: Sequence[str], expected: Sequence[Array], found: Sequence[Array], where: str
) -> tuple[list[Array], list[Array]]:
    """The network's outputs for the queries whose boxes are the same, as near as makes no difference.

    A few may have begun with another proposal, one with as good as the same score.
    """
    place = next(i for i, name in enumerate(names) if name.endswith("boxes"))
    same = np.abs(expected[place] - found[place]).max(2) <= SAME_ROW
    if same.mean() < SAME_ROWS:
        raise ExportError(f"The file's queries differ from PyTorch's on {where}: {(~same).sum()} of {same.size}.")
    return [array[same] for array in expected], [array[same] for array in found[: len(names)]]


def _compare(name: str, expected: Array, found: Array, where: str) -> None:
    """One output of the network, element by element."""
    if expected.shape != found.shape:
        raise ExportError(f"Output {name} on {where} has shape {found.shape}; PyTorch's has {expected.shape}.")
    if name == "scores":
        scale = 1.0
    elif name in ("boxes", "row_boxes", "query_boxes"):
        scale = 250.0
    else:
        scale = max(float(np.sqrt(np.mean(np.square(expected)))), 1e-6)
    difference = np.abs(expected - found)
    worst = float(difference.max())
    if not worst <= TOLERANCE * scale:  # so that NaN fails too
        raise ExportError(
            f"Output {name} on {where} differs from PyTorch's by up to {worst:.3g} "
            f"(mean {float(difference.mean()):.3g}); {TOLERANCE * scale:.3g} is allowed."
        )


def _postprocess(config: ModelConfig) -> Postprocess:
    """A detector's settings, which :class:`ModelConfig` sees to."""
    if config.postprocess is None:
        raise ExportError(f"{config.name}: a detector's config needs postprocess.")
    return config.postprocess


def example_inputs(size: tuple[int, int, int]) -> Iterator[tuple[str, Array]]:
    """Kind and pixels, uint8 (batch, height, width, 3): plain noise, and gray surfaces with grain and marks."""
    generator = np.random.default_rng(sum(size))
    batch, height, width = size
    yield "noise", generator.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    images = np.empty((batch, height, width, 3), np.uint8)
    for image in images:
        gray = 110 + 30 * np.sin(x / generator.uniform(30, 200)) + 15 * np.sin(y / generator.uniform(2, 9))
        gray += generator.normal(0, 6, gray.shape)
        for _ in range(12):
            centre_x, centre_y = generator.uniform(0, width), generator.uniform(0, height)
            radius_x, radius_y = generator.uniform(3, 60), generator.uniform(3, 20)
            inside = ((x - centre_x) / radius_x) ** 2 + ((y - centre_y) / radius_y) ** 2 < 1
            gray[inside] += generator.uniform(-70, 70)
        image[:] = np.clip(gray, 0, 255)[..., None]
    yield "drawn surfaces", images
