"""Anomaly maps of unlabelled images: by text, by normal images, by the other images, or by the image itself.

>>> from agssp_zoo.training.anomaly import MapStore
>>> store = MapStore.open("runs/maps")
>>> store.map(store.keys[0]).shape
(16, 16)
"""

from __future__ import annotations

from .method import AnomalyMethod
from .store import MapStore
from .writer import MapWriter

__all__ = ["AnomalyMethod", "MapStore", "MapWriter"]
