"""The near end of a worker: starts its process, asks it, and ends it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from time import perf_counter
from types import TracebackType
from typing import Any

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""The variables that the engines' libraries take their number of threads from."""


class WorkerFailed(Exception):
    """A worker has refused its task or has died; the message says why."""


class Worker:
    """A process that runs :mod:`agssp_zoo.benchmark.worker`.

    Attributes:
        started: what it said after its first prediction, with ``"total"``: the seconds from starting the process.
    """

    def __init__(self, task: Mapping[str, Any], threads: int | None = None) -> None:
        """Starts the process and waits for its first prediction.

        Args:
            task: ``model``, ``engine`` (its name, or name:precision), ``device``, ``image`` (a file), ``size`` (height,
                width) and ``batch``.
            threads: how many it may use; ``None`` leaves it to the engine.

        Raises:
            WorkerFailed: the model cannot be run so.
        """
        environment = dict(os.environ)
        if threads is not None:
            environment |= dict.fromkeys(THREADS, str(threads))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process lives
        began = perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agssp_zoo.benchmark.worker", json.dumps(task)],
            env=environment,
            text=True,
            encoding="utf-8",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        try:
            self.started = self._answer()
        except BaseException:
            self.close()
            raise
        self.started["total"] = perf_counter() - began

    def __enter__(self) -> Worker:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Ends the process."""
        self.close()

    def run(self) -> dict[str, float]:
        """One round; milliseconds an image per stage, ``"end_to_end"`` and ``"cpu"``.

        Raises:
            WorkerFailed: the process has died.
        """
        with contextlib.suppress(OSError):  # it has died; the answer says so
            self._stdin.write("\n")
            self._stdin.flush()
        return self._answer()

    def finish(self) -> float | None:
        """Lets the process end; the most memory that it has held, in MB.

        Raises:
            WorkerFailed: the process has died.
        """
        with contextlib.suppress(OSError):
            self._stdin.close()
        memory: float | None = self._answer()["memory"]
        self._process.wait()
        return memory

    def close(self) -> None:
        """Ends the process, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    @property
    def _stdin(self) -> Any:
        return self._process.stdin

    def _answer(self) -> dict[str, Any]:
        """The next line that the process says."""
        stream: Any = self._process.stdout
        line = stream.readline()
        if not line:
            raise WorkerFailed(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer

    def _last_words(self) -> str:
        """Why the process has ended without an answer."""
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        if code < 0:
            return f"its process was ended by signal {-code}; should memory be short, take a smaller size or batch."
        return said[-1][:500] if said else f"its process ended with {code}."
