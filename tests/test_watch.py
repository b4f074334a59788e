"""A watched folder: every file is answered once, over restarts, crashes and half-written files."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")

from bright_detector import write_model

from agssp_zoo import cli, load_detector
from agssp_zoo.errors import InvalidArgumentError, SourceError
from agssp_zoo.journal import Journal, Version
from agssp_zoo.watching import JOURNAL, LINES, Watch, WatchSettings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "bright")


@pytest.fixture(scope="module")
def detector(model: Path):
    return load_detector(model)


@pytest.fixture
def line(tmp_path: Path) -> Path:
    folder = tmp_path / "line"
    folder.mkdir()
    return folder


def save(path: Path, level: int = 250) -> Path:
    """Puts a small image into place whole, as a good camera program does."""
    part = path.with_name(f".{path.name}.part")
    Image.new("L", (64, 48), level).save(part, "PNG")
    part.replace(path)
    return path


def entries(out: Path, name: str = LINES) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def names(out: Path, name: str = LINES) -> list[str]:
    return [entry["file"]["name"] for entry in entries(out, name)]


class Running:
    """A watch in a thread."""

    def __init__(self, detector, line: Path, out: Path, once: bool = False, **settings: Any) -> None:
        self.said: list[str] = []
        chosen = WatchSettings(line, out, **{"interval": 0.02, "settle": 0.1, **settings})
        self.watch = Watch(detector.stream, chosen, {}, self.said.append)
        self.thread = threading.Thread(target=self.watch.run, kwargs={"once": once}, daemon=True)
        self.thread.start()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.watch.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()

    def until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not happened():
            assert time.monotonic() < deadline and self.thread.is_alive(), self.said
            time.sleep(0.01)


def once(detector, line: Path, out: Path, **settings: Any) -> list[str]:
    running = Running(detector, line, out, once=True, **settings)
    running.thread.join(60)
    assert not running.thread.is_alive()
    return running.said


def test_new_files_are_answered_as_they_appear(detector, line: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save(line / "a.png")
    with Running(detector, line, out, pictures=True) as running:
        running.until(lambda: (out / LINES).stat().st_size > 0)
        save(line / "c.png", 5)
        save(line / "b.png")
        (line / "notes.txt").write_text("no image")
        (line / ".hidden.png").write_text("no image")
        running.until(lambda: len(entries(out)) == 3)
        time.sleep(0.3)
    assert names(out) == ["a.png", "c.png", "b.png"], "as they were written"
    first = entries(out)[0]
    assert first["boxes"] and first["names"] == ["scratch"] and first["size"] == [48, 64] and "predicted" in first
    assert entries(out)[1]["boxes"] == []
    assert sorted(p.name for p in (out / "annotated").iterdir()) == ["a.png.jpg", "b.png.jpg", "c.png.jpg"]
    counts = running.watch.counts
    assert (counts.images, counts.detections, counts.failed, running.said) == (3, 2, 0, [])
    # A restart finds all done; one more is done.
    save(line / "d.png")
    assert once(detector, line, out) == [] and names(out) == ["a.png", "c.png", "b.png", "d.png"]


def test_another_image_under_the_same_name_is_another_file(detector, line: Path, tmp_path: Path) -> None:
    for files in (False, True):
        out = tmp_path / f"out{files}"
        save(line / "cam.png", 250)
        once(detector, line, out, files=files, pictures=True)
        save(line / "cam.png", 5)
        once(detector, line, out, files=files, pictures=True)
        assert names(out, JOURNAL if files else LINES) == ["cam.png"] * 2
        assert sorted(p.name for p in (out / "annotated").iterdir()) == ["cam.png.2.jpg", "cam.png.jpg"]
    answers = [json.loads((out / "results" / name).read_text()) for name in ("cam.png.json", "cam.png.2.json")]
    assert [len(answer["boxes"]) for answer in answers] == [1, 0]
    assert [entry["answer"] for entry in entries(out, JOURNAL)] == ["results/cam.png.json", "results/cam.png.2.json"]


def test_each_once_also_when_answers_are_written_another_way(detector, line: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save(line / "a.png")
    once(detector, line, out, pictures=True)
    save(line / "b.png")
    once(detector, line, out, files=True, pictures=True)
    assert (names(out), names(out, JOURNAL)) == (["a.png"], ["b.png"])
    with (out / JOURNAL).open("ab") as file:
        file.write(b'{"file": {"name": "c.p')
    save(line / "c.png")
    save(line / "b.png", 5)  # its second version, whichever way the first was written
    once(detector, line, out, pictures=True)
    once(detector, line, out, files=True, pictures=True)
    assert (sorted(names(out)), names(out, JOURNAL)) == (["a.png", "b.png", "c.png"], ["b.png"])
    assert sorted(p.name for p in (out / "annotated").iterdir()) == [
        *("a.png.jpg", "b.png.2.jpg", "b.png.jpg", "c.png.jpg")
    ]
    (out / LINES).write_text("something else\n")
    with pytest.raises(SourceError, match=r"results\.jsonl, line 1: is no entry"):
        Watch(detector.stream, WatchSettings(line, out, files=True), {})


def test_half_written_files_wait(detector, line: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(180, 256, (200, 200), np.uint8)).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    with Running(detector, line, out, settle=0.4) as running, (line / "slow.png").open("wb", buffering=0) as file:
        for start in range(0, len(data), len(data) // 8 + 1):
            file.write(data[start : start + len(data) // 8 + 1])
            time.sleep(0.1)
            assert not entries(out)
        running.until(lambda: len(entries(out)) == 1)
    assert entries(out)[0]["boxes"] and running.said == []
    # A writer that pauses for longer: what is there is no image yet, and is said once; the whole file is answered.
    half = line / "pausing.png"
    half.write_bytes(data[:3000])
    with Running(detector, line, out) as running:
        running.until(lambda: len(entries(out)) == 2)
        time.sleep(0.4)
        assert len(running.said) == 1 and "truncated" in running.said[0] and "error" in entries(out)[1]
        half.write_bytes(data)
        running.until(lambda: len(entries(out)) == 3)
    assert entries(out)[2]["boxes"] and names(out)[1:] == ["pausing.png"] * 2 and len(running.said) == 1


def test_bad_empty_and_vanished_files(detector, line: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (line / "bad.png").write_bytes(b"no image at all")
    (line / "empty.png").write_bytes(b"")
    save(line / "good.png")
    pages = [Image.new("L", (64, 48), 255), Image.new("L", (64, 48), 0)]
    pages[0].save(line / "scan.tif", save_all=True, append_images=pages[1:])
    said = once(detector, line, out, files=True, pictures=True)
    assert len(said) == 2 and "bad.png" in said[0] and "empty.png is empty" in said[1]
    found = {entry["file"]["name"]: entry for entry in entries(out, JOURNAL)}
    assert set(found) == {"bad.png", "good.png", "scan.tif"} and "error" in found["bad.png"]
    assert sorted(p.name for p in (out / "results").iterdir()) == ["good.png.json", "scan.tif.json"]
    answer = json.loads((out / "results" / "scan.tif.json").read_text())
    assert [(page["page"], len(page["boxes"])) for page in answer["pages"]] == [(0, 1), (1, 0)]
    assert {"scan.tif_page0.jpg", "scan.tif_page1.jpg"} < {p.name for p in (out / "annotated").iterdir()}
    assert len(once(detector, line, out, files=True)) == 1, "what is bad is not read again"
    assert len(entries(out, JOURNAL)) == 3

    class Vanishing:
        """A detector before whose eyes files disappear."""

        def stream(self, source, **options):
            for path in source:
                if path.endswith("gone.png"):
                    Path(path).unlink()
            return detector.stream(source, **options)

    save(line / "gone.png")
    save(line / "stays.png")
    said = once(Vanishing(), line, out, files=True)
    assert any("gone.png is gone" in one for one in said)
    assert "stays.png" in names(out, JOURNAL) and "gone.png" not in names(out, JOURNAL)
    save(line / "gone.png")
    once(detector, line, out, files=True)
    assert names(out, JOURNAL).count("gone.png") == 1, "what comes again is new"


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux")
@pytest.mark.parametrize("files", [False, True])
def test_a_name_that_is_no_utf8(detector, line: Path, tmp_path: Path, files: bool) -> None:
    out, odd = tmp_path / "out", os.fsdecode(b"Bl\xe4ch.png")
    for name in ("a.png", odd, "z.png"):
        save(line / name)
    for _ in range(2):  # a restart knows it again
        assert once(detector, line, out, files=files, pictures=True) == []
        assert sorted(names(out, JOURNAL if files else LINES)) == sorted(["a.png", odd, "z.png"])
    assert {path.name for path in (out / "annotated").iterdir()} == {"a.png.jpg", f"{odd}.jpg", "z.png.jpg"}
    answer = json.loads((out / "results" / f"{odd}.json").read_text()) if files else entries(out)[1]
    assert answer["path"] == str(line / odd) and len(answer["boxes"]) == 1


LONG = [f"{'ä' * 120}{i}.png" for i in range(2)]
"""As long as a file system takes, and alike for as long as a shortened name goes."""


@pytest.mark.parametrize("files", [False, True])
def test_long_names(detector, line: Path, tmp_path: Path, files: bool) -> None:
    out = tmp_path / "out"
    for level in (250, 5):  # a second version of each
        for name in LONG:
            Image.new("L", (64, 48), level).save(line / name)
        assert once(detector, line, out, files=files, pictures=True) == []
    assert sorted(names(out, JOURNAL if files else LINES)) == sorted(LONG * 2)
    pictures = {path.name for path in (out / "annotated").iterdir()}
    assert len(pictures) == 4 and all("~" in name and name.endswith(".jpg") for name in pictures)
    if files:
        assert {entry["answer"] for entry in entries(out, JOURNAL)} == {
            f"results/{path.name}" for path in (out / "results").iterdir()
        }


def test_an_image_too_large_for_its_picture(detector, line: Path, tmp_path: Path) -> None:
    Image.new("L", (66000, 32), 250).save(line / "strip.png")
    said = once(detector, line, tmp_path / "out", pictures=True)
    assert len(said) == 1 and "no picture" in said[0] and names(tmp_path / "out") == ["strip.png"]


def test_a_file_that_changes_while_it_is_read_is_read_again(detector, line: Path, tmp_path: Path) -> None:
    class Changing:
        first = True

        def stream(self, source, **options):
            found = list(detector.stream(source, **options))
            if self.first:
                self.first = False
                save(line / "a.png", 5)
            return iter(found)

    save(line / "a.png", 250)
    once(Changing(), line, tmp_path / "out")
    assert [entry["boxes"] for entry in entries(tmp_path / "out")] == [[]], "the answer is to what is there now"


@pytest.mark.parametrize("files", [False, True])
def test_a_crash_between_answer_and_journal(detector, line: Path, tmp_path: Path, monkeypatch, files: bool) -> None:
    """Whatever was written before the journal's line is written again in its place."""
    out, journal = tmp_path / "out", tmp_path / "out" / (JOURNAL if files else LINES)
    for name in "abc":
        save(line / f"{name}.png")
    add = Journal.add

    def crash(self, version: Version, entry: dict[str, Any]) -> None:
        if version.name == "b.png":
            with journal.open("ab") as file:  # the power fails within the line
                file.write(b'{"file": {"name": "b.p')
            raise OSError("power cut")
        add(self, version, entry)

    monkeypatch.setattr(Journal, "add", crash)
    chosen = WatchSettings(line, out, files=files, pictures=True, interval=0.01, settle=0.05)
    with pytest.raises(OSError, match="power cut"):
        Watch(detector.stream, chosen, {}).run(once=True)
    monkeypatch.undo()
    assert (out / "annotated" / "b.png.jpg").is_file()
    (out / "annotated" / ".c.png.77.tmp.jpg").write_bytes(b"half a picture")
    once(detector, line, out, files=files, pictures=True)
    assert names(out, journal.name) == ["a.png", "b.png", "c.png"]
    assert sorted(p.name for p in (out / "annotated").iterdir()) == ["a.png.jpg", "b.png.jpg", "c.png.jpg"]
    if files:
        assert sorted(p.name for p in (out / "results").iterdir()) == ["a.png.json", "b.png.json", "c.png.json"]


