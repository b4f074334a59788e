"""Making anomaly maps of a pool: killed and resumed, in two processes, of bad images, in bounded memory."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_folders import masks, write_image
from PIL import Image
from training_runs import environment

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

import anomaly_method  # noqa: E402

from agssp_zoo.cli import main  # noqa: E402
from agssp_zoo.errors import DataError, InvalidArgumentError, TrainingError  # noqa: E402
from agssp_zoo.training.anomaly import MapStore  # noqa: E402
from agssp_zoo.training.anomaly.maps import Outcome, make_maps  # noqa: E402
from agssp_zoo.training.anomaly.methods import METHODS, build_method  # noqa: E402
from agssp_zoo.training.anomaly.preparing import STATE_FILE  # noqa: E402
from agssp_zoo.training.anomaly.settings import MapSettings  # noqa: E402
from agssp_zoo.training.data import Dataset, Record, pack, read_images  # noqa: E402
from agssp_zoo.training.data.records import empty_labels  # noqa: E402

COUNT = 22


@pytest.fixture(autouse=True)
def gray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The methods ``gray`` and ``gray2`` are known, and note what they do in the file ``log``."""
    monkeypatch.setitem(METHODS, "gray", "anomaly_method")
    monkeypatch.setitem(METHODS, "gray2", "anomaly_method")
    monkeypatch.setenv("AGSSP_TEST_LOG", str(tmp_path / "log"))


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    for number in range(COUNT):
        write_image(tmp_path / "pool" / "images" / f"{number:02}.png", str(number))
    return tmp_path / "pool"


def make(data: Path | tuple[str, ...], out: Path, **values: Any) -> Outcome:
    data = (str(data),) if isinstance(data, Path) else data
    how = {"method": "gray", "batch": 4, "device": "cpu", "threads": 1, **values}
    return make_maps(MapSettings(data=data, out=str(out), **how))


def open_made(*args: Any, **values: Any) -> MapStore:
    store = make(*args, **values).store
    assert store is not None
    return store


def log(tmp_path: Path) -> list[str]:
    file = tmp_path / "log"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


def maps_made(lines: list[str]) -> int:
    return sum(int(line.split()[1]) for line in lines if line.startswith("maps"))


def expected(images: Dataset) -> np.ndarray:
    method = anomaly_method.Gray(MapSettings())
    return np.stack([method.maps(method.preprocess(record.load_image())[None])[0][0].numpy() for record in images])


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_maps_are_the_methods_in_the_order_of_the_pool(tmp_path: Path, pool: Path, workers: int) -> None:
    before = set(threading.enumerate())  # another test's server may still be there
    outcome = make(pool, tmp_path / "out", workers=workers)
    images = read_images(pool)
    store = MapStore.open(tmp_path / "out", images=images)
    assert store.keys == tuple(record.key for record in images) and outcome.made == COUNT and outcome.seconds > 0
    np.testing.assert_array_equal(store.maps, expected(images).astype(np.float16))
    np.testing.assert_allclose(store.scores, expected(images).max(axis=(1, 2)), rtol=1e-6)
    assert store.settings == {"method": "gray", "size": 32, "kind": ""} and store.grid == (4, 4)
    assert set(threading.enumerate()) <= before
    log(tmp_path)
    assert make(pool, tmp_path / "out").made == 0 and not log(tmp_path)  # there already


