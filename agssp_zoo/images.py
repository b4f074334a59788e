"""Anything that is an image -> uint8 RGB, by one rule.

What an image is depends on how it is stored, never on the values that happen to be in it:

- 8 bits: as they are. Gray is repeated three times; palettes, CMYK, YCbCr and Lab are converted to RGB.
- 16 bits (PNG, TIFF, ``uint16`` arrays): the high byte, ``value >> 8``, as OpenCV reads them for the authors' models
  and as Pillow reads 16-bit colour. A camera that fills 12 of the 16 bits makes a dark image that way: say
  ``read_image(source, bits=12)``, and ``value >> 4`` is taken.
- 1 bit (and ``bool`` arrays): 0 and 255.
- float: 0-1 becomes 0-255, rounded. NaN, infinities and values outside 0-1 are errors.
- 32-bit integers (TIFF, PIL images): as 16 bits when all values fit, else an error. Arrays of other integers than those
  above are an error: ``int64`` is numpy's own choice, and mostly holds values of 8 bits.
- Alpha is dropped: the stored colours stay, as OpenCV leaves them.
- EXIF orientation is obeyed. Of animations the first frame is taken; the pages of a TIFF are images of their own
  (:func:`iter_pages`), its reduced-size previews are skipped.

Pillow decodes, its limits stand (``PIL.Image.MAX_IMAGE_PIXELS``), and none of its global settings is changed.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Generator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import ImageError, InvalidArgumentError
from agssp_zoo.file_names import user_path

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

Image = NDArray[np.uint8]
ChannelOrder = Literal["rgb", "bgr"]

MIN_SIDE = 2
"""Anything smaller, such as a tracking pixel, is taken for a mistake."""
FLOAT_SLACK = 1e-3
"""Resampling overshoots a little; float values this far outside 0-1 are clipped."""

_ORIENTATION = 0x0112
_SUBFILE_TYPE = 254


def read_image(source: Any, *, channel_order: ChannelOrder = "rgb", bits: int = 16) -> Image:
    """Reads one image.

    Args:
        source: path, ``bytes`` of an image file, file open for reading bytes, PIL image, or array of shape (H, W),
            (H, W, 1), (H, W, 3) or (H, W, 4) and dtype uint8, uint16, bool or float.
        channel_order: of an array: ``"bgr"`` for what OpenCV has read. Files and PIL images know theirs.
        bits: how many bits of 16-bit values are used, 8-16.

    Returns:
        (H, W, 3) uint8 RGB; of a TIFF with several pages the first one.

    Raises:
        ImageError: it is no image, is truncated, too small or too large, or holds values outside its range.
        InvalidArgumentError: an argument is of a type or value that no image can have.
    """
    pages = iter_pages(source, channel_order=channel_order, bits=bits)
    try:
        return next(pages)[0]
    finally:
        pages.close()


def iter_pages(
    source: Any, *, channel_order: ChannelOrder = "rgb", bits: int = 16, first: int = 0
) -> Generator[tuple[Image, int | None]]:
    """Reads an image page by page. Other arguments and errors as for :func:`read_image`.

    Args:
        source: see there.
        channel_order: see there.
        bits: see there.
        first: of a TIFF file of several pages, the page to begin with; those before it are not decoded.

    Yields:
        the image, and its page number from 0, which is ``None`` for anything but a TIFF file of several pages.
    """
    check_channel_order(channel_order)
    if not isinstance(bits, int) or not 8 <= bits <= 16:
        raise InvalidArgumentError(f"bits={bits!r}: 16-bit images use 8 to 16 of their bits.")
    if isinstance(source, np.ndarray):
        yield from_array(source, channel_order=channel_order, bits=bits), None
        return
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        yield from _decode(_open_file(user_path(name)), name, bits, first)
        return
    if is_open_file(source):
        source = file_bytes(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield from _decode(io.BytesIO(source), f"The image of {len(source)} bytes", bits, first)
        return
    from PIL import Image as PillowModule

    if isinstance(source, PillowModule.Image):
        with _as_image_errors("The PIL image"):
            yield from_pillow(source, bits=bits), None
        return
    raise InvalidArgumentError(
        f"{type(source).__name__} is no image; give a path, bytes, a PIL image or a numpy array (height, width, 3)."
    )


def is_open_file(source: Any) -> bool:
    """Whether an object is an open file, in memory or on disk."""
    return hasattr(source, "read") and hasattr(source, "seek")


def file_bytes(file: Any) -> bytes:
    """All that an open file holds, from its beginning where it can go back there.

    Raises:
        ImageError: it cannot be read, or is closed.
        InvalidArgumentError: it is open as text.
    """
    data: Any = ""
    if not isinstance(file, io.TextIOBase):
        try:
            if file.seekable():
                file.seek(0)
            data = file.read()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            raise ImageError(f"The open file cannot be read ({error}); give its path.") from None
    if not isinstance(data, bytes):
        raise InvalidArgumentError(
            f"{type(file).__name__} gives {type(data).__name__}, no bytes; open it with mode 'rb', or give its path."
        )
    return data


def from_array(array: NDArray[Any], *, channel_order: ChannelOrder = "rgb", bits: int = 16) -> Image:
    """An array -> (H, W, 3) uint8 RGB; an array that is this already is returned itself. Errors as for read_image."""
    shape = array.shape
    if array.ndim == 3 and shape[2] not in (1, 3, 4):
        hint = "; transpose it to (height, width, channels)" if shape[0] in (1, 3, 4) else ""
        raise ImageError(f"The array has shape {shape}; an image has 1, 3 or 4 channels, last{hint}.")
    if array.ndim not in (2, 3):
        raise ImageError(f"The array has shape {shape}; give (height, width) or (height, width, 3), several as a list.")
    _check_side(shape[1], shape[0])
    values = _to_uint8(array, bits)
    if values.ndim == 2 or shape[2] == 1:
        image = np.empty((shape[0], shape[1], 3), np.uint8)
        for channel in range(3):  # half the time of numpy.repeat
            image[:, :, channel] = values.reshape(shape[:2])
        return image
    colors = values[:, :, :3]
    return np.ascontiguousarray(colors[:, :, ::-1] if channel_order == "bgr" else colors)


def _to_uint8(array: NDArray[Any], bits: int) -> Image:
    """Values of any admitted dtype as uint8, by the rule at the head of this file."""
    if array.dtype == np.uint8:
        return cast(Image, array)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.newbyteorder("=") == np.uint16:
        shifted = array.astype(np.uint16, copy=False) >> np.uint16(bits - 8)
        return cast(Image, (shifted if bits == 16 else np.minimum(shifted, 255)).astype(np.uint8))
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ImageError("The image holds NaN or infinite values; replace them, e.g. with numpy.nan_to_num.")
        if low < -FLOAT_SLACK or high > 1 + FLOAT_SLACK:
            raise ImageError(f"The float image holds values {low:g} to {high:g}; scale it to 0-1, or pass uint8.")
        # float32 also for float16, whose steps near 255 are too coarse
        return cast(Image, np.rint(np.clip(array.astype(np.float32), 0, 1) * 255).astype(np.uint8))
    raise ImageError(f"The array is {array.dtype}; images are uint8, uint16, bool, or float in 0-1: convert it.")


def from_pillow(image: PillowImage, *, bits: int = 16) -> Image:
    """A PIL image -> (H, W, 3) uint8 RGB, upright. The image itself is not changed."""
    _check_side(*image.size)
    _check_size(*image.size)
    image.load()
    image = _upright(image)
    mode = image.mode
    if mode == "RGB":
        return np.array(image)
    if mode in ("L", "LA", "La"):
        # Not convert("RGB"), which would multiply gray by its alpha.
        return from_array(np.asarray(image if mode == "L" else image.getchannel(0)))
    if mode == "RGBX" or mode == "RGBA":
        return np.ascontiguousarray(np.asarray(image)[:, :, :3])
    if mode.startswith("I;16"):
        return from_array(np.asarray(image).astype(np.uint16, copy=False), bits=bits)  # big-endian becomes native
    if mode == "I":
        return from_array(_fit_uint16(np.asarray(image)), bits=bits)
    if mode in ("1", "F"):
        return from_array(np.asarray(image), bits=bits)
    if mode in ("P", "PA"):
        # Via RGBA a transparent palette entry keeps its colour, too.
        return np.ascontiguousarray(np.asarray(image.convert("RGBA"))[:, :, :3])
    return np.array(image.convert("RGB"))


def _fit_uint16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """32-bit integers as 16-bit ones."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(f"The 32-bit image holds values {low} to {high}; scale it to 16 or 8 bits.")
    return values.astype(np.uint16)


