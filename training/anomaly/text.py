"""What "normal" and "abnormal" mean in CLIP's space: ensembles of sentences about an object.

Each side has four generic states and the detailed descriptions of the prompt file, each state in 21 templates. The
features of a side are averaged and normalised; then the mean feature of the templates without an object, which only
says that something is a photo, is taken away from both (KeAD, Liu et al. 2026, section 3; redundant features after Li
et al., CLIP Surgery, 2023), and both are normalised again, since patches are compared by the cosine. Without that the
subtraction would have no effect: it would move both logits of the softmax by the same amount.

Features lie on disk, under the user's cache folder, by model and sentences.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .prompts import PromptSet

if TYPE_CHECKING:
    from .clip import Clip

NORMAL_STATES = (
    "sound {object}",
    "{object} without any flaw",
    "clean and intact {object}",
    "{object} that passed inspection",
)
ABNORMAL_STATES = (
    "faulty {object}",
    "{object} with a flaw",
    "damaged and blemished {object}",
    "{object} that failed inspection",
)
"""Generic states; ``{object}`` is the prompt file's object."""

TEMPLATES = (
    "a photo of {}.",
    "a photo showing {}.",
    "a close photo of {}.",
    "a photo of {} from a short distance.",
    "a photo of {} from further away.",
    "a cropped photo of {}.",
    "a gray-scale photo of {}.",
    "a dark photo of {}.",
    "a brightly lit photo of {}.",
    "a sharp photo of {}.",
    "a slightly blurred photo of {}.",
    "a noisy photo of {}.",
    "a low-resolution photo of {}.",
    "a high-resolution photo of {}.",
    "a photo of {} under raking light.",
    "a photo of {} taken on the production line.",
    "a line-scan camera photo of {}.",
    "a photo of {} for quality control.",
    "an enlarged photo of a part of {}.",
    "a microscope photo of {}.",
    "one of many photos of {}.",
)
"""Photo templates; ``{}`` is the state, or nothing at all for the redundant feature."""

_VERSION = 1
"""Raised when the arithmetic changes, so that older cache files are not read."""


@dataclass(frozen=True)
class Sentences:
    """All sentences about an object: of its normal states, of its abnormal ones, and without any object."""

    normal: tuple[str, ...]
    abnormal: tuple[str, ...]
    empty: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of the sentences."""
        return hashlib.sha256(json.dumps([self.normal, self.abnormal, self.empty]).encode()).hexdigest()


def sentences(prompts: PromptSet) -> Sentences:
    """Every state of an object in every template."""
    normal, abnormal = states(prompts)
    return Sentences(in_templates(normal), in_templates(abnormal), in_templates([""]))


def states(prompts: PromptSet) -> tuple[list[str], list[str]]:
    """The normal and the abnormal states of an object, the generic ones first."""
    generic = [[s.replace("{object}", prompts.object) for s in side] for side in (NORMAL_STATES, ABNORMAL_STATES)]
    return [*generic[0], *prompts.normal_states], [*generic[1], *prompts.defect_states]


def in_templates(states: Sequence[str]) -> tuple[str, ...]:
    """Every state in every template, state after state."""
    return tuple(template.replace("{}", state) for state in states for template in TEMPLATES)


def text_features(clip: Clip, prompts: PromptSet, cache: Path | None = None) -> Tensor:
    """Features of the normal and of the abnormal side.

    Args:
        clip: the model.
        prompts: what the object looks like.
        cache: folder for features; left out: :func:`cache_folder`.

    Returns:
        float32 (2, D): normal, abnormal; the redundant feature is subtracted, then L2-normalised. On the CPU.

    Raises:
        InvalidArgumentError: a description has more tokens than the model reads.
    """
    texts = sentences(prompts)
    about = {
        "version": str(_VERSION),
        "model": clip.name,
        "weights": clip.sha256,
        "quick_gelu": str(clip.quick_gelu),
        "sentences": texts.sha256,
    }
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    file = (cache or cache_folder()) / f"{name}.safetensors"
    parts = _read(file, about)
    if parts is None:
        # The object's name only tells people what the file is.
        parts = {side: ensemble(clip, getattr(texts, side)) for side in ("normal", "abnormal", "empty")}
        _write(file, parts, {**about, "object": prompts.object})
    sides = [F.normalize(parts[side], dim=0) - parts["empty"] for side in ("normal", "abnormal")]
    return F.normalize(torch.stack(sides), dim=-1)


def ensemble(clip: Clip, texts: tuple[str, ...]) -> Tensor:
    """The mean of the sentences' normalised features, float32 (D,)."""
    return clip.encode_text(texts).mean(dim=0)


def cache_folder() -> Path:
    """Where text features are kept: ``agssp-zoo/text`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "agssp-zoo" / "text"


def _read(file: Path, about: dict[str, str]) -> dict[str, Tensor] | None:
    """The features of a cache file; ``None`` when there is none, or it is damaged or of something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as stored:
            kept = stored.metadata() or {}
            if any(kept.get(key) != value for key, value in about.items()):
                return None
            return {side: stored.get_tensor(side) for side in ("normal", "abnormal", "empty")}
    except (OSError, SafetensorError):
        return None


def _write(file: Path, parts: dict[str, Tensor], about: dict[str, str]) -> None:
    """Keeps features; a cache that cannot be written costs time, nothing else."""
    from safetensors.torch import save_file

    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({side: values.contiguous() for side, values in parts.items()}, str(temporary), metadata=about)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
