"""A pool of several data sets: each is prepared for by itself, also when killed, in two processes, and when tiny."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_folders import write_image
from training_runs import environment

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

import anomaly_method  # noqa: E402

from agssp_zoo.cli import main  # noqa: E402
from agssp_zoo.errors import DataError, TrainingError  # noqa: E402
from agssp_zoo.training.anomaly import MapStore, MapWriter  # noqa: E402
from agssp_zoo.training.anomaly.maps import Outcome, _Part, make_maps  # noqa: E402
from agssp_zoo.training.anomaly.methods import METHODS  # noqa: E402
from agssp_zoo.training.anomaly.preparing import group_images  # noqa: E402
from agssp_zoo.training.anomaly.settings import MapSettings  # noqa: E402
from agssp_zoo.training.data import read_images  # noqa: E402

COUNTS = {"rail": 7, "strip": 10, "tile": 1}


@pytest.fixture(autouse=True)
def gray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(METHODS, "gray", "anomaly_method")
    monkeypatch.setitem(METHODS, "gray2", "anomaly_method")
    monkeypatch.setenv("AGSSP_TEST_LOG", str(tmp_path / "log"))


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Three products; of two of them some images are in ``train`` and some in ``val``, so that they alternate."""
    for name, count in COUNTS.items():
        for number in range(count):
            split = "train" if name == "tile" or number % 3 else "val"
            write_image(tmp_path / "pool" / name / split / f"{number}.png", f"{name}{number}")
    return tmp_path / "pool"


def make(data: Path, out: Path, **values: Any) -> Outcome:
    how = {"method": "gray", "object": "pool", "batch": 4, "device": "cpu", "threads": 1, **values}
    return make_maps(MapSettings(data=(str(data),), out=str(out), **how))


def opened(outcome: Outcome) -> MapStore:
    assert outcome.store is not None
    return outcome.store


def log(tmp_path: Path) -> list[str]:
    file = tmp_path / "log"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


def prepared(lines: list[str]) -> list[str]:
    return [line.removeprefix("prepare ") for line in lines if line.startswith("prepare")]


