"""Makes a model folder of a backbone's safetensors file, so that fine-tuning can start from it.

python -m benchmarks.backbone_folder --weights FILE --options v1_strides=true --out runs/gain/resnet50_imagenet
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    """Writes the folder."""
    from agssp_zoo import models
    from agssp_zoo.folder import sha256_file, write_folder
    from agssp_zoo.training.pretrain.settings import PretrainSettings
    from agssp_zoo.training.pretrain.start import build_backbone

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="architecture")
    parser.add_argument("--weights", required=True, help="the file")
    parser.add_argument("--options", nargs="*", default=[], help="of the architecture")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    settings = PretrainSettings(model=args.model, weights=args.weights, options=tuple(args.options))
    module = build_backbone(settings).module
    file = Path(args.weights)
    config = module.config.replace(
        name=f"{args.model}.imagenet", provenance={"source": file.name, "source_sha256": sha256_file(file)}
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_folder(
        args.out,
        config,
        {"model.safetensors": lambda path: models.save_weights(module, path, config)},
        overwrite=True,
    )
    print(f"{args.out}: {config.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
