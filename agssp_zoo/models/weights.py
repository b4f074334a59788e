"""Weights in safetensors files: read, write, and fill a network.

A file holds float32, or float16 for matrices (tensors of two and more dimensions); in memory everything is float32.
Its metadata names the architecture and the options that the weights belong to. BatchNorm's ``num_batches_tracked``
is not written and, where a file has it, not needed: every BatchNorm here has a fixed momentum.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from agssp_zoo.config import ModelConfig
from agssp_zoo.errors import CheckpointError, IntegrityError

COUNTER = "num_batches_tracked"


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a safetensors file.

    Returns:
        the tensors as stored, on the CPU, and the file's metadata.

    Raises:
        IntegrityError: the file is missing, truncated or no safetensors file.
    """
    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise IntegrityError(
            f"{path}: cannot be read as safetensors ({error}); it is missing, truncated or another file. "
            "Download or convert the model again."
        ) from None


def load_weights(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Fills a network from a safetensors file; every name and shape must agree, but for an ImageNet classifier's.

    Parameters on the meta device (``build(config, init=False)``) take the file's tensors over, others are
    overwritten in place, in their own dtype and on their own device.

    Args:
        module: a network of :mod:`agssp_zoo.models`.
        path: the file.

    Raises:
        IntegrityError: the file cannot be read.
        CheckpointError: the file is of another architecture or of other options (its metadata says so), or names
            or shapes disagree; the message lists them.
    """
    state, metadata = read_weights(path)
    config = getattr(module, "config", None)
    if isinstance(config, ModelConfig):
        check_metadata(metadata, config, str(path))
    load_state(module, state, where=str(path))


def _is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; a sum tells in a fifth of the time, unless it is too large itself."""
    return math.isfinite(tensor.sum(dtype=torch.float32)) or bool(tensor.isfinite().all())


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Fills a network from tensors under its own names; see :func:`load_weights`.

    Args:
        module: the network.
        state: name to tensor; ``num_batches_tracked`` may be there or not, as may what a :class:`ZooModule` names in
            ``spare_entries``.
        where: the source, for messages.

    Raises:
        CheckpointError: names or shapes disagree, or values are no floats (quantised weights, say) or not finite.
    """
    own = module.state_dict()
    spare: tuple[str, ...] = getattr(module, "spare_entries", ())
    state = {name: tensor for name, tensor in state.items() if not name.startswith(spare)}
    problems = compare_shapes(
        {name: tuple(tensor.shape) for name, tensor in own.items()},
        {name: tuple(tensor.shape) for name, tensor in state.items()},
    )
    if problems:
        raise CheckpointError(f"{where} does not fit the network. {problems}")
    floats = [name for name, tensor in own.items() if tensor.is_floating_point() and name in state]
    wrong = [name for name in floats if not state[name].is_floating_point()]
    if wrong:
        raise CheckpointError(
            f"{where} holds {str(state[wrong[0]].dtype).removeprefix('torch.')} values, of which no network can be "
            f"made: {shorten(wrong)}. Give weights in float32 or float16."
        )
    unreal = [name for name in floats if not _is_finite(state[name])]
    if unreal:
        raise CheckpointError(
            f"{where} holds NaN or infinity, with which a network answers nothing: {shorten(unreal)}. The file is "
            "damaged, or its training went astray; take an earlier state of it."
        )
    device = torch.device("cpu")
    filled = {}
    for name, tensor in own.items():
        value = state.get(name)
        if value is None:
            value = torch.zeros((), dtype=tensor.dtype)
        # Half precision is for storage only; what is computed with is float32, or what the caller's module has.
        if tensor.is_meta:
            filled[name] = value.to(device, tensor.dtype)
        else:
            filled[name] = value
    assign = any(tensor.is_meta for tensor in own.values())
    module.load_state_dict(filled, strict=True, assign=assign)


def save_weights(
    module: nn.Module, path: str | os.PathLike[str], config: ModelConfig, *, half_matrices: bool = False
) -> None:
    """Writes a network's weights as safetensors, under a temporary name first.

    Args:
        module: the network; its tensors may lie on any device.
        path: the file, replaced if it is there.
        config: its architecture and options go into the metadata.
        half_matrices: store tensors of two and more dimensions as float16; vectors always stay float32, since
            BatchNorm variances overflow in float16.

    Raises:
        CheckpointError: a value is not finite, or too large for float16.
    """
    state = {}
    for name, tensor in module.state_dict().items():
        if name.endswith(COUNTER):
            continue
        value = tensor.detach().to("cpu", torch.float32) if tensor.is_floating_point() else tensor.detach().cpu()
        if half_matrices and value.ndim >= 2 and value.is_floating_point():
            value = value.to(torch.float16)
        if not _is_finite(value):
            raise CheckpointError(f"{name} holds NaN or infinite values; weights like these are not written.")
        state[name] = value.contiguous()
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(handle)
    try:
        save_file(state, temporary, metadata=weights_metadata(config))
        _sort_metadata(Path(temporary))
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sort_metadata(path: Path) -> None:
    """Puts the header's metadata in alphabetical order: safetensors writes them in another one each time.

    Equal weights then make equal files, so that their checksums can be compared.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # it is, as nothing was added; spaces at the end are allowed
            file.seek(8)
            file.write(text.ljust(length))


def weights_metadata(config: ModelConfig) -> dict[str, str]:
    """What a weights file of a config says about itself."""
    return {"format": "pt", "architecture": config.architecture, "options": json.dumps(dict(config.options))}


def check_metadata(metadata: Mapping[str, str], config: ModelConfig, where: str) -> None:
    """Compares a file's metadata with a config.

    A file of another origin says nothing of itself. It is trusted to be of the config's architecture, as its shapes
    tell, but not to have default options, which no shape tells: the config must name them.

    Raises:
        CheckpointError: another architecture or other options, or options that nobody states.
    """
    from agssp_zoo.models.factory import get_architecture

    spec = get_architecture(config.architecture)
    architecture = metadata.get("architecture")
    if architecture is None:
        if unstated := sorted(spec.options.keys() - spec.visible_options - config.options.keys()):
            raise CheckpointError(
                f"{where} does not say with which {', '.join(unstated)} of {config.architecture} its weights were "
                "trained, and the shapes agree with all. Set it in config.json's options, e.g. "
                f'{{"{unstated[0]}": true}}.'
            )
        return
    if architecture != config.architecture:
        raise CheckpointError(
            f"{where} holds weights of {architecture}, but the config asks for {config.architecture}; "
            "use the config.json that belongs to the file."
        )
    try:
        options = json.loads(metadata.get("options", "{}"))
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict):
        raise IntegrityError(f"{where}: its metadata cannot be read; convert or download the model again.")
    # An option that is not named has its default.
    for key in sorted(options.keys() | config.options.keys()):
        default = spec.options.get(key)
        if options.get(key, default) != config.options.get(key, default):
            raise CheckpointError(
                f"{where} holds weights of {architecture} with {key}={options.get(key, 'default')}, but the config "
                f"has {key}={config.options.get(key, 'default')}; the shapes agree, the features would not. "
                "Set the option in config.json as the file says."
            )


def compare_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """Says how two sets of names and shapes differ; empty when they agree.

    ``num_batches_tracked`` may be missing.
    """
    missing = [n for n in expected if n not in found and not n.endswith(COUNTER)]
    unknown = [n for n in found if n not in expected]
    wrong = [f"{n} {found[n]} instead of {expected[n]}" for n in expected if n in found and found[n] != expected[n]]
    parts = (("Missing", missing), ("Unknown", unknown), ("Misshapen", wrong))
    return " ".join(f"{title} ({len(names)}): {shorten(names)}." for title, names in parts if names)


def shorten(names: Iterable[str], limit: int = 20) -> str:
    """The names in one line, cut short after ``limit``."""
    listed = list(names)
    more = f", and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
