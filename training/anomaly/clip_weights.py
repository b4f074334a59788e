"""Weights of CLIP models: found or downloaded, read without executing anything, and known by their hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agssp_zoo.errors import CheckpointError, HubError, ModelNotFoundError, UnsafeCheckpointError
from agssp_zoo.file_names import user_path

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
"""Files of weights, the preferred ones first."""


def find_weights(open_clip: Any, model: str, weights: str, tag: dict[str, Any]) -> Path:
    """The file with the weights; downloads it where open_clip has it and it is not in the cache."""
    if weights and not tag:
        return user_path(weights)
    if model.startswith("local-dir:"):
        folder = Path(model.removeprefix("local-dir:"))
        files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
        files.sort(key=lambda file: (SUFFIXES.index(file.suffix), not file.name.startswith("open_clip")))
        if not files:
            raise ModelNotFoundError(f"{folder}: holds no weights ({', '.join('*' + s for s in SUFFIXES)}).")
        return files[0]
    try:
        with quietly():
            if tag:
                return Path(open_clip.download_pretrained(tag))
            return Path(open_clip.pretrained.download_pretrained_from_hf(model.removeprefix("hf-hub:")))
    except Exception as error:  # whatever the client raises: no network, no access, a full disk
        raise HubError(
            f"The weights {weights} of {model} are not on this machine and cannot be downloaded ({error}); bring the "
            "file here by other means and give it as --clip-weights FILE."
        ) from None


def load_weights(open_clip: Any, module: Any, name: str, file: Path) -> None:
    """Reads weights into a model; of a pickle only tensors and plain containers are made.

    Raises:
        CheckpointError: they cannot be read or do not fit; UnsafeCheckpointError where the file holds other objects.
    """
    if file.suffix not in SUFFIXES:
        raise CheckpointError(f"{file}: is no file of weights; give one of {', '.join('*' + s for s in SUFFIXES)}.")
    try:
        with quietly(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what it then refuses
            open_clip.load_checkpoint(module, str(file), strict=True, weights_only=True)
    except pickle.UnpicklingError:
        raise UnsafeCheckpointError(
            f"{file}: holds more than tensors, or is damaged; nothing of it was executed. Give the weights as "
            "safetensors, or as a checkpoint with nothing but its state_dict."
        ) from None
    except Exception as error:  # a damaged file can fail in any way
        lines = str(error).strip().splitlines() or [type(error).__name__]
        detail = " ".join(line.strip() for line in lines[:3])[:400]
        raise CheckpointError(
            f"{file}: cannot be read as weights of {name} ({detail}); give the architecture that they belong to as "
            "--clip, and a file in open_clip's layout."
        ) from None


def hash_state(module: Any) -> str:
    """A sha256 over the weights: names, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(json.dumps([name, str(values.dtype), list(values.shape)]).encode())
        digest.update(memoryview(values.numpy().reshape(-1)).cast("B"))
    return digest.hexdigest()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """open_clip reports each step to the root logger, and sets it up by that; a library leaves it to the program."""
    root = logging.getLogger()
    handlers, disabled = root.handlers[:], root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
