"""``agssp-zoo export``: a model as one ONNX file."""

from __future__ import annotations

import argparse
import sys

from agssp_zoo.commands.options import add_hub_arguments, hub_options, print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``export``."""
    parser.add_argument("model", help="a model's name, the path of a model folder, or hf://owner/repo[@revision]")
    parser.add_argument(
        "--out", metavar="FILE", help="the file to write (default: model.onnx in the model's own folder)"
    )
    parser.add_argument("--raw", action="store_true", help="leave decoding and NMS out (default file: model_raw.onnx)")
    parser.add_argument("--opset", type=int, help="ONNX operator set (default: the oldest that has all we need)")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the file's answers with PyTorch's")
    add_hub_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Exports, and prints where the file is."""
    from agssp_zoo import hub

    from .exporter import OPSET, export_onnx

    folder = hub.resolve(args.model, **hub_options(args))
    path = export_onnx(
        folder, args.out, raw=args.raw, opset=OPSET if args.opset is None else args.opset, verify=not args.no_verify
    )
    if args.json:
        print_json({"file": str(path), "bytes": path.stat().st_size, "verified": not args.no_verify})
    else:
        verified = "not verified" if args.no_verify else "verified against PyTorch"
        sys.stdout.write(f"{path} ({path.stat().st_size / 1e6:.1f} MB, {verified})\n")
    return 0
