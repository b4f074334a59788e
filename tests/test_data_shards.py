"""Packing into shards and reading them back, from a folder and over HTTP, and packing that is interrupted."""

from __future__ import annotations

import http.server
import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import data_folders as folders
import numpy as np
import pytest
from PIL import Image

from agssp_zoo.cli import main
from agssp_zoo.errors import AgsspZooError, DataError, InvalidArgumentError
from agssp_zoo.training.data import Dataset, PackSettings, Record, pack, read_dataset, recognise

IMAGES = 40


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """40 gray JPEG images, two splits, every flag in use."""
    root = tmp_path_factory.mktemp("source")
    document: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for number in range(IMAGES):
        name = f"{'val' if number % 4 == 0 else 'train'}/part.{number:02d}.jpg"
        folders.write_image(root / "images" / name, name, 120 + number, 90)
        document["images"].append({"id": number, "file_name": name})
        for extra in range(number % 3):
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": number,
                    "category_id": extra,
                    "bbox": [3.3 + extra, 5.7, 20.1, 30 + extra],
                    "iscrowd": extra,
                    "difficult": number % 2,
                }
            )
    document["categories"] = [{"id": 0, "name": "pit"}, {"id": 1, "name": "Kratzer, längs"}]
    for split in ("train", "val"):
        part = {
            "images": [entry for entry in document["images"] if entry["file_name"].startswith(split)],
            "categories": document["categories"],
        }
        numbers = {entry["id"] for entry in part["images"]}
        part["annotations"] = [entry for entry in document["annotations"] if entry["image_id"] in numbers]
        (root / f"{split}.json").write_text(json.dumps(part))
    return read_dataset(root).require_clean()


SMALL = PackSettings(shard_size=20_000)


def member_names(file: Path) -> list[str]:
    with tarfile.open(file) as tar:
        return tar.getnames()


def same(one: Dataset, other: Dataset) -> None:
    assert one.fingerprint() == other.fingerprint() and one.class_names == other.class_names
    assert [record.key for record in one] == [record.key for record in other]


