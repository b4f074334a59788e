"""Packing a data set into WebDataset shards with an index (see :mod:`.shards` for the layout).

Shards are written one after the other under temporary names and renamed when whole, each with a note of what it holds
in ``.parts/``; the index comes last. A folder without index.json is therefore an unfinished packing: packing the same
data with the same settings again goes on after its last whole shard. The same data and settings give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from agssp_zoo.errors import AgsspZooError, DataError, InvalidArgumentError

from .dataset import Dataset
from .places import check_out
from .progress import progress
from .records import Record
from .shards import INDEX_NAME, KIND, VERSION, from_record

ImageFormat = Literal["original", "webp", "jpeg", "png"]
IMAGE_FORMATS: tuple[str, ...] = get_args(ImageFormat)
_SUFFIX = {"webp": "webp", "jpeg": "jpg", "png": "png"}
_KEPT = {"JPEG": "jpeg", "PNG": "png", "WEBP": "webp"}
_BLOCK = 512


@dataclass(frozen=True)
class PackSettings:
    """How images are stored.

    Attributes:
        size: images whose longer side is above this are scaled down to it, boxes with them; 0 keeps every size.
        format: ``"original"`` keeps the bytes of JPEG, PNG and WebP files and stores others, and those that are stored
            turned, as PNG, so that nothing is lost; scaled ones stay in their format. The other formats encode every
            image that is not yet in that format.
        quality: of JPEG and WebP, 1-100.
        shard_size: a shard is closed when it holds this many bytes.
        seed: of the order in which samples lie in the shards, for tools that read them front to back. The order of
            the data set itself is kept by the index.
    """

    size: int = 0
    format: ImageFormat = "original"
    quality: int = 95
    shard_size: int = 256 << 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 0 or 0 < self.size < 8:
            raise InvalidArgumentError(f"size is {self.size}; give the longer side in pixels, at least 8, or 0.")
        if self.format not in IMAGE_FORMATS:
            raise InvalidArgumentError(f"format is {self.format!r}; choose one of {', '.join(IMAGE_FORMATS)}.")
        if not 1 <= self.quality <= 100:
            raise InvalidArgumentError(f"quality is {self.quality}; it must lie in 1-100.")
        if self.shard_size < 1:
            raise InvalidArgumentError(f"shard_size is {self.shard_size} bytes; it must be at least 1.")


def pack(
    dataset: Dataset, out: str | os.PathLike[str], settings: PackSettings | None = None, *, tolerance: float = 0.0
) -> Path:
    """Writes a data set as shards, or finishes an interrupted packing of it.

    Args:
        dataset: what to pack; its splits get shards of their own.
        out: the folder to write; made when it is not there.
        settings: how images are stored.
        tolerance: as in :meth:`Dataset.require_clean`; images that cannot be read count as errors, too. Within it they
            are left out, and ``left_out`` of the index names them.

    Returns:
        The folder. :func:`read_dataset` reads it back: the same keys, splits and labels, in the same order.

    Raises:
        DataError: the data set has more errors and unreadable images than tolerated, or the folder holds something
            else.
        ImageError: an image cannot be read, where none may be.
        InvalidArgumentError: the folder cannot be written.
    """
    settings = settings or PackSettings()
    dataset.require_clean(tolerance, labels=not dataset.unlabelled)
    folder = Path(out)
    check_out(folder)
    plan = {"fingerprint": dataset.fingerprint(), "settings": asdict(settings), "version": VERSION}
    if not _prepare(folder, plan):
        return folder
    shards: list[dict[str, Any]] = []
    samples: dict[int, dict[str, Any]] = {}
    left_out: list[str] = []
    place = {id(record): index for index, record in enumerate(dataset.records)}
    steps = progress(_pack_all(dataset, folder, settings, tolerance), len(dataset), "packing")
    for record, shard, sample in steps:
        if not shards or shards[-1]["file"] != shard["file"]:
            shards.append(shard)
        if "error" in sample:
            left_out.append(record.key)
            if len(dataset.errors) + len(left_out) > tolerance * len(dataset):
                raise DataError(
                    f"{sample['error']} With it {len(left_out)} images cannot be read and {len(dataset.errors)} have "
                    f"errors, more than the tolerance of {tolerance:.2%} of {len(dataset)}; repair them, or raise it."
                )
            continue
        samples[place[id(record)]] = {"shard": len(shards) - 1, **sample}
    index = {
        "kind": KIND,
        "version": VERSION,
        "class_names": list(dataset.class_names),
        "plan": plan,
        "shards": shards,
        **({"left_out": left_out} if left_out else {}),
        "samples": [samples[number] for number in sorted(samples)],
    }
    _write(folder / INDEX_NAME, _index_text(index))
    shutil.rmtree(folder / ".parts", ignore_errors=True)
    return folder


def _prepare(folder: Path, plan: dict[str, Any]) -> bool:
    """Makes the folder ready; false when it holds the finished packing already."""
    index, note = folder / INDEX_NAME, folder / ".parts" / "plan.json"
    if index.exists():
        done = json.loads(index.read_bytes())
        if isinstance(done, dict) and done.get("kind") == KIND and done.get("plan") == plan:
            shutil.rmtree(note.parent, ignore_errors=True)
            return False
        raise DataError(f"{folder}: holds an index.json of other data or settings; remove the folder or give another.")
    if note.exists() and json.loads(note.read_bytes()) != plan:
        raise DataError(
            f"{folder}: holds an unfinished packing of other data or settings; remove the folder or give another."
        )
    if not note.exists() and folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: is not empty; give a new folder to pack into.")
    note.parent.mkdir(parents=True, exist_ok=True)
    _write(note, json.dumps(plan))
    for left in folder.glob(".*.tmp"):
        left.unlink()
    return True


def _pack_all(
    dataset: Dataset, folder: Path, settings: PackSettings, tolerance: float
) -> Iterator[tuple[Record, dict[str, Any], dict[str, Any]]]:
    """Packs split after split; gives each record with its shard and its entry of the index.

    The entry of an image that cannot be read, where some may be, holds its ``error`` instead.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for split in dataset.splits:
            records = [record for record in dataset.records if record.split == split]
            order = np.random.default_rng(settings.seed).permutation(len(records)).tolist()
            records = [records[number] for number in order]
            done = number = 0
            while done < len(records):
                name = f"{_safe(split)}-{number:06d}.tar"
                part = folder / ".parts" / f"{name}.json"
                if part.exists() and (folder / name).exists():
                    noted = json.loads(part.read_bytes())
                else:
                    noted = _write_shard(folder, name, records, done, settings, pool, skip=tolerance > 0)
                    _write(part, json.dumps(noted))
                for sample in noted["samples"]:
                    yield records[done], noted["shard"], sample
                    done += 1
                number += 1


