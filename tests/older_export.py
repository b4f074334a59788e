"""A detector's ONNX file as it was exported before: all boxes decoded in the network, nothing rearranged."""

from __future__ import annotations

import contextlib
from pathlib import Path
from unittest import mock

import onnx

from agssp_zoo.export import export_onnx, exporter, network
from agssp_zoo.models import DetectorModule


def _decode_all(module: DetectorModule, opset: int) -> onnx.ModelProto:
    return exporter._with_selection(network.trace(module, raw=False, opset=opset), module.config)


def _as_it_is(module: object) -> contextlib.nullcontext[None]:
    return contextlib.nullcontext()


def write_older(module: DetectorModule, path: Path) -> Path:
    """Exports in the layout of files that are still in use."""
    with (
        mock.patch.object(exporter, "_detector_graph", _decode_all),
        mock.patch.object(network, "halves_apart", _as_it_is),
        mock.patch.object(network, "coarse_first", _as_it_is),
    ):
        return export_onnx(module, path, verify=False)
