"""Choosing part of a set of images so that every class keeps its share.

Iterative stratification for multi-label data (Sechidis, Tsoumakas and Vlahavas: On the Stratification of Multi-Label
Data, ECML PKDD 2011, algorithm 1) for two parts: the class that fewest of the remaining images show is dealt out
first, each of its images to the part that still wants most of that class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def stratified_choice(groups: Sequence[NDArray[np.int64]], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Chooses a share of the images.

    Args:
        groups: for each image the classes on it, without repetition; an image without any counts as a class of its
            own (background).
        fraction: wanted share of the chosen images, 0-1. At least one image is chosen, and one is left.
        seed: of the choice.

    Returns:
        bool (images,), true for the chosen ones. A class shown by a single image is not chosen (for fractions up to one
        half).
    """
    count = len(groups)
    rng = np.random.default_rng(seed)
    background = max((int(group.max()) for group in groups if len(group)), default=-1) + 1
    classes = [group.tolist() if len(group) else [background] for group in groups]
    showing: list[set[int]] = [set() for _ in range(background + 1)]
    for image, on_it in enumerate(classes):
        for label in on_it:
            showing[label].add(image)
    wanted = [[len(images) * share for images in showing] for share in (1.0 - fraction, fraction)]
    wanted_images = [count * (1.0 - fraction), count * fraction]
    rank = rng.permutation(count).tolist()
    chosen = np.zeros(count, np.bool_)
    remaining = [len(images) for images in showing]
    open_classes = {label for label, images in enumerate(showing) if images}
    while open_classes:
        label = min(open_classes, key=lambda index: (remaining[index], index))
        open_classes.discard(label)
        for image in sorted(showing[label], key=rank.__getitem__):
            # The part that wants most of this class; then the one that wants most images; then the training part.
            part = max((0, 1), key=lambda p: (wanted[p][label], wanted_images[p], -p))
            chosen[image] = part == 1
            wanted_images[part] -= 1
            for other in classes[image]:
                wanted[part][other] -= 1
                remaining[other] -= 1
                showing[other].discard(image)
    if not chosen.any():
        chosen[int(np.argmax(rank))] = True
    elif chosen.all():
        chosen[int(np.argmax(rank))] = False
    return chosen
