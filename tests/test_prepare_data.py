"""One pool of the data sets below a folder: which are known, what takes part, what is left out, what is written."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_folders as folders
import numpy as np
import pytest
from PIL import Image

from agssp_zoo.cli import main
from agssp_zoo.errors import DataError, InvalidArgumentError
from agssp_zoo.training.data.known_sets import KnownSet, known_set, known_sets, recognise_set
from agssp_zoo.training.data.pack import PackSettings, pack
from agssp_zoo.training.data.pool_files import write_pool
from agssp_zoo.training.data.prepare import Pool, PrepareSettings, look_at_sets
from agssp_zoo.training.data.unlabelled import read_images, sources

pack_module = importlib.import_module("agssp_zoo.training.data.pack")  # the package has a function of this name
DATA = Path(__file__).parents[1].parent / "shared" / "data"


def lay(root: Path, *files: str) -> None:
    """Images of different content at these places."""
    for file in files:
        folders.write_image(root / file, file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two known sets, one under another name, one of the paper's test sets, an own one, and things that are none."""
    root = tmp_path / "data"
    lay(root, *(f"neu_det/images/crazing_{n}.jpg" for n in range(1, 5)))
    (root / "neu_det" / "train.txt").write_text("crazing_1\ncrazing_2\n")
    (root / "neu_det" / "val.txt").write_text("crazing_3\ncrazing_4\n")
    lay(root, "NEU_Seg-main/images/training/000001.jpg", "NEU_Seg-main/annotations/training/000001.png")
    lay(root, "GC10-DET/1/img_01.jpg", "my line 3/a.png", "my line 3/b.png", "my line 3/masks/a.png")
    (root / "README.md").write_text("no data")
    (root / "empty").mkdir()
    return root


def keys(pool: Pool) -> list[str]:
    return [record.key for record in pool.images]


class TestKnownSets:
    def test_the_papers_sets_are_20_and_its_classes_61(self) -> None:
        papers = [one for one in known_sets() if one.role == "pretraining"]
        assert len(papers) == 20
        listed = [name for one in known_sets() for name in one.classes]
        private = _document("pretraining")["private_classes"]
        assert len({*listed, *private}) == len(listed) + len(private) == 61

    @pytest.mark.parametrize("one", known_sets(), ids=lambda one: one.name)
    def test_an_entry_is_whole_and_says_where_its_figures_are_from(self, one: KnownSet) -> None:
        assert one.title and one.what and one.terms and one.layout and one.citation
        assert one.url and all(address.startswith(("http://", "https://")) for address in one.url)
        assert one.images is None or (one.images > 0 and one.images_from)
        assert one.commercial in ("yes", "no", "unknown")
        assert one.commercial == "unknown" or not one.terms.startswith("unknown")
        assert {known_set(name).name for name in one.overlaps} == set(one.overlaps)
        assert recognise_set(one.name) is one

    def test_no_folder_name_means_two_sets(self) -> None:
        for one in known_sets():
            assert all(recognise_set(name) is one for name in one.folders), one.name

    @pytest.mark.parametrize(
        ("folder", "name"),
        [
            ("NEU-DET", "neu_det"),
            ("BSData-main", "bsdata"),
            ("Magnetic-tile-defect-datasets.-master", "magnetic_tile"),
            ("cold_rolled_strip", "cr7_det"),
            ("KolektorSDD2", "kolektorsdd2"),
        ],
    )
    def test_folders_are_recognised_as_they_come_out_of_archives(self, folder: str, name: str) -> None:
        found = recognise_set(folder)
        assert found is not None and found.name == name

    def test_an_unknown_name_gives_the_nearest(self) -> None:
        with pytest.raises(InvalidArgumentError, match="kolektorsdd"):
            known_set("kolektor_sdd")
        assert recognise_set("my line 3") is None


def _document(group: str) -> dict[str, Any]:
    import tomllib

    from agssp_zoo.training.data.known_sets import FOLDER

    return tomllib.loads((FOLDER / f"{group}.toml").read_text(encoding="utf-8"))


