"""What Swin-B costs on a CPU, against timm's."""

from __future__ import annotations

import warnings

from benchmarks.common import Figure, time_in_turns


def features(rounds: int) -> list[Figure]:
    """The maps at strides 8, 16 and 32 of a 640x640 image, float32, by both packages' PyTorch modules."""
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
        taken = time_in_turns({"ours": lambda: ours(x), "timm": lambda: other(x)}, rounds)
    note = f"{taken['ours']:.2f} s against {taken['timm']:.2f} s; CPU seconds on one core"
    return [Figure("maps of swin_b at 640x640 against timm's", taken["ours"] / taken["timm"], "x", 0.8, note=note)]
