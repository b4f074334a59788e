"""Tools in processes of their own that take turns."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, WORK


@dataclass(frozen=True)
class Contender:
    """A tool with a model.

    Attributes:
        name: what the tables call it.
        python: of the environment that it is installed in, which is made when it is missing.
        task: what :mod:`benchmarks.peers_worker` is told.
    """

    name: str
    python: Callable[[], Path]
    task: Callable[[], Mapping[str, Any]]


@dataclass
class Part:
    """What one part of the comparison has answered.

    Attributes:
        values: job -> contender -> CPU seconds, one a round.
        memory: contender -> MB, one a round.
        found: job -> contender -> how many boxes came out.
        failed: contender -> why it has no figures.
    """

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    memory: dict[str, list[float]] = field(default_factory=dict)
    found: dict[str, dict[str, int]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def take_turns(contenders: Sequence[Contender], rounds: int, times: int = 1) -> dict[str, Any]:
    """Every job of every contender in every round, after two rounds that do not count.

    Args:
        contenders: who takes part.
        rounds: that count.
        times: how often a job is done in a round; its mean is taken.
    """
    part, running = Part(), {}
    with ExitStack() as stack:
        for one in contenders:
            try:
                running[one.name] = stack.enter_context(_Worker(one))
            except RuntimeError as error:
                part.failed[one.name] = str(error)
        for number in range(rounds + 2):
            show_round(max(0, number - 1), rounds)
            for job in dict.fromkeys(job for worker in running.values() for job in worker.jobs):
                for name, worker in [*running.items()]:
                    if job not in worker.jobs:
                        continue
                    try:
                        seconds, part.found.setdefault(job, {})[name] = worker.run(job, times)
                    except RuntimeError as error:
                        part.failed[name] = str(error)
                        del running[name]
                        for values in part.values.values():  # ratios are of whole rounds
                            values.pop(name, None)
                        continue
                    if number > 1:
                        part.values.setdefault(job, {}).setdefault(name, []).append(seconds)
    return vars(part)


def show_round(number: int, rounds: int) -> None:
    """Says on a terminal how far it is; round 0 does not count."""
    if sys.stderr.isatty():
        print(f"  round {number}/{rounds}", end="\n" if number == rounds else "\r", file=sys.stderr, flush=True)


class _Worker:
    """A process of :mod:`benchmarks.peers_worker`."""

    def __init__(self, contender: Contender) -> None:
        python, task = contender.python(), dict(contender.task())
        self.jobs = [*task["jobs"]]
        script = ROOT / "benchmarks" / "peers_worker.py"
        command = [str(python), "-P", str(script), json.dumps(task, default=str)]
        self.log = WORK / "peers" / f"{contender.name.replace(' ', '_').replace('/', '_')}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                command, cwd=self.log.parent, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        if self._answer() != ["ready"]:
            self.process.communicate()
            raise RuntimeError(self._last_words())

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def run(self, job: str, times: int) -> tuple[float, int]:
        """CPU seconds of a job, and how many boxes came out."""
        assert self.process.stdin
        with suppress(BrokenPipeError):  # it has died; the answer says so
            self.process.stdin.write(f"{job} {times}\n")
            self.process.stdin.flush()
        answer = self._answer()
        if len(answer) != 2:
            raise RuntimeError(f"{job}: {self._last_words()}")
        return float(answer[0]), int(answer[1])

    def _last_words(self) -> str:
        return (self.log.read_text().strip().splitlines() or ["no answer"])[-1][:300]

    def _answer(self) -> list[str]:
        assert self.process.stdout
        return self.process.stdout.readline().split()
