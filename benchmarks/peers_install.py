"""How much a tool puts on the disk, and what became of installing those that do not install."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT

CLOSURE = """
import importlib.metadata as metadata, json, sys
from packaging.requirements import Requirement

todo, done, packages, missing = [Requirement(text) for text in sys.argv[1:]], set(), {}, []
while todo:
    asked = todo.pop()
    for extra in ("", *asked.extras):
        if (asked.name.lower().replace("_", "-"), extra) in done:
            continue
        done.add((asked.name.lower().replace("_", "-"), extra))
        try:
            package = metadata.distribution(asked.name)
        except metadata.PackageNotFoundError:
            missing.append(asked.name)
            continue
        packages[package.name] = package
        for text in package.requires or ():
            needs = Requirement(text)
            if needs.marker is None or needs.marker.evaluate({"extra": extra}):
                todo.append(needs)
sizes, cuda = {}, 0
for name, package in packages.items():
    files = {path for file in package.files or () if (path := package.locate_file(file).resolve()).is_file()}
    sizes[name] = sum(path.stat().st_size for path in files)
    if name.startswith(("nvidia", "cuda", "triton")) and name != "nvidia-ml-py":
        cuda += sizes[name]
    elif name == "torch":
        cuda += sum(path.stat().st_size for path in files if "cuda" in path.name and ".so" in path.name)
print(json.dumps({"bytes": sizes, "cuda": cuda, "missing": missing}))
"""


def closure(python: Path | str, *requirements: str) -> dict[str, Any]:
    """The files of some packages and of all that they require, as pip has installed them.

    Args:
        python: of an environment that they are in.
        requirements: what one would give ``pip install``.

    Returns:
        ``megabytes``; ``without_cuda``: less NVIDIA's libraries, Triton, and torch's own libraries for CUDA;
        ``packages``: their number; ``largest``: the five largest, name -> MB.

    Raises:
        RuntimeError: a package that is required is not installed.
    """
    command = [str(python), "-c", CLOSURE, *requirements]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    if found["missing"]:
        raise RuntimeError(f"not installed: {', '.join(found['missing'])}")
    sizes = found["bytes"]
    if "agssp-zoo" in sizes:  # installed from this checkout, which holds more than the package does
        sizes["agssp-zoo"] = own_size()
    total = sum(sizes.values())
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    return {
        "megabytes": total / 1e6,
        "without_cuda": (total - found["cuda"]) / 1e6,
        "packages": len(sizes),
        "largest": {name: size / 1e6 for name, size in largest},
    }


def own_size() -> int:
    """Bytes of this project's package, and as many again for what Python compiles of it."""
    files = [path for name in ("agssp_zoo", "training", "export") for path in (ROOT / name).rglob("*")]
    plain = [path for path in files if path.is_file() and "__pycache__" not in path.parts]
    return sum(path.stat().st_size * (2 if path.suffix == ".py" else 1) for path in plain)


def attempt(package: str, *install: str, limit: float = 900) -> dict[str, Any]:
    """Tries to install a package into a fresh environment as its documentation says.

    Returns:
        ``installed``, and where it is not, ``said``: the error's first lines.
    """
    environment = ROOT / "runs" / f"venv-{package}"
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *install]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"installed": False, "said": f"still building after {limit:.0f} s"}
    if done.returncode == 0:
        done = subprocess.run([python, "-c", f"import {package}"], capture_output=True, text=True, cwd="/")
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"installed": done.returncode == 0, "said": last}
    lines = [line.strip() for line in done.stderr.splitlines()]
    first = next((line for line in lines if line.lower().startswith("error")), lines[0] if lines else "")
    cause = next((line for line in lines if re.match(r"\w*(Error|Exception): ", line)), "")
    return {"installed": False, "said": " … ".join(filter(None, dict.fromkeys((first, cause))))}