def _write_shard(
    folder: Path,
    name: str,
    records: list[Record],
    start: int,
    settings: PackSettings,
    pool: ThreadPoolExecutor,
    *,
    skip: bool,
) -> dict[str, Any]:
    """Writes one shard, from a record on until it is full: what its note in ``.parts/`` says."""
    temporary = folder / f".{name}.{os.getpid()}.tmp"  # of this process: two that pack the same would mix their bytes
    samples: list[dict[str, Any]] = []
    ahead: list[Future[tuple[bytes, str, Record]]] = []
    try:
        with temporary.open("wb") as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for position in range(start, len(records)):
                while len(ahead) < 16 and position + len(ahead) < len(records):
                    ahead.append(pool.submit(encode, records[position + len(ahead)], settings))
                try:
                    data, suffix, record = ahead.pop(0).result()
                except AgsspZooError as error:
                    if not skip:
                        raise
                    samples.append({"error": str(error)})
                    continue
                entry = from_record(record)
                # The shard's own number of the sample: WebDataset cuts a name at its first dot, and keys may have dots.
                member = f"{position:08d}"
                offset = _add(tar, stream, f"{member}.{suffix}", data)
                _add(tar, stream, f"{member}.json", json.dumps(entry, ensure_ascii=False).encode())
                samples.append({**entry, "offset": offset, "size": len(data)})
                if stream.tell() >= settings.shard_size:
                    break
        digest = _sha256(temporary)
        size = temporary.stat().st_size
        temporary.replace(folder / name)
    except AgsspZooError:
        raise  # an image that cannot be read is an OSError, too, but says so itself
    except OSError as error:
        raise _not_written(folder / name, error) from None
    finally:
        for future in ahead:
            future.cancel()
        temporary.unlink(missing_ok=True)
    shard = {"file": name, "size": size, "sha256": digest, "samples": sum("error" not in sample for sample in samples)}
    return {"shard": shard, "samples": samples}


