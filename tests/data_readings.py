"""What a test asks of a data set that was read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from agssp_zoo.training.data import Dataset


def codes(dataset: Dataset) -> Counter[str]:
    return Counter(problem.code for problem in dataset.problems)


def only(dataset: Dataset, code: str) -> tuple[str, int | None, str]:
    """File name, line and severity of the one problem of a kind."""
    (problem,) = [problem for problem in dataset.problems if problem.code == code]
    return Path(problem.file).name, problem.line, problem.severity


def labels(dataset: Dataset) -> dict[str, list[tuple[float, ...]]]:
    return {
        record.key: sorted(
            (*box, float(label)) for box, label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True)
        )
        for record in dataset
    }