class TestRoundTrip:
    def test_everything_comes_back(self, source: Dataset, tmp_path: Path) -> None:
        folder = pack(source, tmp_path / "packed", SMALL)
        assert recognise(folder) == "shards"
        packed = read_dataset(folder).require_clean()
        same(source, packed)
        for record, original in zip(packed, source, strict=True):
            assert record.read_bytes() == Path(original.path).read_bytes(), "JPEG files are kept bit for bit"
            assert (record.load_image() == original.load_image()).all()
        assert packed.splits == {"train": 30, "val": 10}
        assert read_dataset(folder / "index.json", split="val").splits == {"val": 10}
        shards = json.loads((folder / "index.json").read_text())["shards"]
        assert len(shards) > 4 and all(shard["size"] < 40_000 for shard in shards)
        assert sorted(file.name for file in folder.iterdir()) == sorted(["index.json", *(s["file"] for s in shards)])

    def test_shards_are_ordinary_webdataset_files(self, source: Dataset, tmp_path: Path) -> None:
        folder = pack(source, tmp_path / "packed", SMALL)
        seen = {}
        for file in sorted(folder.glob("train-*.tar")):
            with tarfile.open(file) as tar:
                members = tar.getmembers()
                for image, label in zip(members[::2], members[1::2], strict=True):
                    assert image.name.split(".") == [label.name.split(".")[0], "jpg"]
                    entry = json.load(tar.extractfile(label))
                    assert Image.open(tar.extractfile(image)).size == (entry["width"], entry["height"])
                    seen[entry["key"]] = entry["labels"]
        train = source.split("train")
        assert seen == {record.key: record.labels.tolist() for record in train}
        assert list(seen) != [record.key for record in train], "shuffled, for tools that read front to back"

    def test_the_same_data_give_the_same_bytes(self, source: Dataset, tmp_path: Path) -> None:
        settings = PackSettings(shard_size=20_000, size=64, format="webp")
        one, other = pack(source, tmp_path / "1", settings), pack(source, tmp_path / "2", settings)
        assert {f.name: f.read_bytes() for f in one.iterdir()} == {f.name: f.read_bytes() for f in other.iterdir()}

    @pytest.mark.parametrize(("format", "far"), [("png", 0.0), ("webp", 4.0), ("jpeg", 2.0)])
    def test_formats_and_scaling(self, source: Dataset, tmp_path: Path, format: str, far: float) -> None:
        folder = pack(source, tmp_path / format, PackSettings(size=128, format=format))  # type: ignore[arg-type]
        packed = read_dataset(folder)
        suffixes = {Path(name).suffix for file in folder.glob("*.tar") for name in member_names(file)}
        assert suffixes == {".json", {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}[format]}
        for record, original in zip(packed, source, strict=True):
            scale = min(1.0, 128 / original.width)
            assert max(record.width, record.height) == min(128, original.width)
            assert record.boxes == pytest.approx(original.boxes * scale, abs=0.5)
            if scale == 1.0:
                difference = record.load_image().astype(float) - original.load_image()
                assert np.abs(difference).mean() <= far

    def test_turned_and_16_bit_images(self, tmp_path: Path) -> None:
        root = tmp_path / "data"
        (root / "images").mkdir(parents=True)
        (root / "labels").mkdir()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(folders.pixels("a")).save(root / "images/a.jpg", exif=exif)
        deep = folders.pixels("b").astype(np.uint16) * 256
        Image.fromarray(deep).save(root / "images/b.png")
        Image.fromarray(folders.pixels("c")).save(root / "images/c.bmp")
        for name in "abc":
            (root / f"labels/{name}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
        dataset = read_dataset(root)
        packed = read_dataset(pack(dataset, tmp_path / "packed"))
        same(dataset, packed)
        for record, original in zip(packed, dataset, strict=True):
            assert np.array_equal(record.load_image(), original.load_image())
            stored = Image.open(io.BytesIO(record.read_bytes()))
            assert stored.size == (record.width, record.height), "upright for readers that know no EXIF, too"

    def test_shards_can_be_packed_again(self, source: Dataset, tmp_path: Path) -> None:
        first = read_dataset(pack(source, tmp_path / "1", SMALL))
        same(read_dataset(pack(first.split("val"), tmp_path / "2")), source.split("val"))


class TestRefusals:
    def test_settings(self) -> None:
        for wrong in ({"size": 3}, {"format": "gif"}, {"quality": 0}, {"shard_size": 0}):
            with pytest.raises(InvalidArgumentError):
                PackSettings(**wrong)  # type: ignore[arg-type]

    def test_data_with_errors_or_corrupt_images(self, tmp_path: Path) -> None:
        folders.voc(tmp_path / "data", "jpg")
        (tmp_path / "data/images/a.jpg").write_bytes(b"no")
        with pytest.raises(DataError, match="corrupt-image"):
            pack(read_dataset(tmp_path / "data"), tmp_path / "out")
        assert len(read_dataset(pack(read_dataset(tmp_path / "data"), tmp_path / "out", tolerance=0.5))) == 5
        file = tmp_path / "data/images/d.jpg"
        file.write_bytes(file.read_bytes()[:500])
        with pytest.raises(AgsspZooError, match=r"d\.jpg"):
            pack(replace(read_dataset(tmp_path / "data"), problems=()), tmp_path / "other")
        assert not list((tmp_path / "other").glob("*.tar"))

    def test_unreadable_images_within_the_tolerance_are_left_out(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = folders.voc(tmp_path / "data", "jpg")
        file = tmp_path / "data/images/d.jpg"
        file.write_bytes(file.read_bytes()[:500])
        words = ["pack", str(data), "--out", str(tmp_path / "out"), "--shard-size", "1"]
        assert main([*words, "--tolerance", "0.1"]) == 1
        said = capsys.readouterr().err
        assert re.search(
            r"d\.jpg.* 1 images cannot be read and 0 have errors, more than the tolerance of 10.00% of 6", said
        )
        assert main([*words, "--tolerance", "0.2"]) == 0, "goes on where it was"
        said = capsys.readouterr().out
        assert "5 images (train 3, val 2)" in said and "1 images cannot be read and are left out: d" in said
        packed = read_dataset(tmp_path / "out").require_clean()
        whole = {record.key: record for record in read_dataset(data)}
        assert [record.key for record in packed] == ["a", "b.v2", "c", "e", "f"]
        for record in packed:
            assert record.boxes.tolist() == whole[record.key].boxes.tolist()
            assert (record.load_image() == whole[record.key].load_image()).all()

    def test_a_folder_that_holds_something_else(self, source: Dataset, tmp_path: Path) -> None:
        (tmp_path / "full").mkdir()
        (tmp_path / "full/thesis.tex").write_text("x")
        with pytest.raises(DataError, match="is not empty"):
            pack(source, tmp_path / "full")
        assert [file.name for file in (tmp_path / "full").iterdir()] == ["thesis.tex"]
        pack(source, tmp_path / "packed")
        with pytest.raises(DataError, match="other data or settings"):
            pack(source.split("val"), tmp_path / "packed")
        assert pack(source, tmp_path / "packed") == tmp_path / "packed"

    def test_damaged_shards(self, source: Dataset, tmp_path: Path) -> None:
        folder = pack(source, tmp_path, SMALL)
        shard, index = folder / "train-000001.tar", folder / "index.json"
        whole, text = shard.read_bytes(), index.read_text()
        records = read_dataset(folder).records
        (record, *_) = [record for record in records if record.path == str(shard)]
        shard.write_bytes(whole[: record.offset + 50])
        with pytest.raises(
            DataError, match=rf"train-000001.tar: has {record.offset + 50} bytes instead of {len(whole)}"
        ):
            read_dataset(folder)
        with pytest.raises(DataError, match="the shard is truncated"):
            record.load_image()
        shard.unlink()
        with pytest.raises(DataError, match=r"train-000001\.tar: is missing"):
            read_dataset(folder)
        for bad in (
            text[: len(text) // 2],
            text.replace('"version": 1', '"version": 2'),
            text.replace('"offset"', '"o"'),
        ):
            index.write_text(bad)
            with pytest.raises(DataError, match=r"index\.json: (is not valid JSON|is of version|is damaged)"):
                read_dataset(folder)


class TestInterrupted:
    def test_killed_and_resumed(self, tmp_path: Path) -> None:
        """Killed again and again while it packs: no half file under a final name, and in the end the same bytes."""
        root = tmp_path / "data"
        for number in range(60):
            folders.write_image(root / f"images/{number}.png", str(number), 400, 300)
            (root / "labels").mkdir(exist_ok=True)
            (root / f"labels/{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
        out = tmp_path / "out"
        command = [sys.executable, "-m", "agssp_zoo", "pack", str(root), "--out", str(out)]
        command += ["--size", "320", "--format", "png", "--shard-size", "100k"]
        killed = 0
        for _ in range(40):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            before = set(out.glob("*.tar")) if out.exists() else set()
            while process.poll() is None:
                if set(out.glob("*.tar")) - before:
                    os.kill(process.pid, signal.SIGKILL)
                    killed += 1
                    break
                time.sleep(0.002)
            process.wait()
            for file in out.glob("*.tar"):
                assert len(member_names(file)) % 2 == 0
            if process.returncode == 0:
                break
            if killed == 1:
                with pytest.raises(DataError, match="unfinished packing; run `agssp-zoo pack` again"):
                    read_dataset(out)
                with pytest.raises(DataError, match="unfinished packing of other data"):
                    pack(read_dataset(root), out, PackSettings(size=300))
            if killed == 4:  # enough; let it finish
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                break
        assert killed >= 2, "it was never caught at work"
        fresh = pack(read_dataset(root), tmp_path / "fresh", PackSettings(320, "png", shard_size=100_000))
        assert {f.name: f.read_bytes() for f in out.iterdir()} == {f.name: f.read_bytes() for f in fresh.iterdir()}

    def test_another_packing_into_the_same_folder_mixes_nothing(
        self, source: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module, out, seen = sys.modules[pack.__module__], tmp_path / "out", set[str]()
        usual = module.encode

        def encode(record: Record, settings: PackSettings) -> Any:
            for file in out.glob(".*.tmp"):  # another process begins meanwhile, and clears up
                seen.add(file.name)
                file.unlink(missing_ok=True)
            return usual(record, settings)

        monkeypatch.setattr(module, "encode", encode)
        with pytest.raises(DataError, match="another process seems to pack into this folder"):
            pack(source, out)
        assert not list(out.glob("*.tar")) and seen and all(f".{os.getpid()}." in name for name in seen)
        monkeypatch.undo()
        assert len(read_dataset(pack(source, out))) == len(source)

    def test_a_full_disk(self, source: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        written = 0

        def addfile(self: tarfile.TarFile, info: tarfile.TarInfo, stream: io.BytesIO) -> None:
            nonlocal written
            written += 1
            if written > 30:
                raise OSError(28, "No space left on device")
            original(self, info, stream)

        original = tarfile.TarFile.addfile
        monkeypatch.setattr(tarfile.TarFile, "addfile", addfile)
        with pytest.raises(DataError, match=r"cannot be written \(No space left on device\); pack again"):
            pack(source, tmp_path, SMALL)
        assert not list(tmp_path.glob(".*.tmp"))
        monkeypatch.undo()
        same(read_dataset(pack(source, tmp_path, SMALL)), source)


class Handler(http.server.SimpleHTTPRequestHandler):
    """A file server that answers range requests, and misbehaves when told to."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server: Any = self.server
        server.requests.append((self.path, self.headers.get("Range"), self.client_address))
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if server.failures:
            failure = server.failures.pop(0)
            if failure == "hang up":
                self.close_connection = True
                return
            self.send_response(failure)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        file = Path(self.translate_path(self.path))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        if wanted and server.ranges:
            self.send_response(206)
            data = data[int(wanted[1]) : int(wanted[2]) + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        if server.close_idle:
            self.close_connection = True


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, Any]]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.requests, server.failures, server.ranges, server.close_idle = [], [], True, False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def load_sum(record: Record) -> int:
    return int(record.load_image().sum())


class TestUrl:
    @pytest.fixture(autouse=True)
    def _no_waiting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("agssp_zoo.training.data.ranges.time.sleep", lambda _: None)
        monkeypatch.setenv("no_proxy", "127.0.0.1")

    def test_reads_exactly_the_images_asked_for(self, source: Dataset, tmp_path: Path) -> None:
        pack(source, tmp_path / "set", SMALL)
        with serving(tmp_path) as (url, server):
            dataset = read_dataset(f"{url}/set")
            same(dataset, source)
            assert recognise(f"{url}/set") == "shards"
            same(read_dataset(f"{url}/set/index.json", split="val"), source.split("val"))
            server.requests.clear()
            record = dataset[7]
            assert (record.load_image() == source[7].load_image()).all()
            ((path, asked, _),) = server.requests
            assert (
                path.startswith("/set/train-") and asked == f"bytes={record.offset}-{record.offset + record.size - 1}"
            )
            for record, original in zip(dataset, source, strict=True):
                assert record.read_bytes() == Path(original.path).read_bytes()
            assert len({client for _, _, client in server.requests}) == 1, "one connection serves them all"

    def test_processes_and_threads_do_not_share_connections(self, source: Dataset, tmp_path: Path) -> None:
        pack(source, tmp_path / "set", SMALL)
        expected = [load_sum(record) for record in source]
        with serving(tmp_path) as (url, _):
            dataset = read_dataset(f"{url}/set")
            assert load_sum(dataset[0]) == expected[0]  # the parent's connection is open before the processes start
            with multiprocessing.get_context("fork").Pool(3) as pool:
                assert pool.map(load_sum, dataset.records, chunksize=3) == expected
            with ThreadPoolExecutor(8) as threads:
                assert list(threads.map(load_sum, dataset.records)) == expected

    def test_a_moved_busy_and_moody_server(self, source: Dataset, tmp_path: Path) -> None:
        pack(source, tmp_path / "set", SMALL)
        with serving(tmp_path) as (url, server):
            dataset = read_dataset(f"{url}/moved/set?download=true")
            assert load_sum(dataset[3]) == load_sum(source[3])
            assert all("?download=true" in path for path, _, _ in server.requests)
            for failures in ([503, 429, 500], ["hang up"], ["hang up", "hang up", 503]):
                server.failures = list(failures)
                assert load_sum(dataset[3]) == load_sum(source[3]), failures
            server.close_idle = True
            for _ in range(3):
                assert load_sum(dataset[3]) == load_sum(source[3])
            server.failures = [503] * 9
            with pytest.raises(DataError, match="the server answers 503"):
                dataset[3].load_image()
            server.failures = []
            server.ranges = False
            with pytest.raises(DataError, match="ignores range requests; download the shards"):
                dataset[3].load_image()

    def test_nothing_there(self, tmp_path: Path) -> None:
        (tmp_path / "index.json").write_text('{"images": []}')
        with serving(tmp_path) as (url, _):
            with pytest.raises(DataError, match=r"index\.json: cannot be read \(the server answers 404"):
                read_dataset(f"{url}/nowhere")
            with pytest.raises(DataError, match="is not the index of packed shards"):
                read_dataset(url)
        with pytest.raises(DataError, match=r"cannot be read \(ConnectionRefusedError"):
            read_dataset("http://127.0.0.1:9/set")


class TestCommand:
    def test_pack_and_pack_again(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        data, out = folders.masks(tmp_path / "data"), tmp_path / "out"
        assert main(["pack", str(data), "--out", str(out), "--size", "48", "--format", "webp", "--json"]) == 0
        summary = json.loads(capsys.readouterr().out)
        assert summary["images"] == 6 and [s["file"] for s in summary["shards"]] == [
            "train-000000.tar",
            "val-000000.tar",
        ]
        assert summary["bytes"] == sum(file.stat().st_size for file in out.glob("*.tar"))
        assert {(record.width, record.height) for record in read_dataset(out)} == {(48, 24)}
        assert main(["pack", str(data), "--out", str(out), "--size", "48", "--format", "webp"]) == 0
        assert "6 images (train 4, val 2), 2 shards" in capsys.readouterr().out

    def test_a_val_split_is_made(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        data = folders.voc(tmp_path / "data")
        (data / "train.txt").unlink()
        (data / "val.txt").unlink()
        assert main(["pack", str(data), "--out", str(tmp_path / "out"), "--val-fraction", "0.34"]) == 0
        assert read_dataset(tmp_path / "out").splits.keys() == {"train", "val"}
        (data / "val.txt").write_text("c\n")  # as in training, a val split that is there stays what it is
        assert main(["pack", str(data), "--out", str(tmp_path / "own"), "--val-fraction", "0.34"]) == 0
        assert [record.key for record in read_dataset(tmp_path / "own", split="val")] == ["c"]

    @pytest.mark.parametrize("extra", [["--shard-size", "many"], ["--size", "-4"], ["--format", "gif"]])
    def test_wrong_usage(self, tmp_path: Path, extra: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["pack", str(folders.voc(tmp_path / "data")), "--out", str(tmp_path / "out"), *extra]) == 2
        assert not (tmp_path / "out").exists()

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").write_text("")
        assert main(["pack", str(folders.voc(tmp_path / "data")), "--out", str(tmp_path / "file/shards")]) == 2
        assert re.search("--out .*: .*file is a file; give a folder", capsys.readouterr().err)
