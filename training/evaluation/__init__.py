"""How good a detector is: COCO numbers, curves, threshold advice and a report.

The core takes arrays per image and needs no torch::

    metrics = evaluate(ground_truth, predictions, class_names)
    metrics.map50, metrics.to_dict()

``quick_map`` is the light form that a trainer calls after every epoch; ``write_report`` draws the HTML report;
``validate`` runs a model over a data set. Everything is imported on first use, so that the command line stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inputs import GroundTruth, Prediction, class_mapping
    from .metrics import ClassMetrics, Metrics, evaluate
    from .quick import QuickMap, quick_map
    from .report import write_report
    from .runner import Validation, validate

__all__ = [
    "ClassMetrics",
    "GroundTruth",
    "Metrics",
    "Prediction",
    "QuickMap",
    "Validation",
    "class_mapping",
    "evaluate",
    "quick_map",
    "validate",
    "write_report",
]

_HOMES = {
    "ClassMetrics": "metrics",
    "GroundTruth": "inputs",
    "Metrics": "metrics",
    "Prediction": "inputs",
    "QuickMap": "quick",
    "Validation": "runner",
    "class_mapping": "inputs",
    "evaluate": "metrics",
    "quick_map": "quick",
    "validate": "runner",
    "write_report": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
