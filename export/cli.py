"""``agssp-zoo export``: a model as one ONNX file, in float32, float16 or 8 bits."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from agssp_zoo.commands.options import add_hub_arguments, hub_options, print_json
from agssp_zoo.errors import InvalidArgumentError

SPLIT = "val"
MAX_DROP = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``export``."""
    parser.add_argument(
        "model",
        help="a model's name, the path of a model folder, or hf://owner/repo[@revision]; with --int8 or --fp16 also a "
        "float32 ONNX file",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the file to write (default: model.onnx, model.int8.onnx or model.fp16.onnx in the model's own folder)",
    )
    parser.add_argument("--raw", action="store_true", help="leave decoding and NMS out (default file: model_raw.onnx)")
    parser.add_argument("--opset", type=int, help="ONNX operator set (default: the oldest that has all we need)")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the file's answers with PyTorch's")
    parser.add_argument("--fp16", action="store_true", help="weights and arithmetic in float16, for GPUs")
    group = parser.add_argument_group("8 bits, for CPUs")
    group.add_argument("--int8", action="store_true", help="quantise; needs --calibration")
    group.add_argument(
        "--calibration",
        metavar="DIR",
        help="a hundred or more images from the line, without labels: a folder, or a pattern such as 'line/**/*'",
    )
    group.add_argument(
        "--validation",
        metavar="DATA",
        help="labelled images to measure map50_95 on (default: the agreement with the float model's detections)",
    )
    group.add_argument("--split", default=SPLIT, help="of the validation data (default: val)")
    group.add_argument(
        "--max-drop",
        type=float,
        default=MAX_DROP,
        metavar="POINTS",
        help="how many points of 100 it may fall by; nothing is written beyond (default: 0.5)",
    )
    group.add_argument(
        "--full-range",
        action="store_true",
        help="8-bit weights, for CPUs with VNNI only (default: 7 bits, which answer the same on every CPU)",
    )
    add_hub_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Exports, and prints where the file is."""
    if sum((args.raw, args.fp16, args.int8)) > 1:
        raise InvalidArgumentError("--raw, --fp16 and --int8 make different files; give one of them.")
    if args.int8 != (args.calibration is not None):
        given = "--int8 needs --calibration DIR" if args.int8 else "--calibration is for --int8"
        raise InvalidArgumentError(f"{given}: a folder with a hundred or more images from the line.")
    for option, wanted in (
        ("--validation", args.validation is not None),
        ("--max-drop", args.max_drop != MAX_DROP),
        ("--full-range", args.full_range),
    ):
        if wanted and not args.int8:
            raise InvalidArgumentError(f"{option} is for --int8.")
    if args.split != SPLIT and args.validation is None:
        raise InvalidArgumentError("--split is of the labelled images that --validation names; give that, too.")
    if (args.int8 or args.fp16) and args.model.endswith(".onnx") and args.revision is not None:
        raise InvalidArgumentError(f"{args.model} is a file on disk, which has no revisions; leave out --revision.")
    if (args.int8 or args.fp16) and (args.opset is not None or args.no_verify):
        raise InvalidArgumentError("--opset and --no-verify are for the float32 file, which the others are made of.")
    what, facts = _quantized(args) if args.int8 else _half(args) if args.fp16 else _float(args)
    if args.json:
        print_json(facts)
    else:
        sys.stdout.write(f"{facts['file']} ({facts['bytes'] / 1e6:.1f} MB, {what})\n")
    return 0


def _float(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from agssp_zoo import hub

    from .exporter import OPSET, export_onnx

    folder = hub.resolve(args.model, **hub_options(args))
    path = export_onnx(
        folder, args.out, raw=args.raw, opset=OPSET if args.opset is None else args.opset, verify=not args.no_verify
    )
    what = "not verified" if args.no_verify else "verified against PyTorch"
    return what, {"file": str(path), "bytes": path.stat().st_size, "verified": not args.no_verify}


def _half(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from .half import export_half

    path = export_half(_source(args), args.out)
    facts = {"file": str(path), "bytes": path.stat().st_size, "precision": "float16", "verified": True}
    return "float16, verified against float32", facts


def _quantized(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from agssp_zoo.training.data.progress import progress

    from .quantize import Int8Settings, export_int8

    settings = Int8Settings(max_drop=args.max_drop, full_range=args.full_range, split=args.split)
    result = export_int8(
        _source(args), args.calibration, args.out, validation=args.validation, settings=settings, progress=progress
    )
    what = f"int8, {result.measure} {result.after.points:.2f} after {result.before.points:.2f}"
    if result.before.map50 is not None:
        what += f", map50 {result.after.map50:.2f} after {result.before.map50:.2f}"
    return f"{what}; {result.chosen}, the best of {len(result.trials)} trials", {
        "file": str(result.path),
        "bytes": result.path.stat().st_size,
        "precision": "int8",
        "measure": result.measure,
        "before": result.before.points,
        "after": result.after.points,
        "map50_before": result.before.map50,
        "map50_after": result.after.map50,
        "method": result.chosen.method,
        "images": result.chosen.images,
        "rounding": result.chosen.rounding,
        "trials": [
            {
                "method": trial.method,
                "images": trial.images,
                "rounding": trial.rounding,
                "points": trial.judgement.points,
                "map50": trial.judgement.map50,
            }
            for trial in result.trials
        ],
    }


def _source(args: argparse.Namespace) -> Any:
    """A file as it is, anything else found and checked."""
    if args.model.endswith(".onnx"):
        return args.model
    from agssp_zoo import hub

    return hub.resolve(args.model, **hub_options(args))