def command(line: Path, out: Path, model: Path, *options: str) -> list[str]:
    words = ["-m", "agssp_zoo", "watch", line, "--out", out, "-m", model, "--interval", "0.02", "--settle", "0.05"]
    return [sys.executable, *map(str, words), *options]


@pytest.mark.parametrize("files", [False, True])
def test_killed_again_and_again_every_file_is_answered_once(model: Path, line: Path, tmp_path: Path, files) -> None:
    out = tmp_path / "out"
    options = ["--pictures", *(["--files"] if files else [])]
    journal = out / (JOURNAL if files else LINES)
    count, random_ = 60, random.Random(3)
    for i in range(count):
        save(line / f"s{i}.png", random_.choice((250, 5)))
    killed = 0
    for _ in range(4):
        before = journal.stat().st_size if journal.exists() else 0
        process = subprocess.Popen(command(line, out, model, *options), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (not journal.exists() or journal.stat().st_size == before):
            time.sleep(0.002)
        time.sleep(random_.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        killed += len(names_of_whole_lines(journal)) < count
    assert killed >= 3, "the kills came in the middle"
    done = subprocess.run(command(line, out, model, *options, "--once"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    wanted = sorted(f"s{i}.png" for i in range(count))
    assert sorted(names(out, journal.name)) == wanted
    assert sorted(p.name for p in (out / "annotated").iterdir()) == [f"{name}.jpg" for name in wanted]
    if files:
        assert sorted(p.name for p in (out / "results").iterdir()) == [f"{name}.json" for name in wanted]


def names_of_whole_lines(journal: Path) -> list[bytes]:
    return [line for line in journal.read_bytes().split(b"\n")[:-1] if line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(model: Path, line: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    save(line / "a.png")
    process = subprocess.Popen(
        command(line, out, model), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not ((out / LINES).exists() and (out / LINES).stat().st_size):
        time.sleep(0.02)
    process.send_signal(number)
    said, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and errors == ""
    assert said == f"1 detections in 1 images, 0 files unreadable: {out / LINES}\n"


def test_mistakes_are_one_clear_error(model: Path, line: Path, tmp_path: Path, capsys) -> None:
    def say(folder: Path, out: Path, *options: str) -> tuple[int, str]:
        code = cli.main(["watch", str(folder), "--out", str(out), "-m", str(model), "--once", *options])
        return code, capsys.readouterr().err

    code, error = say(tmp_path / "nowhere", tmp_path / "out")
    assert code == 2 and "nowhere is not there" in error and error.count("\n") == 1
    for inside in (line, line / "out", line / "deep" / "out", line / ".." / "line" / "out"):
        code, error = say(line, inside)
        assert code == 2 and "its own pictures would be predicted" in error and not (line / "out").exists()
    (tmp_path / "out" / "annotated").mkdir(parents=True)
    code, error = say(tmp_path / "out" / "annotated", tmp_path / "out")
    assert code == 2 and "where --out" in error
    assert say(line, tmp_path / "out", "--tile", "8")[0] == 2
    assert say(line, tmp_path / "out", "--settle", "-1")[0] == 2
    (tmp_path / "file").write_text("x")
    assert say(line, tmp_path / "file")[0] == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / LINES).write_text("something else\n")
    code, error = say(line, tmp_path / "other")
    assert code == 1 and "line 1: is no entry" in error
    with pytest.raises(InvalidArgumentError):
        WatchSettings(tmp_path / "file", tmp_path / "out")


@pytest.mark.parametrize("name", [LINES, JOURNAL])
@pytest.mark.parametrize(
    "text",
    ["my measurements, one line, no newline", '{"file":{"name":"a","size":1,"mtime_ns":1}}', '{"file": {"name": "a'],
)
def test_only_a_torn_line_of_its_own_is_cut(model: Path, line: Path, tmp_path: Path, capsys, name, text) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(text)
    words = ["watch", str(line), "--out", str(out), "-m", str(model), "--once", *(["--files"] * (name == JOURNAL))]
    if text.endswith('"a'):
        assert cli.main(words) == 0 and (out / name).read_text() == ""
    else:
        assert cli.main(words) == 1 and "line 1: is no entry" in capsys.readouterr().err
        assert (out / name).read_text() == text


@pytest.mark.parametrize("torn", [b"{", b"\0" * 40, b'{"file": {"name": "b.png", "siz' + b"\0" * 9])
def test_what_a_crash_leaves_of_a_line(detector, line: Path, tmp_path: Path, torn: bytes) -> None:
    save(line / "a.png")
    once(detector, line, tmp_path / "out")
    with (tmp_path / "out" / LINES).open("ab") as file:
        file.write(torn)
    save(line / "b.png")
    once(detector, line, tmp_path / "out")
    assert names(tmp_path / "out") == ["a.png", "b.png"]


def test_two_watches_do_not_share_an_output(detector, line: Path, tmp_path: Path) -> None:
    with Running(detector, line, tmp_path / "out"), pytest.raises(SourceError, match="Another"):
        Watch(detector.stream, WatchSettings(line, tmp_path / "out"), {})
    once(detector, line, tmp_path / "out")


def test_a_share_that_goes_away_is_waited_for(detector, line: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Running(detector, line, out) as running:
        line.rename(tmp_path / "away")
        running.until(lambda: len(running.said) == 1)
        time.sleep(0.1)
        assert "cannot be listed" in running.said[0] and len(running.said) == 1
        (tmp_path / "away").rename(line)
        save(line / "a.png")
        running.until(lambda: len(entries(out)) == 1)


@pytest.mark.parametrize("only_once", [False, True])
def test_a_share_that_goes_away_with_files_unread(detector, line: Path, tmp_path: Path, only_once: bool) -> None:
    """They are no longer asked for, over and over, and answered when they are back; each outage is said once."""
    out = tmp_path / "out"
    save(line / "a.png")
    with Running(detector, line, out, once=only_once, settle=0.4) as running:
        for outage in (1, 2):
            running.until(lambda: len(running.watch._seen) == 1)
            line.rename(tmp_path / "away")
            running.until(lambda count=outage: len(running.said) == count)
            time.sleep(0.6)
            assert len(running.said) == outage and "cannot be listed" in running.said[-1]
            (tmp_path / "away" / "a.png").touch()  # so that it settles anew
            (tmp_path / "away").rename(line)
            running.until(lambda: running.watch._there)
        running.thread.join(30 if only_once else 0)
        if not only_once:
            running.until(lambda: len(entries(out)) == 1)
    assert names(out) == ["a.png"] and len(running.said) == 2
