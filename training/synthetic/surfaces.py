"""Bare metal: brushed, rolled and cast surfaces under uneven light.

Every surface is drawn with its grain along the rows and turned if the grain is to run along the columns. Gray levels
are 0 to 255 in float32; colour, lens blur and sensor noise are added by :mod:`.sample` after the defects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from .noise import FloatArray, Shape, fractal, grain, lighting, smooth


@dataclass(frozen=True)
class Surface:
    """A bare surface and what the defects drawn upon it have to know."""

    name: str
    gray: FloatArray
    """(h, w) gray levels, 0 to 255, not yet clipped."""
    vertical: bool
    """Whether the grain (the rolling or brushing direction) runs along the columns."""
    light: tuple[float, float]
    """Unit vector (y, x) in the image plane that points towards the lamp."""
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Factors of red, green and blue."""
    noise: float = 2.0
    """Standard deviation of the sensor's noise, in gray levels."""
    scale: float = 1.0
    """Pixels that one unit of defect size takes: min(h, w) / 200."""


SurfacePainter = Callable[[np.random.Generator, Shape], Surface]


def unit(shape: Shape) -> float:
    """The scale of things in an image of shape (h, w): 1 where the shorter side has 200 pixels."""
    return min(shape) / 200


def lamp(rng: np.random.Generator) -> tuple[float, float]:
    """A random light direction, as a unit vector (y, x)."""
    angle = rng.uniform(0, 2 * np.pi)
    return float(np.sin(angle)), float(np.cos(angle))


def _turned(shape: Shape, vertical: bool) -> Shape:
    return (shape[1], shape[0]) if vertical else shape


def _upright(field: FloatArray, vertical: bool) -> FloatArray:
    return np.ascontiguousarray(field.T) if vertical else field


def _steel_tint(rng: np.random.Generator) -> tuple[float, float, float]:
    warm = rng.normal(0, 0.01)
    return 1 + warm, 1.0, 1 - warm + rng.uniform(0, 0.02)


def brushed(rng: np.random.Generator, shape: Shape) -> Surface:
    """Brushed metal: hairlines of many lengths along one axis, and a highlight that breaks up on them.

    A lamp's reflection on parallel grooves is stretched across them; every groove shifts it a little along itself, so
    the band has frayed flanks.
    """
    vertical = bool(rng.random() < 0.5)
    h, w = size = _turned(shape, vertical)
    fine = max(1.0, unit(shape) ** 0.5)
    lines = grain(rng, size, (1, w * 0.6), passes=1)
    middle = grain(rng, size, (1, 50 * fine))
    short = grain(rng, size, (round(fine), 9 * fine))
    deep = grain(rng, size, (1.5 * fine, 130 * fine))
    # Some grooves are deeper than the rest: the odd power gives heavier tails.
    texture = 0.9 * lines + 1.2 * middle + 0.8 * short + 0.45 * deep * np.abs(deep)
    x = np.linspace(0, 1, w, dtype=np.float32)[None, :]
    shift = 0.05 * lines[:, :1] + 0.03 * smooth(rng, (h, 1), (6 * fine, 1))
    offset = (x - rng.uniform(0.15, 0.85) - shift) * np.float32(1 / rng.uniform(0.16, 0.4))
    band: FloatArray = np.reciprocal(1 + offset * offset)
    base = rng.uniform(95, 140)
    gleam = rng.uniform(25, 70)
    light = lighting(rng, size, rng.uniform(0.08, 0.25))
    gray: FloatArray = base * light + gleam * (band - 0.35)
    gray += texture * (rng.uniform(3.0, 5.5) * (0.75 + 0.6 * band))
    return Surface(
        "brushed", _upright(gray, vertical), vertical, lamp(rng), _steel_tint(rng), rng.uniform(1.0, 2.5), unit(shape)
    )


