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


def test_maps_of_boxes():
    import numpy as np

    from benchmarks.study_maps import box_map

    cells = box_map(np.array([[0, 0, 50, 100], [75, 0, 100, 50]], np.float32), (200, 100), 4)
    np.testing.assert_allclose(cells, [[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
