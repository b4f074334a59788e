"""What preparing an image costs: onto its 640 canvas, by OpenCV's arithmetic (the authors') and by Pillow's."""

from __future__ import annotations

import functools

from benchmarks.common import Figure, time_in_turns


def resize(rounds: int) -> list[Figure]:
    """Resizing and padding."""
    import numpy as np

    from agssp_zoo.config import Preprocess
    from agssp_zoo.geometry import prepare

    jobs = {
        "1280x1000 to 640, INTER_AREA": ((1000, 1280), Preprocess(resize="opencv"), 30),
        "1300x1000 to 640, INTER_AREA": ((1000, 1300), Preprocess(resize="opencv"), 30),
        "320x250 to 640, INTER_LINEAR": ((250, 320), Preprocess(resize="opencv"), 30),
        "1280x1000 to 640, Pillow": ((1000, 1280), Preprocess(resize="pillow"), 6),
    }
    generator = np.random.default_rng(0)
    calls = {
        name: functools.partial(prepare, generator.integers(0, 256, (*size, 3), dtype=np.uint8), settings)
        for name, (size, settings, _) in jobs.items()
    }
    taken = time_in_turns(calls, max(rounds, 25))
    return [Figure(name, taken[name] * 1e3, "ms", limit) for name, (_, _, limit) in jobs.items()]
