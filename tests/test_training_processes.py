"""Two processes on the CPU: one loss curve, and one end."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
from training_runs import SMALL, command, environment, python, rows, step_losses, write_data

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("tensorboard")

from agssp_zoo.training.finetune import finetune  # noqa: E402
from agssp_zoo.training.loader import epoch_order  # noqa: E402


def launch(**settings: object) -> subprocess.CompletedProcess[str]:
    """Two processes, as accelerate starts them on one machine; port 0 takes a free one, and none may hang."""
    options = ("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0")
    more = ("--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1")
    words = python("-m", "accelerate.commands.launch", *options, *more, *command(**settings))
    return subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=32, val=5)
    # Each process normalises over its own half of the batch, which is why the curves are close and not equal.
    settings = {
        **SMALL, "data": str(data), "batch": 16, "epochs": 8, "warmup": 2.0, "optimizer": "sgd", "lr": 0.002,
        "val_every": 8, "close_mosaic": 8,
    }  # fmt: skip
    done = launch(out=tmp_path / "two", **{**settings, "report": True})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 8/8") == 1  # one of them speaks
    before = torch.get_num_threads()
    finetune(out=str(tmp_path / "one"), **settings)
    torch.set_num_threads(before)
    one, two = step_losses(tmp_path / "one"), step_losses(tmp_path / "two")
    assert len(one) == len(two) == 16
    assert two[0] == pytest.approx(one[0], rel=0.02)  # the same samples through the same weights
    assert np.mean(two[-10:]) == pytest.approx(np.mean(one[-10:]), rel=0.05)
    assert np.median(np.abs(np.array(two) / one - 1)) < 0.03  # the losses differ more from batch to batch
    assert (tmp_path / "two" / "val" / "report.html").is_file(), done.stdout
    # Every image was validated, by one process or the other.
    assert rows(tmp_path / "two")[-1]["map50"] != ""


def start_pair(**settings: object) -> list[subprocess.Popen[str]]:
    """The same two processes with nobody over them: a launcher ends the other as soon as it sees one of them fail."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            python(*command(**settings)),
            env=environment() | group | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_other(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=8, val=2)
    # The last place of the first epoch belongs to the second process, and nobody reads it before.
    broken = data / "images" / "train" / f"{int(epoch_order(0, 0, 8)[7])}.png"
    broken.write_bytes(broken.read_bytes()[:200])
    settings = {**SMALL, "data": str(data), "cache_mb": 0, "mosaic": 0.0, "save_every": 1, "workers": 1}
    pair = start_pair(out=tmp_path / "run", **settings)
    try:
        said = [process.communicate(timeout=300)[1] for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [1, 1], said
    for text in said:
        assert "the state of step 1 is kept" in text
    assert "error (process 0)" in said[0] and "Another process of this run has stopped" in said[0]
    assert "error (process 1)" in said[1] and broken.name in said[1]
