"""Frames of a video file, a camera or a network stream, one after the other (the extra ``video``).

OpenCV reads them: it knows the cameras of every system by number, RTSP, and the usual files, and is under Apache-2.0.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agssp_zoo.errors import ImageError, MissingDependencyError, SourceError
from agssp_zoo.file_names import user_path
from agssp_zoo.mp4_file import seconds_shown

Image = NDArray[np.uint8]

SUFFIXES = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"))
"""Suffixes of video files; a folder still stands for the images in it."""
COUNTED = frozenset((".avi", ".m4v", ".mov", ".mp4"))
"""Those of them that hold the number of their frames; of others OpenCV reckons it from the length, sound included."""
TIMEOUT = 10.0
"""Seconds without an answer before a network stream is given up."""

_LIVE = re.compile(r"camera:\d+\Z|rtsps?://|rtmps?://|udp://|rtp://", re.IGNORECASE)


def is_live(source: Any) -> bool:
    """Whether a source is a camera (its number, or ``"camera:0"``) or a network stream: without an end."""
    if isinstance(source, str):
        return _LIVE.match(source) is not None
    return isinstance(source, (int, np.integer)) and not isinstance(source, bool) and int(source) >= 0


def is_video(source: Any) -> bool:
    """Whether a source is a video file by its suffix, or live."""
    if isinstance(source, (str, Path)) and Path(source).suffix.lower() in SUFFIXES and "://" not in str(source):
        return True
    return is_live(source)


def frames(source: str | int) -> Iterator[Image]:
    """All frames, in order, each (H, W, 3) uint8 RGB; only one is held.

    Args:
        source: a video file, a camera's number (also as ``"camera:0"``), or the address of a network stream.

    Raises:
        MissingDependencyError: the extra is not installed.
        SourceError: there is no such camera or stream, or it has stopped; ImageError where a file is no video, or has
            ended long before its last frame.
    """
    capture = _open(source)
    live, count, time = is_live(source), 0, 0.0
    try:
        while True:
            there, frame = capture.read()
            if not there:
                break
            count += 1
            if not live:
                time = _time(capture)  # which is another one as soon as there is no next frame
            yield _to_rgb(frame)
        missing = 0 if live else _missing(capture, str(source), count, time)
    finally:
        capture.release()
    if live:
        raise SourceError(f"{_name(source)} gives no more images; is it unplugged, or the network down?")
    if not count:
        raise ImageError(f"{source} is damaged or no video of a known kind: it has no frame.")
    if missing:
        raise ImageError(
            f"{source} is damaged or truncated: after {count} frames about {missing} are missing; copy or save it anew."
        )


def _time(capture: Any) -> float:
    """Seconds from the beginning of a file to the frame that was read last."""
    import cv2

    return float(capture.get(cv2.CAP_PROP_POS_MSEC)) / 1e3


def _missing(capture: Any, path: str, count: int, time: float) -> int:
    """How many more frames a file says to have; 0 where that is unknown, or few enough to be the reckoning's fault.

    Args:
        capture: OpenCV's reader, at the end.
        path: the file.
        count: frames that were read.
        time: of the last of them.
    """
    import cv2

    announced, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
    if not (announced > 0 and rate > 0):
        return 0
    counted = Path(path).suffix.lower() in COUNTED
    shown = seconds_shown(user_path(path)) if counted else None
    if shown is not None:
        announced = min(announced, shown * rate)
    # Frames of a whole file may repeat the last one and not come, or come at a changing rate; then the time tells.
    missing = announced - max(count, time * rate + 1)
    return round(missing) if missing > (2 if counted else max(2, 0.1 * announced)) else 0


class FrameReader:
    """Reads single frames of a video file again, for pictures. Going forward costs no more than reading it through."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._frames: Iterator[Image] | None = None
        self._next = 0

    def read(self, number: int) -> Image:
        """The frame of that number, from 0.

        Raises:
            ImageError: there is no such frame (any more).
        """
        with self._lock:
            if self._frames is None or number < self._next:
                self._frames, self._next = frames(self.path), 0
            for frame in self._frames:
                self._next += 1
                if self._next == number + 1:
                    return frame
            self._frames = None
        raise ImageError(f"{self.path}: there is no frame {number}; the file has changed.")


def _open(source: str | int) -> Any:
    """OpenCV's reader of a source."""
    try:
        import cv2
    except ImportError:
        raise MissingDependencyError(
            f"{_name(source)} needs OpenCV; run `pip install 'agssp-zoo[video]'` (or any other opencv-python)."
        ) from None
    with _quiet(cv2):
        if is_live(source) and "://" not in str(source):
            number = int(str(source).rpartition(":")[2])
            capture = cv2.VideoCapture(number)
            problem = f"There is no camera {number}, or another program uses it; `agssp-zoo predict` takes its number."
        elif is_live(source):
            milliseconds = int(TIMEOUT * 1e3)
            waits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
            capture = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG, waits)
            problem = f"{source} does not answer; check address, password and network."
        else:
            path = user_path(str(source))
            if not path.is_file():
                raise ImageError(f"There is no file {path}; check the path.")
            try:
                str(path).encode()
            except UnicodeEncodeError:  # OpenCV ends the whole process
                raise ImageError(f"{path}: OpenCV opens only files whose names are UTF-8; rename it.") from None
            capture = cv2.VideoCapture(str(path))
            if not capture.isOpened():
                raise ImageError(f"{path} is damaged or no video of a known kind; give MP4, AVI, MKV, MOV ...")
            return capture
    if not capture.isOpened():
        capture.release()
        raise SourceError(problem)
    return capture


@contextmanager
def _quiet(cv2: Any) -> Iterator[None]:
    """Without OpenCV's own lines on stderr: what is wrong is said once, by us."""
    logging = getattr(getattr(cv2, "utils", None), "logging", None)
    before = logging.setLogLevel(logging.LOG_LEVEL_SILENT) if logging is not None else None
    try:
        yield
    finally:
        if logging is not None:
            logging.setLogLevel(before)


def _to_rgb(frame: NDArray[Any]) -> Image:
    """OpenCV's BGR (or gray) frame as RGB."""
    if frame.ndim == 2:
        return np.repeat(frame[:, :, None], 3, axis=2)
    return np.ascontiguousarray(frame[:, :, 2::-1])


def _name(source: str | int) -> str:
    return f"camera {source}" if isinstance(source, (int, np.integer)) else str(source)
