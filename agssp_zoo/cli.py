"""The command ``agssp-zoo``: one parser, a table of sub-commands, and what becomes of errors.

Only the sub-command that was asked for is imported, and none for the top-level help. A sub-command is a module with

    def add_arguments(parser: argparse.ArgumentParser) -> None
    def run(args: argparse.Namespace) -> int

that imports nothing heavy itself. Exit codes: 0 done, 1 the work failed, 2 wrong usage, 130 interrupted, 129 and 143
ended by SIGHUP and SIGTERM.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from functools import partial

from agssp_zoo import __version__
from agssp_zoo.errors import AgsspZooError, InvalidArgumentError, MissingDependencyError
from agssp_zoo.surroundings import Terminated, ended_by_signals, in_words, open_missing_streams

COMMANDS = {
    "list": ("agssp_zoo.commands.list", "show which models there are"),
    "info": ("agssp_zoo.commands.info", "show what is known about a model"),
    "download": ("agssp_zoo.commands.download", "bring a model to disk, checked"),
    "predict": ("agssp_zoo.commands.predict", "find defects in images"),
    "watch": ("agssp_zoo.commands.watch", "find defects in images as they appear in a folder"),
    "benchmark": ("agssp_zoo.commands.benchmark", "measure what a detector costs on this machine"),
    "convert": ("agssp_zoo.commands.convert", "make a model folder of the authors' checkpoint"),
    "export": ("agssp_zoo.export.cli", "write a model as one ONNX file"),
    "publish": ("agssp_zoo.commands.publish", "upload a model folder to the Hub"),
    "check-data": ("agssp_zoo.training.data.check_cli", "check a data set before training"),
    "pack": ("agssp_zoo.training.data.pack_cli", "pack a data set into shards"),
    "prepare-data": ("agssp_zoo.training.data.prepare_cli", "make one pool of the data sets below a folder"),
    "val": ("agssp_zoo.training.evaluation.cli", "measure a detector on a data set"),
    "thresholds": ("agssp_zoo.commands.thresholds", "give the classes of a model score thresholds of their own"),
    "finetune": ("agssp_zoo.training.finetune", "train a detector on your own data"),
    "anomaly-maps": ("agssp_zoo.training.anomaly.maps_cli", "make anomaly maps of unlabelled images"),
    "prompts": ("agssp_zoo.training.anomaly.prompts_cli", "list and check the descriptions that maps by text use"),
    "pretrain-backbone": ("agssp_zoo.training.pretrain.cli", "pretrain a backbone on unlabelled images"),
    "pretrain-detector": (
        "agssp_zoo.training.pretrain.stage2_cli",
        "pretrain a detector on pseudo-boxes of anomaly maps",
    ),
    "agssp": (
        "agssp_zoo.training.pretrain.chain_cli",
        "maps, backbone and detector from unlabelled images, in one go",
    ),
    "pseudo-boxes": ("agssp_zoo.training.anomaly.boxes_cli", "make boxes of anomaly maps"),
    "anomaly-eval": ("agssp_zoo.training.anomaly.eval_cli", "measure anomaly maps against masks and boxes"),
    "draw-surfaces": ("agssp_zoo.training.synthetic.cli", "write a data set of drawn metal surfaces"),
}
"""Sub-command -> (its module, one line of help)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments without the program's name; ``None`` takes ``sys.argv``.

    Returns:
        The exit code.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        # A name that a pipe or a console cannot hold is no failure.
        codecs.register_error("agssp_zoo.escape", partial(_escape, keep_bytes=sys.stdout.errors != "strict"))
        sys.stdout.reconfigure(errors="agssp_zoo.escape")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # errors are told once, by us
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with ended_by_signals():
        return _main(argv)


def _main(argv: list[str]) -> int:
    """Parses and runs; errors become a line and an exit code."""
    args = None
    try:
        args = _parse(argv)
        if not args.debug:
            return _run(args)
    except SystemExit as stop:  # argparse has said what there was to say
        if args is not None:
            raise
        return stop.code if isinstance(stop.code, int) else 2
    except Terminated as ended:
        return _fail(f"ended by {ended.number.name}.", 128 + ended.number)
    except KeyboardInterrupt:
        return _fail("interrupted.", 130)
    except BrokenPipeError:  # whoever read the output has stopped, e.g. `agssp-zoo list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except InvalidArgumentError as error:
        return _fail(str(error), 2)
    except AgsspZooError as error:  # or the sub-command's module cannot be imported
        return _fail(str(error))
    except ModuleNotFoundError as error:
        return _fail(_missing(error, COMMANDS[args.command][0] if args else ""))
    except Exception as error:
        if args is None and "--debug" in argv:
            raise
        words = in_words(error) if isinstance(error, (OSError, MemoryError)) else ""
        return _fail(words or f"{type(error).__name__}: {error} (run again with --debug to see where)")
    return _run(args)


def _escape(error: UnicodeError, *, keep_bytes: bool) -> tuple[str | bytes, int]:
    r"""What becomes of a letter that an encoding lacks: ``\u4e2d``, so that JSON stays JSON.

    Args:
        error: what the encoder met.
        keep_bytes: whether bytes of file names that are no text stay what they are, as Python has it in the locale C.
    """
    import json

    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if keep_bytes and "\udc80" <= letter <= "\udcff":
        return os.fsencode(letter), error.start + 1
    return json.dumps(letter)[1:-1], error.start + 1


def _run(args: argparse.Namespace) -> int:
    """Runs the chosen sub-command and writes out what it has printed."""
    code: int = args.run(args)
    sys.stdout.flush()
    return code


def _fail(message: str, code: int = 1) -> int:
    """Prints a message as one line on stderr; returns the exit code."""
    with contextlib.suppress(OSError):  # the terminal is gone, or its reader
        print("agssp-zoo:", " ".join(message.split("\n")), file=sys.stderr, flush=True)  # noqa: T201
    return code


def _missing(error: ModuleNotFoundError, module_name: str) -> str:
    """What to install for a package that a sub-command's module misses; one extra is to be enough."""
    package = (error.name or "").partition(".")[0]
    extra = {"torch": "torch", "torchvision": "torch", "onnx": "export", "onnxscript": "export", "openvino": "openvino"}
    extra["cv2"] = "video"
    if module_name.startswith("agssp_zoo.training"):
        extra["torch"] = extra["torchvision"] = "train"
    if package == "agssp_zoo":
        return f"This installation has no {error.name}; install agssp-zoo again."
    return f"This needs {package}, which is not installed: pip install 'agssp-zoo[{extra.get(package, 'train')}]'."


def _parse(argv: list[str]) -> argparse.Namespace:
    """The parsed arguments; ``run`` in them is the sub-command's function."""
    parser = argparse.ArgumentParser(
        prog="agssp-zoo",
        description="Pretrained models for metallic surface defect detection: load, run, adapt, export.",
        epilog="`agssp-zoo COMMAND --help` explains a command. Documentation and examples: README.md of the project.",
    )
    parser.add_argument("--version", action="version", version=f"agssp-zoo {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
        )
        if name == chosen:
            _add_command(command, module)
    return parser.parse_args(argv)


def _add_command(parser: argparse.ArgumentParser, module_name: str) -> None:
    """Gives a sub-command's parser its arguments, from its module, and those that all of them have."""
    import importlib

    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(_missing(error, module_name)) from None
    module.add_arguments(parser)
    taken = parser._option_string_actions
    if "--json" not in taken:
        parser.add_argument("--json", action="store_true", help="print JSON for a machine to read")
    if "--debug" not in taken:
        parser.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
    parser.set_defaults(run=module.run)
