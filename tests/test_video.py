"""Videos and cameras: frames in order, in constant memory, and clear errors."""

from __future__ import annotations

import gc
import json
import os
import struct
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnx")

from bright_detector import write_model  # noqa: E402
from test_detector import detector, number, picture  # noqa: E402

from agssp_zoo import cli  # noqa: E402
from agssp_zoo.errors import ImageError, InvalidArgumentError, MissingDependencyError, SourceError  # noqa: E402
from agssp_zoo.mp4_file import seconds_shown  # noqa: E402
from agssp_zoo.sources import load  # noqa: E402

FRAMES = 30


def write_video(path: Path, count: int = FRAMES, code: str = "MJPG") -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), 10.0, (320, 200))
    assert writer.isOpened()
    for i in range(count):
        frame = picture(200, 320, (10 + i, 10, 60 + i, 60))
        frame[150:, :, 2] = 140  # red, in OpenCV's order
        writer.write(frame)
    writer.release()
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("film") / "film.avi")


@pytest.mark.parametrize("batch", [1, 4])
def test_frames_come_in_order(film: Path, batch: int) -> None:
    found = list(detector().stream(film, batch=batch))
    assert [(number(one), one.page, one.path) for one in found] == [(i, i, str(film)) for i in range(FRAMES)]
    assert detector().predict([str(film), picture(64, 64)])[FRAMES].page is None
    # A frame is read again for its picture, forwards and backwards.
    for i in (5, 6, 20, 3):
        drawn = np.asarray(found[i].plot(labels=False)).astype(int)
        assert drawn.shape == (200, 320, 3) and drawn[30, 20 + i].min() > 200
        assert drawn[180, 100, 0] - drawn[180, 100, 2] > 50, "red is red"
    assert (load(str(film), 7) == found[7].image()).all()
    with pytest.raises(ImageError, match="no frame 99"):
        load(str(film), 99)


def test_mp4(tmp_path: Path) -> None:
    path = write_video(tmp_path / "FILM.MP4", 5, "mp4v")
    assert [number(one) for one in detector().stream(path, conf=0.6)] == pytest.approx(list(range(5)), abs=1)


def test_memory_is_constant(film: Path, tmp_path: Path) -> None:
    long = write_video(tmp_path / "long.avi", 400)

    def peak(path: Path, count: int) -> int:
        gc.collect()
        tracemalloc.start()
        try:
            assert sum(1 for _ in detector(size=64).stream(path)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(film, FRAMES)
    assert peak(long, 400) < peak(film, FRAMES) + 1e6


def test_a_stream_lets_its_file_go(film: Path) -> None:
    stream = detector().stream(film)
    next(stream)
    stream.close()
    del stream
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name == "agssp-zoo-prefetch"]


