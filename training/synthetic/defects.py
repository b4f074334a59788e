"""Six kinds of defects of metal surfaces: scratch, pit, inclusion, crack, patch and scale.

Each function draws one mark for a given surface, so that relief is lit from the surface's lamp and drawn-out things
follow its grain. Sizes are in units of :func:`.surfaces.unit` (1 pixel where the shorter side has 200).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from .marks import Mark, blob, drawn_lines, profile, relief, ribbon, trim, union, wander
from .noise import FloatArray, fractal, grain, smooth, smoothstep
from .surfaces import Surface

DefectPainter = Callable[[np.random.Generator, Surface], Mark]


def _thin(surface: Surface) -> float:
    """Thickness of fine lines in pixels: it grows more slowly than the image."""
    return float(max(surface.scale, 0.4) ** 0.6)


def _along_grain(rng: np.random.Generator, surface: Surface, spread: float) -> float:
    """A heading within about ``spread`` radians of the grain."""
    return float((np.pi / 2 if surface.vertical else 0.0) + rng.normal(0, spread) + np.pi * rng.integers(2))


def scratch(rng: np.random.Generator, surface: Surface) -> Mark:
    """One to three grooves side by side: a bright flank towards the lamp, a dark one away from it, fading ends."""
    length = rng.uniform(35, 150) * surface.scale
    angle = _along_grain(rng, surface, 0.25) if rng.random() < 0.4 else rng.uniform(0, 2 * np.pi)
    half = rng.uniform(0.9, 2.0) * _thin(surface)
    steps = 10
    path = wander(rng, length, steps, angle, rng.uniform(0.0, 0.05), rng.normal(0, 0.35))
    taper = np.sin(np.pi * np.clip(np.linspace(0.02, 0.98, steps + 1), 0, 1)) ** 0.5
    halves = np.maximum(half * taper * rng.uniform(0.8, 1.2, steps + 1), 0.85).astype(np.float32)
    depth, side, along = ribbon(path, halves)
    alpha = np.clip(depth / 0.9 + 0.5, 0, 1)
    # The flank whose normal points to the lamp is the bright one.
    normal = (np.cos(angle), -np.sin(angle))
    facing = normal[0] * surface.light[0] + normal[1] * surface.light[1]
    turn = np.float32(1 if facing >= 0 else -1)
    # Grooves side by side: a few ridges across the band, which wander a little along it.
    ridges = int(rng.integers(1, 4)) if half > 1.2 else 1
    wave = np.cos(np.float32(np.pi * ridges) * (side * turn + np.float32(0.25)))
    strength = profile(rng, along, 14, 0.55, 1.0)
    bright = rng.uniform(55, 110)
    glow = strength * (bright * (0.55 + 0.45 * wave) - 45 * np.clip(-side * turn - 0.35, 0, 1))
    alpha, glow = trim(alpha, glow)
    return Mark(alpha, 1.0, glow)


def pit(rng: np.random.Generator, surface: Surface) -> Mark:
    """A small hole: dark floor, its wall towards the lamp in shadow, the far wall and the rim lit."""
    radius = max(2.2, rng.uniform(3.5, 9.0) * max(surface.scale, 0.3) ** 0.9)
    aspect = rng.uniform(0.65, 1.0)
    radii = (radius, radius * aspect) if surface.vertical else (radius * aspect, radius)
    field = blob(rng, radii, 0.13, 1.1)
    # The mark reaches a little beyond the hole: the burr around it catches the light too.
    edge = np.float32(max(2.0, radius * 0.4))
    alpha = smoothstep((field + 0.1) * edge + 0.5)
    bowl = smoothstep(field * 1.8 + 0.1)
    burr = np.exp(-((field / 0.16) ** 2))
    lit = relief(0.15 * burr - bowl, surface.light) * np.float32(radius)
    rough = 0.05 * grain(rng, field.shape, (2, 2))
    tone = 1 - rng.uniform(0.45, 0.68) * smoothstep(field * 2.6) + rough
    glow = np.clip(lit, -1.1, 1.3) * rng.uniform(42, 70)
    alpha, tone, glow = trim(alpha, tone, glow)
    return Mark(alpha, tone, glow)


def inclusion(rng: np.random.Generator, surface: Surface) -> Mark:
    """Foreign matter drawn out by rolling: dark lenses in a row along the grain, frayed at their ends."""
    s = surface.scale
    length = rng.uniform(25, 85) * s
    breadth = max(3.0, rng.uniform(4, 13) * s)
    h, w = int(length + 8), int(2.2 * breadth + 8)
    parts = []
    for _ in range(int(rng.integers(2, 6))):
        ry = length * rng.uniform(0.15, 0.42)
        rx = max(1.2, breadth * rng.uniform(0.15, 0.42))
        field = blob(rng, (ry, rx), 0.35, 0.45, 3)
        y = np.linspace(-1, 1, field.shape[0], dtype=np.float32)[:, None]
        field -= 0.35 * y * y
        place = h / 2 + rng.uniform(-0.5, 0.5) * (length - 2 * ry), w / 2 + rng.normal(0, 0.22) * breadth
        parts.append((smoothstep(field * np.float32(rx / 2.2) + 0.5), *place))
    alpha = union((h, w), parts)
    fibre = grain(rng, (h, w), (9, 2))
    tone = rng.uniform(0.32, 0.58) + 0.07 * fibre
    glow = 14 * relief(-alpha, surface.light)
    if not surface.vertical:
        alpha, tone, glow = alpha.T, tone.T, glow.T
    alpha, tone, glow = trim(alpha, tone, glow)
    return Mark(alpha, tone, glow, (1.03, 1.0, 0.96))


def crack(rng: np.random.Generator, surface: Surface) -> Mark:
    """A jagged dark line that thins out, with branches, and one lip catching the light."""
    s = surface.scale
    length = rng.uniform(40, 130) * s
    width = rng.uniform(1.5, 2.8) * _thin(surface)
    angle = rng.uniform(0, 2 * np.pi)
    steps = int(np.clip(length / (3.2 * max(s, 1) ** 0.5), 8, 60))
    trunk = _jagged(rng, length, steps, angle, 0.55)
    widths = width * np.linspace(1.0, 0.45, steps) * rng.uniform(0.55, 1.3, steps)
    paths = [(trunk, np.maximum(widths, 0.9))]
    for _ in range(int(rng.integers(0, 4))):
        start = int(rng.integers(1, max(2, steps - 3)))
        turn = float(rng.choice([-1, 1])) * rng.uniform(0.4, 1.1)
        part = rng.uniform(0.12, 0.35)
        twigs = max(4, int(steps * part))
        twig = _jagged(rng, length * part, twigs, angle + turn, 0.6) + trunk[start]
        paths.append((twig, np.maximum(width * np.linspace(0.7, 0.35, twigs), 0.9)))
    alpha = drawn_lines(paths)
    dark = rng.uniform(0.18, 0.38)
    lip = relief(-alpha, surface.light)
    alpha, lip = trim(alpha, lip)
    # The lip lies on the outer half of the edge, where alpha is small: lift it without touching the dark core.
    return Mark(alpha, dark, 50 * np.clip(lip, -0.2, 1))


def _jagged(rng: np.random.Generator, length: float, steps: int, angle: float, jitter: float) -> FloatArray:
    """A path that zigzags finely and also changes its mind slowly, as cracks along grain boundaries do."""
    slow = np.cumsum(rng.normal(0, 0.16, steps))
    headings = angle + slow - slow.mean() + rng.normal(0, jitter, steps)
    lengths = rng.uniform(0.4, 1.6, steps) * (length / steps)
    moves = np.stack([np.sin(headings) * lengths, np.cos(headings) * lengths], 1)
    return np.concatenate([np.zeros((1, 2)), np.cumsum(moves, 0)]).astype(np.float32)


def patch(rng: np.random.Generator, surface: Surface) -> Mark:
    """A stain: a large area of another tone with a soft, lobed outline, sometimes with a drying ring."""
    s = surface.scale
    radius = max(5.0, rng.uniform(16, 42) * s)
    aspect = rng.uniform(0.45, 1.0)
    radii = (radius, radius * aspect) if surface.vertical else (radius * aspect, radius)
    field = blob(rng, radii, 0.34, 0.9, 4)
    edge = rng.uniform(0.2, 0.55)
    alpha = smoothstep(field / np.float32(edge) + 0.5)
    cloud = fractal(rng, field.shape, (radius / 2, radius / 2), 3)
    if rng.random() < 0.7:
        tone = rng.uniform(0.5, 0.72) + 0.05 * cloud
        tone -= rng.uniform(0.0, 0.14) * np.exp(-((field / 0.16 - 0.8) ** 2))
        tint = (1.04, 1.0, 0.94) if rng.random() < 0.6 else (0.98, 1.0, 1.03)
    else:
        tone = rng.uniform(1.25, 1.42) + 0.05 * cloud
        tint = (1.0, 1.0, 1.0)
    alpha, tone = trim(alpha, tone.astype(np.float32))
    return Mark(alpha, tone, 0.0, tint)


def scale(rng: np.random.Generator, surface: Surface) -> Mark:
    """Mill scale: brown-black flakes standing off the metal in two layers, with lit edges and cast shadows."""
    s = surface.scale
    radius = max(5.0, rng.uniform(11, 28) * s)
    aspect = rng.uniform(0.45, 0.9)
    radii = (radius, radius * aspect) if surface.vertical else (radius * aspect, radius)
    field = blob(rng, radii, 0.5, 0.5, 4)
    crumbs = smooth(rng, field.shape, (max(2.5, 5 * s**0.7), max(2.5, 5 * s**0.7)))
    edge = np.float32(max(2.0, radius / 5))
    alpha = smoothstep((field + 0.28 * crumbs) * edge + 0.5)
    upper = smoothstep((field - 0.25 + 0.45 * smooth(rng, field.shape, (radius / 2.5, radius / 2.5))) * edge + 0.5)
    height = alpha + 0.9 * upper
    rough = grain(rng, field.shape, (2, 2))
    tone = rng.uniform(0.42, 0.6) - 0.13 * upper + 0.08 * rough + 0.05 * crumbs
    glow = rng.uniform(38, 60) * np.clip(relief(height, surface.light) * 2.0, -0.8, 1.0)
    alpha, tone, glow = trim(alpha, tone.astype(np.float32), glow)
    return Mark(alpha, tone, glow, (1.1, 0.99, 0.86))


PAINTERS: Mapping[str, DefectPainter] = MappingProxyType(
    {"scratch": scratch, "pit": pit, "inclusion": inclusion, "crack": crack, "patch": patch, "scale": scale}
)
DEFECTS = tuple(PAINTERS)
