"""Hot-rolled steel strip in the manner of NEU-DET: gray, 200x200, six classes, each upon the ground it is found on.

Tones, grain (strength and correlation length), counts and box sizes follow what was measured on the data set's
images; the pictures themselves are drawn. Lengths are in pixels at 200x200 and grow with the image: a larger image
shows the same view in more pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from .marks import Mark, blob, drawn_lines, profile, relief, ribbon, trim, union, wander
from .noise import FloatArray, Shape, fractal, grain, lighting, smooth, smoothstep
from .surfaces import Surface, SurfacePainter, lamp, unit

NEU_CLASSES = ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches")


def _sheared(rng: np.random.Generator, shape: Shape, size: tuple[float, float], slope: float) -> FloatArray:
    """Streaks along the rows, tilted by ``slope`` (rows per column)."""
    h, w = shape
    shift = np.round(slope * np.arange(w)).astype(np.intp)
    shift -= shift.min()
    tall = grain(rng, (h + int(shift.max()), w), size)
    rows = np.arange(h)[:, None] + shift[None]
    return np.take_along_axis(tall, rows, 0)


def _vary(rng: np.random.Generator, low: float, typical: float, high: float) -> float:
    """A size between ``low`` and ``high``, most often about ``typical``."""
    return float(rng.triangular(low, typical, high))


def _lamps(rng: np.random.Generator, shape: Shape, slope: float, lanes: float, fall: float = 0.05) -> FloatArray:
    """Light over a strip, mean about 1: it varies across the strip (a slope, lanes, a darker edge), hardly along it."""
    h, w = shape
    x = np.linspace(-1, 1, w, dtype=np.float32)[None]
    across = 1 + rng.uniform(-slope, slope) * x + lanes * smooth(rng, (1, w), (1, w / 5))
    across += 0.25 * lanes * smooth(rng, (1, w), (1, w / 14))
    if rng.random() < 0.4:
        side = float(rng.choice([-1, 1]))
        across -= rng.uniform(0.5, 1.5) * slope * np.clip(side * x - rng.uniform(0.1, 0.6), 0, 1)
    along = 1 + rng.uniform(-fall, fall) * np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    along += 0.5 * fall * smooth(rng, (h, 1), (h / 3, 1))
    light: FloatArray = np.maximum(across, 0.2) * along
    return light


def _ground(
    name: str, rng: np.random.Generator, gray: FloatArray, noise: float, s: float, vertical: bool = True
) -> Surface:
    return Surface(name, gray, vertical, lamp(rng), noise=noise, scale=s)


def mottled(rng: np.random.Generator, shape: Shape) -> Surface:
    """Crazing's ground: coarse bright grain, hairlines both ways, brightness in vertical lanes."""
    s = unit(shape)
    light = _lamps(rng, shape, 0.3, rng.uniform(0.03, 0.09))
    base = _vary(rng, 85, 155, 185)
    lines = _sheared(rng, shape, (1.3 * s, 9 * s), rng.uniform(-0.5, 0.5))
    speck = 0.7 * grain(rng, shape, (2 * s, 2 * s)) + 0.85 * grain(rng, shape, (s, s), 1) + 0.35 * lines
    speck += 0.4 * smooth(rng, shape, (4 * s, 4 * s))
    gray = base * light * (1 + rng.uniform(0.1, 0.155) * speck + 0.03 * smooth(rng, shape, (16 * s, 16 * s)))
    return _ground("mottled", rng, gray, 2.0, s)


def smooth_strip(rng: np.random.Generator, shape: Shape) -> Surface:
    """The ground of inclusions and scratches: dark and even, faint threads along the strip, slow clouds.

    Six times in seven the strip runs from top to bottom, else from left to right.
    """
    s = unit(shape)
    vertical = bool(rng.random() < 0.85)
    h, w = shape if vertical else (shape[1], shape[0])
    light = _lamps(rng, (h, w), 0.22, rng.uniform(0.01, 0.05), 0.12)
    base = _vary(rng, 50, 92, 150) if rng.random() < 0.88 else rng.uniform(160, 215)
    threads = grain(rng, (h, w), (18 * s, 1.6 * s))
    clouds = fractal(rng, (h, w), (38 * s, 16 * s), 3)
    gray = base * light * (1 + 0.012 * threads + rng.uniform(0.008, 0.03) * clouds)
    gray += _vary(rng, 0.8, 1.2, 3.0) * grain(rng, (h, w), (2 * s, 2 * s))
    return _ground("smooth", rng, gray if vertical else np.ascontiguousarray(gray.T), 1.0, s, vertical)


