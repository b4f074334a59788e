"""Where a run computes and in which precision: devices, processes, threads."""

from __future__ import annotations

import os
import time
import warnings
from typing import TYPE_CHECKING, Literal, Protocol

from agssp_zoo.errors import SettingError, TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

Precision = Literal["no", "bf16", "fp16"]

WORTH_BF16 = 1.2
"""``auto`` takes bfloat16 on a CPU where convolutions are more than this times as fast with it as in float32."""


class Compute(Protocol):
    """The settings of a run that say where and how it computes."""

    @property
    def device(self) -> str:
        """``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""

    @property
    def precision(self) -> Literal["auto", "no", "bf16", "fp16"]:
        """Of the network's arithmetic."""

    @property
    def threads(self) -> int:
        """CPU threads of the network; 0 for all cores."""

    @property
    def workers(self) -> int:
        """Processes that prepare images; -1 where it is left open."""


def build_accelerator(settings: Compute) -> Accelerator:
    """Device, precision and processes. ``settings.precision`` has to be settled (:func:`settle_precision`).

    Raises:
        TrainingError: the device is not there, or the processes know nothing of each other.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    kind = device_kind(settings.device)
    number = settings.device.partition(":")[2]
    if kind == "cuda" and number:
        torch.cuda.set_device(int(number))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        # accelerate keeps one state for good; a program's second run may want another device or precision.
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=kind == "cpu", mixed_precision=settings.precision)
    if accelerator.num_processes != processes:
        raise TrainingError(
            f"--device {settings.device}: {processes} processes were started, but they cannot work together on it; "
            "start one, or use --device cpu or cuda."
        )
    return accelerator


def device_kind(device: str) -> str:
    """``"cpu"``, ``"cuda"`` or ``"mps"``; ``auto`` takes a GPU where torch can use one.

    Raises:
        TrainingError: no such device.
    """
    import torch

    kind, _, number = device.partition(":")
    if kind == "auto" and not number:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind not in ("cpu", "cuda", "mps") or (number and not (kind == "cuda" and number.isdecimal())):
        raise SettingError(f"--device {device!r}: choose auto, cpu, cuda, cuda:N or mps.")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= int(number or 0):
            raise TrainingError(
                f"--device {device}: this machine has {count} usable CUDA devices; use --device cpu, or install a "
                "torch build that supports the GPU."
            )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise TrainingError("--device mps: there is no Apple GPU that torch can use; use --device cpu.")
    return kind


def settle_precision(settings: Compute) -> Precision:
    """The precision that ``auto`` stands for on this machine; what `accelerate launch` was told comes first.

    Warns of a precision that was asked for and that the processor emulates.
    """
    import torch

    if settings.precision != "auto":
        if settings.precision != "no" and is_main() and device_kind(settings.device) == "cpu" and not cpu_has_bf16():
            warnings.warn(
                f"--precision {settings.precision}: this processor has no such arithmetic and emulates it, several "
                "times slower than float32; give --precision no.",
                UserWarning,
                stacklevel=2,
            )
        return settings.precision
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if told == "bf16":
        return "bf16"
    if told == "fp16":
        return "fp16"
    kind = device_kind(settings.device)
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if kind == "cpu" and cpu_has_bf16() and _bf16_gain() > WORTH_BF16 else "no"


def settle_workers(settings: Compute, device: str) -> int:
    """The number of processes that prepare images for one process of training."""
    if settings.workers >= 0:
        return settings.workers
    # On the CPU the network itself takes the cores; one worker keeps up with it.
    return 1 if device == "cpu" else max(1, min(8, _cores() // local_processes() - 1))


def settle_threads(settings: Compute) -> int:
    """CPU threads of the network in one process."""
    return settings.threads or max(1, _cores() // local_processes())


def local_processes() -> int:
    """How many processes of this run this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that writes."""
    return os.environ.get("RANK", "0") == "0"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself; elsewhere it would be emulated, slower than float32."""
    import torch

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))


def _bf16_gain() -> float:
    """How many times as fast a convolution is in bfloat16 as in float32 on this CPU; a tenth of a second.

    Having the instructions says little: a step of training took two thirds of float32's time on an AMD EPYC, five
    fourths on an Intel Xeon whose AMX the virtual machine hides.
    """
    import torch

    fastest = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    image, kernel = torch.ones(2, 64, 56, 56), torch.ones(64, 64, 3, 3)  # nothing is drawn: seeds stay what they were
    with torch.inference_mode():
        for _ in range(5):  # in turns, so that other work on the machine slows both
            for dtype in fastest:
                pixels, weights = (t.to(dtype, memory_format=torch.channels_last) for t in (image, kernel))
                started = time.perf_counter()
                torch.nn.functional.conv2d(pixels, weights, padding=1)
                fastest[dtype] = min(fastest[dtype], time.perf_counter() - started)
    return fastest[torch.float32] / fastest[torch.bfloat16]