def rolled(rng: np.random.Generator, shape: Shape) -> Surface:
    """Rolled sheet: dull grain drawn out along the rolling direction, lanes of brightness, faint marks of the rolls."""
    vertical = bool(rng.random() < 0.7)
    h, _ = size = _turned(shape, vertical)
    s = unit(shape)
    fine = max(1.0, s**0.5)
    light = lighting(rng, size, rng.uniform(0.12, 0.4))
    lanes = smooth(rng, (h, 1), (rng.uniform(14, 40) * s, 1)) + 0.5 * smooth(rng, (h, 1), (5 * s, 1))
    mottle = fractal(rng, size, (14 * s, 60 * s), 2)
    fibre = grain(rng, size, (2 * fine, 14 * fine))
    pepper = grain(rng, size, (2, 3))
    threads = grain(rng, size, (1, 70 * fine))
    gray = fibre * rng.uniform(2.5, 5.0) + pepper * rng.uniform(2.0, 4.0) + threads * rng.uniform(0.8, 2.0)
    gray += mottle * rng.uniform(1.5, 4.0)
    gray += rng.uniform(85, 140) * light * (1 + rng.uniform(0.02, 0.07) * lanes)
    gray += _roll_marks(rng, size, s)
    return Surface(
        "rolled", _upright(gray, vertical), vertical, lamp(rng), _steel_tint(rng), rng.uniform(1.5, 3.0), unit(shape)
    )


def _roll_marks(rng: np.random.Generator, size: Shape, s: float) -> FloatArray:
    """Chatter: faint bars across the rolling direction at the pitch of the roll, stronger here and there."""
    h, w = size
    pitch = rng.uniform(18, 50) * s
    x = np.arange(w, dtype=np.float32)
    phase = 2 * np.pi * x / pitch + 0.6 * smooth(rng, (1, w), (1, pitch * 2))[0] + rng.uniform(0, 6.3)
    bars = (rng.uniform(0.5, 2.5) * (np.sin(phase) + 0.35 * np.sin(2 * phase + 1))).astype(np.float32)
    marks: FloatArray = np.clip(smooth(rng, (h, w), (60 * s, 120 * s)) + 0.3, 0, 2) * bars[None]
    return marks


def cast(rng: np.random.Generator, shape: Shape) -> Surface:
    """Cast skin: the print of the sand as a lit relief of several grain sizes, with pores and a cloudy tone."""
    s = unit(shape)
    fine = max(1.0, s**0.5)
    light = lamp(rng)
    fines = grain(rng, shape, (2 * fine, 2 * fine))
    sand = grain(rng, shape, (4 * fine, 4 * fine))
    lumps = smooth(rng, shape, (9 * fine, 9 * fine))
    relief = (0.8 * fines + 3.2 * sand + 3.0 * lumps) * np.float32(fine)
    slope = np.zeros(shape, np.float32)
    slope[1:] += (relief[1:] - relief[:-1]) * np.float32(light[0])
    slope[:, 1:] += (relief[:, 1:] - relief[:, :-1]) * np.float32(light[1])
    # A rough skin saturates: steep flanks are hardly brighter than middling ones. Hollows get less of the sky.
    shade = 0.6 * slope / (1 + np.abs(slope) * np.float32(0.3)) + 0.35 * sand + 0.3 * fines + 0.25 * lumps
    pores = np.clip(-0.6 * fines - sand - rng.uniform(2.4, 2.8), 0, 0.7)
    cloud = fractal(rng, shape, (45 * s, 45 * s), 2)
    gray = rng.uniform(80, 130) * lighting(rng, shape, rng.uniform(0.1, 0.35))
    gray = gray * (1 + 0.045 * cloud) + shade * rng.uniform(9, 14) - pores * 55
    return Surface("cast", gray, bool(rng.random() < 0.5), light, _steel_tint(rng), rng.uniform(1.5, 3.5), s)


PAINTERS: Mapping[str, SurfacePainter] = MappingProxyType({"brushed": brushed, "rolled": rolled, "cast": cast})
SURFACES = tuple(PAINTERS)
