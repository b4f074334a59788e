"""ONNX Runtime's execution providers: by name, there or an error, never the CPU in place of what was asked for."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence

import onnxruntime

from agssp_zoo.engines.base import Provider
from agssp_zoo.errors import EngineError, InvalidArgumentError

CPU = "CPUExecutionProvider"
_DEVICES = {
    "cpu": (CPU,),
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
    "rocm": ("ROCMExecutionProvider",),
    "migraphx": ("MIGraphXExecutionProvider",),
    "dml": ("DmlExecutionProvider",),
    "coreml": ("CoreMLExecutionProvider",),
}
"""Device -> its providers; TensorRT leaves to CUDA what it does not know."""
_NUMBERED = frozenset({"cuda", "tensorrt", "rocm", "migraphx", "dml"})
_GPU = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
_INSTALL = {
    "CUDAExecutionProvider": f"`{_GPU}`, and NVIDIA's driver",
    "TensorrtExecutionProvider": f"`{_GPU}` and `pip install tensorrt`, and NVIDIA's driver",
    "ROCMExecutionProvider": "AMD's build of ONNX Runtime (onnxruntime-rocm)",
    "MIGraphXExecutionProvider": "AMD's build of ONNX Runtime (onnxruntime-migraphx)",
    "DmlExecutionProvider": "`pip install onnxruntime-directml` (Windows)",
    "CoreMLExecutionProvider": "`pip install onnxruntime` on macOS",
    "OpenVINOExecutionProvider": "`pip install onnxruntime-openvino`, or take engine='openvino'",
}
_PACKAGE = "onnxruntime"
_BUILDS = ("gpu", "directml", "openvino", "rocm", "migraphx", "training", "training-gpu", "silicon", "azure", "qnn")
_SHARING = frozenset({_PACKAGE, *(f"{_PACKAGE}-{build}" for build in _BUILDS)})
"""Distributions that install the one package ``onnxruntime``."""


def providers_for(device: str) -> list[Provider]:
    """The execution providers of a device, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"tensorrt"`` ...

    Raises:
        EngineError: ONNX Runtime has none for it here.
    """
    kind, _, number = device.partition(":")
    names = _DEVICES.get(kind)
    if names is None or (number and (kind not in _NUMBERED or not number.isdecimal())):
        known = ", ".join(map(repr, _DEVICES))
        raise EngineError(f"device={device!r}: engine='onnx' knows {known}, or give providers=[...].")
    check_providers(names)
    if kind in _NUMBERED:
        return [(name, {"device_id": int(number or 0)}) for name in names]
    return list(names)


def full_names(providers: Sequence[Provider]) -> list[Provider]:
    """Short names, as of devices, in ONNX Runtime's own: ``"cuda"`` is ``"CUDAExecutionProvider"``.

    Raises:
        InvalidArgumentError: one is neither a name nor (name, options).
    """
    for one in providers:
        pair = isinstance(one, (tuple, list)) and len(one) == 2 and isinstance(one[0], str)
        if not (isinstance(one, str) or (pair and isinstance(one[1], Mapping))):
            raise InvalidArgumentError(f"providers holds {one!r}; give names, such as 'cuda', or (name, options).")
    known = {name.lower(): name for name in (*_INSTALL, CPU)}

    def full(name: str) -> str:
        return known.get(f"{name.lower()}executionprovider", known.get(name.lower(), name))

    return [full(one) if isinstance(one, str) else (full(one[0]), one[1]) for one in providers]


def check_providers(names: Sequence[str]) -> None:
    """Raises EngineError when ONNX Runtime was not built with one of the providers: what there is, what to install."""
    there = onnxruntime.get_available_providers()
    if missing := [name for name in names if name not in there]:
        raise EngineError(
            f"ONNX Runtime has no {', '.join(map(str, missing))} here; it has {', '.join(there)}. {_advice(missing)}"
        )


def check_in_use(names: Sequence[str], in_use: Sequence[str]) -> None:
    """Raises EngineError when a session goes without one of the providers that it was asked to use."""
    if missing := [name for name in names if name not in in_use]:
        raise EngineError(
            f"{', '.join(missing)} cannot be used here (its libraries or its device do not load); in use would be "
            f"{', '.join(in_use)}, which was not asked for. {_advice(missing)}"
        )


def load_libraries(names: Sequence[str]) -> None:
    """Lets ONNX Runtime find CUDA's libraries where pip has put them; it does not look there by itself."""
    preload = getattr(onnxruntime, "preload_dlls", None)  # from 1.21 on
    if preload is not None and any(name in names for name in _DEVICES["tensorrt"]):
        # It prints what it does not find; whether the provider works is seen from the session.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            preload()


def check_installation() -> None:
    """Raises EngineError when the package has lost its files, as uninstalling one of two distributions leaves it."""
    if not hasattr(onnxruntime, "InferenceSession"):
        raise EngineError(
            f"The package onnxruntime is incomplete. {side_by_side() or ''} Run `pip install --force-reinstall "
            "onnxruntime`, or onnxruntime-gpu for a GPU.".replace("  ", " ")
        )


def side_by_side(path: Iterable[str] | None = None) -> str | None:
    """What is wrong when several distributions of ONNX Runtime are installed; ``None`` when it is one.

    They all bring the same package, so the files of the last one installed count, whichever that was, and uninstalling
    one of them takes files from the other.

    Args:
        path: where to look for distributions; ``None``: on ``sys.path``.
    """
    from importlib.metadata import distributions  # which reads mail headers, and takes as long to import as that sounds

    everything = distributions() if path is None else distributions(path=list(path))
    found: dict[str, str] = {}
    for distribution in everything:
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name in _SHARING:
            found.setdefault(name, distribution.version)
    if len(found) < 2:
        return None
    listed = " and ".join(f"{name} {version}" for name, version in sorted(found.items()))
    wanted = next((name for name in sorted(found) if name != _PACKAGE), _PACKAGE)
    return (
        f"{listed} are installed side by side and write into the same folder, so that the one installed last counts; "
        f"keep one: `pip uninstall -y {' '.join(sorted(found))}`, then `pip install {wanted}`."
    )


def _advice(missing: Sequence[str]) -> str:
    """What to do about providers that are missing."""
    if both := side_by_side():
        return both
    ways = [_INSTALL[name] for name in missing if name in _INSTALL]
    if not ways:
        return "Check the name, or install a build of ONNX Runtime that has it."
    return f"Install what it needs in place of onnxruntime: {'; '.join(dict.fromkeys(ways))}."