def test_the_command(tmp_path: Path, pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["anomaly-maps", str(pool), "--method", "gray", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    said = capsys.readouterr()
    assert f"maps 4x4 of {COUNT} images, gray" in said.out and "images a second" in said.out and not said.err
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["images"] == COUNT and answer["made"] == 0 and answer["sources"] == {"pool": COUNT}
    assert main([*words, "--object", "other"]) == 1
    assert 'other settings: kind "other" (was "")' in capsys.readouterr().err
    for wrong, message in (
        (["--method", "gray+gray"], "stands twice"),
        (["--method", "magic"], "choose of kead, memory"),
        (["--batch", "0"], "--batch is 0; it must be at least 1"),
        (["--tolerance", "2"], "must lie in 0-1"),
        (["--out", str(pool / "maps")], "lies in the folder of the images"),
    ):
        assert main([*words, *wrong]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(InvalidArgumentError, match="Give the folder"):
        make((), tmp_path / "out")


def test_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = masks(tmp_path / "data")
    words = ["anomaly-maps", str(root), "--method", "gray", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*words, "--json", "--visualize"]) == 0
    assert len(json.loads(capsys.readouterr().out)["pictures"]) == 7
    assert main([*words, "--visualize", "2", "--json"]) == 0
    pictures = json.loads(capsys.readouterr().out)["pictures"]
    assert len(pictures) == 3
    for file in pictures:
        with Image.open(file) as picture:
            assert picture.size[0] > 60
    assert str(tmp_path / "out" / "pictures") in pictures[0]


def test_shards_give_the_same_maps(tmp_path: Path, pool: Path) -> None:
    plain = open_made(pool, tmp_path / "plain")
    packed = open_made(pack(read_images(pool), tmp_path / "shards"), tmp_path / "packed")
    np.testing.assert_array_equal(plain.maps, packed.maps)
    packed.check(read_images(pool))


def test_what_was_learnt_is_kept(tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(anomaly_method.Gray, "maps", stop)
        with pytest.raises(KeyboardInterrupt):
            make(pool, tmp_path / "out", object="pool")
    assert log(tmp_path) == ["prepare"]
    outcome = make(pool, tmp_path / "out", object="pool")
    assert "prepare" not in log(tmp_path)
    mean = np.mean([anomaly_method.Gray(MapSettings()).preprocess(r.load_image()).mean() for r in read_images(pool)])
    assert outcome.notes == (f"mean gray {mean:.3f}",) and outcome.store is not None
    assert outcome.store.map("03").min() >= mean - 1 and outcome.store.notes == outcome.notes
    assert make(pool, tmp_path / "out", object="pool").notes == outcome.notes
    # What was learnt of other images does not serve, and a damaged file is no riddle.
    write_image(pool / "images" / "new.png", "new")
    (tmp_path / "out" / "store.json").unlink()
    log(tmp_path)
    make(pool, tmp_path / "out", object="pool")
    assert log(tmp_path)[0] == "prepare"
    (tmp_path / "out" / "store.json").unlink()
    (tmp_path / "out" / STATE_FILE).write_bytes(b"half")
    with pytest.raises(TrainingError, match=r"method\.safetensors: is damaged .*remove it"):
        make(pool, tmp_path / "out", object="pool")


# ---- normal images


def test_normal_images_by_folder(tmp_path: Path, pool: Path) -> None:
    for number in range(3):
        write_image(pool / "images" / "good" / f"g{number}.png", f"good{number}")
    for number, name in enumerate(("good", str(pool / "images" / "good"))):
        store = open_made(pool, tmp_path / f"out{number}", object="normal", normal=name)
        assert store.settings["normal"]["images"] == 3
        assert store.settings["normal"]["in_pool"] == ["good/g0", "good/g1", "good/g2"]
    two = open_made(pool, tmp_path / "two", object="normal", normal="good", shots=2, seed=1)
    assert len(two.settings["normal"]["in_pool"]) == 2
    with pytest.raises(TrainingError, match="other settings: normal"):
        make(pool, tmp_path / "two", object="normal", normal="good", shots=1)
    with pytest.raises(DataError, match=r"3 normal images, but --shots asks for 4"):
        make(pool, tmp_path / "four", object="normal", normal="good", shots=4)
    for name in ("a/b", "bad"):
        with pytest.raises(DataError, match=f"--normal {name}: there is no|--normal {name}: is no folder"):
            make(pool, tmp_path / "none", object="normal", normal=name)
    with pytest.raises(InvalidArgumentError, match="needs normal images: give --normal FOLDER"):
        make(pool, tmp_path / "none", object="normal")
    (pool / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        make(pool, tmp_path / "none", object="normal", normal="empty")


def test_normal_images_by_split_are_those_without_a_label(tmp_path: Path) -> None:
    root = masks(tmp_path / "data")
    store = open_made(root, tmp_path / "out", object="normal", normal="train")
    assert store.settings["normal"]["in_pool"] == ["c"] and len(store) == 6
    assert open_made(root, tmp_path / "all", object="normal", normal="all").settings["normal"]["in_pool"] == ["c", "f"]
    (root / "val.txt").write_text("e\n")
    with pytest.raises(DataError, match="every image of that split has a label"):
        make(root, tmp_path / "none", object="normal", normal="val")
    with pytest.raises(DataError, match=r"no split of the data \(train, val\)"):
        make(root, tmp_path / "none", object="normal", normal="test")


def split_folders(root: Path) -> Path:
    """YOLO's usual layout, images/train and labels/train: ``d*`` are defective, ``n*`` are not, ``x`` lost a label."""
    lines = {"d0": "0 0.5 0.5 0.2 0.2\n", "d1": "0 0.4 0.4 0.2 0.2\n", "n0": "", "n1": "", "x": "0 0.5 0.5\n"}
    for name, line in lines.items():
        write_image(root / "images" / "train" / f"{name}.png", name)
        (root / "labels" / "train").mkdir(parents=True, exist_ok=True)
        (root / "labels" / "train" / f"{name}.txt").write_text(line)
    return root


def test_a_split_of_labelled_data_comes_before_its_folder(
    tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = split_folders(tmp_path / "data")
    monkeypatch.chdir(tmp_path)

    def normal(out: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = open_made(root, tmp_path / out, object="normal", normal=name).settings["normal"]
        return found

    assert normal("split", "train")["in_pool"] == ["train/n0", "train/n1"]
    assert normal("folder", str(root / "images" / "train"))["images"] == 5
    assert normal("within", "images/train")["images"] == 5
    # A folder of the working directory has that name, too.
    write_image(tmp_path / "train" / "g.png", "g")
    message = r"a folder of the working directory and a split of .*data; give --normal \./train .* --normal split:train"
    with pytest.raises(InvalidArgumentError, match=message):
        normal("both", "train")
    assert normal("named", "split:train")["in_pool"] == ["train/n0", "train/n1"]
    assert normal("here", "./train") == {**normal("here", "./train"), "images": 1, "in_pool": []}
    with pytest.raises(DataError, match=r"--normal split:good: is no split of the data \(train\)"):
        normal("none", "split:good")
    # Labels that cannot be read as those asked for are not taken for none.
    with pytest.raises(DataError):
        make(root, tmp_path / "none", object="normal", normal="split:train", format="coco")


# ---- bad images


def test_images_of_one_colour_have_flat_maps(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    for value in (0, 128, 255):
        Image.new("RGB", (40, 30), (value,) * 3).save(tmp_path / "pool" / f"{value}.png")
    for method in ("gray", "gray+gray2"):
        store = open_made(tmp_path / "pool", tmp_path / method, method=method)
        assert not store.maps.any() and not store.scores.any()
        assert all((store.probability(key) == 0).all() for key in store)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_method_finds_in_an_image_of_one_colour_is_left_out(tmp_path: Path, pool: Path, workers: int) -> None:
    Image.new("RGB", (40, 30), (90, 80, 70)).save(pool / "images" / "even.png")
    nearly = np.full((30, 40, 3), 90, np.uint8)
    nearly[-1, -1, 2] = 91
    Image.fromarray(nearly).save(pool / "images" / "nearly.png")
    outcome = make(pool, tmp_path / "out", object="pool", workers=workers)
    store, learnt = outcome.store, float(outcome.notes[0].rpartition(" ")[2])
    assert store is not None and learnt > 50
    assert not store.map("even").any() and store.score("even") == 0
    kept = Dataset((), tuple(record for record in read_images(pool) if record.key != "even"))
    found = np.stack([store.map(record.key) for record in kept])
    np.testing.assert_allclose(found, expected(kept) + learnt, atol=0.1)
    assert (store.probability("even") == 0).all()


def break_image(pool: Path, name: str) -> Path:
    """Cuts an image off in the middle: its header still says a size."""
    file = pool / "images" / f"{name}.png"
    file.write_bytes(file.read_bytes()[:200])
    return file


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_stops_the_run_unless_tolerated(tmp_path: Path, pool: Path, workers: int) -> None:
    file = break_image(pool, "13")
    with pytest.raises(TrainingError, match=r"an image of 22 cannot be read, .*'13': .*higher --tolerance") as caught:
        make(pool, tmp_path / "out", workers=workers)
    assert str(file) in str(caught.value)
    before = maps_made(log(tmp_path))
    store = open_made(pool, tmp_path / "out", workers=workers, tolerance=0.1)
    made = maps_made(log(tmp_path))
    assert before >= 12 and before + made == COUNT - 1 + 1  # and the gray image that told the grid
    assert store.unreadable == {"13"} and len(store) == COUNT - 1
    kept = [record for record in read_images(pool) if record.key != "13"]
    np.testing.assert_array_equal(store.maps, expected(Dataset((), tuple(kept))).astype(np.float16))
    store.check(read_images(pool))
    with pytest.raises(DataError, match="'13'; it could not be read"):
        store.probability("13")


def test_corrupt_images_while_preparing(tmp_path: Path, pool: Path) -> None:
    break_image(pool, "00")
    with pytest.raises(TrainingError, match="'00'"):
        make(pool, tmp_path / "out", object="pool")
    assert len(open_made(pool, tmp_path / "out", object="pool", tolerance=0.05)) == COUNT - 1
    for number in range(COUNT):
        break_image(pool, f"{number:02}")
    with pytest.raises(TrainingError, match="not one of the 22 images could be read"):
        make(pool, tmp_path / "none", object="pool", tolerance=1.0)


def test_a_file_that_is_no_image_counts_as_well(tmp_path: Path, pool: Path) -> None:
    (pool / "images" / "13.png").write_text("no image")
    with pytest.raises(DataError, match=r"13\.png: error \[corrupt-image\]"):
        make(pool, tmp_path / "out")
    assert len(open_made(pool, tmp_path / "out", tolerance=0.05)) == COUNT - 1


def test_all_files_that_cannot_be_read_count_together(
    tmp_path: Path, pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("03", "13"):
        (pool / "images" / f"{name}.png").write_text("no image")
    break_image(pool, "07")
    words = ["anomaly-maps", str(pool), "--method", "gray", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*words, "--tolerance", "0.13"]) == 1  # 3 of 22 are 0.136
    assert "3 images of 22 cannot be read, more than --tolerance 0.13: '07'" in capsys.readouterr().err
    assert main([*words, "--tolerance", "0.137"]) == 0
    assert "without 3 images that cannot be read: 03, 07, 13\n" in capsys.readouterr().out
    assert main([*words, "--tolerance", "0.137", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unreadable"] == ["03", "07", "13"]
    # Of several folders, each by its name; and those that listing alone has lost are a share of all files, too.
    (pool / "images" / "07.png").unlink()
    for number in range(2):
        write_image(tmp_path / "more" / f"{number}.png", str(number))
    both = (str(pool), str(tmp_path / "more"))
    assert make(both, tmp_path / "both", tolerance=2 / 23).unreadable == ("pool/03", "pool/13")
    with pytest.raises(DataError, match=r"2 errors in 23 images, more than the tolerance of 8\.00%"):
        make(both, tmp_path / "both", tolerance=0.08)


def test_a_method_that_fails_names_the_image(tmp_path: Path, pool: Path) -> None:
    Image.new("RGB", (40, 30)).save(pool / "images" / "black.png")
    with pytest.raises(TrainingError, match="map of image black holds values that are no numbers"):
        make(pool, tmp_path / "out", object="nan")


def test_other_images_are_refused(tmp_path: Path, pool: Path) -> None:
    make(pool, tmp_path / "out")
    write_image(pool / "images" / "new.png", "new")
    with pytest.raises(TrainingError, match=r"maps of other images \(22, now 23"):
        make(pool, tmp_path / "out")


def test_methods_combine(tmp_path: Path, pool: Path) -> None:
    outcome = make(pool, tmp_path / "out", method="gray+gray2")
    store, part = MapStore.open(tmp_path / "out"), MapStore.open(tmp_path / "out" / "parts" / "gray2")
    assert outcome.made == 2 * COUNT and store.settings["method"] == "gray+gray2"
    assert store.settings["parts"][0] == part.settings | {"method": "gray"}
    low, high = part.ranges["pool"]["map"]
    np.testing.assert_allclose(store.map("07"), (part.map("07") - low) / (high - low), rtol=2e-3, atol=1e-3)
    assert make(pool, tmp_path / "out", method="gray+gray2").made == 0


def test_a_combination_refuses_another_store_before_its_parts_are_made(tmp_path: Path, pool: Path) -> None:
    make(pool, tmp_path / "out", method="gray")
    with pytest.raises(TrainingError, match=r"holds maps of --method gray, not gray\+gray2; give another --out"):
        make(pool, tmp_path / "out", method="gray+gray2")
    assert not (tmp_path / "out" / "parts").exists()
    make(pool, tmp_path / "both", method="gray+gray2")
    with pytest.raises(TrainingError, match=r"holds maps of --method gray\+gray2, not gray2\+gray"):
        make(pool, tmp_path / "both", method="gray2+gray")


def test_a_combination_keeps_the_notes_of_its_parts(tmp_path: Path, pool: Path) -> None:
    outcome = make(pool, tmp_path / "out", method="gray+gray2", object="pool")
    assert outcome.store is not None and len(outcome.notes) == 2
    assert outcome.store.notes == outcome.notes == MapStore.open(tmp_path / "out").notes


@pytest.mark.parametrize("failing", ["prepare", "maps"])
@pytest.mark.parametrize("method", ["gray", "gray+gray2"])
def test_what_was_begun_is_called_unfinished(
    tmp_path: Path, pool: Path, monkeypatch: pytest.MonkeyPatch, method: str, failing: str
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    write_image(pool / "images" / "x" / "0.png", "x")
    write_image(pool / "images" / "y" / "0.png", "y")
    asked = 0
    original = getattr(anomaly_method.Gray, failing)

    def once(*args: Any) -> Any:
        nonlocal asked
        asked += 1
        return original(*args) if failing == "prepare" and asked == 1 else stop()

    data = (str(pool / "images" / "x"), str(pool / "images" / "y"))
    with monkeypatch.context() as patch:
        patch.setattr(anomaly_method.Gray, failing, once)
        with pytest.raises(KeyboardInterrupt):
            make(data, tmp_path / "out", method=method, object="pool")
    with pytest.raises(DataError, match=r"out: holds unfinished maps; run the same `agssp-zoo anomaly-maps` command"):
        MapStore.open(tmp_path / "out")
    assert make(data, tmp_path / "out", method=method, object="pool").store is not None


def test_sources_are_kept(tmp_path: Path) -> None:
    for name in ("strip/a", "strip/b", "tiles/a"):
        write_image(tmp_path / "pool" / f"{name}.png", name)
    assert open_made(tmp_path / "pool", tmp_path / "out").sources == ("strip", "strip", "tiles")
    assert set(open_made(tmp_path / "pool", tmp_path / "one", sources="one").sources) == {"pool"}
    both = (str(tmp_path / "pool" / "tiles"), str(tmp_path / "pool" / "strip"))
    assert open_made(both, tmp_path / "both").keys == ("tiles/a", "strip/a", "strip/b")


def test_methods_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgumentError, match="choose of"):
        build_method("nothing", MapSettings())


# ---- killed, and in several processes


def command(pool: Path, out: Path, *more: str) -> list[str]:
    words = [str(Path(anomaly_method.__file__)), str(pool), "--method", "gray", "--out", str(out), "--batch", "2"]
    return [*words, "--device", "cpu", "--threads", "1", "--workers", "1", *more]


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, pool: Path) -> None:
    out = tmp_path / "out"
    run = subprocess.Popen([sys.executable, *command(pool, out, "--object", "slow")], env=environment())
    done = out / "done.npy"
    deadline = time.monotonic() + 120
    while not (done.exists() and np.load(done).sum() >= 6):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    there = int(np.load(done).sum())
    assert 6 <= there < COUNT
    with pytest.raises(DataError, match=rf"not finished \({there} of 22 images\); run the same"):
        MapStore.open(out)
    log(tmp_path)
    outcome = make(pool, out, batch=2)
    assert outcome.made == COUNT - there == maps_made(log(tmp_path))  # what was there is not made again
    make(pool, tmp_path / "whole", batch=2)
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_give_the_store_of_one(tmp_path: Path, pool: Path) -> None:
    options = ("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0")
    more = ("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1")
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options, *more]
    words = command(pool, tmp_path / "two", "--object", "pool")
    ran = subprocess.run([*launch, *words], env=environment(), capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    lines = log(tmp_path)
    assert lines.count("prepare") == 1 and maps_made(lines) == COUNT + 1
    assert ran.stdout.count(f"{COUNT} made in") == 1  # one of them speaks, for both
    open_made(pool, tmp_path / "one", object="pool", batch=2)
    assert files(tmp_path / "two") == files(tmp_path / "one")
    # A process that fails ends the other, which waits for its rows.
    break_image(pool, "02")  # in the second block of two, which is the second process's
    words = command(pool, tmp_path / "broken")
    ran = subprocess.run([*launch, *words], env=environment(), capture_output=True, text=True, timeout=300)
    assert ran.returncode != 0 and "error (process 1): an image of 22 cannot be read" in ran.stderr


# ---- large pools


@dataclass(frozen=True, eq=False)
class Drawn(Record):
    """An image that is drawn when it is read."""

    def load_image(self) -> np.ndarray:
        return np.full((32, 32, 3), int(self.key) % 251, np.uint8)


def drawn(count: int) -> Dataset:
    records = [Drawn(str(n), "drawn", "train", 32, 32, *empty_labels(), offset=0, size=1) for n in range(count)]
    return Dataset((), tuple(records), (), "drawn", "images")


def test_memory_does_not_grow_with_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = most = 0
    lock = threading.Lock()
    original = anomaly_method.Gray.preprocess

    def gone() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def counted(self: Any, image: np.ndarray) -> Any:
        nonlocal alive, most
        result = original(self, image).clone()
        weakref.finalize(result, gone)
        with lock:
            alive += 1
            most = max(most, alive)
        return result

    settings = MapSettings(out=str(tmp_path / "few"), method="gray", batch=8, device="cpu", threads=1, workers=2)
    with monkeypatch.context() as patch:
        patch.setattr(anomaly_method.Gray, "preprocess", counted)
        make_maps(settings, drawn(400))
    assert most <= 4 * 8 + 1  # two batches ahead, one being collated, one that is worked on
    monkeypatch.delenv("AGSSP_TEST_LOG")
    images = drawn(20000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    many = MapSettings(out=str(tmp_path / "many"), method="gray", batch=64, device="cpu", threads=1, workers=2)
    store = make_maps(many, images).store
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert store is not None and len(store) == 20000
    # All inputs together would be 246 MB; what grows is the list of keys and the file of maps.
    assert grown < 60, f"{grown:.0f} MB"