class TestLooking:
    def test_every_folder_is_a_set_and_keys_begin_with_its_name(self, root: Path) -> None:
        pool = look_at_sets(root)
        assert [one.name for one in pool.sets] == ["gc10_det", "my_line_3", "neu_det", "neu_seg"]
        assert keys(pool) == [
            "my_line_3/a", "my_line_3/b", "neu_det/crazing_1", "neu_det/crazing_2", "neu_det/crazing_3",
            "neu_det/crazing_4", "neu_seg/training/000001",
        ]  # fmt: skip
        assert pool.classes == {"my_line_3": 2, "neu_det": 4, "neu_seg": 1}

    def test_what_the_paper_measures_on_takes_part_when_asked_for(self, root: Path) -> None:
        assert "gc10_det/1/img_01" not in keys(look_at_sets(root))
        assert "gc10_det/1/img_01" in keys(look_at_sets(root, PrepareSettings(also=("gc10_det",))))
        assert keys(look_at_sets(root, PrepareSettings(only=("gc10_det",)))) == ["gc10_det/1/img_01"]

    def test_sets_are_chosen_by_name(self, root: Path) -> None:
        assert look_at_sets(root, PrepareSettings(without=("neu_det", "neu_seg"))).classes == {"my_line_3": 2}
        assert look_at_sets(root, PrepareSettings(only=("my_line_3", "neu_seg"))).classes == {
            "my_line_3": 2,
            "neu_seg": 1,
        }
        with pytest.raises(InvalidArgumentError, match="my_line_3"):
            look_at_sets(root, PrepareSettings(only=("my_line_4",)))

    def test_missing_are_the_known_sets_that_would_take_part(self, root: Path) -> None:
        missing = {one.name for one in look_at_sets(root).missing}
        assert "severstal" in missing and not missing & {"neu_det", "neu_seg", "gc10_det", "steel_pipe"}
        settings = PrepareSettings(without=("severstal",), also=("steel_pipe",))
        missing = {one.name for one in look_at_sets(root, settings).missing}
        assert "steel_pipe" in missing and "severstal" not in missing
        assert look_at_sets(root, PrepareSettings(only=("neu_det",))).missing == ()

    def test_masks_that_lie_beside_images_are_no_images(self, root: Path) -> None:
        lay(root, "magnetic_tile/MT_Blowhole/Imgs/exp1.jpg", "magnetic_tile/MT_Blowhole/Imgs/exp1.png")
        lay(root, "aitex/Defect_images/0001.png", "aitex/Mask_images/0001_mask.png")
        lay(root, "kolektorsdd/kos01/Part0.jpg", "kolektorsdd/kos01/Part0_label.bmp")
        lay(root, "kolektorsdd2/train/10000.png", "kolektorsdd2/train/10000_GT.png")
        found = {one.name: len(one.images) for one in look_at_sets(root).sets}
        assert {name: found[name] for name in ("magnetic_tile", "aitex", "kolektorsdd", "kolektorsdd2")} == {
            "magnetic_tile": 1, "aitex": 1, "kolektorsdd": 1, "kolektorsdd2": 1,
        }  # fmt: skip

    def test_a_set_that_holds_masks_of_another_suffix_alone_keeps_them(self, root: Path) -> None:
        lay(root, "magnetic_tile/images/MT_Break/a.png")  # images that somebody stored as PNG, with no JPEG beside
        assert "magnetic_tile/MT_Break/a" in keys(look_at_sets(root))

    def test_parts_become_classes(self, root: Path) -> None:
        lay(root, *(f"mvtec/mvtec_anomaly_detection/{kind}/train/good/000.png" for kind in ("grid", "metal nut")))
        lay(root, "mvtec/mvtec_anomaly_detection/grid/test/bent/000.png", "dagm/Class1/Train/0576.PNG")
        lay(root, "dagm/Class1/Train/Label/0576_label.PNG", "dagm/Class10/Train/0577.PNG")
        whole = look_at_sets(root).classes
        assert whole["mvtec_ad"] == 3 and whole["dagm2007"] == 2
        parts = look_at_sets(root, PrepareSettings(parts=True)).classes
        assert {name: count for name, count in parts.items() if name.startswith(("mvtec", "dagm"))} == {
            "dagm2007_Class1": 1, "dagm2007_Class10": 1, "mvtec_ad_grid": 2, "mvtec_ad_metal_nut": 1,
        }  # fmt: skip
        assert parts["neu_det"] == 4, "sets without such folders stay whole"

    def test_a_prepared_pool_below_the_root_is_no_set(self, root: Path) -> None:
        before = keys(look_at_sets(root))
        write_pool(look_at_sets(root), root / "pool")
        assert keys(look_at_sets(root)) == before

    def test_shards_are_a_set(self, root: Path) -> None:
        (root / "extra").mkdir()
        lay(root / "extra", "x/1.png", "y/2.png")
        pack(read_images(root / "extra"), root / "packed", PackSettings())
        classes = look_at_sets(root).classes
        assert classes["packed"] == classes["extra"] == 2

    def test_an_unreadable_image_is_counted(self, root: Path) -> None:
        (root / "my line 3" / "broken.png").write_bytes(b"no image")
        pool = look_at_sets(root)
        assert len(pool.images.errors) == 1
        with pytest.raises(DataError, match=r"broken\.png"):
            write_pool(pool, root.parent / "pool")
        folder = write_pool(pool, root.parent / "pool", tolerance=0.5)
        assert len(read_images(folder)) == 7

    def test_a_folder_that_is_one_set_is_refused(self, tmp_path: Path) -> None:
        lay(tmp_path, "images/a.png", "images/b.png")
        with pytest.raises(DataError, match="one data set itself"):
            look_at_sets(tmp_path)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="holds no folders"):
            look_at_sets(tmp_path)
        with pytest.raises(DataError, match="no such folder"):
            look_at_sets(tmp_path / "gone")

    def test_a_set_that_is_there_twice_is_refused(self, root: Path) -> None:
        lay(root, "NEU-DET/images/a.jpg")
        with pytest.raises(DataError, match="neu_det"):
            look_at_sets(root)


