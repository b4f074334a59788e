"""Every setting of making anomaly maps, as one frozen dataclass that the command line is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agssp_zoo.errors import InvalidArgumentError

from ..settings import setting


@dataclass(frozen=True)
class MapSettings:
    """What maps are made of, and how. Lengths are in pixels of the network's input.

    What a method has no use for is refused when it makes maps. ``data`` are folders of images, or packed shards.

    Raises:
        InvalidArgumentError: a value out of range.
    """

    data: tuple[str, ...] = setting((), "folders of images, or of shards; several make one pool")
    out: str = setting("runs/maps", "folder of the store; the same command goes on with what is there")
    method: str = setting(
        "auto",
        "kead (by text), memory (against normal images), mutual (against the other images), own (against the image "
        "itself), consensus (own, made consistent over the pool), gaussian (against the pool's distribution), auto "
        "(chooses without labels); a+b: the mean of two or more",
    )
    split: str = setting("all", "split to make maps of; all: every image")
    format: str = setting("auto", "format of the labels, where the split or the normal images need them")
    exclude: str = setting("", "text file of images to leave out, a name a line, as a val.txt has them")
    sources: Literal["auto", "one"] = setting(
        "auto",
        "methods compare images within a data set, and maps are rescaled by it: auto takes each folder of a pool for "
        "one; one: all images, where the folders of the pool are classes",
    )
    normal: str = setting(
        "",
        "memory and kead: normal images: a folder (also one within the data), or a split of the data, of which those "
        "without labels; split:NAME is a split in any case, ./NAME a folder",
    )
    shots: int = setting(0, "how many of the normal images are used, drawn by the seed; 0: all")
    seed: int = setting(0, "of all that is drawn: normal images, samples of the pool")
    tolerance: float = setting(0.0, "share of the images that may be unreadable, 0-1", runtime=True)

    encoder: str = setting(
        "",
        "network: a timm name or a backbone of the zoo (for kead alone, as --clip); left out: the method's",
    )
    encoder_weights: str = setting("", "file of its weights; left out: those that are known by the encoder's name")
    size: int = setting(0, "side of the network's input; 0: the method's")
    aspect: Literal["keep", "square"] = setting(
        "keep",
        "keep: the input has the mean proportions of each data set's images, and about as many pixels as a square of "
        "that size; square: images are squashed onto it (kead always does that)",
    )
    layers: tuple[int, ...] = setting((), "layers whose features are compared, from 1; left out: the method's")
    clip: str = setting(
        "",
        "kead: its CLIP model, an open_clip name or folder; combined with other methods, whose --encoder, --size and "
        "--layers are not its, too; left out: the authors'",
    )
    clip_weights: str = setting("", "kead: file of that model's weights, or a tag of open_clip")
    object: str = setting("", "kead: what the images show, a name of `agssp-zoo prompts list` or a .toml file")
    precision: Literal["auto", "no", "bf16", "fp16"] = setting(
        "no", "arithmetic of the network: no (float32), bf16 or fp16 (mixed)"
    )

    batch: int = setting(32, "images at a time, in each process", runtime=True)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps", runtime=True)
    threads: int = setting(0, "CPU threads of the network; 0 takes all cores", runtime=True)
    workers: int = setting(
        -1, "threads that read images; 0 reads them in line; -1: 1 for the CPU, up to 8 a GPU", runtime=True
    )
    visualize: int = setting(0, "draw this many images of every data set, and a sheet of them", runtime=True)

    def __post_init__(self) -> None:
        for name, low in {"shots": 0, "seed": 0, "size": 0, "batch": 1, "threads": 0, "workers": -1}.items():
            self._check(getattr(self, name) >= low, name, f"it must be at least {low}")
        self._check(self.visualize >= 0, "visualize", "it must be at least 0")
        self._check(self.size == 0 or self.size >= 32, "size", "it must be at least 32")
        self._check(0.0 <= self.tolerance <= 1.0, "tolerance", "it must lie in 0-1")
        self._check(all(layer >= 1 for layer in self.layers), "layers", "they count from 1")

    def _check(self, good: bool, name: str, rule: str) -> None:
        if not good:
            raise InvalidArgumentError(f"--{name.replace('_', '-')} is {getattr(self, name)}; {rule}.")
