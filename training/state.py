"""The state of a run on the disk: one safetensors file and the JSON file that names it.

``state.json`` is replaced last and names the tensor file that belongs to it, so whenever a process dies, the pair that
``state.json`` describes is whole. No pickles.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agssp_zoo.errors import TrainingError
from agssp_zoo.folder import sha256_file

JSON_NAME = "state.json"


def save_state(folder: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any], step: int) -> None:
    """Writes a state; the one before is removed only when the new one is whole.

    Raises:
        TrainingError: it cannot be written (e.g. the disk is full); the state before is still there.
    """
    from safetensors.torch import save_file

    name = f"state-{step:08d}.safetensors"
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary)
        _sync(temporary)
        content = dict(values, step=step, tensors=name, sha256=sha256_file(temporary))
        temporary.replace(folder / name)
        write_text(folder / JSON_NAME, json.dumps(content, indent=1))
    except Exception as error:  # safetensors reports a full disk as an exception of its own
        temporary.unlink(missing_ok=True)
        kept = saved_step(folder)
        after = "no earlier state exists" if kept is None else f"the state of step {kept} is kept and --resume goes on"
        raise TrainingError(f"{folder}: the state of step {step} cannot be written ({error}); {after}.") from error
    for old in folder.glob("state-*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)
    for old in folder.glob(".state-*.tmp"):
        old.unlink(missing_ok=True)


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The last whole state, or ``None`` when none was saved yet.

    Raises:
        TrainingError: the files are there but damaged.
    """
    from safetensors.torch import load_file

    file = folder / JSON_NAME
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_bytes())
        path = folder / values["tensors"]
        if sha256_file(path) != values["sha256"]:
            raise TrainingError(f"{path}: differs from its checksum in {file}; the state is damaged, start a new run.")
        return load_file(path), values
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(f"{file}: the state cannot be read ({error}); start a new run.") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file under a temporary name, then renames it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def module_tensors(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """A module's parameters and buffers under prefixed names."""
    return {f"{prefix}.{name}": value for name, value in module.state_dict().items()}


def restore_module(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """The reverse of :func:`module_tensors`."""
    start = prefix + "."
    module.load_state_dict({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimizer remembers of every parameter, as tensors named by the parameter's number."""
    tensors = {}
    for number, memory in optimizer.state_dict()["state"].items():
        for name, value in memory.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{number}.{name}"] = value
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The reverse of :func:`optimizer_tensors`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            number, _, name = rest.partition(".")
            parameter = parameters[int(number)]
            if value.shape == parameter.shape:
                # The fused kernels walk memory, not indices: the layout must be the parameter's (channels last).
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            state.setdefault(int(number), {})[name] = value
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def saved_step(folder: Path) -> int | None:
    """The step of the saved state, ``None`` where there is none."""
    try:
        return int(json.loads((folder / JSON_NAME).read_bytes())["step"])
    except (OSError, ValueError, KeyError):
        return None
