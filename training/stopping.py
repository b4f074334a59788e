"""Requests to stop: signals and the time limit, agreed on by all processes of a run."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

import torch

from agssp_zoo.surroundings import endings

if TYPE_CHECKING:
    from accelerate import Accelerator


class StopRequest:
    """Whether, and why, a run should stop at the next step.

    Args:
        accelerator: of the run's processes.
        time_limit: seconds from now; 0 has no limit.

    Attributes:
        signal: the number of the signal that this process was asked by; 0 before.
    """

    def __init__(self, accelerator: Accelerator, time_limit: float) -> None:
        self.accelerator = accelerator
        self.signal = 0
        self._deadline = time.monotonic() + time_limit if time_limit else math.inf

    def reason(self) -> str:
        """Why to stop, the same on all processes at least in being empty or not; all of them have to ask together."""
        reason = "time limit" if time.monotonic() > self._deadline else ""
        if self.signal:
            reason = f"stopped by {signal.Signals(self.signal).name}"
        if self.accelerator.num_processes > 1:
            flag = torch.tensor(float(bool(reason)), device=self.accelerator.device)
            if self.accelerator.reduce(flag, "sum").item() and not reason:
                reason = "another process was asked to stop"
        return reason

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """SIGTERM, SIGHUP and SIGINT ask the run to stop at the next step; a second SIGINT ends it at once.

        Below ``nohup`` SIGHUP stays ignored. Outside the main thread, where Python allows no handlers, signals keep
        their meaning.
        """

        def ask(number: int, _: FrameType | None) -> None:
            if self.signal and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.signal = int(number)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, ask) for number in endings()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