def bleached(rng: np.random.Generator, shape: Shape) -> Surface:
    """The ground of patches: over-exposed, noisy, with large bright and grayer areas."""
    s = unit(shape)
    light = _lamps(rng, shape, 0.25, rng.uniform(0.03, 0.12))
    base = rng.uniform(120, 230)
    areas = fractal(rng, shape, (60 * s, 32 * s), 4)
    lines = _sheared(rng, shape, (1.3 * s, 7 * s), rng.uniform(-0.4, 0.4))
    lanes = grain(rng, shape, (70 * s, 1.5 * s))
    speck = 0.7 * grain(rng, shape, (2 * s, 2 * s)) + 0.75 * grain(rng, shape, (s, s), 1) + 0.45 * lines + 0.2 * lanes
    gray = base * light * (1 + rng.uniform(0.08, 0.17) * areas) * (1 + rng.uniform(0.1, 0.14) * speck)
    return _ground("bleached", rng, gray, 2.0, s)


def pale(rng: np.random.Generator, shape: Shape) -> Surface:
    """The ground of pitted surfaces: bright, satin, with a strong fall of light."""
    s = unit(shape)
    light = lighting(rng, shape, rng.uniform(0.15, 0.5), 0.03)
    threads = grain(rng, shape, (14 * s, 2 * s))
    gray = rng.uniform(120, 235) * light * (1 + 0.012 * threads)
    gray += rng.uniform(1.5, 3.5) * grain(rng, shape, (2 * s, 2 * s))
    return _ground("pale", rng, gray, 1.2, s)


def striated(rng: np.random.Generator, shape: Shape) -> Surface:
    """The ground of rolled-in scale: middle gray, fine slanting hairlines, soft blotches and lanes."""
    s = unit(shape)
    light = _lamps(rng, shape, 0.15, rng.uniform(0.03, 0.09))
    slope = rng.uniform(-0.4, 0.4)
    lines = 0.8 * _sheared(rng, shape, (1.2 * s, 5 * s), slope) + 0.5 * _sheared(rng, shape, (1.2 * s, 22 * s), slope)
    blotches = fractal(rng, shape, (13 * s, 22 * s), 3)
    pepper = grain(rng, shape, (s, 1.6 * s), 1)
    gray = rng.uniform(80, 155) * light * (1 + 0.06 * lines + 0.045 * blotches + rng.uniform(0.03, 0.055) * pepper)
    return _ground("striated", rng, gray, 3.0, s)


def crazing(rng: np.random.Generator, surface: Surface) -> Mark:
    """A field of short jagged cracks, most of them across the strip, here open, there closed."""
    s = surface.scale
    h, w = _vary(rng, 40, 75, 130) * s, _vary(rng, 65, 130, 205) * s
    paths = []
    for _ in range(max(4, int(h * w / (s * s) / rng.uniform(330, 700)))):
        length = _vary(rng, 5, 11, 38) * s
        steps = int(np.clip(length / (2.4 * s), 3, 16))
        heading = rng.normal(0, 0.4) if rng.random() < 0.85 else rng.uniform(0, np.pi)
        path = wander(rng, length, steps, heading, 0.75, rng.normal(0, 0.5))
        extent = path.max(0) - path.min(0)
        corner = rng.uniform(0, np.maximum(np.array([h, w]) - extent, 1))
        width = rng.uniform(0.8, 2.2) * s
        widths = np.maximum(width * np.sin(np.linspace(0.5, 2.8, steps)) * rng.uniform(0.5, 1.5, steps), 0.8 * s)
        paths.append((path - path.min(0) + corner.astype(np.float32), widths))
    alpha = drawn_lines(paths)
    alpha = np.clip(alpha * (1.0 + 0.3 * grain(rng, alpha.shape, (2 * s, 3 * s))), 0, 1)
    return Mark(trim(alpha)[0], rng.uniform(0.4, 0.6))


