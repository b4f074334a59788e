"""The tables of docs/benchmarks.md from what ``benchmarks.peers`` has measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

OURS = "agssp-zoo"
IMAGES = {
    "square": "640x640",
    "strip": "1600x256 strip, fitted into 640",
    "wide": "4096x1024, fitted into 640",
    "full": "4096x1024, all pixels",
}
"""Job -> what the tables call it."""


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Ours over theirs: the median of the rounds' ratios, and their quartiles."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    if len(ratios) < 2:
        return f"{ratios[0]:.3g}"
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.3g} ({low:.3g}–{high:.3g})"


def tables(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """All tables of what is there, in Markdown."""
    text = f"### Ours over ultralytics\n\n{_summary(measured)}\n{_losses(measured)}"
    if "cold" in measured:
        text += (
            f"\n### Starting (yolov8_s; torchvision and anomalib with models of their own)\n\n{_cold(measured['cold'])}"
        )
    for part, title in (
        ("latency_n", "One image, yolov8_n"),
        ("latency_s", "One image, yolov8_s"),
        ("full", "All pixels of a large image, yolov8_n"),
        ("others", "Other models (not the same work)"),
    ):
        if part in measured:
            text += f"\n### {title}\n\n{_latency(measured[part])}"
    if "boxes" in measured:
        text += f"\n### 300 boxes\n\n{_boxes(measured['boxes'])}"
    if "install" in measured:
        text += f"\n### On the disk\n\n{_install(measured['install'])}"
    return text + "\n" + _about(measured)


def _summary(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Ratios to every way in which ultralytics runs the same architecture; below 1 ours is cheaper."""
    ways = ("PyTorch", "ONNX", "ONNX dynamic")
    text = _head("", *(f"its {way}" for way in ways))
    for what, name, values in _same_work(measured):
        cells = [values.get(f"ultralytics, {way}") for way in ways]
        if any(cells):
            text += _row(what, *(ratio(values[name], cell) if cell else "" for cell in cells))
    if "install" in measured:
        sizes = {name: [size["megabytes"]] for name, size in measured["install"]["sizes"].items()}
        cells = [sizes.get(f"ultralytics, {way}") for way in ways]
        text += _row("megabytes on the disk", *(ratio(sizes[OURS], cell) if cell else "" for cell in cells))
    return text


def _same_work(measured: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Mapping[str, Sequence[float]]]]:
    """What is compared, ours in it, and the rounds of all: for every figure of the same architecture."""
    if "cold" in measured:
        yield "cold start, CPU time", OURS, measured["cold"]["values"]["cold"]
        yield "peak memory", OURS, measured["cold"]["memory"]
    for part, model in (("latency_s", "yolov8_s"), ("latency_n", "yolov8_n"), ("full", "yolov8_n")):
        for job, values in measured.get(part, {}).get("values", {}).items():
            for name in values:
                if name.startswith(OURS):
                    yield f"{model}{name.removeprefix(OURS)}, {IMAGES[job]}", name, values
    if "boxes" in measured:
        yield "300 boxes, from the head's outputs", OURS, measured["boxes"]["values"]["boxes"]


def _losses(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Where the others are cheaper, in words."""
    found = []
    for what, name, values in _same_work(measured):
        for other, theirs in values.items():
            if not other.startswith(OURS) and statistics.median(values[name]) > statistics.median(theirs):
                found.append(f"{other} in {what}: {ratio(values[name], theirs)}")
    return f"Cheaper than ours: {'; '.join(found)}.\n" if found else "Nothing here is cheaper than ours.\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def _head(*cells: str) -> str:
    return _row(*cells) + "|---|" + "--:|" * (len(cells) - 1) + "\n"


def _against(ours: Sequence[float], theirs: Sequence[float], name: str) -> str:
    """The ratio's cell; empty for our own row."""
    return "1" if name == OURS else ratio(ours, theirs)


def _cold(part: Mapping[str, Any]) -> str:
    text = _head("", "cold start", "ours / theirs", "peak memory", "ours / theirs")
    seconds, memory = part["values"]["cold"], part["memory"]
    for name in seconds:
        text += _row(
            name,
            f"{statistics.median(seconds[name]):.2f} s",
            _against(seconds[OURS], seconds[name], name),
            f"{statistics.median(memory[name]):.0f} MB",
            _against(memory[OURS], memory[name], name),
        )
    return text + _failed(part)


def _latency(part: Mapping[str, Any]) -> str:
    text = ""
    for job, values in part["values"].items():
        text += _head(IMAGES[job], "CPU time", "ours / theirs") if not text else _row(f"**{IMAGES[job]}**", "", "")
        for name, seconds in values.items():
            text += _row(name, f"{statistics.median(seconds) * 1e3:.0f} ms", _against(values[OURS], seconds, name))
    return text + _failed(part)


def _boxes(part: Mapping[str, Any]) -> str:
    values, found = part["values"]["boxes"], part["found"]["boxes"]
    text = _head("", "boxes", "CPU time", "ours / theirs")
    for name, seconds in values.items():
        middle = f"{statistics.median(seconds) * 1e3:.2f} ms"
        text += _row(name, str(found[name]), middle, _against(values[OURS], seconds, name))
    return text + _failed(part)


def _install(part: Mapping[str, Any]) -> str:
    sizes = part["sizes"]
    text = _head("", "MB", "ours / theirs", "MB without CUDA", "ours / theirs", "packages")
    whole, bare = sizes[OURS]["megabytes"], sizes[OURS]["without_cuda"]
    for name, size in sizes.items():
        text += _row(
            name,
            f"{size['megabytes']:.0f}",
            f"{whole / size['megabytes']:.3f}" if name != OURS else "1",
            f"{size['without_cuda']:.0f}",
            f"{bare / size['without_cuda']:.3f}" if name != OURS else "1",
            str(size["packages"]),
        )
    outcome = part["mmdet"]
    if outcome["installed"]:
        return text + "\n`pip install mmdet mmcv` works here; it is not measured yet.\n"
    return text + f"\n`pip install mmdet mmcv` does not install here: `{outcome['said']}`.\n"


def _failed(part: Mapping[str, Any]) -> str:
    lines = [f"{name} has no figures: `{why}`." for name, why in part["failed"].items()]
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def _about(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """When, on what, with which versions; and how busy the machine was."""
    if not measured:
        return ""
    newest = max(measured.values(), key=lambda part: part["measured"])
    loads = [part["load"] for part in measured.values()]
    named = ", ".join(f"{name} {version}" for name, version in newest["versions"].items())
    return (
        f"Measured {min(part['measured'] for part in measured.values())} to {newest['measured']}: {named}. "
        f"Processes that wanted to run meanwhile: {min(loads):.1f} to {max(loads):.1f}, our own included.\n"
    )
