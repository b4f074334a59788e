"""A CLIP small enough for tests, built through open_clip's own factory, and stored as a user would have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch

NAME = "agssp-test-clip"
VISION = {"image_size": 40, "layers": 8, "width": 48, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
CONFIG: dict[str, Any] = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}


def register(folder: Path, name: str = NAME, **changes: Any) -> str:
    """Adds a model to open_clip's; ``changes`` are of its ``vision_cfg``, or of the model for keys it has there."""
    config = json.loads(json.dumps(CONFIG))
    for key, value in changes.items():
        (config if key in ("quick_gelu",) else config["vision_cfg"])[key] = value
    file = folder / f"{name}.json"
    file.write_text(json.dumps(config))
    open_clip.add_model_config(file)
    return name


def build(name: str = NAME, seed: int = 0) -> Any:
    """The model with weights that make every part matter: attention is peaked, and no norm or bias is the identity."""
    torch.manual_seed(seed)
    model = open_clip.create_model(name, load_weights=False)
    with torch.no_grad():
        for key, values in model.named_parameters():
            if values.ndim == 1:
                values.add_(torch.randn_like(values) * 0.2)
            elif "in_proj" in key:
                values.mul_(2.5)
            elif "positional" in key or key.startswith("visual.conv1"):
                values.mul_(2.0)
    return model.eval()
