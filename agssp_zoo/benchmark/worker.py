"""One model in one engine at one size, in a process of its own, so that its start and its memory are its own.

``python -m agssp_zoo.benchmark.worker TASK`` with a task as JSON. It answers a line of JSON when the first prediction
is done, one for every line that it reads, and one with its memory at the end of its input.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, TextIO

from agssp_zoo.errors import AgsspZooError

if TYPE_CHECKING:
    from agssp_zoo.detections import Detections

STAGES = {"decode": "read", "preprocess": "preprocess", "inference": "inference", "postprocess": "postprocess"}
"""Stage of the benchmark -> its name in ``Detections.timing``."""


def main(argument: str) -> int:
    """Runs a task; 1 when the model cannot be run in that engine."""
    started = perf_counter()
    answers = _own_stdout()
    # Ctrl-C reaches every process of a terminal; the first one decides, and closes our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    task = json.loads(argument)
    try:
        _measure(task, started, answers)
    except AgsspZooError as error:
        _say(answers, {"error": str(error)})
        return 1
    return 0


def _measure(task: dict[str, Any], started: float, answers: TextIO) -> None:
    """Loads, predicts once, and then as often as a line comes in."""
    from agssp_zoo.detector import load_detector

    imported = perf_counter()
    engine, _, precision = task["engine"].partition(":")
    more = {"precision": precision} if precision else {}
    detector = load_detector(task["model"], engine=engine, device=task["device"], **more)
    loaded = perf_counter()
    batch = int(task["batch"])
    size = None if task["size"] is None else (int(task["size"][0]), int(task["size"][1]))
    source: Any = task["image"] if batch == 1 else [task["image"]] * batch

    def predict() -> list[Detections]:
        return detector.predict(source, size=size, batch=batch)

    found = predict()
    done = perf_counter()
    first = {"import": imported - started, "load": loaded - imported, "first_prediction": done - loaded}
    _say(answers, {"seconds": first, "cpu": process_time(), "detections": len(found[0]), "name": detector.config.name})
    for _ in sys.stdin:
        before, cpu = perf_counter(), process_time()
        found = predict()
        spent = {"end_to_end": (perf_counter() - before) * 1e3, "cpu": (process_time() - cpu) * 1e3}
        spent = {name: value / batch for name, value in spent.items()}
        for name, key in STAGES.items():
            spent[name] = sum(one.timing[key] for one in found) / batch
        _say(answers, spent)
    from agssp_zoo.machine import peak_memory

    _say(answers, {"memory": peak_memory()})


def _own_stdout() -> TextIO:
    """Standard output for our answers alone; what libraries print goes to standard error."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def _say(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
