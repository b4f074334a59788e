"""``agssp-zoo thresholds``: the score threshold of every class of a model, and the IoU of its suppression."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agssp_zoo.commands.options import print_json, print_table
from agssp_zoo.errors import InvalidArgumentError
from agssp_zoo.file_names import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``thresholds``."""
    parser.add_argument("model", help="a model folder of your own, or an ONNX file")
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="thresholds.json of `agssp-zoo val`; without it the thresholds are shown",
    )
    parser.add_argument(
        "--unreached",
        choices=("refuse", "closest", "own"),
        default="refuse",
        help="a class whose wish was not reached: refuse the file, take its closest threshold, or leave the class at "
        "the model's own conf (default: refuse)",
    )
    parser.add_argument("--remove", action="store_true", help="one threshold for all classes again: the model's conf")
    parser.add_argument(
        "--iou", type=float, help="of two boxes of one class that overlap by more than this IoU, the better one stays"
    )


def run(args: argparse.Namespace) -> int:
    """Sets or shows; prints the threshold of every class."""
    from agssp_zoo import registry
    from agssp_zoo.folder import sha256_file
    from agssp_zoo.thresholds import WEIGHTS, ThresholdFile, check_fits, open_model, set_thresholds

    if not user_path(args.model).exists() and registry.find(args.model) is not None:
        raise InvalidArgumentError(
            f"{args.model} is a model of the registry; make a folder of your own of it with "
            f"`agssp-zoo download {args.model} --to DIR` and give that."
        )
    changed: list[Path] = []
    if args.file is not None and args.remove:
        raise InvalidArgumentError("give a file or --remove, not both.")
    if args.unreached != "refuse" and args.file is None:
        raise InvalidArgumentError("--unreached is about the classes of a FILE of `agssp-zoo val`; give that, too.")
    if args.iou is not None and not 0.0 <= args.iou <= 1.0:
        raise InvalidArgumentError(f"--iou is {args.iou:g}; it must lie in 0-1.")
    if args.iou is not None and args.file is not None:
        raise InvalidArgumentError(
            "the thresholds of a file were measured with one IoU; give the file or --iou, not both."
        )
    if args.iou is not None and not args.remove and (post := open_model(args.model)[0].postprocess) and post.class_conf:
        raise InvalidArgumentError(
            f"the thresholds of {args.model} were measured with IoU {post.iou:g}; with another they say something "
            "else: add --remove, and measure them again with `agssp-zoo val`."
        )
    if args.remove or args.iou is not None:
        changed = set_thresholds(args.model, {}, args.iou)
    elif args.file is not None:
        config, folder, _ = open_model(args.model)
        weights = folder / WEIGHTS if folder else None
        file = ThresholdFile.load(args.file)
        check_fits(file, config, sha256_file(weights) if weights and weights.is_file() else None)
        changed = set_thresholds(args.model, file.choose(args.unreached))
    config, _, _ = open_model(args.model)
    post = config.postprocess
    own = dict(post.class_conf) if post else {}
    if args.json:
        print_json(
            {
                "changed": list(map(str, changed)),
                "conf": post.conf if post else None,
                "class_names": list(config.class_names),
                "class_conf": own,
                "iou": post.iou if post else None,
            }
        )
        return 0
    print_table(
        [(name, f"{own[name]:g}" if name in own else f"{post.conf if post else 0:g} (conf)")
         for name in config.class_names]
        + [("IoU of the suppression", f"{post.iou:g}" if post else "")]
    )  # fmt: skip
    if changed:
        sys.stdout.write(f"written: {', '.join(map(str, changed))}\n")
    return 0
