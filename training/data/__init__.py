"""Labelled images of any format, read through one interface.

>>> from agssp_zoo.training.data import read_dataset
>>> dataset = read_dataset("my_defects").require_clean()
>>> dataset.class_names, dataset.splits
(('crack', 'pit'), {'train': 80, 'val': 20})
>>> image = dataset.split("val")[0].load_image()
"""

from __future__ import annotations

from .coco_export import to_coco
from .dataset import Dataset
from .pack import PackSettings, pack
from .problems import Problem
from .recognise import FORMATS, Format, read_dataset, recognise
from .records import Record
from .unlabelled import read_images, source_of, sources

__all__ = [
    "FORMATS",
    "Dataset",
    "Format",
    "PackSettings",
    "Problem",
    "Record",
    "pack",
    "read_dataset",
    "read_images",
    "recognise",
    "source_of",
    "sources",
    "to_coco",
]
