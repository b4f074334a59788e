"""The float ONNX file that the smaller ones are made of: a folder's own, or a newly exported one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agssp_zoo.engines.base import ONNX_FILE
from agssp_zoo.errors import EngineError, ExportError
from agssp_zoo.file_names import user_path

from .exporter import export_onnx

if TYPE_CHECKING:
    from agssp_zoo.config import ModelConfig
    from agssp_zoo.folder import ModelFolder


@dataclass(frozen=True)
class FloatFile:
    """Where a model's float32 ONNX file comes from.

    Attributes:
        config: the model's.
        path: the file; ``None``: it has yet to be exported.
        folder: the model folder, if there is one.
    """

    config: ModelConfig
    path: Path | None
    folder: ModelFolder | None

    @contextlib.contextmanager
    def opened(self) -> Iterator[Path]:
        """The file; one that is not there is exported for as long as it is needed.

        Raises:
            ExportError, MissingDependencyError: it cannot be exported.
        """
        if self.path is not None:
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="agssp-zoo-") as folder:
            yield export_onnx(self.folder if self.folder is not None else "", Path(folder) / ONNX_FILE)


def float_file(model: ModelFolder | str | os.PathLike[str]) -> FloatFile:
    """Finds the float32 file of a model.

    Args:
        model: a model folder, a model's name or path, or an ONNX file of ``agssp-zoo export``.

    Raises:
        ExportError: the file is quantised, in float16 or without decoding itself.
        EngineError: it is none of ours.
        ModelNotFoundError, HubError, IntegrityError: the model cannot be found or is damaged.
    """
    from agssp_zoo.folder import ModelFolder

    if not isinstance(model, ModelFolder):
        if os.fspath(model).endswith(".onnx"):
            path = user_path(model)
            if not path.is_file():
                raise EngineError(f"There is no file {path}; make one with `agssp-zoo export`.")
            return FloatFile(_checked(path), path, None)
        from agssp_zoo.hub import resolve

        model = resolve(model)
    path_there = model.file(ONNX_FILE) if model.has(ONNX_FILE) else None
    if path_there is not None:
        _checked(path_there)
    return FloatFile(model.config, path_there, model)


def _checked(path: Path) -> ModelConfig:
    """The config in a file, which has to be a float32 one with everything in it."""
    from agssp_zoo.engines.onnx import OnnxModel

    model = OnnxModel(path)
    precision = model.session.get_modelmeta().custom_metadata_map.get("precision", "float32")
    if precision != "float32" or model.outputs == "raw":
        raise ExportError(
            f"{path} is {'raw' if model.outputs == 'raw' else f'in {precision} already'}; give the float32 file of "
            "`agssp-zoo export`, or the model folder."
        )
    return model.config
