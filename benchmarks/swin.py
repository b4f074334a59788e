"""What Swin-B costs on a CPU, against timm's."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import warnings

from benchmarks.common import ROOT, Figure, single_threaded, time_in_turns

PROCESSES = 5
"""Where memory comes to lie differs by process and moves the ratio by a hundredth or two."""


def features(rounds: int) -> list[Figure]:
    """The maps at strides 8, 16 and 32 of a 640x640 image, float32, by both packages' PyTorch modules."""
    command = [sys.executable, "-m", "benchmarks.swin", str(max(2, rounds // 2))]
    found = []
    for _ in range(PROCESSES):
        done = subprocess.run(command, cwd=ROOT, env=single_threaded(), check=True, stdout=subprocess.PIPE)
        found.append(json.loads(done.stdout))
    ratios = sorted(taken["ours"] / taken["timm"] for taken in found)
    ours, timm = (statistics.median(taken[name] for taken in found) for name in ("ours", "timm"))
    note = f"{ours:.2f} s against {timm:.2f} s; CPU seconds on one core; {PROCESSES} processes, "
    note += f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
    return [Figure("maps of swin_b at 640x640 against timm's", statistics.median(ratios), "x", 0.8, note=note)]


def measure(rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, in turns."""
    import timm
    import torch

    from agssp_zoo import models

    torch.set_num_threads(1)
    ours = models.build(models.default_config("swin_b")).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = timm.create_model(
            "swin_base_patch4_window7_224", features_only=True, img_size=640, out_indices=(1, 2, 3)
        ).eval()
    x = torch.randn(1, 3, 640, 640, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return time_in_turns({"ours": lambda: ours(x), "timm": lambda: other(x)}, rounds)


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