def inclusion(rng: np.random.Generator, surface: Surface) -> Mark:
    """Dark spindles drawn out along the strip, single or in a swarm, frayed into threads at their ends."""
    s = surface.scale
    length, breadth = _vary(rng, 28, 65, 210) * s, _vary(rng, 10, 20, 46) * s
    swarm = rng.random() < 0.6
    parts = []
    h, w = int(length + 6), int(breadth + 6)
    for _ in range(int(rng.integers(3, 9)) if swarm else int(rng.integers(1, 3))):
        ry = length * (rng.uniform(0.1, 0.35) if swarm else rng.uniform(0.35, 0.5))
        rx = max(1.2 * s, breadth * (rng.uniform(0.06, 0.18) if swarm else rng.uniform(0.15, 0.32)))
        rx = max(1.0 * s, min(rx, ry / 4.5))
        size = 2 * int(ry * 1.3) + 3, 2 * int(rx * 1.7) + 5
        y = np.linspace(-1.3, 1.3, size[0], dtype=np.float32)[:, None]
        x = np.linspace(-1.7, 1.7, size[1], dtype=np.float32)[None]
        x = x + rng.normal(0, 0.3) * y + 0.25 * smooth(rng, (size[0], 1), (ry / 2, 1))
        field = 1 - np.abs(x) - np.abs(y) ** 1.5 + 0.22 * smooth(rng, size, (max(7 * s, ry / 3), 1.6 * s))
        place = (
            h / 2 + rng.uniform(-1, 1) * max(0.0, length / 2 - ry),
            w / 2 + rng.uniform(-1, 1) * max(0.0, breadth / 2 - rx),
        )
        parts.append((smoothstep(field * np.float32(max(0.9, rx / (3.4 * s))) + 0.38), *place))
    alpha = union((h, w), parts)
    fibre = grain(rng, (h, w), (10 * s, 1.5 * s))
    tone = rng.uniform(0.58, 0.8) + 0.03 * fibre
    if not surface.vertical:
        alpha, tone = alpha.T, tone.T
    alpha, tone = trim(alpha, tone)
    return Mark(alpha, tone)


def patches(rng: np.random.Generator, surface: Surface) -> Mark:
    """A black area as of burnt oil, drawn out along the strip, with a fuzzy outline that the grain shines through."""
    s = surface.scale
    height, width = _vary(rng, 30, 75, 200) * s, _vary(rng, 30, 46, 85) * s
    h, w = int(height * 1.7 + 16 * s), int(width * 2.6 + 16 * s)
    field = np.full((h, w), -2.0, np.float32)
    lobes = int(rng.integers(1, 5))
    # A string of lobes down the strip, each beside the one before.
    x = w / 2 + rng.normal(0, 0.2) * width
    for i in range(lobes):
        ry = height * rng.uniform(0.5, 0.8) / (lobes + 1) + 5 * s
        rx = width * rng.uniform(0.28, 0.46)
        part = blob(rng, (ry, rx), 0.14, 0.9, 2) + 2
        x = float(np.clip(x, 1.3 * rx, w - 1.3 * rx))
        y = h / 2 + (i - (lobes - 1) / 2) * height / (lobes + 1)
        field = np.maximum(field, union((h, w), [(part, y, x)]) - 2)
        x += rng.normal(0, 0.33) * width
    # The outline is equally soft on large and small patches.
    field *= np.float32(width / (2 * rng.uniform(10, 19) * s))
    field += 0.05 * grain(rng, (h, w), (3 * s, 2 * s)) + 0.12 * smooth(rng, (h, w), (6 * s, 5 * s))
    alpha = smoothstep(field + 0.5)
    tone = rng.uniform(0.28, 0.45) + 0.06 * fractal(rng, (h, w), (14 * s, 9 * s), 3)
    alpha, tone = trim(alpha, tone)
    return Mark(alpha, tone)


def pitted_surface(rng: np.random.Generator, surface: Surface) -> Mark:
    """A lane of the strip covered with hundreds of small dark pits; now and then some have grown together."""
    s = surface.scale
    h, w = int(_vary(rng, 120, 260, 280) * s), int(_vary(rng, 60, 140, 230) * s)
    y = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, w, dtype=np.float32)[None]
    edge = np.minimum(1 - np.abs(x), 1 - np.abs(y)) * 4 + 0.5 * smooth(rng, (h, w), (30 * s, 18 * s))
    barren = np.clip(1.3 - edge, 0, 3)
    size = rng.uniform(0.7, 1.1) * s
    pits = 0.85 * smooth(rng, (h, w), (2.9 * size, 2.1 * size)) + 0.35 * grain(rng, (h, w), (2 * s, 2 * s))
    field = pits - rng.uniform(0.15, 1.05) - 0.9 * barren + 0.25 * smooth(rng, (h, w), (40 * s, 14 * s))
    alpha = smoothstep(field * 0.6 + 0.42)
    tone = rng.uniform(0.76, 0.88) - 0.07 * np.clip(field, 0, 2)
    if rng.random() < 0.3:
        lumps = smooth(rng, (h, w), (7 * s, 5 * s)) + 0.5 * smooth(rng, (h, w), (3.5 * s, 3 * s))
        grown = smoothstep((lumps - rng.uniform(1.1, 1.7) - barren) * 1.6 + 0.5)
        alpha = np.maximum(alpha, grown)
        tone -= 0.16 * grown
    alpha, tone = trim(alpha, tone)
    return Mark(alpha, tone)


