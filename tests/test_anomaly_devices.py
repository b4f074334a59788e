"""Methods without text keep to one device; torch's fake tensors show without a GPU what would fail on one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
fake_tensor = pytest.importorskip("torch._subclasses.fake_tensor")

from anomaly_features import Made, pool  # noqa: E402

from agssp_zoo.training.anomaly.auto import Auto  # noqa: E402
from agssp_zoo.training.anomaly.consensus import Consensus  # noqa: E402
from agssp_zoo.training.anomaly.features import FeatureMethod  # noqa: E402
from agssp_zoo.training.anomaly.gaussian import Gaussian  # noqa: E402
from agssp_zoo.training.anomaly.memory import Memory  # noqa: E402
from agssp_zoo.training.anomaly.mutual import Mutual  # noqa: E402
from agssp_zoo.training.anomaly.own import Own  # noqa: E402

GPU = torch.device("cuda", 0)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors without values, on a GPU that need not be there. Where a value decides, it is true, or 0."""

    def encode_all(self: FeatureMethod, _: Any, __: Any, layers: Any = None, **___: Any) -> Iterator[list[Any]]:
        for _number in range(3):
            yield [torch.empty(8, 16, 6, device=GPU) for _ in layers or self.layers]

    monkeypatch.setattr(FeatureMethod, "encode_all", encode_all)
    monkeypatch.setattr(fake_tensor.FakeTensor, "__bool__", lambda _: True, raising=False)
    monkeypatch.setattr(fake_tensor.FakeTensor, "__int__", lambda _: 0, raising=False)
    monkeypatch.setattr(fake_tensor.FakeTensor, "tolist", lambda _: [1.0, 1.0], raising=False)
    with fake_tensor.FakeTensorMode():
        yield


def test_a_mistake_would_be_noticed(fake: None) -> None:
    with pytest.raises(RuntimeError, match="devices"):
        torch.empty(3, device=GPU) + torch.empty(3)


@pytest.mark.parametrize("kind", [Own, Consensus, Gaussian, Memory, Mutual, Auto])
def test_all_is_on_the_device(fake: None, kind: type[FeatureMethod]) -> None:
    method: Any = kind(Made())
    method.to(GPU)
    method.prepare(None, pool(24))
    features = [torch.empty(4, 16, 6, device=GPU) for _ in method.layers]
    assert method.distances(features).device == GPU
    # As the driver keeps it: on the CPU.
    learnt = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in method.state().items()}
    fresh: Any = kind(Made())
    fresh.to(GPU)
    fresh.load_state(learnt)
    assert fresh.distances(features).device == GPU and fresh.distances(features).shape == (4, 16)
    # And learnt before it is moved.
    moved: Any = kind(Made())
    moved.load_state(learnt)
    moved.to(GPU)
    assert moved.distances(features).device == GPU