def test_what_is_no_video(tmp_path: Path, film: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video at all" * 100)
    (tmp_path / "empty.avi").write_bytes(b"")
    (tmp_path / "cut.avi").write_bytes(film.read_bytes()[:300])
    for name, words in (
        ("bad.mp4", "no video"),
        ("empty.avi", "no video"),
        ("cut.avi", "no video"),
        ("none.mov", "no file"),
    ):
        with pytest.raises(ImageError, match=words) as raised:
            detector().predict(tmp_path / name)
        assert name in str(raised.value)
    errors = []
    found = detector().predict([tmp_path / "bad.mp4", film], on_error=lambda path, error: errors.append(path))
    assert len(found) == FRAMES and [Path(path).name for path in errors] == ["bad.mp4"]


@pytest.mark.parametrize(("suffix", "code"), [("avi", "MJPG"), ("mkv", "MJPG"), ("webm", "VP80"), ("mp4", "mp4v")])
def test_a_film_that_ends_before_its_last_frame(tmp_path: Path, suffix: str, code: str, capfd) -> None:
    path = write_video(tmp_path / f"film.{suffix}", FRAMES, code)
    assert len(detector().predict(path)) == FRAMES, "a whole one is no error"
    data = bytearray(path.read_bytes())
    if suffix == "mp4":  # which cannot be opened without its end
        start = data.index(b"mdat") + len(data) // 3
        data[start : data.index(b"moov")] = b"\xa5" * (data.index(b"moov") - start)
    path.write_bytes(data if suffix == "mp4" else data[: len(data) // 2])
    found = []
    with pytest.raises(ImageError, match=rf"film\.{suffix} is damaged or truncated: after \d+ frames about \d+ are"):
        for one in detector().stream(path):
            found.append(one)
    assert 3 < len(found) < FRAMES - 2 and [one.page for one in found] == list(range(len(found)))
    errors: list[str] = []
    answers = detector().predict([path, picture(64, 64)], on_error=lambda _, error: errors.append(str(error)))
    assert len(answers) == len(found) + 1 and len(errors) == 1


@pytest.mark.parametrize(("shown", "missing"), [(2000, 0), (3000, 10)])
def test_a_film_that_was_trimmed_counts_frames_that_it_does_not_show(tmp_path: Path, shown: int, missing: int) -> None:
    """The edit list begins a second after the first frame of three; then it says how long it goes on."""
    path = write_video(tmp_path / "film.mp4", FRAMES, "mp4v")
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12
    length, begins = struct.unpack_from(">Ii", data, at)
    assert (length, begins) == (3000, 0) and seconds_shown(path) == 3
    struct.pack_into(">Ii", data, at, shown, struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0])
    path.write_bytes(data)
    assert seconds_shown(path) == shown / 1e3
    errors: list[str] = []
    assert len(detector().predict(path, on_error=lambda _, error: errors.append(str(error)))) == FRAMES - 10
    assert len(errors) == bool(missing) and all(f"about {missing} are" in error for error in errors)


def test_a_changing_rate_is_no_missing_frame(film: Path, monkeypatch) -> None:
    """What OpenCV reckons from length and rate are more frames than there are, but the last one is at the end."""

    class Slower:
        def __init__(self, *arguments: object) -> None:
            self.reader = VideoCapture(*arguments)

        def __getattr__(self, name: str):
            return getattr(self.reader, name)

        def get(self, what: int) -> float:
            return self.reader.get(what) * (2 if what in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS) else 1)

    VideoCapture = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", Slower)
    assert len(detector().predict(film)) == FRAMES


def test_boxes_that_lie(tmp_path: Path) -> None:
    movie = b"moov" + b"mvhd" + bytes(12) + struct.pack(">I", 1000)
    for data in (b"", b"x", struct.pack(">I", 8), struct.pack(">I4s", 4, b"free"), struct.pack(">I", 12) + movie[:8]):
        (tmp_path / "a.mp4").write_bytes(data)
        assert seconds_shown(tmp_path / "a.mp4") is None
    edits = b"elst" + bytes(4) + struct.pack(">I", 9) + struct.pack(">Iii", 500, 0, 1 << 16)
    (tmp_path / "a.mp4").write_bytes(struct.pack(">I", 4 + len(movie + edits)) + movie + edits)
    assert seconds_shown(tmp_path / "a.mp4") == 0.5
    assert seconds_shown(tmp_path / "none.mp4") is None


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux")
def test_a_name_that_is_no_utf8_does_not_end_the_process(film: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"B\xe4nd.avi")
    odd.write_bytes(film.read_bytes())
    with pytest.raises(ImageError, match="rename it"):
        detector().predict(odd)


@pytest.mark.parametrize("camera", [97, "camera:97"])
def test_a_camera_that_is_not_there(camera: object, capfd) -> None:
    with pytest.raises(SourceError, match="no camera 97"):
        next(detector().stream(camera))
    assert capfd.readouterr() == ("", "")
    with pytest.raises(InvalidArgumentError, match=r"take stream\(\)"):
        detector().predict(camera)
    with pytest.raises(InvalidArgumentError, match="bool"):
        next(detector().stream(True))


def test_a_camera_within_a_list_is_told_before_anything_is_read(film: Path, monkeypatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: pytest.fail("opened"))
    for source in ([0], ["camera:0"], (film, [np.int64(1)]), [film, "rtsp://127.0.0.1:9/x"], Path("camera:0")):
        with pytest.raises(InvalidArgumentError, match=r"take stream\(\)"):
            detector().predict(source)
    for generator in ((one for one in [0]), iter([picture(64, 64), [0]]), [iter([0])]):
        with pytest.raises(InvalidArgumentError, match=r"take stream\(\)"):
            detector().predict(generator)
    assert len(detector().predict(one for one in [picture(64, 64), [picture(64, 64)]])) == 2


def test_a_network_stream_that_does_not_answer() -> None:
    with pytest.raises(SourceError, match="does not answer"):
        next(detector().stream("rtsp://127.0.0.1:9/none"))


class Camera:
    """OpenCV's interface of a camera that is unplugged after a few images."""

    def __init__(self, *_: object) -> None:
        self.left = 3

    def isOpened(self) -> bool:
        return True

    def read(self):
        self.left -= 1
        return (True, picture(200, 320, (12 - self.left, 10, 62, 60))) if self.left >= 0 else (False, None)

    def release(self) -> None:
        pass


def test_a_camera_is_answered_until_it_is_unplugged(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    found = []
    with pytest.raises(SourceError, match="unplugged"):
        for one in detector().stream(0):
            found.append(one)
    assert [(number(one), one.page, one.path) for one in found] == [(i, i, "camera:0") for i in range(3)]
    assert found[1].plot().size == (320, 200), "a live image comes only once, so it is kept for the picture"


def test_without_the_extra(monkeypatch, film: Path) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    for source in (str(film), 0, "rtsp://nowhere/1"):
        with pytest.raises(MissingDependencyError, match=r"agssp-zoo\[video\]"):
            next(detector().stream(source))
    assert len(detector().predict(picture(64, 64))) == 1


def test_the_command(film: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    model, out = write_model(tmp_path / "bright"), tmp_path / "out"
    assert cli.main(["predict", str(film), "-m", str(model), "--out", str(out)]) == 0
    entries = json.loads((out / "predictions.json").read_text())
    assert [entry["page"] for entry in entries] == list(range(FRAMES))
    assert len(list((out / "annotated").glob("film_frame*.jpg"))) == FRAMES
    with Image.open(out / "annotated" / "film_frame7.jpg") as drawn:
        assert drawn.size == (320, 200)
    capsys.readouterr()
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    assert cli.main(["predict", "camera:0", "-m", str(model), "--out", str(out)]) == 1
    assert "unplugged" in capsys.readouterr().err
    assert len(json.loads((out / "predictions.json").read_text())) == 3, "what came before is kept"

    class Interrupted(Camera):
        def read(self):
            if not self.left:
                raise KeyboardInterrupt
            return super().read()

    monkeypatch.setattr(cv2, "VideoCapture", Interrupted)
    assert cli.main(["predict", "camera:0", "-m", str(model), "--out", str(out), "--no-images"]) == 0
    assert len(json.loads((out / "predictions.json").read_text())) == 3, "Ctrl-C is how a camera ends"
