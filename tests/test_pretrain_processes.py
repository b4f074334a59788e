"""Two processes on the CPU pretrain as one does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from pretrain_runs import SMALL, write_maps, write_pool
from training_runs import environment, python, rows, step_losses

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("tensorboard")

from agssp_zoo.training.pretrain.cli import pretrain_backbone  # noqa: E402


def launch(**settings: object) -> subprocess.CompletedProcess[str]:
    options = ("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0")
    more = ("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1")
    words = [str(w) for k, v in settings.items() if v is not False for w in (f"--{k.replace('_', '-')}", v)]
    words += [f"--no-{k.replace('_', '-')}" for k, v in settings.items() if v is False]
    module = ("-m", "agssp_zoo.training.pretrain.cli", *words)
    command = python("-m", "accelerate.commands.launch", *options, *more, *module)
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool", 16)
    write_maps(tmp_path / "pool", tmp_path / "maps")
    # Each process normalises over its own half of the batch, which is why the curves are close and not equal.
    settings = {
        **SMALL, "images": tmp_path / "pool", "maps": tmp_path / "maps", "batch": 16, "epochs": 4, "optimizer": "sgd",
        "lr": 0.002, "scale_max": 1.0, "task": "mocov3", "task_weight": 0.1, "contrast": 0.1,
    }  # fmt: skip
    done = launch(out=tmp_path / "two", **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 4/4") == 1  # one of them speaks
    before = torch.get_num_threads()
    pretrain_backbone(
        out=str(tmp_path / "one"), **{k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
    )
    torch.set_num_threads(before)
    one, two = step_losses(tmp_path / "one"), step_losses(tmp_path / "two")
    assert len(one) == len(two) == 8
    # The same views through the same weights; of this task also the same negatives, of both processes.
    assert two[0] == pytest.approx(one[0], rel=0.08)
    assert np.mean(two[-4:]) == pytest.approx(np.mean(one[-4:]), rel=0.1)
    first = [float(rows(tmp_path / name)[0]["task_loss"]) for name in ("one", "two")]
    assert first[1] == pytest.approx(first[0], rel=0.05)