class TestLeavingOut:
    def test_a_list_in_a_sets_folder_is_about_that_set(self, root: Path) -> None:
        lay(root, "my line 3/crazing_3.png")  # a name that the list means, but not here
        pool = look_at_sets(root, PrepareSettings(exclude=(str(root / "neu_det" / "val.txt"),)))
        assert pool.classes["neu_det"] == 2 and "my_line_3/crazing_3" in keys(pool)
        assert pool.left_out == {"neu_det/crazing_3": "excluded", "neu_det/crazing_4": "excluded"}

    def test_a_list_elsewhere_is_about_all_sets(self, root: Path, tmp_path: Path) -> None:
        listed = tmp_path / "leave.txt"
        listed.write_text("my line 3/a.png\ncrazing_1\n")
        assert look_at_sets(root, PrepareSettings(exclude=(str(listed),))).classes == {
            "my_line_3": 1,
            "neu_det": 3,
            "neu_seg": 1,
        }

    def test_several_lists(self, root: Path) -> None:
        lists = (str(root / "neu_det" / "val.txt"), str(root / "neu_det" / "train.txt"))
        assert "neu_det" not in look_at_sets(root, PrepareSettings(exclude=lists)).classes

    def test_a_line_has_to_mean_one_image(self, root: Path, tmp_path: Path) -> None:
        listed = tmp_path / "leave.txt"
        listed.write_text("crazing_1\ncrazing_99\n")
        with pytest.raises(DataError, match="crazing_99"):
            look_at_sets(root, PrepareSettings(exclude=(str(listed),)))

    def test_excluding_everything_is_refused(self, root: Path) -> None:
        settings = PrepareSettings(only=("neu_det",), exclude=(str(root / "neu_det" / "val.txt"),))
        (root / "neu_det" / "val.txt").write_text("".join(f"crazing_{n}\n" for n in range(1, 5)))
        with pytest.raises(DataError, match="no image is left"):
            look_at_sets(root, settings)

    def test_copies_of_excluded_images_in_other_sets_are_found_by_their_looks(self, root: Path) -> None:
        for number in range(1, 5):
            image = Image.fromarray(_surface(number))
            image.save(root / "neu_det" / "images" / f"crazing_{number}.jpg", quality=95)
            image.save(root / "NEU_Seg-main" / "images" / "training" / f"00000{number}.jpg", quality=70)
        val = str(root / "neu_det" / "val.txt")
        assert look_at_sets(root, PrepareSettings(exclude=(val,))).classes["neu_seg"] == 4
        pool = look_at_sets(root, PrepareSettings(exclude=(val,), similar=True))
        assert pool.classes["neu_seg"] == pool.classes["neu_det"] == 2
        assert pool.left_out["neu_seg/training/000003"] == "like neu_det/crazing_3"
        # also when the set that the list is of takes no part itself
        pool = look_at_sets(root, PrepareSettings(exclude=(val,), similar=True, without=("neu_det",)))
        assert pool.classes["neu_seg"] == 2

    def test_similar_to_nothing_is_refused(self, root: Path) -> None:
        with pytest.raises(InvalidArgumentError, match="similar"):
            look_at_sets(root, PrepareSettings(similar=True))


