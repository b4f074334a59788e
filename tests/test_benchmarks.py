"""The benchmarks run, and their table says what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="needs the checkout")


@pytest.fixture(autouse=True)
def from_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def test_a_benchmark_measures_and_prints_figures():
    command = [sys.executable, "-m", "benchmarks", "--only", "import", "--rounds", "1", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stderr == "" and "failed" not in done.stdout
    assert "`import agssp_zoo`, time" in done.stdout and "`import agssp_zoo`, memory" in done.stdout


def test_the_readme_holds_the_results():
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text())
    table = (ROOT / "benchmarks" / "README.md").read_text()
    for entry in results.values():
        for figure in entry["figures"]:
            assert f"| {figure['name']} | {figure['value']:.3g} {figure['unit']} |" in table


def test_the_times_of_predict_say_what_is_reached():
    from benchmarks.predict_models import RECORDED, table

    walls = dict(zip(RECORDED, (1.5, 2.2, 3.0, 5.1), strict=True))
    both = ("pytorch", "onnx")
    times = {name: {one: {"wall": wall, "cpu": 2 * wall} for one in both} for name, wall in walls.items()}
    lines = table(times).splitlines()[2:6]
    assert lines[0] == "| `yolov8_resnet50` | 2.0 s | 1.50 s | 1.50 s | 0.75 x ✓ | 3.00 s | 1.50 s | 0.75 x | 3.00 s |"
    assert [("✓" in line, "✗" in line) for line in lines] == [(True, False), (False, True)] * 2


def test_images_to_learn_from_are_drawn_by_class_and_not_among_those_for_tuning():
    from benchmarks.gain import TUNING, draw, split_train

    names = [f"{kind}_{n}" for kind, count in (("pits", 600), ("rolled-in_scale", 900)) for n in range(count)]
    tuning, rest = split_train(names)
    assert len(tuning) == TUNING and sorted(tuning + rest) == sorted(names)
    few, others = draw(rest, 100, 0), draw(rest, 100, 1)
    assert len(set(few)) == 100 and set(few) != set(others) and few == draw(rest[::-1], 100, 0)
    assert sum(name.startswith("pits") for name in few) == 40  # as many as of all
    assert set(draw(rest, 30, 0)) < set(few)  # a smaller set is a part of a larger one


def test_the_gain_is_that_of_the_same_seeds():
    from benchmarks.gain import columns

    scores = {seed: {"map50": value} for seed, value in ((0, 0.5), (1, 0.6), (2, 0.4))}
    assert columns("map50", scores, {}) == ["50.0, 60.0, 40.0", "50.0", ""]
    base = {0: {"map50": 0.4}, 1: {"map50": 0.46}}
    assert columns("map50", scores, base)[2] == "+12.0 ± 2.8"


def test_a_table_compares_with_its_first_arm(tmp_path):
    from benchmarks.gain import table

    for name, score in (("random", 0.1), ("resnet50_imagenet", 0.3), ("resnet50_agssp", 0.35)):
        (tmp_path / f"{name}_100_0.json").write_text(json.dumps({"map50": score, "map50_95": score / 2}))
    assert table(tmp_path, "yolov8_n") == "" == table(tmp_path, "studies"), "nothing to compare"
    lines = table(tmp_path, "resnet50").splitlines()[2:]
    assert lines == [
        "| 100 | ImageNet | 30.0 | 30.0 |  | 15.0 | 15.0 |  |",
        "| 100 | AGBP and AGDP (AGSSP) | 35.0 | 35.0 | +5.0 | 17.5 | 17.5 | +2.5 |",
    ]


def test_a_setting_is_compared_with_the_defaults_of_the_same_seed(tmp_path):
    from benchmarks.settings import DOCS, merged, table

    assert merged("--model a --epochs 80", "--epochs 40 --lr 0.1") == ["--model", "a", "--epochs", "40", "--lr", "0.1"]
    for name, score in (("default_0", 0.4), ("default_1", 0.3), ("freeze_1", 0.35)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"map50": score, "map50_95": score / 2}))
    assert table(tmp_path).splitlines()[2:] == [
        "| `--nms-iou 0.7`, else the defaults | 40.0, 30.0 | 35.0 |  | 20.0, 15.0 | 17.5 |  |",
        "| `--freeze 2` | 35.0 | 35.0 | +5.0 | 17.5 | 17.5 | +2.5 |",
    ]
    assert DOCS.read_text().count("of settings -->") == 2


def test_maps_of_boxes():
    import numpy as np

    from benchmarks.study_maps import box_map

    cells = box_map(np.array([[0, 0, 50, 100], [75, 0, 100, 50]], np.float32), (200, 100), 4)
    np.testing.assert_allclose(cells, [[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_ratios_are_of_the_same_rounds():
    from benchmarks.peers_page import ratio

    assert ratio([1.0], [4.0]) == "0.25"
    assert ratio([1.0, 2.0, 3.0], [2.0, 4.0, 12.0]) == "0.5 (0.375–0.5)"  # a slow round slows both


def test_tables_of_the_comparison_say_where_others_win():
    from benchmarks.peers_page import tables

    about = {"measured": "2026-01-02 03:04 UTC", "load": 1.0, "versions": {"python": "3.11"}, "failed": {}}
    names = ("agssp-zoo", "agssp-zoo, INT8", "ultralytics, PyTorch", "ultralytics, ONNX dynamic")
    values = {"square": dict(zip(names, ([0.2, 0.2], [0.1, 0.1], [0.4, 0.4], [0.16, 0.16]), strict=True))}
    size = {"megabytes": 200.0, "without_cuda": 200.0, "packages": 20}
    sizes = {"agssp-zoo": size, "ultralytics, PyTorch": {**size, "megabytes": 5000.0}}
    text = tables(
        {
            "latency_s": {**about, "values": values, "failed": {"ultralytics, ONNX": "no file"}},
            "install": {**about, "sizes": sizes, "mmdet": {"installed": False, "said": "error: no wheel"}},
        }
    )
    assert "| yolov8_s, 640x640 | 0.5 (0.5–0.5) |  | 1.25 (1.25–1.25) |" in text
    assert "| yolov8_s, INT8, 640x640 | 0.25 (0.25–0.25) |" in text
    assert "Cheaper than ours: ultralytics, ONNX dynamic in yolov8_s, 640x640: 1.25 (1.25–1.25).\n" in text
    assert "| megabytes on the disk | 0.04 |" in text and "`error: no wheel`" in text
    assert "ultralytics, ONNX has no figures: `no file`." in text


def test_a_tool_that_does_not_start_is_told_and_the_others_go_on():
    from benchmarks.peers_turns import Contender, take_turns

    jobs = {"square": {"image": (64, 64), "size": None}}
    model = ROOT / "model_cards" / "yolov8_n.agssp_neu_det"
    contenders = [
        Contender("ours", lambda: Path(sys.executable), lambda: {"tool": "ours", "model": model, "jobs": jobs}),
        Contender("none", lambda: Path(sys.executable), lambda: {"tool": "ours", "model": "nowhere", "jobs": jobs}),
    ]
    part = take_turns(contenders, rounds=2)
    assert len(part["values"]["square"]["ours"]) == 2 and min(part["values"]["square"]["ours"]) > 0
    assert list(part["values"]["square"]) == ["ours"] and "nowhere" in part["failed"]["none"]


def test_the_same_logits_decode_to_the_same_boxes():
    import numpy as np

    from benchmarks.peers_boxes import decode

    sides = np.full((4, 16), -50.0, np.float32)
    for side, bin_ in enumerate((1, 2, 3, 4)):  # left, top, right, bottom in units of the stride
        sides[side, bin_] = 50
    box = np.tile(sides.reshape(1, 64, 1, 1), (1, 1, 20, 20))
    answer = decode([np.zeros((1, 6, 20, 20), np.float32)], [box])
    assert answer.shape == (1, 10, 400)
    np.testing.assert_allclose(
        answer[0, :, 21], [(1.5 + 1) * 32, (1.5 + 1) * 32, 4 * 32, 6 * 32, *[0.5] * 6], rtol=1e-5
    )


def test_sizes_of_what_is_installed():
    from benchmarks.peers_install import closure

    found = closure(sys.executable, "agssp-zoo")
    assert found["megabytes"] == found["without_cuda"] and 100 < found["megabytes"] < 300
    assert {"onnxruntime", "numpy"} <= set(found["largest"]) and found["packages"] > 5
    with pytest.raises(RuntimeError, match="not installed: no-such-package"):
        closure(sys.executable, "no-such-package")


def test_the_page_has_its_marks():
    from benchmarks.peers import BEGIN, DOCS, END

    assert DOCS.read_text().count(BEGIN) == DOCS.read_text().count(END) == 1


def test_no_part_is_learned_from_and_scored(tmp_path: Path) -> None:
    """KolektorSDD's commutators and the magnetic tiles' shots stay together; kinds of defects have their shares."""
    from benchmarks.transfer import Target, parts, split

    def write(name: str, folder: str) -> None:
        file = tmp_path / folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    for number in range(12):
        for shot in range(4):
            write(f"kolektor/images/kos{number:02}_Part{shot}.jpg", "")
        write(f"kolektor/masks/kos{number:02}_Part2.png", "")
    for kind, tiles in (("MT_Break", 20), ("MT_Crack", 10), ("MT_Free", 15)):
        for tile in range(tiles):
            for shot in range(1, 4):
                name = f"{kind}/exp{shot}_num_{1000 * (tile + 1) + 20 * shot}"
                write(f"tiles/images/{name}.jpg", "")
                if kind != "MT_Free" and shot < 3:
                    write(f"tiles/masks/{name}.png", "")
    for folder, defective, free in (("kolektor", 5, 6), ("tiles", 12, 7)):
        root = tmp_path / folder
        names = sorted(str(file.relative_to(root / "images")) for file in (root / "images").rglob("*.jpg"))
        whole = parts(names)
        assert len(whole) == {"kolektor": 12, "tiles": 45}[folder]
        assert sorted(name for part in whole for name in part) == names
        of_part = {name: number for number, part in enumerate(whole) for name in part}
        splits = [split(root, Target(folder, folder, defective, free, 64, 1), seed) for seed in (0, 0, 1)]
        assert splits[0] == splits[1] != splits[2]
        for train, val in splits:
            assert not {of_part[name] for name in train} & {of_part[name] for name in val}
            marked = [name for name in train if (root / "masks" / name).with_suffix(".png").is_file()]
            assert (len(marked), len(train)) == (defective, defective + free)
            if folder == "tiles":
                assert sum(name.startswith("MT_Break") for name in marked) == 8
