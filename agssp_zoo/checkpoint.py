"""Reading checkpoints of torch without trusting them.

A checkpoint is a pickle, and a pickle is a program: it names functions and calls them. Here nothing that a file names
is ever imported. Each name is looked up in a short table of our own functions, which make tensors, containers and
numbers; bookkeeping objects that such files also hold become inert :class:`Opaque` values. Any other name is refused.
"""

from __future__ import annotations

import functools
import io
import mmap
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from agssp_zoo.errors import CheckpointError, UnsafeCheckpointError

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
"""Kinds of tensor data that files name, in module ``torch``."""

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first number of a checkpoint of the format before torch 1.6."""

MAX_PICKLE_BYTES = 256 * 2**20  # of names and numbers; tensors are stored beside them


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint that holds a dict, in torch's zip format or the one before it.

    Only tensors, containers, numbers and text are made. NumPy scalars become numbers; NumPy arrays, mmengine's
    ``HistoryBuffer`` and what ``getattr`` would answer become :class:`Opaque`. Tensors lie on the CPU; those of a zip
    file are read when they are used.

    Raises:
        UnsafeCheckpointError: the file names anything else; nothing of it was executed.
        CheckpointError: the file cannot be read, or holds no dict.
    """
    try:
        with Path(path).open("rb") as file:
            zipped = zipfile.is_zipfile(file)
            file.seek(0)
            content = _load_zip(file) if zipped else _load_legacy(file)
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can fail in any way
        if isinstance(error, OSError) and error.errno is not None:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
        raise CheckpointError(
            f"{path}: is no checkpoint of torch, or is damaged ({type(error).__name__}: {error})."
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dict with a state_dict.")
    return content


class Opaque:
    """Stands for an object of a checkpoint that nobody needs; holds nothing and refuses to be called."""

    __slots__ = ()

    def __new__(cls, *_args: object, **_kwargs: object) -> Opaque:
        """Takes any arguments and forgets them."""
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass

    def __call__(self, *_args: object, **_kwargs: object) -> None:
        """Refuses.

        Raises:
            UnsafeCheckpointError: always.
        """
        raise UnsafeCheckpointError("calls an object that a checkpoint has no need to call; it was not executed.")


class _Admitted:
    """A function that a pickle may call, in a wrapper that it cannot change."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: object) -> None:
        raise UnsafeCheckpointError(f"sets {name} of a function; it was not done.")


class _Dtype:
    """A NumPy number type as a file describes it: kind and bytes, then the byte order."""

    def __init__(self, kind: str, *_: object) -> None:
        if kind not in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"):
            raise UnsafeCheckpointError(f"holds a NumPy value of type {kind!r}; only plain numbers are read.")
        code = {"b1": "?", "f2": "e", "f4": "f", "f8": "d"}.get(kind)
        self.code = code or {"1": "b", "2": "h", "4": "i", "8": "q"}[kind[1]]
        if kind[0] == "u":
            self.code = self.code.upper()
        self.order = "<"

    def __setstate__(self, state: Sequence[object]) -> None:
        self.order = ">" if state[1] == ">" else "<"


class _RestrictedUnpickler(pickle.Unpickler):
    """Looks every name up in a table, and hands the tensors' data out.

    Args:
        file: where the pickle begins.
        read_storage: (dtype, key, number of elements) -> a flat tensor.
    """

    def __init__(self, file: BinaryIO, read_storage: Callable[[torch.dtype, str, int], Tensor]) -> None:
        _check_memo(file)
        super().__init__(file, encoding="utf-8")
        self._read_storage = read_storage
        self._storages: dict[str, Tensor] = {}
        self._names: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _Admitted(_rebuild_tensor),
            ("torch._utils", "_rebuild_parameter"): _Admitted(lambda data, *_: data),
            ("torch", "Size"): _Admitted(tuple),
            ("_codecs", "encode"): _Admitted(_encode_latin1),
            # A class of its own for every file, so that a file could spoil nothing but itself.
            ("mmengine.logging.history_buffer", "HistoryBuffer"): type("HistoryBuffer", (Opaque,), {"__slots__": ()}),
        }
        for builtins in ("__builtin__", "builtins"):
            self._names[builtins, "getattr"] = _Admitted(lambda *_: Opaque())
            self._names[builtins, "set"] = _Admitted(set)
        for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
            self._names[core, "scalar"] = _Admitted(_number)
            self._names[core, "_reconstruct"] = _Admitted(lambda *_: Opaque())
        self._names["numpy", "ndarray"] = type("ndarray", (Opaque,), {"__slots__": ()})
        self._names["numpy", "dtype"] = _Admitted(_Dtype)
        for name, dtype in STORAGES.items():
            self._names["torch", name] = dtype

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The table's entry; imports nothing.

        Raises:
            UnsafeCheckpointError: the name is not in the table.
        """
        try:
            return self._names[module_name, global_name]
        except KeyError:
            raise UnsafeCheckpointError(
                f"names {module_name}.{global_name}, which a checkpoint has no need of; nothing of it was executed. "
                "Do not use this file unless you know who made it."
            ) from None

    def persistent_load(self, pid: Any) -> Tensor:
        """A tensor's data: ``("storage", kind, key, device, number of elements, ...)`` -> a flat tensor."""
        tag, dtype, key, _device, count = pid[:5]
        if tag != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise CheckpointError(f"refers to {tag!r} data of an unknown kind.")
        if len(pid) > 5 and pid[5] is not None:
            raise CheckpointError("holds views of storages, a format of torch before 0.4.")
        if key not in self._storages:
            self._storages[key] = self._read_storage(dtype, key, count)
        storage = self._storages[key]
        if storage.dtype != dtype or len(storage) != count:
            raise CheckpointError(f"describes its data {key} in two ways.")
        return storage


def _check_memo(file: BinaryIO) -> None:
    """Refuses a pickle whose numbers for things to come back to have gaps; reads to its end, and goes back.

    Picklers count from 0. The unpickler makes a table as long as the largest number, so that a file of ten bytes could
    fill the memory.
    """
    start = file.tell()
    for count, (opcode, number, _) in enumerate(pickletools.genops(file)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and isinstance(number, int) and number > count:
            raise CheckpointError("is made to fill the memory; it was not read.")
    file.seek(start)


def _rebuild_tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> Tensor:
    """A tensor from its flat data; torch itself checks that it lies within."""
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


def _encode_latin1(text: str, encoding: str = "latin1") -> bytes:
    """How pickles of protocol 2 write bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise UnsafeCheckpointError(f"encodes text as {encoding!r}; a checkpoint needs latin1 only.")
    return text.encode("latin-1")


def _number(dtype: _Dtype, data: bytes) -> float | int | bool:
    """A NumPy scalar as a number."""
    value: float | int | bool = struct.unpack(dtype.order + dtype.code, data)[0]
    return value


def _load_zip(file: io.BufferedReader) -> Any:
    """The zip format: ``<root>/data.pkl`` and a stored file ``<root>/data/<key>`` for each tensor's data."""
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == "data.pkl"]
        if len(names) != 1:
            raise CheckpointError("is a zip file without a checkpoint of torch in it.")
        root = names[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in archive.namelist():
            raise UnsafeCheckpointError("is a TorchScript program, not a checkpoint; nothing of it was executed.")
        # Sizes first: a few bytes of a zip file can be unpacked to any number of them.
        order = next((info for info in archive.infolist() if info.filename == f"{root}byteorder"), None)
        if order is not None and (order.file_size != len(b"little") or archive.read(order) != b"little"):
            raise CheckpointError("was written on a big-endian machine, which is not supported.")
        if archive.getinfo(names[0]).file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(f"holds more than {MAX_PICKLE_BYTES >> 20} MiB beside its tensors.")
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        read_storage = functools.partial(_read_zip_storage, archive, view, f"{root}data/")
        return _RestrictedUnpickler(io.BytesIO(archive.read(names[0])), read_storage).load()


def _read_zip_storage(
    archive: zipfile.ZipFile, view: mmap.mmap, folder: str, dtype: torch.dtype, key: str, count: int
) -> Tensor:
    """A flat tensor on the mapped file."""
    info = archive.getinfo(folder + key)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != count * dtype.itemsize or count < 0:
        raise CheckpointError(f"its data {key} do not have the size that is stated.")
    if count == 0:
        return torch.empty(0, dtype=dtype)
    # The local header has 30 bytes and two fields of variable length, whose lengths stand at 26 and 28.
    name_length, extra_length = struct.unpack_from("<HH", view, info.header_offset + 26)
    return torch.frombuffer(view, dtype=dtype, count=count, offset=info.header_offset + 30 + name_length + extra_length)


def _load_legacy(file: io.BufferedReader) -> Any:
    """The format before torch 1.6: five pickles in a row, then count and data of each storage."""
    file_size = os.fstat(file.fileno()).st_size

    def allocate(dtype: torch.dtype, key: str, count: int) -> Tensor:
        if not 0 <= count * dtype.itemsize <= file_size:
            raise CheckpointError(f"its data {key} are larger than the file.")
        return torch.empty(count, dtype=dtype)

    unpickler = _RestrictedUnpickler(file, allocate)
    if unpickler.load() != LEGACY_MAGIC:
        raise CheckpointError("is no checkpoint of torch.")
    for _ in ("protocol version", "system information"):
        _RestrictedUnpickler(file, allocate).load()
    unpickler = _RestrictedUnpickler(file, allocate)
    content = unpickler.load()
    keys = _RestrictedUnpickler(file, allocate).load()
    storages = unpickler._storages
    if not isinstance(keys, list) or set(keys) != set(storages):
        raise CheckpointError("its list of data is incomplete.")
    for key in keys:
        storage = storages[key]
        (count,) = struct.unpack("<q", file.read(8))
        if count != len(storage):
            raise CheckpointError(f"its data {key} do not have the size that is stated.")
        if count and file.readinto(storage.view(torch.uint8).numpy().data) != count * storage.itemsize:
            raise CheckpointError("is truncated.")
    return content
