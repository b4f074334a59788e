"""What the base installation weighs, in a fresh virtual environment. Needs the package index."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import ROOT, Figure


def base_install(rounds: int) -> list[Figure]:
    """All files of a virtual environment after ``pip install agssp-zoo``, pip included."""
    with tempfile.TemporaryDirectory() as folder:
        source, environment = Path(folder) / "source", Path(folder) / "venv"
        _copy_sources(source)
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [str(environment / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        done = subprocess.run([*pip, str(source)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-1000:])
        sizes = {p: p.stat().st_size for p in environment.rglob("*") if p.is_file() and not p.is_symlink()}
        (packages,) = environment.glob("lib/python*/site-packages")
        largest: dict[str, int] = {}
        for path, size in sizes.items():
            if path.is_relative_to(packages):
                top = path.relative_to(packages).parts[0]
                largest[top] = largest.get(top, 0) + size
        heavy = sorted(largest.items(), key=lambda item: -item[1])[:4]
        note = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in heavy)
    return [Figure("base installation", sum(sizes.values()) / 1e6, "MB", 250, note=f"pip included; {note}")]


def _copy_sources(target: Path) -> None:
    """What git knows of the checkout, so that building leaves nothing behind here."""
    import shutil

    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and name.endswith((".py", ".cfg", ".toml", ".json", ".typed", ".md", "LICENSE")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