def _upright(image: PillowImage) -> PillowImage:
    """Turns and mirrors an image as its EXIF orientation says."""
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever a damaged EXIF block raises, the pixels are fine
        return image
    how = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)
    return image if how is None else image.transpose(how)


def _open_file(path: Path) -> io.BufferedReader:
    """Opens an image file.

    Raises:
        ImageError: it is missing, is a folder, a pipe, a socket or a device, or may not be read.
    """
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would wait for somebody to write to it
            raise ImageError(f"{path} is a pipe, a socket or a device; give an image file, or its bytes.")
        return path.open("rb")
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"There is no file {path}; check the path.") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder; give an image file.") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror or error}); check its permissions.") from None
    except ValueError:  # a NUL in the name
        raise ImageError(f"{str(path)!r} is not a file name.") from None


def _decode(file: IO[bytes], name: str, bits: int, first: int) -> Generator[tuple[Image, int | None]]:
    """Decodes an open image file and closes it."""
    from PIL import Image as PillowModule

    with file, _as_image_errors(name):
        if not file.read(1):
            raise ImageError("the file is empty; give an image file.")
        file.seek(0)
        with PillowModule.open(file) as image:
            pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
            if pages == 1:
                yield from_pillow(image, bits=bits), None
                return
            for page in range(first, pages):
                with _as_image_errors(f"{name}, page {page}"):
                    image.seek(page)
                    tags = getattr(image, "tag_v2", {})
                    if page and int(tags.get(_SUBFILE_TYPE, 0)) & 1:  # a preview of the page before
                        continue
                    picture = from_pillow(image, bits=bits)
                yield picture, page