def grays(pool: Path) -> dict[str, float]:
    """The mean gray of every data set, as the method sees it."""
    method, found = anomaly_method.Gray(MapSettings()), dict[str, list[float]]()
    for record in read_images(pool):
        found.setdefault(record.key.split("/")[0], []).append(float(method.preprocess(record.load_image()).mean()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def test_the_groups_of_a_pool() -> None:
    names = ["b", "a", "b", "c"]
    assert [(g.name, g.rows.tolist()) for g in group_images(names, apart=True)] == [
        ("a", [1]),
        ("b", [0, 2]),
        ("c", [3]),
    ]
    for whole in (group_images(names, apart=False), group_images(["a"] * 4, apart=True)):
        assert [(g.name, g.rows.tolist()) for g in whole] == [("", [0, 1, 2, 3])]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_data_set_is_judged_by_its_own_images(tmp_path: Path, pool: Path, workers: int) -> None:
    images = read_images(pool)
    assert [record.key.split("/")[0] for record in images] != sorted(record.key.split("/")[0] for record in images)
    outcome = make(pool, tmp_path / "out", workers=workers)
    lines = log(tmp_path)
    assert prepared(lines) == ["rail", "strip", "tile"]
    # The gray image that tells the grid; then 7, 10 and 1 images in batches of 4: none of two data sets.
    assert [line for line in lines if line.startswith("maps")] == [f"maps {n}" for n in (1, 4, 3, 4, 4, 2, 1)]
    means, store = grays(pool), opened(outcome)
    assert outcome.notes == store.notes == tuple(f"{name}: mean gray {means[name]:.3f}" for name in COUNTS)
    plain = anomaly_method.Gray(MapSettings())
    for record in images:
        alone = plain.maps(plain.preprocess(record.load_image())[None])[0][0].numpy()
        expected = alone + means[record.key.split("/")[0]]
        np.testing.assert_allclose(store.map(record.key), expected, rtol=1e-3, err_msg=record.key)
    log(tmp_path)
    assert make(pool, tmp_path / "out").notes == outcome.notes and not log(tmp_path)  # there already


def test_the_pool_as_one_data_set(tmp_path: Path, pool: Path) -> None:
    outcome = make(pool, tmp_path / "out", sources="one")
    assert prepared(log(tmp_path)) == ["rail strip tile"]
    mean = float(np.average(list(grays(pool).values()), weights=list(COUNTS.values())))
    assert outcome.notes == (f"mean gray {mean:.3f}",)
    with pytest.raises(TrainingError, match=r'other settings: prepared "by data set" \(was null'):
        make(pool, tmp_path / "out")
    # A method that looks at nothing, or at normal images, knows no groups.
    make(pool, tmp_path / "nothing", object="")
    make(pool, tmp_path / "normal", object="normal", normal="strip")
    assert prepared(log(tmp_path)) == ["train val"]  # of the folder that was named, strip


def test_two_methods_by_data_set(tmp_path: Path, pool: Path) -> None:
    store = opened(make(pool, tmp_path / "out", method="gray+gray2"))
    assert prepared(log(tmp_path)) == ["rail", "strip", "tile"] * 2
    parts = [MapStore.open(tmp_path / "out" / "parts" / name) for name in ("gray", "gray2")]
    for key in store:
        scaled = []
        for part in parts:
            low, high = part.ranges[key.split("/")[0]]["map"]
            scaled.append((part.map(key) - low) / (high - low) if high > low else np.zeros((4, 4)))
        np.testing.assert_allclose(store.map(key), np.mean(scaled, axis=0), atol=2e-3)


def test_one_data_set_at_a_time_is_in_memory(tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = most = 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def counted(self: Any, state: Any) -> None:
        nonlocal alive, most
        self.learnt = state["learnt"].clone()
        alive += 1
        weakref.finalize(self.learnt, gone)
        most = max(most, alive)

    monkeypatch.setattr(anomaly_method.Gray, "load_state", counted)
    for number in range(5):
        write_image(pool / f"more{number}" / "0.png", str(number))
    make(pool, tmp_path / "out")
    assert most <= 2  # the last one until the next has taken its place


def test_images_that_cannot_be_read_count_over_the_pool(tmp_path: Path, pool: Path) -> None:
    file = pool / "tile" / "train" / "0.png"  # all that there is of it
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(TrainingError, match=r"an image of 18 cannot be read.*'tile/train/0'"):
        make(pool, tmp_path / "out")
    store = opened(make(pool, tmp_path / "out", tolerance=0.1))
    assert store.unreadable == {"tile/train/0"} and len(store) == 17


def test_settings_and_images_decide_what_serves_again(tmp_path: Path, pool: Path) -> None:
    make(pool, tmp_path / "out")
    (tmp_path / "out" / "store.json").unlink()
    log(tmp_path)
    write_image(pool / "rail" / "train" / "new.png", "new")
    make(pool, tmp_path / "out")
    assert prepared(log(tmp_path)) == ["rail"]  # the others are as they were
    (tmp_path / "out" / "store.json").unlink()
    (tmp_path / "out" / "method-1.safetensors").write_bytes(b"half")
    with pytest.raises(TrainingError, match=r"method-1\.safetensors: is damaged .*remove it"):
        make(pool, tmp_path / "out")


# ---- killed, and in several processes


def command(pool: Path, out: Path, *more: str) -> list[str]:
    words = [str(Path(anomaly_method.__file__)), str(pool), "--method", "gray", "--out", str(out), "--batch", "2"]
    return [*words, "--device", "cpu", "--threads", "1", "--workers", "1", "--object", "pool", *more]


@pytest.mark.parametrize("when", ["preparing", "making"])
def test_a_killed_run_learns_nothing_twice(tmp_path: Path, pool: Path, when: str) -> None:
    out = tmp_path / "out"
    run = subprocess.Popen(
        [sys.executable, *command(pool, out)], env={**environment(), "AGSSP_TEST_SLOW": when}, stderr=subprocess.PIPE
    )
    mark = out / ("method-1.safetensors" if when == "preparing" else "done.npy")
    deadline = time.monotonic() + 120
    while not (mark.exists() and (when == "preparing" or np.load(mark).sum() >= 8)):
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    before, everything = prepared(log(tmp_path)), ["rail", "strip", "tile"]
    there = int(np.load(out / "done.npy").sum()) if when == "making" else 0
    assert before == everything or (when == "preparing" and before == everything[:2])
    outcome = make(pool, out, batch=2)
    lines = log(tmp_path)
    assert prepared(lines) == (["tile"] if when == "preparing" else [])
    made = [line for line in lines if line.startswith("maps")]
    assert outcome.made == 18 - there and len(made) <= (2 + 9 if when == "preparing" else 1 + 9 - 4)
    whole = make(pool, tmp_path / "whole", batch=2)
    assert files(out) == files(tmp_path / "whole") and outcome.notes == whole.notes


@pytest.mark.slow
def test_two_processes_share_the_data_sets(tmp_path: Path, pool: Path) -> None:
    options = ("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0")
    more = ("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1")
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options, *more]
    words = command(pool, tmp_path / "two")
    ran = subprocess.run([*launch, *words], env=environment(), capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert sorted(prepared(log(tmp_path))) == ["rail", "strip", "tile"]
    assert ran.stdout.count("18 made in") == 1 and "strip: mean gray" in ran.stdout
    make(pool, tmp_path / "one", batch=2)
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_a_store_that_another_process_finishes(tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = read_images(pool)

    def join() -> MapWriter:
        return MapWriter(tmp_path / "out", images, {"method": "gray"}, True)

    first = join()
    first.create((2, 2))
    first.write(range(len(images)), np.zeros((len(images), 2, 2)), np.zeros(len(images)))
    others, original = [join(), join()], MapWriter._open

    def finish_before(self: MapWriter) -> None:
        monkeypatch.setattr(MapWriter, "_open", original)
        first.finish()
        original(self)

    monkeypatch.setattr(MapWriter, "_open", finish_before)
    others.append(join())
    for writer in others:
        writer.close()
        assert not len(writer.todo)
    assert not len(join().todo)


def test_the_rows_of_two_processes(tmp_path: Path, pool: Path) -> None:
    """Each is one process's, and those that could not be read are the first one's, which must not finish before."""
    images = read_images(pool)
    writer = MapWriter(tmp_path / "out", images, {"method": "gray"}, True)
    writer.create((2, 2))
    writer.write([0, 5], np.zeros((2, 2, 2)), np.zeros(2))
    writer.mark_unreadable([1, 2, 9, 14])
    groups = group_images([record.key.split("/")[0] for record in images], apart=True)
    work = []
    for rank in (0, 1):
        part = _Part.__new__(_Part)
        part.images, part.rank, part.processes, part.settings = images, rank, 2, MapSettings(batch=2)
        work.append(part._divide(writer, groups))
    rows = [[row for blocks in each for block in blocks for row in block] for each in work]
    assert sorted(rows[0] + rows[1]) == sorted(set(range(18)) - {0, 5}) and {1, 2, 9, 14} <= set(rows[0])
    assert min(map(len, rows)) >= 5
    for each in work:
        for group, blocks in zip(groups, each, strict=True):
            assert all(set(block) <= set(group.rows.tolist()) and len(block) <= 2 for block in blocks)


# ---- small data sets


def test_data_sets_of_one_image(tmp_path: Path, pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    words = ["anomaly-maps", str(pool), "--encoder", "cspdarknet_n", "--encoder-weights", "none", "--size", "64"]
    words += ["--device", "cpu", "--threads", "1", "--out"]
    assert main([*words, str(tmp_path / "mutual"), "--method", "mutual"]) == 1
    said = capsys.readouterr().err
    assert "Data set tile: --method mutual compares" in said and "--method auto" in said and "--method own" in said
    assert main([*words, str(tmp_path / "auto"), "--method", "auto"]) == 0
    said = capsys.readouterr().out
    assert "rail: auto: own, since there are too few" in said and "strip: auto: " in said
    for method in ("own", "consensus", "gaussian"):
        assert main([*words, str(tmp_path / method), "--method", method]) == 0
        assert len(MapStore.open(tmp_path / method)) == 18
    with pytest.raises(DataError, match="there is only one"):
        make(
            pool / "tile",
            tmp_path / "tile",
            method="mutual",
            object="",
            encoder="cspdarknet_n",
            encoder_weights="none",
            size=64,
        )
