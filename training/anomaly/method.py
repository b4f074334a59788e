"""What a way of making anomaly maps is: one abstract class, which the driver (:mod:`.maps`) runs over any pool."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from ..data.dataset import Dataset

Loader = Callable[[Sequence[int]], Iterator["Tensor"]]
"""Indices of images -> their preprocessed tensors in that order, in batches float32 (B, 3, H, W) on the CPU."""


class AnomalyMethod(abc.ABC):
    """Images in, anomaly maps out.

    The driver calls, in this order: :meth:`to`; :meth:`fit`; :meth:`prepare` once, in one process, or
    :meth:`load_state` with what that process learnt; then :meth:`maps` for batch after batch. What looks at the
    ``"images"`` does so for each data set of a pool by itself: several times :meth:`fit` and :meth:`prepare`, then for
    one data set after the other :meth:`fit`, :meth:`load_state` and the maps. :meth:`preprocess` runs in several
    threads at once.
    Maps are in the order of the pixels, row 0 on top, and high where something is unusual. An image of one constant
    colour has a finite map, in place of which the driver puts 0.

    Attributes:
        name: the method, as ``--method`` calls it.
        bounded: the maps' values are probabilities, 0-1.
        prepares_on: what :meth:`prepare` looks at: ``"nothing"`` (it is not called), the ``"images"`` that get maps,
            or the ``"normal"`` images that ``--normal`` names (``--shots`` of them). An instance may set its own.
    """

    name: ClassVar[str]
    bounded: bool = False
    prepares_on: Literal["nothing", "images", "normal"] = "nothing"

    @abc.abstractmethod
    def to(self, device: torch.device) -> None:
        """Moves the networks and all that was learnt to a device."""

    def fit(self, aspect: float) -> None:  # noqa: B027  (optional)
        """Gives the input a shape that suits the images which come next; what was learnt before is void.

        Args:
            aspect: height / width of these images, their geometric mean.
        """

    @abc.abstractmethod
    def preprocess(self, image: NDArray[np.uint8]) -> Tensor:
        """The network's input for an image. Pure and thread-safe.

        Args:
            image: uint8 (height, width, 3), RGB.

        Returns:
            float32 (3, H, W) on the CPU, the same for every image until the next :meth:`fit`.
        """

    @abc.abstractmethod
    def maps(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Anomaly maps of a batch.

        Args:
            batch: float32 (B, 3, H, W) on the method's device.

        Returns:
            Maps float32 (B, gh, gw), with a grid that is the same for every batch until the next :meth:`fit`, and image
            scores float32 (B,). All finite. They depend on the image alone, not on the others of the batch.
        """

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that defines the result, as JSON values: encoder, sha256 of its weights, size, layers, k and so on.

        Known before :meth:`prepare`. Stores with other settings are other stores; paths of this machine and what only
        changes speed stay out.
        """

    def prepare(self, loader: Loader, images: Dataset) -> None:  # noqa: B027  (optional)
        """Looks at (a part of) the images once, before the first map is made, and forgets what it looked at before.

        Args:
            loader: reads the images of some indices, in batches; may be called any number of times. An image that
                cannot be read, where that is tolerated, comes as zeros, so that places stay where they are.
            images: what :attr:`prepares_on` names; its records say which image an index is.
        """

    def notes(self) -> tuple[str, ...]:
        """What a user should know of what was prepared or loaded, e.g. why ``auto`` chose as it did; lines of text."""
        return ()

    def state(self) -> dict[str, Tensor]:
        """What :meth:`prepare` has learnt, as named CPU tensors.

        The driver keeps it beside the store, so that a resumed run and other processes need not learn it again.
        """
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027  (optional)
        """Takes what :meth:`state` gave, in place of :meth:`prepare` and of what was learnt; tensors are on the CPU."""