class _as_image_errors:
    """Whatever a decoder raises inside becomes one ImageError that names the image."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> Literal[False]:
        """Translates; decoders raise OSError, SyntaxError, struct.error and more on damaged files."""
        if error is None or not isinstance(error, Exception) or isinstance(error, InvalidArgumentError):
            return False
        if isinstance(error, ImageError):
            if str(error).startswith(self.name):
                return False
            raise ImageError(f"{self.name}: {error}") from None
        from PIL import Image as PillowModule
        from PIL import UnidentifiedImageError

        if isinstance(error, UnidentifiedImageError):
            message = f"{self.name} is no image of a known format; give PNG, JPEG, TIFF, BMP, WebP ..."
        elif isinstance(error, (PillowModule.DecompressionBombError, PillowModule.DecompressionBombWarning)):
            message = f"{self.name}: {_TOO_LARGE}"
        elif isinstance(error, MemoryError):
            message = f"{self.name} does not fit into memory; cut it into smaller images."
        else:
            detail = str(error) or type(error).__name__
            message = f"{self.name} is damaged or truncated ({detail}); copy or save it again."
        raise ImageError(message) from error


_TOO_LARGE = (
    "the image has more pixels than is safe to decode (a decompression bomb?); "
    "if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS or cut it into smaller images."
)


def _check_side(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"The image is {width}x{height} pixels; a side of fewer than {MIN_SIDE} is no image: check how it was made."
        )


def _check_size(width: int, height: int) -> None:
    """Pillow looks at the first page of a file only; this is its own limit, for every page."""
    from PIL import Image as PillowModule

    limit = PillowModule.MAX_IMAGE_PIXELS
    if limit is not None and width * height > 2 * limit:
        raise ImageError(_TOO_LARGE)


def check_channel_order(channel_order: str) -> None:
    """Refuses anything but ``"rgb"`` and ``"bgr"`` with InvalidArgumentError."""
    if channel_order not in ("rgb", "bgr"):
        raise InvalidArgumentError(f"channel_order={channel_order!r}; choose 'rgb' or 'bgr'.")