def _surface(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24), np.uint8))
    return np.asarray(coarse.resize((200, 200), Image.Resampling.BICUBIC))


class TestWarnings:
    def test_images_to_measure_on(self, root: Path) -> None:
        said = " ".join(look_at_sets(root).warnings)
        assert "val.txt names 2 images to measure on" in said and "--exclude" in said
        settings = PrepareSettings(exclude=(str(root / "neu_det" / "val.txt"),))
        said = " ".join(look_at_sets(root, settings).warnings)
        assert "to measure on" not in said
        assert "neu_seg: may show images that were excluded from neu_det" in said

    def test_sets_that_show_what_the_paper_measures_on(self, root: Path) -> None:
        lay(root, "FSSD-12/punching/Images/1.jpg")
        assert any("may show images of gc10_det" in text for text in look_at_sets(root).warnings)

    def test_terms(self, root: Path) -> None:
        lay(root, "kolektorsdd/kos01/Part0.jpg")
        said = " ".join(look_at_sets(root).warnings)
        assert "the terms of kolektorsdd rule out commercial use" in said
        assert "of my_line_3, neu_det, neu_seg it is not known" in said
        said = " ".join(look_at_sets(root, PrepareSettings(without=("kolektorsdd",))).warnings)
        assert "rule out" not in said