def rolled_in_scale(rng: np.random.Generator, surface: Surface) -> Mark:
    """A loose swarm of flakes pressed into the strip: small dark lenses across it, with a lit edge."""
    s = surface.scale
    h, w = int(_vary(rng, 30, 60, 140) * s), int(_vary(rng, 35, 62, 125) * s)
    y = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, w, dtype=np.float32)[None]
    edge: FloatArray = 1 - np.maximum(np.abs(x), np.abs(y)) ** 4
    flakes = 0.9 * smooth(rng, (h, w), (3.2 * s, 6 * s)) + 0.35 * smooth(rng, (h, w), (1.8 * s, 2.6 * s))
    flakes += 0.5 * smooth(rng, (h, w), (14 * s, 14 * s))
    field = flakes - rng.uniform(1.2, 1.6) - np.clip(0.5 - edge, 0, 1) * 1.2
    alpha = smoothstep(field * 0.6 + 0.42)
    tone = rng.uniform(0.58, 0.74) - 0.06 * field + 0.05 * grain(rng, (h, w), (2 * s, 2 * s))
    glow = 14 * np.clip(relief(alpha, (-1.0, 0.0)) * s * 3, -0.3, 1)
    alpha, tone, glow = trim(alpha, tone, glow)
    return Mark(alpha, tone, glow)


def scratches(rng: np.random.Generator, surface: Surface) -> Mark:
    """Bare bright metal along the strip: a bundle of parallel lines, or one torn line of changing width."""
    s = surface.scale
    bundle = rng.random() < 0.5
    length = (_vary(rng, 100, 330, 520) if bundle else _vary(rng, 30, 110, 330)) * s
    heading = (np.pi / 2 if surface.vertical else 0.0) + rng.normal(0, 0.03)
    half = (_vary(rng, 3, 7, 15) if bundle else _vary(rng, 1.0, 1.6, 4.0)) * s
    steps = 8 if bundle else 40
    path = wander(rng, length, steps, heading, 0.003 if bundle else 0.06, rng.normal(0, 0.02))
    position = np.linspace(-1, 1, steps + 1)
    halves = half * (1.0 if bundle else np.clip(1.2 - position**8, 0.4, 1)) * np.ones(steps + 1)
    if not bundle:
        slow = smooth(rng, (1, steps + 1), (1, 4))[0]
        halves *= np.clip(1 + 0.18 * slow + 0.12 * rng.standard_normal(steps + 1), 0.5, 1.6)
    depth, side, along = ribbon(path, np.maximum(halves, 0.8 * s).astype(np.float32))
    alpha = np.clip(depth / (0.9 * s) + 0.5, 0, 1)
    if bundle:
        lines = np.clip(0.5 + 0.4 * grain(rng, (1, 64), (1, 4), 1)[0], 0.1, 1)
        # Brightest in the middle of the bundle or along one of its edges.
        lines *= 1 - 0.55 * np.abs(np.linspace(-1, 1, 64) - 0.8 * int(rng.integers(-1, 2)))
        ridge = np.interp(side, np.linspace(-1, 1, 64), lines).astype(np.float32)
        ridge = ridge * profile(rng, along, 30, 0.75, 1.05)
        # Every line of the bundle begins and ends where it will.
        starts, stops = (np.interp(side, np.linspace(-1, 1, 20), rng.uniform(0, 0.14, 20)) for _ in range(2))
        alpha = alpha * np.clip(np.minimum(along - starts, 1 - along - stops) * 20, 0, 1).astype(np.float32)
    else:
        ridge = (1 - 0.5 * np.abs(side)) * profile(rng, along, 18, 0.35, 1.1)
    glow = rng.uniform(95, 215) * np.maximum(ridge, 0.15)
    alpha, glow = trim(alpha, glow)
    return Mark(alpha, 1.0, glow)


SURFACE_PAINTERS: Mapping[str, SurfacePainter] = MappingProxyType(
    {"mottled": mottled, "smooth": smooth_strip, "bleached": bleached, "pale": pale, "striated": striated}
)
NEU_SURFACES = tuple(SURFACE_PAINTERS)
PAINTERS: Mapping[str, Callable[[np.random.Generator, Surface], Mark]] = MappingProxyType(
    dict(zip(NEU_CLASSES, (crazing, inclusion, patches, pitted_surface, rolled_in_scale, scratches), strict=True))
)
HABITAT: Mapping[str, str] = MappingProxyType(
    dict(zip(NEU_CLASSES, ("mottled", "smooth", "bleached", "pale", "striated", "smooth"), strict=True))
)
COUNTS: Mapping[str, tuple[int, int]] = MappingProxyType(
    dict(zip(NEU_CLASSES, ((1, 3), (1, 5), (1, 4), (1, 2), (1, 3), (1, 4)), strict=True))
)
