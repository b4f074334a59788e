"""Drawn metal surfaces with defects, their exact masks and boxes: for tests, demos and benchmarks, at any size.

>>> from agssp_zoo.training.synthetic import draw_sample
>>> sample = draw_sample(7, seed=0, size=(640, 640))
>>> sample.image.shape, sample.boxes.shape, sample.masks.shape
((640, 640, 3), (2, 4), (2, 640, 640))

Everything depends on (seed, index) alone; numpy and Pillow are all it needs. The picture
``docs/images/synthetic.png`` is made by

    python -m agssp_zoo.training.synthetic.sheet docs/images/synthetic.png
"""

from .dataset import write_dataset
from .defects import DEFECTS
from .neu import NEU_CLASSES, NEU_SURFACES
from .sample import Sample, draw_sample
from .surfaces import SURFACES

__all__ = ["DEFECTS", "NEU_CLASSES", "NEU_SURFACES", "SURFACES", "Sample", "draw_sample", "write_dataset"]
