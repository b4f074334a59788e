"""CLIP models of open_clip: found by name or on disk, read without executing anything, and what they make of texts.

>>> clip = load_clip()                                                      # ViT-B-16-plus-240, laion400m_e32
>>> clip = load_clip("ViT-L-14-336", "openai")                              # another model and its weights
>>> clip = load_clip("ViT-B-16-plus-240", "weights/clip.safetensors")       # weights on disk
>>> clip = load_clip("folder")                                              # open_clip_config.json and weights
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from agssp_zoo.errors import (
    InvalidArgumentError,
    MissingDependencyError,
    ModelNotFoundError,
)
from agssp_zoo.file_names import user_path
from agssp_zoo.hub import huggingface_hub

from ..data.progress import progress
from .clip_weights import SUFFIXES, find_weights, hash_state, load_weights, quietly
from .parallel_paths import ParallelPaths

DEFAULT_MODEL = "ViT-B-16-plus-240"
DEFAULT_WEIGHTS = "laion400m_e32"
NO_WEIGHTS = "none"
"""Newly drawn weights, for tests and for measuring speed."""
CONFIG_FILE = "open_clip_config.json"

CONTEXT = 77
"""Tokens that CLIP models read of a sentence, those of start and end included."""

_TEXT_BATCH = 64
_LONGEST = 512
"""Tokens that a sentence is cut at when they are counted."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP model, in evaluation mode.

    Attributes:
        name: the architecture, as open_clip calls it.
        sha256: of the weights in memory: names, shapes and float32 values.
        quick_gelu: whether it computes OpenAI's approximation of GELU.
        paths: the image tower, both paths.
        size: (height, width) of its input in pixels.
        mean: of the channels, 0-1, RGB.
        std: likewise.
        module: open_clip's module; ``None`` where the texts are done with.
        tokenizer: texts -> int64 (N, context).
    """

    name: str
    sha256: str
    quick_gelu: bool
    paths: ParallelPaths
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    module: Any
    tokenizer: Any

    def preprocess(self, image: NDArray[np.uint8]) -> Tensor:
        """Squashes an image onto the network's canvas (bicubic) and normalises it.

        Args:
            image: uint8 (height, width, 3), RGB.

        Returns:
            float32 (3, S, S).
        """
        squashed = Image.fromarray(image).resize((self.size[1], self.size[0]), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(squashed)).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(part).reshape(3, 1, 1) for part in (self.mean, self.std))
        return ((values - mean) / std).contiguous()

    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """Embeddings of sentences, float32 (N, D), L2-normalised, on the CPU.

        Raises:
            InvalidArgumentError: a sentence has more tokens than the model reads.
        """
        tokens = self._tokens(sentences)
        device = next(self.module.parameters()).device
        batches = torch.split(tokens, _TEXT_BATCH)
        with torch.no_grad():
            parts = [
                self.module.encode_text(part.to(device)).float().cpu()
                for part in progress(batches, len(batches), "descriptions")
            ]
        return F.normalize(torch.cat(parts), dim=-1)

    def _tokens(self, sentences: Sequence[str]) -> Tensor:
        from open_clip.tokenizer import SimpleTokenizer

        if isinstance(self.tokenizer, SimpleTokenizer):
            # It cuts silently what is too long; with room for one more token that shows.
            context = self.tokenizer.context_length
            for sentence, row in zip(
                sentences, self.tokenizer(list(sentences), context_length=context + 1), strict=True
            ):
                if int(row[context]):
                    raise InvalidArgumentError(
                        f"A description is longer than the {context} tokens that {self.name} reads: {sentence!r}; "
                        "shorten it in the prompt file."
                    )
        tokens: Tensor = self.tokenizer(list(sentences))
        return tokens


def count_tokens(sentences: Sequence[str]) -> list[int]:
    """How many tokens CLIP's own tokenizer makes of sentences, with those of start and end; needs no model.

    Raises:
        MissingDependencyError: open_clip is not installed.
    """
    _import_open_clip()
    from open_clip.tokenizer import SimpleTokenizer

    tokens: Tensor = SimpleTokenizer()(list(sentences), context_length=_LONGEST)
    counts: list[int] = (tokens.argmax(dim=1) + 1).tolist()  # the end has the highest number
    return counts


def load_clip(
    model: str = DEFAULT_MODEL,
    weights: str | None = None,
    *,
    size: int | None = None,
    taps: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
) -> Clip:
    """Finds and loads a CLIP model.

    Args:
        model: a name of open_clip (``open_clip.list_models()``), a folder with ``open_clip_config.json``,
            ``hf-hub:owner/repo``, or a file with weights of the default model.
        weights: a tag of open_clip, a file (safetensors, or a checkpoint of torch that holds nothing but tensors), or
            ``"none"`` for newly drawn ones. Left out: what lies in the folder, ``laion400m_e32`` for the default model.
        size: side of the input in pixels, if another than the model's; position embeddings are resized.
        taps: as for :class:`~.parallel_paths.ParallelPaths`.
        device: where the image tower computes.

    Raises:
        ModelNotFoundError: no such model, tag or file.
        InvalidArgumentError: the model is no CLIP vision transformer with a class token (SigLIP, CoCa, ResNets), or
            size or taps do not fit it.
        CheckpointError, UnsafeCheckpointError: the weights do not fit, or the file holds more than tensors.
        HubError: the weights cannot be downloaded.
        MissingDependencyError: open_clip is not installed.
    """
    open_clip = _import_open_clip()
    model, weights = _settle(open_clip, model, weights)
    tag = _tag(open_clip, model, weights)
    try:
        with quietly():
            module: Any = open_clip.create_model(
                model,
                load_weights=False,
                pretrained_text=False,
                force_quick_gelu=bool(tag.get("quick_gelu")),
                force_image_size=size,
                force_preprocess_cfg={key: tag[key] for key in ("mean", "std") if key in tag},
            )
    except (ImportError, OSError, RuntimeError, ValueError, AssertionError) as error:
        what = f", --size {size}" if size else ""
        raise ModelNotFoundError(f"open_clip cannot build {model}{what}: {error}") from None
    name = model.removeprefix("local-dir:").rstrip("/").rpartition("/")[2]
    paths = ParallelPaths(module.visual, taps, name)
    if size is not None and size % _side(module.visual.patch_size):
        patch = _side(module.visual.patch_size)
        raise InvalidArgumentError(f"--size {size}: {name} has patches of {patch} pixels; give a multiple of that.")
    if weights != NO_WEIGHTS:
        load_weights(open_clip, module, name, find_weights(open_clip, model, weights, tag))
    tokenizer = _tokenizer(open_clip, model)
    about = module.visual.preprocess_cfg
    module.eval().requires_grad_(False)
    return Clip(
        name=name,
        sha256=hash_state(module),
        quick_gelu=any(type(part).__name__ == "QuickGELU" for part in module.modules()),
        paths=paths.to(device),
        size=tuple(module.visual.image_size),
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
        module=module,
        tokenizer=tokenizer,
    )


def _import_open_clip() -> Any:
    huggingface_hub()  # which open_clip imports: first its telemetry is switched off
    try:
        import open_clip
    except ImportError:
        raise MissingDependencyError("Maps by text need open_clip; run `pip install 'agssp-zoo[train]'`.") from None
    return open_clip


def _tokenizer(open_clip: Any, model: str) -> Any:
    try:
        with quietly():
            return open_clip.get_tokenizer(model)
    except (ImportError, OSError, RuntimeError, ValueError, AssertionError) as error:
        raise ModelNotFoundError(f"open_clip cannot build the tokenizer of {model}: {error}") from None


def _settle(open_clip: Any, model: str, weights: str | None) -> tuple[str, str]:
    """The model as open_clip's factory takes it, and which weights: a tag, a path, ``"none"``, or empty for its own."""
    path, names = user_path(model), open_clip.list_models()
    if path.is_dir() and model not in names:
        if not (path / CONFIG_FILE).is_file():
            raise ModelNotFoundError(f"{model}: the folder holds no {CONFIG_FILE}, so it is no model of open_clip.")
        return f"local-dir:{path}", weights or ""
    if path.suffix in SUFFIXES:
        if weights:
            raise InvalidArgumentError(
                f"--clip {model} is a file of weights, and --clip-weights {weights} others; give the architecture's "
                f"name as --clip, such as {DEFAULT_MODEL}."
            )
        return DEFAULT_MODEL, model
    if model.startswith("hf-hub:"):
        return model, weights or ""
    if model not in names:
        close = difflib.get_close_matches(model, names, 3, 0.4)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ModelNotFoundError(f"open_clip has no model {model!r}, and there is no such folder{hint}")
    if weights is None and model != DEFAULT_MODEL:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise InvalidArgumentError(
            f"Which weights of {model}? Give --clip-weights with a file or a tag of open_clip (it has: {tags})."
        )
    return model, DEFAULT_WEIGHTS if weights is None else weights


def _tag(open_clip: Any, model: str, weights: str) -> dict[str, Any]:
    """What open_clip knows about weights of a tag; empty for a file.

    Raises:
        ModelNotFoundError: no such tag or file.
    """
    if weights in ("", NO_WEIGHTS) or user_path(weights).is_file():
        return {}
    known = {} if ":" in model else open_clip.get_pretrained_cfg(model, weights)
    if not known:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise ModelNotFoundError(
            f"{weights!r} is no file, and no weights of {model} that open_clip knows (it has: {tags})."
        )
    return dict(known)


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, (tuple, list)) else size)
