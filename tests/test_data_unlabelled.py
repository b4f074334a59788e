"""Images without labels: the same keys as with labels, pools of several folders, lists of what to leave out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_folders import EXAMPLES, WRITERS, write_image, yolo

from agssp_zoo.cli import main
from agssp_zoo.errors import DataError, InvalidArgumentError
from agssp_zoo.training.data import pack, read_dataset, read_images, source_of, sources
from agssp_zoo.training.data.listing import walk

SHARED = Path(__file__).parents[2] / "shared" / "data"


def write_pool(root: Path) -> Path:
    """Two data sets: one with classes as folders, one with a list of its validation images."""
    for name in ("crack/1", "crack/2", "pit/1"):
        write_image(root / "tiles" / "images" / f"{name}.png", name)
        write_image(root / "tiles" / "masks" / f"{name}.png", name)
    for name in ("s1", "s2", "s3"):
        write_image(root / "strip" / "images" / f"{name}.png", name)
    (root / "strip" / "val.txt").write_text("s2\n")
    return root


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
def test_pipes_and_links_in_a_circle_are_no_images_to_wait_for(tmp_path: Path) -> None:
    root = write_pool(tmp_path / "pool") / "strip"
    os.mkfifo(root / "images" / "s4.png")
    (root / "images" / "s5.png").symlink_to(root / "images" / "s4.png")
    (root / "images" / "s6.png").symlink_to("s6.png")
    (root / "images" / "up").symlink_to("..")
    data = read_images(root)
    assert sorted(record.key for record in data) == ["s1", "s2", "s3"] and [e.key for e in data.errors] == ["s6"]
    assert walk(root) == ["images/s1.png", "images/s2.png", "images/s3.png", "images/s6.png", "val.txt"]


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_pool(tmp_path / "pool") / "tiles"
    (root / "lost+found").mkdir()
    usual = os.scandir

    def scandir(path: Path) -> Any:
        if Path(path).name in ("crack", "lost+found"):
            raise PermissionError(13, "Permission denied")
        return usual(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"crack: the folder cannot be listed \(Permission denied\)"):
        read_images(root)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_keys_and_images_are_those_of_the_reader_of_labels(tmp_path: Path, name: str) -> None:
    root = WRITERS[name](tmp_path / "data")
    labelled, bare = read_dataset(root), read_dataset(root, format="images")
    assert {record.key for record in bare} == {record.key for record in labelled}
    if name != "coco":  # whose splits are in its JSON files
        assert [(r.key, r.split) for r in bare] == [(r.key, r.split) for r in labelled]
    assert bare.class_names == () and bare.format == "images" and bare.unlabelled
    assert not any(len(record.labels) for record in bare)
    assert (bare[0].load_image() == labelled[0].load_image()).all()


def test_it_is_never_recognised(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", "a")
    with pytest.raises(DataError, match="no labels that are recognised"):
        read_dataset(tmp_path)
    assert len(read_dataset(tmp_path, format="images")) == 1
    with pytest.raises(DataError, match="not one of the 1 images has a label"):
        read_dataset(tmp_path, format="images").require_clean()


def test_masks_and_label_pictures_are_no_images(tmp_path: Path) -> None:
    for name in ("images/a", "masks/a", "ground_truth/a", "labels/a", "b", "b_mask", "b_gt", "lonely_mask"):
        write_image(tmp_path / f"{name}.png", name)
    found = read_dataset(tmp_path, format="images")
    assert [record.key for record in found] == ["a", "b", "lonely_mask"]
    assert [problem.code for problem in found.problems] == ["mask-beside-image"]


def test_all_takes_images_that_no_list_names_and_a_split_does_not(tmp_path: Path) -> None:
    root = yolo(tmp_path / "data")
    (root / "train.txt").write_text("a\nc\n")
    assert len(read_images(root)) == len(EXAMPLES)
    assert {record.key for record in read_images(root, split="val")} == {"e", "f"}
    assert len(read_images(root, split="val").class_names) == 3  # by the reader of labels
    assert {record.key for record in read_images(root, split="train", format="images")} == {"a", "c"}
    with pytest.raises(DataError, match="has no split 'test'"):
        read_images(root, split="test")


def test_a_split_of_images_without_labels(tmp_path: Path) -> None:
    root = write_pool(tmp_path)
    assert [record.key for record in read_images(root / "strip", split="val")] == ["s2"]
    assert [record.key for record in read_images(root / "strip", split="train")] == ["s1", "s3"]


def test_several_folders_make_one_pool(tmp_path: Path) -> None:
    root = write_pool(tmp_path)
    pool = read_images([root / "tiles", root / "strip"])
    assert [record.key for record in pool] == [
        "tiles/crack/1", "tiles/crack/2", "tiles/pit/1", "strip/s1", "strip/s3", "strip/s2",
    ]  # fmt: skip
    assert sources(pool) == ["tiles"] * 3 + ["strip"] * 3
    assert source_of("strip/s2", pool) == "strip"
    # The same names at another level tell the folders apart.
    for name in ("x", "y"):
        write_image(root / name / "images" / "a.png", name)
    assert [r.key for r in read_images([root / "x" / "images", root / "y" / "images"])] == ["x_images/a", "y_images/a"]
    with pytest.raises(DataError, match="given twice"):
        read_images([root / "tiles", root / "tiles"])
    with pytest.raises(InvalidArgumentError, match="at least one folder"):
        read_images([])


def test_sources_are_folders_of_a_pool_and_not_classes_or_splits(tmp_path: Path) -> None:
    root = write_pool(tmp_path / "pool")
    assert sorted(set(sources(read_images(root)))) == ["strip", "tiles"]
    assert set(sources(read_images(root / "tiles"))) == {"tiles"}  # crack and pit lie below images
    assert set(sources(read_images(root, split="all"), one=True)) == {"pool"}
    for name in ("train/a", "val/b"):
        write_image(tmp_path / "split" / f"{name}.png", name)
    assert set(sources(read_images(tmp_path / "split"))) == {"split"}
    with pytest.raises(DataError, match="no image 'nothing'"):
        source_of("nothing", read_images(root))


def test_exclude_leaves_out_what_a_list_names(tmp_path: Path) -> None:
    root = write_pool(tmp_path)
    whole = read_images(root)
    assert [record.key for record in whole if record.key not in {r.key for r in read_images(
        root, exclude=root / "strip" / "val.txt"
    )}] == ["strip/s2"]  # fmt: skip
    listed = tmp_path / "out.txt"
    listed.write_text("# two of them\ntiles/crack/1.png\n\nstrip/images/s1.png\n")
    for pool in (read_images(root, exclude=listed), read_images([root / "tiles", root / "strip"], exclude=listed)):
        assert {record.key for record in pool} == {"tiles/crack/2", "tiles/pit/1", "strip/s2", "strip/s3"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [("s9\n", r"out.txt:1: .*'s9'"), ("s1\n1\n", r"out.txt:2: .*'1'.*folders where"), ("", None)],
    ids=["unknown", "several", "empty"],
)
def test_every_line_of_exclude_means_one_image(tmp_path: Path, lines: str, message: str | None) -> None:
    root = write_pool(tmp_path / "pool")
    (tmp_path / "out.txt").write_text(lines)
    if message is None:
        assert len(read_images(root, exclude=tmp_path / "out.txt")) == 6
        return
    with pytest.raises(DataError, match=message):
        read_images(root, exclude=tmp_path / "out.txt")


def test_images_that_cannot_be_read_can_be_excluded(tmp_path: Path) -> None:
    root = write_pool(tmp_path / "pool")
    (root / "tiles" / "images" / "pit" / "1.png").write_bytes(b"no image")
    (root / "strip" / "images" / "s2.png").write_bytes(b"no image")
    (tmp_path / "out.txt").write_text("tiles/images/pit/1.png\ns2.png\n")
    for pool in (root, [root / "tiles", root / "strip"]):
        assert len(read_images(pool).unreadable) == 2
        found = read_images(pool, exclude=tmp_path / "out.txt").require_clean(labels=False)
        assert {record.key for record in found} == {"tiles/crack/1", "tiles/crack/2", "strip/s1", "strip/s3"}


def test_excluding_everything_is_an_error(tmp_path: Path) -> None:
    write_image(tmp_path / "data" / "a.png", "a")
    (tmp_path / "out.txt").write_text("a\n")
    with pytest.raises(DataError, match="excludes every image"):
        read_images(tmp_path / "data", exclude=tmp_path / "out.txt")
    with pytest.raises(DataError, match="cannot be read"):
        read_images(tmp_path / "data", exclude=tmp_path / "gone.txt")


def test_unreadable_images_are_problems(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png", name)
    (tmp_path / "b.png").write_bytes(b"no image")
    found = read_images(tmp_path)
    assert [record.key for record in found] == ["a"]
    with pytest.raises(DataError, match="corrupt-image"):
        found.require_clean(labels=False)
    assert found.require_clean(1.0, labels=False) is found


def test_packed_and_read_back(tmp_path: Path) -> None:
    root = write_pool(tmp_path / "pool")
    images = read_images(root)
    shards = pack(images, tmp_path / "shards")
    again = read_images(shards)
    assert again.fingerprint() == images.fingerprint() and again.unlabelled
    assert sources(again) == sources(images)
    assert all((one.load_image() == other.load_image()).all() for one, other in zip(images, again, strict=True))
    (tmp_path / "out.txt").write_text("strip/s3\n")
    assert len(read_images(shards, exclude=tmp_path / "out.txt")) == 5
    assert len(read_dataset(pack(again, tmp_path / "twice"))) == 6  # shards of it pack too
    with pytest.raises(DataError, match="has a label"):
        again.require_clean()


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_pool(tmp_path / "pool")
    assert main(["check-data", str(root), "--format", "images"]) == 0
    said = capsys.readouterr().out
    assert "a backbone pretrained on it" in said and "no-val-split" not in said
    assert main(["pack", str(root), "--labels", "images", "--out", str(tmp_path / "shards"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 6
    assert main(["check-data", str(tmp_path / "shards")]) == 0
    assert "pretrained" in capsys.readouterr().out
    # A labelled data set whose labels are lost is no pool of images.
    labelled = yolo(tmp_path / "labelled")
    for file in (labelled / "labels").iterdir():
        file.write_text("")
    assert main(["check-data", str(labelled)]) == 1
    assert "not one box" in capsys.readouterr().out


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_the_real_pool() -> None:
    pool = read_images(SHARED, exclude=SHARED / "neu_det" / "val.txt")
    names, counts = np.unique(sources(pool), return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {
        "bsdata": 394, "cold_rolled_strip": 2070, "kolektorsdd": 383, "magnetic_tile": 1344, "neu_det": 1439,
        "xsdd": 1360,
    }  # fmt: skip
