"""Images that are (nearly) the same: a perceptual hash, and a closer look at the pairs it suggests.

The hash is a difference hash: the image averaged to 16 rows of 17 pixels, and for each of the 16 x 16 neighbours
whether the right one is brighter, 256 bits. Metal surfaces hash alike by chance far more often than photographs do
(brightness falls from one side to the other on most of them, a machine part looks like the next one), so a pair only
counts when its thumbnails correlate besides, after the slow changes of brightness and what all images of the set have
in common are taken out.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HASH_SIDE = 16
THUMB_SIDE = 32
MAX_DISTANCE = 40
"""Pairs whose hashes differ in more of the 256 bits are not looked at."""
MIN_CORRELATION = 0.9
"""Thumbnails of near duplicates correlate at least this much (1 is equal). Two exposures of one surface reach 0.9 to
0.99; different surfaces of one class stay under 0.85 (looked at on four sets of metal surfaces)."""

_CHUNK = 256
_PAIRS = 4096
_BITS = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)


@dataclass(frozen=True, slots=True)
class Look:
    """What is kept of an image to compare it with others, about 2 kB.

    Attributes:
        hash: uint16 (16,), the 256 bits of the difference hash.
        thumb: float16 (1024,), the thumbnail without slow changes of brightness, of length 1 (0 for a flat image).
        digest: 16 bytes, equal for images of equal pixels.
    """

    hash: NDArray[np.uint16]
    thumb: NDArray[np.float16]
    digest: bytes


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images that are nearly, or when ``same`` exactly, equal; by their places in the list."""

    first: int
    second: int
    correlation: float
    same: bool


def look_at(image: NDArray[np.uint8]) -> Look:
    """Sums an image (uint8 (H, W, 3)) up for comparison."""
    from PIL import Image

    digest = hashlib.blake2b(image.data, digest_size=16, key=repr(image.shape).encode()).digest()
    gray = Image.fromarray(image).convert("L")
    small = np.asarray(gray.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), np.int16)
    bits = np.packbits((small[:, 1:] > small[:, :-1]).ravel()).view(np.uint16)
    thumb = np.asarray(gray.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX), np.float32)
    slow = np.asarray(Image.fromarray(thumb).resize((4, 4), Image.Resampling.BOX).resize(thumb.shape))
    fine = (thumb - slow).ravel()
    fine -= fine.mean()
    length = float(np.linalg.norm(fine))
    # Under half a gray level a pixel there is nothing but noise to compare.
    fine = fine / length if length > 0.5 * THUMB_SIDE else np.zeros_like(fine)
    return Look(bits, fine.astype(np.float16), digest)


def near_duplicates(looks: Sequence[Look], groups: Sequence[str]) -> list[Pair]:
    """Near and exact duplicates between images of different groups (splits).

    When all images are of one group, the pairs are those within it. Every near duplicate is paired with all that it
    looks like; one that is exactly equal to several of a group is paired with the first of these, so that a thousand
    empty frames make no million pairs. Flat images are like nothing but their equals. Takes time with the product of
    the sizes of the groups: half a minute for 100,000 images against 10,000.

    Args:
        looks: of all images.
        groups: which group each is of.

    Returns:
        The pairs, the most similar first.
    """
    if not looks:
        return []
    hashes = np.stack([look.hash for look in looks])
    thumbs = np.stack([look.thumb for look in looks])
    structured = thumbs.any(axis=1)
    common = thumbs.mean(axis=0, dtype=np.float32)
    names = np.array(groups)
    kinds = sorted(set(groups))
    alike: dict[bytes, list[int]] = {}
    for place, look in enumerate(looks):
        alike.setdefault(look.digest, []).append(place)
    number = {digest: place for place, digest in enumerate(alike)}
    pixels = np.array([number[look.digest] for look in looks])
    pairs = [Pair(*places, 1.0, True) for equal in alike.values() for places in _equal_pairs(equal, groups, kinds)]
    for group in kinds if len(kinds) == 1 else kinds[:-1]:
        own = np.flatnonzero((names == group) & structured)
        others = own if len(kinds) == 1 else np.flatnonzero((names > group) & structured)
        for start in range(0, len(own), _CHUNK):
            rows = own[start : start + _CHUNK]
            distance = np.zeros((len(rows), len(others)), np.uint16)
            for word in range(HASH_SIDE):
                distance += _BITS[hashes[rows, word][:, None] ^ hashes[others, word][None]]
            row, column = np.nonzero(distance <= MAX_DISTANCE)
            first, second = rows[row], others[column]
            wanted = pixels[first] != pixels[second]
            if len(kinds) == 1:
                wanted &= first < second
            first, second = first[wanted], second[wanted]
            for block in range(0, len(first), _PAIRS):
                one, other = first[block : block + _PAIRS], second[block : block + _PAIRS]
                found = _correlations(thumbs[one] - common, thumbs[other] - common)
                near = found >= MIN_CORRELATION
                listed = zip(one[near].tolist(), other[near].tolist(), found[near].tolist(), strict=True)
                pairs.extend(Pair(*values, same=False) for values in listed)
    return sorted(pairs, key=lambda pair: (-pair.correlation, pair.first, pair.second))


def _equal_pairs(equal: Sequence[int], groups: Sequence[str], kinds: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs of exactly equal images of different groups (of the only one): each with the first of the other group."""
    if len(kinds) == 1:
        yield from ((equal[0], place) for place in equal[1:])
        return
    of_group = [[place for place in equal if groups[place] == kind] for kind in sorted({groups[p] for p in equal})]
    for own, others in itertools.combinations(of_group, 2):
        yield from ((own[0], place) for place in others)
        yield from ((place, others[0]) for place in own[1:])


def same_images(looks: Sequence[Look], groups: Sequence[str]) -> list[tuple[int, int]]:
    """Images of exactly equal pixels within a group: each with the first of the group that looks so."""
    seen: dict[tuple[str, bytes], int] = {}
    firsts = [
        seen.setdefault((group, look.digest), n) for n, (look, group) in enumerate(zip(looks, groups, strict=True))
    ]
    return [(first, place) for place, first in enumerate(firsts) if first != place]


def _correlations(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n,) correlations of the rows of two arrays (n, values); 0 where hardly anything is left to compare."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    products = np.einsum("ij,ij->i", one, other)
    found: NDArray[np.float32] = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0.01)
    return found