class TestWriting:
    def test_stage_1_reads_the_classes_back(self, root: Path, tmp_path: Path) -> None:
        pool = look_at_sets(root, PrepareSettings(exclude=(str(root / "neu_det" / "val.txt"),)))
        folder = write_pool(pool, tmp_path / "pool")
        images = read_images(folder)
        assert [record.key for record in images] == keys(pool)
        assert images.unlabelled and not images.errors
        assert sorted(set(sources(images))) == (folder / "classes.txt").read_text().split() == list(pool.classes)
        for before, after in zip(pool.images, images, strict=True):
            assert (before.load_image() == after.load_image()).all()

    def test_pool_json_says_what_it_is_made_of(self, root: Path, tmp_path: Path) -> None:
        pool = look_at_sets(root, PrepareSettings(exclude=(str(root / "neu_det" / "val.txt"),)))
        document = json.loads((write_pool(pool, tmp_path / "pool") / "pool.json").read_text())
        assert document["images"] == 5 and document["classes"] == pool.classes
        neu = next(one for one in document["sets"] if one["name"] == "neu_det")
        assert (neu["images"], neu["excluded"], neu["used"], neu["stated"]) == (4, 2, True, 1800)
        assert document["left_out"] == pool.left_out
        assert str(tmp_path) not in json.dumps(document)

    def test_the_same_data_give_the_same_bytes(self, root: Path, tmp_path: Path) -> None:
        one = write_pool(look_at_sets(root), tmp_path / "one")
        moved = root.rename(tmp_path / "moved")
        two = write_pool(look_at_sets(moved), tmp_path / "two")
        assert {f.name: f.read_bytes() for f in one.iterdir()} == {f.name: f.read_bytes() for f in two.iterdir()}

    def test_an_interrupted_pool_is_gone_on_with(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = PackSettings(shard_size=1)
        whole = write_pool(look_at_sets(root), tmp_path / "whole", settings)
        encode: Callable[..., Any] = pack_module.encode
        samples = json.loads((whole / "index.json").read_text())["samples"]
        first = next(sample["key"] for sample in samples if sample["shard"] == 0)

        def breaks(record: Any, settings: PackSettings) -> Any:
            if record.key != first:
                raise KeyboardInterrupt
            return encode(record, settings)

        monkeypatch.setattr(pack_module, "encode", breaks)
        with pytest.raises(KeyboardInterrupt):
            write_pool(look_at_sets(root), tmp_path / "pool", settings)
        assert len(list((tmp_path / "pool").glob("*.tar"))) == 1 and not (tmp_path / "pool" / "pool.json").exists()
        monkeypatch.setattr(pack_module, "encode", encode)
        pool = write_pool(look_at_sets(root), tmp_path / "pool", settings)
        assert {f.name: f.read_bytes() for f in pool.iterdir()} == {f.name: f.read_bytes() for f in whole.iterdir()}

    def test_killed_before_the_last_file(self, root: Path, tmp_path: Path) -> None:
        pool = write_pool(look_at_sets(root), tmp_path / "pool")
        (pool / "pool.json").unlink()
        shard = (pool / "train-000000.tar").stat().st_mtime_ns
        write_pool(look_at_sets(root), tmp_path / "pool")
        assert (pool / "pool.json").exists() and (pool / "train-000000.tar").stat().st_mtime_ns == shard

    def test_a_folder_of_another_pool_is_refused(self, root: Path, tmp_path: Path) -> None:
        write_pool(look_at_sets(root), tmp_path / "pool")
        with pytest.raises(DataError, match="other data"):
            write_pool(look_at_sets(root, PrepareSettings(without=("neu_det",))), tmp_path / "pool")


class TestCommand:
    def test_looks_only_by_default(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = sorted(root.rglob("*"))
        assert main(["prepare-data", "--root", str(root)]) == 0
        out = capsys.readouterr().out
        assert sorted(root.rglob("*")) == before
        lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
        assert lines["neu_det"][1:6] == ["4", "1800", "0", "0", "4"] and lines["gc10_det"][5] == "no"
        assert "https://www.kaggle.com/competitions/severstal-steel-defect-detection" in lines["severstal"]
        assert "Nothing was written" in out

    def test_writes_and_prints_json(self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        argv = ["prepare-data", "--root", str(root), "--out", str(tmp_path / "pool"), "--json", "--size", "32"]
        assert main([*argv, "--exclude", str(root / "neu_det" / "val.txt"), "--without", "my_line_3"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["classes"] == {"neu_det": 2, "neu_seg": 1} and document["out"] == str(tmp_path / "pool")
        assert any(one["name"] == "severstal" and one["url"] for one in document["missing"])
        assert read_images(tmp_path / "pool")[0].load_image().shape == (16, 32, 3)

    def test_tells_what_is_known(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["prepare-data"]) == 0
        assert "steel_pipe" in capsys.readouterr().out
        assert main(["prepare-data", "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)) == len(known_sets())
        assert main(["prepare-data", "--about", "kolektorsdd"]) == 0
        assert "CC BY-NC-SA 4.0" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("argv", "code", "says"),
        [
            (["--about", "kolektor_sdd"], 2, "kolektorsdd"),
            (["--out", "somewhere"], 2, "--root"),
            (["--root", "no/such/folder"], 1, "no such folder"),
        ],
    )
    def test_mistakes_are_one_line(
        self, argv: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["prepare-data", *argv]) == code
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1


@pytest.mark.skipif(not DATA.is_dir(), reason="the project's data are not here")
def test_the_projects_own_data() -> None:
    settings = PrepareSettings(exclude=(str(DATA / "neu_det" / "val.txt"),))
    assert look_at_sets(DATA, settings).classes == {
        "bsdata": 394, "cr7_det": 2070, "kolektorsdd": 383, "magnetic_tile": 1344, "neu_det": 1439, "xsdd": 1360,
    }  # fmt: skip
