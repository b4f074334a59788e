"""The benchmarks run, and their table says what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="needs the checkout")


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
