"""What every benchmark uses: figures with their limits, fresh processes, and the models that are measured.

Times are CPU time on one core. Things that are compared take turns within one run, because a machine's speed drifts.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / "runs" / "bench"
"""Where models, and whatever else takes long to make, are kept between runs."""
CLASSES = 80
"""Of the detector; as many as the network it is compared with has by default."""


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: what was measured.
        value: the median.
        unit: of the value.
        limit: what it should reach; ``None`` for a number that others are compared with.
        at_least: whether the limit is a lower one.
        note: how, and what else there is to know.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the limit is kept; ``None`` without one."""
        if self.limit is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(frozen=True)
class Usage:
    """What a process has used: CPU seconds, and the most memory it held at once, in MB."""

    cpu: float
    memory: float


def single_threaded() -> dict[str, str]:
    """The environment of a process that computes on one thread."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, "1"), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": ""}


def run_python(code: str, *arguments: object, python: str = sys.executable) -> Usage:
    """Runs code in a fresh Python, outside the checkout, and says what it used."""
    # VmHWM belongs to the process itself; getrusage would count what its parent held before it started.
    code += "\nwith open('/proc/self/status') as s: print(*[l.split()[1] for l in s if l.startswith('VmHWM')])"
    return _run([python, "-c", code, *map(str, arguments)])


def run_command(command: Sequence[str]) -> Usage:
    """Runs a command, and says what it used (not its memory)."""
    return _run(list(command))


def _run(command: list[str]) -> Usage:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=single_threaded(), cwd="/", stdout=out, stderr=errors)
        # Not subprocess's own waiting: only this says what the process used, to the microsecond.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)[:300]} failed:\n{errors.read()}")
        lines = out.read().splitlines()
    held = int(lines[-1]) / 1024 if lines and lines[-1].isdecimal() else 0.0
    return Usage(usage.ru_utime + usage.ru_stime, held)


def use_one_core() -> None:
    """Pins this process, and all that it starts, to one core."""
    if hasattr(os, "sched_setaffinity"):  # else the environment's one thread has to do
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def take_turns(jobs: Mapping[str, Callable[[], Usage]], rounds: int) -> dict[str, Usage]:
    """Runs jobs in turn, once more than asked for; the medians without the first round, which fills the caches."""
    taken: dict[str, list[Usage]] = {name: [] for name in jobs}
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            taken[name].append(job())
    return {
        name: Usage(statistics.median(u.cpu for u in all_[1:]), statistics.median(u.memory for u in all_[1:]))
        for name, all_ in taken.items()
    }


def time_in_turns(jobs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of functions of this process, called in turn; the first two calls do not count."""
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 2):
        for name, job in jobs.items():
            started = time.process_time()
            job()
            if number > 1:
                taken[name].append(time.process_time() - started)
    return {name: statistics.median(times) for name, times in taken.items()}


def model_folder(architecture: str, classes: int = CLASSES) -> Path:
    """A model folder with random weights; for a detector of so many classes with its ONNX file. Made once."""
    folder = WORK / (architecture if classes == CLASSES else f"{architecture}_{classes}")
    if not (folder / "checksums.json").is_file():
        _ask_python(
            """
import sys, torch
from agssp_zoo import models
from agssp_zoo.export import export_onnx
from agssp_zoo.folder import write_folder
folder, architecture, classes = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.manual_seed(0)
names = [f"class_{i}" for i in range(classes)] if architecture.startswith("yolo") else ()
config = models.default_config(architecture, class_names=names)
module = models.build(config)
write_folder(folder, config, {"model.safetensors": lambda path: models.save_weights(module, path, config)})
if names:
    export_onnx(folder)
""",
            folder,
            architecture,
            classes,
        )
    return folder


def _ask_python(code: str, *arguments: object, python: str = sys.executable) -> str:
    """Runs code in another process; its output."""
    done = subprocess.run([python, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def other_python() -> Path:
    """The Python of an environment of its own that another package, ultralytics, is installed in. Made once.

    Raises:
        RuntimeError: the package cannot be installed.
    """
    return python_with("ultralytics", ["ultralytics", "onnxslim"])


def python_with(package: str, install: Sequence[str]) -> Path:
    """The Python of an environment of its own with another package. Made once.

    The environment sees this one's packages, so that both compute with the same torch; what the other package needs
    beyond them, or in another version, is installed there only.

    Args:
        package: its name, also as it is imported.
        install: arguments of ``pip install``.

    Raises:
        RuntimeError: the package cannot be installed.
    """
    environment = ROOT / "runs" / f"venv-{package}"
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        (packages,) = environment.glob("lib/python*/site-packages")
        # All of this Python's folders: an environment may itself stand upon another.
        shared = [folder for folder in sys.path if folder.endswith("site-packages")]
        (packages / "base.pth").write_text("".join(f"{folder}\n" for folder in shared))
    if not list(environment.glob(f"lib/python*/site-packages/{package}")):
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *install]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{package} cannot be installed: {done.stderr[-500:]}")
    return python


def other_settings() -> dict[str, str]:
    """The environment variables that keep the other package from the network and from the user's settings."""
    folder = WORK / "ultralytics"
    folder.mkdir(parents=True, exist_ok=True)
    return {"YOLO_CONFIG_DIR": str(folder), "YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true"}


def other_export() -> Path:
    """The same architecture as another package exports it at 640x640. Made once.

    Raises:
        RuntimeError: the package cannot be installed or does not export.
    """
    target = WORK / "ultralytics" / "yolov8s.onnx"
    if target.is_file():
        return target
    python, settings = other_python(), other_settings()
    code = "from ultralytics import YOLO; YOLO('yolov8s.yaml').export(format='onnx', imgsz=640, device='cpu')"
    done = subprocess.run(
        [python, "-c", code], cwd=target.parent, env={**os.environ, **settings}, capture_output=True, text=True
    )
    if not target.is_file():
        raise RuntimeError(f"ultralytics does not export: {done.stderr[-500:]}")
    return target


def versions() -> dict[str, str]:
    """Machine, Python and packages."""
    from agssp_zoo import machine

    here = machine.machine()
    packages = ("agssp-zoo", "numpy", "pillow", "onnxruntime", "openvino", "torch", "onnx", "onnxscript")
    found = {"machine": f"{here['processor']}, {here['cores']} cores", "system": here["system"]}
    found |= dict.fromkeys(packages, "not installed") | machine.versions(packages)
    for package in ("ultralytics", "anomalib"):
        other = list((ROOT / "runs" / f"venv-{package}").glob(f"lib/python*/site-packages/{package}-*.dist-info"))
        if other:
            found[package] = other[0].name.split("-")[1].removesuffix(".dist")
    return found


def write_between(page: Path, begin: str, end: str, text: str) -> None:
    """Puts text between two marks of a page, in place of what stands there."""
    before, _, rest = page.read_text().partition(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


def to_json(figures: Sequence[Figure]) -> str:
    """Figures as one line of JSON."""
    return json.dumps([vars(figure) for figure in figures])
