"""What anomaly maps cost: KeAD against the plain CLIP encoder and against anomalib's WinCLIP, and maps without text."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import (
    WORK,
    Figure,
    Usage,
    python_with,
    run_command,
    single_threaded,
    take_turns,
    time_in_turns,
)

if TYPE_CHECKING:
    from agssp_zoo.training.anomaly.kead import Kead

OTHER = """
import sys, time, warnings
warnings.simplefilter("ignore")
import torch
from anomalib.models.image.winclip import torch_model
torch.set_num_threads(1)
torch.manual_seed(0)
torch_model.PRETRAINED = None  # newly drawn weights: nothing is downloaded
model = torch_model.WinClipModel().eval()
model._text_embeddings = torch.nn.functional.normalize(torch.randn(2, model.clip.visual.output_dim), dim=-1)
image = torch.randn(1, 3, 240, 240)
print("ready", torch_model.BACKBONE, flush=True)
for _ in sys.stdin:  # a line asks for an image
    started = time.process_time()
    model(image)
    print("took", time.process_time() - started, flush=True)
"""


def kead(rounds: int) -> list[Figure]:
    """KeAD's pass, with the scores of all patches, against the encoder that gives the image's embedding alone."""
    import torch

    method, module = _method()
    image = torch.randn(1, 3, 240, 240)

    def plain() -> None:
        with torch.no_grad():
            module.encode_image(image)

    taken = time_in_turns({"plain": plain, "kead": lambda: method.maps(image)}, max(rounds, 15))
    what = f"{method.clip.name} at 240 px, float32, an image at a time"
    note = f"{what}: {taken['kead'] * 1e3:.0f} against {taken['plain'] * 1e3:.0f} ms"
    return [Figure("KeAD pass against the plain encoder", taken["kead"] / taken["plain"], "x", 1.15, note=note)]


def winclip(rounds: int) -> list[Figure]:
    """Zero-shot maps of an image by KeAD and by WinCLIP, with the same backbone and newly drawn weights."""
    import torch

    method, _ = _method()
    image = torch.randn(1, 3, 240, 240)
    ours, theirs = [], []
    with _other() as other:
        assert other.stdin and other.stdout
        for _ in range(max(3, rounds // 2) + 1):
            other.stdin.write("\n")
            other.stdin.flush()
            theirs.append(float(_answer(other, "took")))
            for _ in range(5):
                started = time.process_time()
                method.maps(image)
                ours.append(time.process_time() - started)
    mine, other_time = statistics.median(ours[5:]), statistics.median(theirs[1:])
    note = f"{method.clip.name} at 240 px, float32, zero-shot: {other_time * 1e3:.0f} against {mine * 1e3:.0f} ms"
    return [Figure("WinCLIP (anomalib) against KeAD, an image", other_time / mine, "x", 8, at_least=True, note=note)]


def own(rounds: int) -> list[Figure]:
    """Maps of images by themselves against the forward pass of their encoder."""
    import torch

    from agssp_zoo.training.anomaly.encoders import VitEncoder, load_encoder
    from agssp_zoo.training.anomaly.own import Own
    from agssp_zoo.training.data import Dataset

    torch.set_num_threads(1)
    encoder = load_encoder(weights="none", size=224)
    assert isinstance(encoder, VitEncoder)
    method, batch = Own(encoder), torch.randn(4, 3, 224, 224)
    method.prepare(lambda indices: iter(torch.randn(16, 3, 224, 224).split(4)), Dataset((), (), (), "drawn"))
    assert method.position.parts

    def bare() -> None:
        encoder.module(batch)

    with torch.inference_mode():
        taken = time_in_turns({"bare": bare, "own": lambda: method.maps(batch)}, max(rounds, 9))
    what = f"{encoder.name} at 224 px, float32, {len(batch)} images at a time"
    note = f"{what}: {taken['own'] / len(batch) * 1e3:.0f} against {taken['bare'] / len(batch) * 1e3:.0f} ms an image"
    return [Figure("own against the bare forward pass", taken["own"] / taken["bare"], "x", 1.1, note=note)]


def maps(rounds: int) -> list[Figure]:
    """Images a second of the command, from files into the store; what it takes to start and to prepare is left out."""
    from PIL import Image

    from agssp_zoo.training.synthetic import draw_sample

    folder, count, figures = WORK / "anomaly", 48, []
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    for number in range(count):
        Image.fromarray(draw_sample(number, size=(256, 256)).image).save(folder / "images" / f"{number}.png")
    for method in ("own", "mutual"):
        out = folder / method
        command = [sys.executable, "-m", "agssp_zoo", "anomaly-maps", str(folder / "images"), "--method", method]
        command += ["--encoder-weights", "none", "--size", "224", "--device", "cpu", "--out", str(out)]
        run_command(command)

        def make(out: Path = out, command: list[str] = command) -> Usage:
            (out / "store.json").unlink()  # what was learnt of the pool is kept
            return run_command(command)

        jobs = {"make": make, "there": lambda command=command: run_command(command)}
        taken = take_turns(jobs, max(3, rounds // 2))
        speed = count / (taken["make"].cpu - taken["there"].cpu)
        note = f"vit_small_patch14_dinov2 at 224 px, float32, {count} files; one core, of two 8 are asked"
        figures.append(Figure(f"maps by {method}, images a second", speed, "/s", 4, at_least=True, note=note))
    return figures


def _method() -> tuple[Kead, object]:
    """KeAD with newly drawn weights, the same each time, so that the texts are encoded only once; and its CLIP."""
    import torch

    from agssp_zoo.training.anomaly.clip import load_clip
    from agssp_zoo.training.anomaly.kead import Kead
    from agssp_zoo.training.anomaly.prompts import load_prompts

    torch.set_num_threads(1)
    torch.manual_seed(0)
    clip = load_clip(weights="none")
    return Kead(clip, load_prompts("generic_metal"), cache=WORK / "text"), clip.module


@contextlib.contextmanager
def _other() -> Iterator[subprocess.Popen[str]]:
    """A process that makes WinCLIP's maps when it is asked to."""
    # The versions of open_clip that this anomalib states; with later ones its windows attend along the wrong axis.
    python: Path = python_with("anomalib", ["anomalib", "open_clip_torch>=2.23,<2.26.1"])
    errors = (WORK / "winclip.log").open("w+")
    process = subprocess.Popen(
        [python, "-c", OTHER], env=single_threaded(), cwd=WORK, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
    )  # fmt: skip
    try:
        with errors, process:
            try:
                _answer(process, "ready")
                yield process
            finally:
                process.kill()
    except EOFError:
        raise RuntimeError(f"WinCLIP does not run: {(WORK / 'winclip.log').read_text()[-500:]}") from None


def _answer(process: subprocess.Popen[str], word: str) -> str:
    """What the process prints after a word."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith(word + " "):
            return line.split()[1]
    raise EOFError