def encode(record: Record, settings: PackSettings) -> tuple[bytes, str, Record]:
    """An image as it is stored: its bytes, their file suffix, and the record with size and boxes to match.

    Raises:
        ImageError: the image cannot be read.
        DataError: the image is not of the size that the labels are for.
    """
    from PIL import Image

    from agssp_zoo.images import read_image

    data = record.read_bytes()
    longer = max(record.width, record.height)
    shrink = bool(settings.size) and longer > settings.size
    pixels = record.decode(data)  # also when the bytes are kept: a corrupt image must not reach a shard
    with Image.open(io.BytesIO(data)) as image:
        kind = _KEPT.get(image.format or "", "")
        turned = "exif" in image.info and image.getexif().get(0x0112, 1) != 1
    if settings.format != "original":
        wanted: str = settings.format
    else:
        wanted = "png" if turned and not shrink else kind or "png"
    if kind == wanted and not shrink and not turned:
        return data, _SUFFIX[kind], record
    picture = Image.fromarray(pixels)
    if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all():
        picture = picture.getchannel(0)  # gray images stay gray: a third of the bytes, the same pixels
    if shrink:
        scale = settings.size / longer
        width, height = max(1, round(record.width * scale)), max(1, round(record.height * scale))
        picture = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
        record = record.scaled(width, height)
    stream = io.BytesIO()
    if wanted == "png":
        picture.save(stream, "PNG", compress_level=6)
    elif wanted == "webp":
        picture.save(stream, "WEBP", quality=settings.quality, method=4)
    else:
        picture.save(stream, "JPEG", quality=settings.quality, subsampling=0)
    data = stream.getvalue()
    if read_image(data).shape[:2] != (record.height, record.width):
        raise DataError(f"{record.path}: could not be encoded as {wanted}.")
    return data, _SUFFIX[wanted], record


def _add(tar: tarfile.TarFile, stream: io.BufferedWriter, name: str, data: bytes) -> int:
    """Adds a member without times or owners; where its bytes begin."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    tar.addfile(info, io.BytesIO(data))
    return stream.tell() - -(-len(data) // _BLOCK) * _BLOCK


def _index_text(index: dict[str, Any]) -> str:
    """The index with a sample a line: as small as may be, and still readable by people and diff."""
    samples = ",\n".join(json.dumps(sample, ensure_ascii=False, separators=(",", ":")) for sample in index["samples"])
    head = json.dumps({key: value for key, value in index.items() if key != "samples"}, ensure_ascii=False, indent=1)
    return head[:-2] + ',\n "samples": [\n' + samples + "\n]}\n"


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _not_written(file, error) from None


def _not_written(file: Path, error: OSError) -> DataError:
    """What is missing is what another packing has cleared up, which takes all temporary files for those of a kill."""
    busy = isinstance(error, FileNotFoundError)
    why = "another process seems to pack into this folder" if busy else error.strerror
    return DataError(f"{file}: cannot be written ({why}); pack again to go on.")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _safe(split: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in split) or "data"
