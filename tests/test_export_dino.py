"""DINO's transformer in ONNX: any size, any batch, padding known by the valid sizes; the same answers as PyTorch."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from test_dino import small

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

LEVELS = "abcd"


def draw_maps(batch: int, height: int, width: int) -> list[torch.Tensor]:
    """Maps of strides 8 to 64."""
    rng = torch.Generator().manual_seed(batch)
    return [torch.randn(batch, 32, -(-height // s), -(-width // s), generator=rng) for s in (8, 16, 32, 64)]


class Head(torch.nn.Module):
    """The head alone, its maps as inputs; the input's height and width are multiples of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.head = small().head

    def forward(self, a, b, c, d, sizes):
        return tuple(self.head([a, b, c, d], (a.shape[2] * 8, a.shape[3] * 8), sizes))


@pytest.mark.slow
def test_the_head_answers_in_onnx_as_in_torch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from agssp_zoo.export.level_operators import flatten_levels, sample_levels

    head, any_size = Head().eval(), torch.export.Dim.DYNAMIC
    axes = (*({0: any_size, 2: any_size, 3: any_size} for _ in LEVELS), {0: any_size})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            head, (*draw_maps(2, 200, 264), torch.tensor([[200, 264], [150, 264]])),
            input_names=[*LEVELS, "sizes"], output_names=["logits", "boxes"], opset_version=18, dynamic_shapes=axes,
            dynamo=True, optimize=True, verbose=False,
            custom_translation_table={
                torch.ops.agssp_zoo.flatten_levels.default: flatten_levels,
                torch.ops.agssp_zoo.sample_levels.default: sample_levels,
            },
        )  # fmt: skip
    program.save(str(tmp_path / "head.onnx"))
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(str(tmp_path / "head.onnx"), options, providers=["CPUExecutionProvider"])
    for batch, height, width in ((1, 320, 320), (3, 208, 304), (2, 128, 416)):
        maps = draw_maps(batch, height, width)
        sizes = torch.tensor([[height - 17 * i, width - 9 * i] for i in range(batch)])
        with torch.no_grad():
            wanted = head(*maps, sizes)
        feeds = {name: value.numpy() for name, value in zip(LEVELS, maps, strict=True)}
        found = session.run(None, {**feeds, "sizes": sizes.numpy()})
        assert wanted[1].std() > 0.1
        for one, other in zip(wanted, found, strict=True):
            np.testing.assert_allclose(other, one.numpy(), atol=1e-4)


def test_a_whole_dino_says_that_it_cannot_be_exported_yet(tmp_path: Path) -> None:
    from agssp_zoo.errors import ExportError
    from agssp_zoo.export import export_onnx

    with pytest.raises(ExportError, match="cannot be written as ONNX yet; run it with the PyTorch engine"):
        export_onnx(small(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
