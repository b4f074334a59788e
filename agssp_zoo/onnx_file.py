"""Changing single entries of an ONNX file, without the onnx package, which only the ``export`` extra brings.

An ONNX file is one protobuf message. Entries of it are exchanged (the initialisers ``conf_threshold`` and
``iou_threshold``, the metadata ``config``) or left out; all other bytes stay as they are. Field numbers are those of
``onnx.proto`` (Apache-2.0), the encoding is https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from agssp_zoo.errors import EngineError

GRAPH, METADATA = 7, 14  # of ModelProto
KEY, VALUE = 1, 2  # of StringStringEntryProto
INITIALIZER, INPUT = 5, 11  # of GraphProto
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_RAW = 1, 2, 8, 9  # of TensorProto
INFO_NAME, INFO_TYPE = 1, 2  # of ValueInfoProto
TENSOR_OF_TYPE, SHAPE, DIM, DIM_NAME = 1, 2, 1, 2  # of TypeProto, its Tensor, TensorShapeProto, its Dimension
FLOAT = 1
CONF, IOU = b"conf_threshold", b"iou_threshold"

Tensors = Mapping[bytes, Sequence[float]]
"""Initialisers, float32 (n,), by name."""

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


def with_thresholds(path: Path, thresholds: Sequence[float], iou: float, config: str) -> list[bytes | memoryview]:
    """The content of an ONNX file of ours with other thresholds and another config.

    Args:
        path: the file of ``agssp-zoo export``. One without a selection of detections (``--raw``, a backbone) has no
            thresholds to change, only a config.
        thresholds: of scores, one for all classes, or one for each in label order.
        iou: of the suppression.
        config: the text of config.json.

    Returns:
        The new content in parts; written one after the other they are the file.

    Raises:
        EngineError: it is no ONNX file, none of ours, or one whose threshold is one for all classes.
    """
    try:
        tensors = {CONF: thresholds, IOU: (iou,)}
        return _exchange(memoryview(path.read_bytes()), path, tensors, config.encode())
    except (IndexError, ValueError, struct.error):
        raise EngineError(f"{path} is damaged or no ONNX file; make it with `agssp-zoo export`.") from None


def without_initializers(path: Path, names: Collection[str]) -> list[bytes | memoryview]:
    """The content of an ONNX file without some of its initialisers.

    Args:
        path: the file.
        names: of the initialisers to leave out; those that the file has not are passed over.

    Returns:
        The new content in parts, as for :func:`with_thresholds`.

    Raises:
        EngineError: it is no ONNX file.
        OSError: it cannot be read.
    """
    unwanted = {name.encode() for name in names}
    parts: list[bytes | memoryview] = []
    try:
        for number, entry, payload in _fields(memoryview(path.read_bytes())):
            if number != GRAPH:
                parts.append(entry)
                continue
            kept = [
                inner
                for field, inner, tensor in _fields(payload)
                if field != INITIALIZER or bytes(_first(tensor, TENSOR_NAME)) not in unwanted
            ]
            parts += [_head(GRAPH, sum(map(len, kept))), *kept]
    except (IndexError, ValueError):
        raise EngineError(f"{path} is damaged or no ONNX file; make it with `agssp-zoo export`.") from None
    return parts


def _exchange(data: memoryview, path: Path, tensors: Tensors, config: bytes) -> list[bytes | memoryview]:
    parts: list[bytes | memoryview] = []
    found = False
    for number, entry, payload in _fields(data):
        if number == GRAPH:
            graph = _graph(payload, path, tensors)
            parts += [_head(GRAPH, sum(map(len, graph))), *graph]
        elif number == METADATA and bytes(_first(payload, KEY)) == b"config":
            found = True
            text = _field(KEY, b"config") + _field(VALUE, config)
            parts.append(_field(METADATA, text))
        else:
            parts.append(entry)
    if not found:
        raise EngineError(f"{path} is not an ONNX file of agssp-zoo; make one with `agssp-zoo export`.")
    return parts


def _graph(data: memoryview, path: Path, tensors: Tensors) -> list[bytes | memoryview]:
    """The graph with other initialisers, in parts."""
    parts: list[bytes | memoryview] = []
    for number, entry, payload in _fields(data):
        if number == INITIALIZER and (name := bytes(_first(payload, TENSOR_NAME))) in tensors:
            parts.append(_field(INITIALIZER, _tensor(name, tensors[name])))
            continue
        if number == INPUT and bytes(_first(payload, INFO_NAME)) == CONF and not _has_free_length(payload):
            raise EngineError(
                f"{path} takes one score threshold for all classes; export it again with `agssp-zoo export`, so that "
                "every class can have its own."
            )
        parts.append(entry)
    return parts


def _tensor(name: bytes, values: Sequence[float]) -> bytes:
    """A TensorProto of float32, (n,)."""
    raw = struct.pack(f"<{len(values)}f", *values)
    dims = _number(TENSOR_DIMS << 3 | _VARINT) + _number(len(values))
    kind = _number(TENSOR_TYPE << 3 | _VARINT) + _number(FLOAT)
    return dims + kind + _field(TENSOR_NAME, name) + _field(TENSOR_RAW, raw)


def _has_free_length(info: memoryview) -> bool:
    """Whether the first axis of a ValueInfoProto has a name instead of a length."""
    for field in (INFO_TYPE, TENSOR_OF_TYPE, SHAPE, DIM):
        info = _first(info, field)
    return len(_first(info, DIM_NAME)) > 0


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Every field of a message: its number, its bytes with their head, its bytes without."""
    place = 0
    while place < len(data):
        start = place
        tag, place = _read_number(data, place)
        kind = tag & 7
        if kind == _VARINT:
            begin = place
            _, place = _read_number(data, place)
        elif kind == _BYTES:
            length, begin = _read_number(data, place)
            place = begin + length
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            begin, place = place, place + (8 if kind == _EIGHT_BYTES else 4)
        else:
            raise ValueError(kind)
        if place > len(data):
            raise ValueError(place)
        yield tag >> 3, data[start:place], data[begin:place]


def _first(data: memoryview, number: int) -> memoryview:
    """The first field of a number, empty where there is none."""
    return next((payload for found, _, payload in _fields(data) if found == number), memoryview(b""))


def _read_number(data: memoryview, place: int) -> tuple[int, int]:
    """A number in protobuf's variable length, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _number(value: int) -> bytes:
    """A number in protobuf's variable length."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _head(number: int, length: int) -> bytes:
    """What stands before a field's bytes."""
    return _number(number << 3 | _BYTES) + _number(length)


def _field(number: int, payload: bytes) -> bytes:
    """A field of bytes."""
    return _head(number, len(payload)) + payload
