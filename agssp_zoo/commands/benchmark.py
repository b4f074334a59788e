"""``agssp-zoo benchmark``: what a model costs on this machine, per engine and size."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from agssp_zoo.commands.options import add_hub_arguments, hub_options, print_json, print_table
from agssp_zoo.errors import EngineError, InvalidArgumentError
from agssp_zoo.file_names import user_path

if TYPE_CHECKING:
    from agssp_zoo.benchmark.results import Results, Row
    from agssp_zoo.benchmark.runner import Size
    from agssp_zoo.config import ModelConfig

ENGINES = ("onnx", "openvino", "pytorch")
PRECISIONS = ("float32", "float16", "bfloat16", "int8")
RESULTS = "benchmark.json"
PICTURE = "benchmark.png"
PACKAGES = ("agssp-zoo", "numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "openvino", "torch")
BUSY = 0.5
"""A warning is given when more processes a core than this want to run before we begin."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``benchmark``."""
    parser.add_argument(
        "model", nargs="+", help="detectors: names, model folders, .onnx files, hf://owner/repo; several take turns"
    )
    parser.add_argument("--out", metavar="DIR", help=f"where {RESULTS} and {PICTURE} go (default: only printed)")
    parser.add_argument(
        "--engines", nargs="+", metavar="NAME[:PRECISION]",
        help=f"of {', '.join(ENGINES)}, e.g. onnx onnx:int8 openvino (default: all there are)",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", nargs="+", metavar="N|WxH",
        help="the network's canvas, in pixels, e.g. 640 1600x256 (width x height; default: the first model's own)",
    )  # fmt: skip
    parser.add_argument("--image", metavar="FILE", help="your image (default: a steel surface drawn in each size)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images a prediction (default: 1)")
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads of a process (default: OMP_NUM_THREADS, or the engine's choice)",
    )
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="predictions that count (default: 20)")
    parser.add_argument("--warmup", type=int, default=3, metavar="N", help="predictions before that (default: 3)")
    parser.add_argument("--starts", type=int, default=3, metavar="N", help="cold starts that count (default: 3)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    add_hub_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table, and writes the files; interrupted, it does so with what it has, and answers 130."""
    from agssp_zoo import machine
    from agssp_zoo.benchmark.results import Results
    from agssp_zoo.benchmark.runner import Benchmark, BenchmarkSettings, Candidate

    engines = _engines(args.engines)
    for name, least in (("batch", 1), ("threads", 1), ("rounds", 1), ("warmup", 0), ("starts", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InvalidArgumentError(f"--{name} {value}: give at least {least}.")
    told = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(told) if args.threads is None and told.isdecimal() and int(told) else args.threads
    settings = BenchmarkSettings(args.rounds, args.warmup, args.starts, args.batch, threads, args.device)
    out = user_path(args.out) if args.out else None
    if out is not None:
        _make(out)
    opened = _distinct(args.model, [_open(model, args) for model in args.model])
    sizes = _sizes(args.sizes, opened[0][2], args.image)
    candidates = [Candidate(name, path, engine) for name, path, _ in opened for engine in engines]
    about: dict[str, Any] = {
        "command": " ".join(["agssp-zoo", *sys.argv[1:]]),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {**machine.machine(), "load_before": machine.load()},
        "versions": machine.versions(PACKAGES),
        "settings": {**vars(settings), "image": args.image or "drawn by agssp_zoo.training.synthetic, PNG"},
    }
    progress, complete = _Progress(sys.stderr), False
    with tempfile.TemporaryDirectory() as folder:
        images = {size: Path(args.image).absolute() if args.image else _draw(size, Path(folder)) for size in sizes}
        benchmark = Benchmark(candidates, images, settings, progress.show)
        try:
            for _ in benchmark.run():
                if out is not None:
                    _write(Results(tuple(benchmark.rows), tuple(benchmark.skipped), about, complete=False), out)
            complete = True
        except KeyboardInterrupt:
            pass
        finally:
            progress.close()
    results = Results(tuple(benchmark.rows), tuple(benchmark.skipped), about, complete)
    for one in results.skipped:
        sys.stderr.write(f"agssp-zoo: {one.model} {one.engine} skipped: {one.reason}\n")
    if complete and not results.rows:
        raise EngineError("Nothing could be measured; the lines above say why.")
    if out is not None:
        _write(results, out)
    _report(results, out, args.json)
    return 0 if complete else 130


def _make(out: Path) -> None:
    """The folder, while nothing has been measured that could be lost."""
    from agssp_zoo.training.data.places import check_out

    check_out(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgumentError(f"--out {out} cannot be made ({error.strerror}); give another folder.") from None


def _engines(names: list[str] | None) -> list[str]:
    """The engines asked for, each once; with ``:PRECISION`` where one is given."""
    for name in names or ():
        engine, colon, precision = name.partition(":")
        if engine not in ENGINES:
            raise InvalidArgumentError(f"--engines {name}: choose from {', '.join(ENGINES)}.")
        if colon and precision not in PRECISIONS:
            raise InvalidArgumentError(f"--engines {name}: after the colon give {', '.join(PRECISIONS)}.")
    return list(dict.fromkeys(names or ENGINES))


def _open(model: str, args: argparse.Namespace) -> tuple[str, str, ModelConfig]:
    """A model's name, the place of its files, all of which are here then, and its config."""
    if model.endswith(".onnx"):
        from agssp_zoo.detector import load_detector

        config = load_detector(model, **hub_options(args)).config
        return Path(model).name, str(user_path(model).absolute()), config
    from agssp_zoo import hub

    folder = hub.resolve(model, **hub_options(args))
    if folder.config.task != "detector":
        raise InvalidArgumentError(f"{folder.config.name} is a {folder.config.task}; benchmark measures detectors.")
    for name in folder.names:
        folder.file(name)
    return folder.config.name, str(folder.path.absolute()), folder.config


def _distinct(given: list[str], opened: list[tuple[str, str, ModelConfig]]) -> list[tuple[str, str, ModelConfig]]:
    """Each model once; those of one name, as fine-tunings of one model are, with what was given for them."""
    places: dict[str, tuple[str, str, ModelConfig]] = {}
    for text, (name, path, config) in zip(given, opened, strict=True):
        places.setdefault(path, (text, name, config))
    names = [name for _, name, _ in places.values()]
    return [
        (name if names.count(name) == 1 else f"{name} ({text})", path, config)
        for path, (text, name, config) in places.items()
    ]


def _sizes(given: list[str] | None, config: ModelConfig, image: str | None) -> list[Size]:
    """The canvases as (width, height)."""
    from agssp_zoo.geometry import Letterbox
    from agssp_zoo.images import read_image

    shape = None if image is None else read_image(image).shape  # also tells that it is none, before anything starts
    if given is None:
        letterbox = Letterbox(config.preprocess)
        height, width = letterbox.place((shape[0], shape[1]) if shape else (640, 640)).canvas
        return [(width, height)]
    sizes = []
    stride = config.preprocess.stride
    for text in given:
        sides = text.lower().split("x")
        if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
            raise InvalidArgumentError(f"--sizes {text}: give a side or WIDTHxHEIGHT in pixels, e.g. 640 or 1600x256.")
        width, height = int(sides[0]), int(sides[-1])
        if width % stride or height % stride:
            near = "x".join(str(-(-side // stride) * stride) for side in (width, height))
            raise InvalidArgumentError(f"--sizes {text}: sides must be multiples of {stride}, e.g. {near}.")
        sizes.append((width, height))
    return list(dict.fromkeys(sizes))


def _draw(size: Size, folder: Path) -> Path:
    """A steel surface with defects as a PNG file."""
    from PIL import Image

    from agssp_zoo.training.synthetic import draw_sample

    path = folder / f"{size[0]}x{size[1]}.png"
    Image.fromarray(draw_sample(7, seed=0, size=(size[1], size[0]), style="neu").image).save(path)
    return path


def _write(results: Results, out: Path) -> None:
    """The JSON and the picture; where nothing was measured those of an earlier benchmark stay."""
    import json

    from agssp_zoo.benchmark.chart import draw_chart
    from agssp_zoo.folder import write_text

    if not results.rows:
        return
    write_text(out / RESULTS, json.dumps(results.to_dict(), indent=2, ensure_ascii=False) + "\n")
    title = ", ".join(dict.fromkeys(row.model for row in results.rows)) + ": what a prediction costs"
    draw_chart(results.rows, {"title": title, "note": _note(results)}, out / PICTURE)


def _note(results: Results) -> str:
    """What stands below the picture and the table."""
    about, settings = results.about, results.about["settings"]
    number = settings["threads"]
    threads = "as many threads as the engine takes" if number is None else f"{number} thread{'s' * (number > 1)}"
    here = about["machine"]
    text = (
        f"Medians of {settings['rounds']} rounds in turns, in brackets the quartiles; batch {settings['batch']}, "
        f"{threads}, {settings['device']}. {here['processor']}, {here['cores']} cores, {here['system']}; "
        + ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        + "."
    )
    load = here["load_before"]
    if load is not None and load > BUSY * here["cores"]:
        text += f" The machine was busy before (load {load}): on a quiet one times are shorter."
    return text if results.complete else text + " Interrupted: the last rows are incomplete."


def _report(results: Results, out: Path | None, as_json: bool) -> None:
    """Prints."""
    from agssp_zoo.benchmark.results import STAGES

    if as_json:
        print_json(results.to_dict())
        return
    if not results.rows:
        return
    stages = [*STAGES, "end_to_end"]
    heads = [stage.upper().replace("_", " ") for stage in stages]
    rows = [("MODEL", "ENGINE", "SIZE", *heads, "CPU TIME", "COLD START", "MEMORY")]
    rows += [(row.model, row.engine, f"{row.size[0]}x{row.size[1]}", *_cells(row, stages)) for row in results.rows]
    print_table(rows)
    sys.stdout.write(f"\n{_note(results)}\n")
    if out is not None:
        sys.stdout.write(f"{out / RESULTS}, {out / PICTURE}\n")


def _cells(row: Row, stages: list[str]) -> list[str]:
    """Figures of a row as text."""
    cells = []
    for stage in stages:
        spread = row.milliseconds.get(stage)
        whole = f" ({spread.low:.1f}-{spread.high:.1f})" if spread and stage == "end_to_end" else ""
        cells.append(f"{spread.median:.1f} ms{whole}" if spread else "-")
    memory = "-" if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f} MB"
    cpu = "-" if row.cpu is None else f"{row.cpu.median:.1f} ms"
    return [*cells, cpu, f"{row.cold_start.median:.2f} s", memory]


class _Progress:
    """Steps done and what comes, on a terminal only."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream if stream.isatty() else None

    def show(self, done: int, total: int, text: str) -> None:
        """Shows the step that comes."""
        if self.stream is not None:
            self.stream.write(f"\r{done}/{total}  {text} \x1b[K")
            self.stream.flush()

    def close(self) -> None:
        """Clears the line."""
        if self.stream is not None:
            self.stream.write("\r\x1b[K")
