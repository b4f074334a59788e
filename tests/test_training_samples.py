"""Training samples: what they depend on, and that boxes stay on what they are around."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from training_runs import write_data  # noqa: E402

from agssp_zoo.errors import TrainingError  # noqa: E402
from agssp_zoo.training.augment import Sample, augment, quarter_turn, turning_labels  # noqa: E402
from agssp_zoo.training.data import Record, read_dataset  # noqa: E402
from agssp_zoo.training.loader import (  # noqa: E402
    Batch,
    BatchPlan,
    ImageStore,
    TrainingSamples,
    build_loader,
    epoch_order,
)
from agssp_zoo.training.settings import TrainSettings  # noqa: E402

SETTINGS = TrainSettings(data="x", size=64, epochs=4, close_mosaic=1, degrees=10.0, shear=3.0, seed=3)


def batches(
    store: ImageStore,
    settings: TrainSettings,
    epoch: int,
    *,
    workers: int = 0,
    first: int = 0,
    rank: int = 0,
    of: int = 1,
) -> list[Batch]:
    plan = BatchPlan(len(store), 4, rank, of)
    plan.start(epoch, first)
    return list(build_loader(TrainingSamples(store, settings, 114), plan, workers))


def rows_of(found: list[Batch]) -> list[tuple[bytes, bytes, bytes]]:
    """Every sample as bytes: pixels, its boxes, its labels."""
    return [
        (
            batch.images[i].numpy().tobytes(),
            batch.targets.boxes[i][batch.targets.mask[i]].numpy().tobytes(),
            batch.targets.labels[i][batch.targets.mask[i]].numpy().tobytes(),
        )
        for batch in found
        for i in range(len(batch.images))
    ]


def test_a_sample_depends_on_seed_epoch_and_place_alone(tmp_path: Path) -> None:
    records = read_dataset(write_data(tmp_path / "data", train=10, val=1)).split("train").records
    store, unkept = ImageStore(records, 64, 1 << 30), ImageStore(records, 64, 0)
    whole = rows_of(batches(store, SETTINGS, 1))
    assert len(whole) == 12 and len(set(whole)) == 12  # ten images, the last batch filled up with other samples
    assert rows_of(batches(unkept, SETTINGS, 1, workers=2)) == whole
    assert rows_of(batches(store, SETTINGS, 1, first=1)) == whole[4:]
    shares = [rows_of(batches(store, SETTINGS, 1, rank=rank, of=2)) for rank in range(2)]
    together = [row for step in range(3) for share in shares for row in share[2 * step : 2 * step + 2]]
    assert together == whole
    assert not set(rows_of(batches(store, SETTINGS, 2))) & set(whole)
    other = TrainSettings(**{**SETTINGS.to_dict(), "seed": 4})
    assert not set(rows_of(batches(store, other, 1))) & set(whole)
    keys = [key for batch in batches(store, SETTINGS, 1) for key in batch.keys]
    assert keys == [records[i].key for i in [*epoch_order(3, 1, 10), *epoch_order(3, 1, 10)[:2]]]
    assert set(keys) == {record.key for record in records}
    with pytest.raises(TrainingError, match="--batch 4 cannot be divided among 3 processes"):
        BatchPlan(10, 4, 0, 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_draws_nothing_from_torch_s_generator(tmp_path: Path, workers: int) -> None:
    """A run that goes on starts its loader once more; what networks draw in training must not depend on that."""
    records = read_dataset(write_data(tmp_path / "data", train=4, val=1)).split("train").records
    store = ImageStore(records, 64, 1 << 30)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    batches(store, SETTINGS, 0, workers=workers)
    assert torch.equal(torch.get_rng_state(), before)


def test_mosaic_ends_before_the_last_epochs(tmp_path: Path) -> None:
    records = read_dataset(write_data(tmp_path / "data", train=8, val=1)).split("train").records
    still = TrainSettings(data="x", size=64, epochs=4, close_mosaic=2, scale=0.0, translate=0.0, mosaic=1.0)
    store = ImageStore(records, 64, 1 << 30)
    counts = [
        sum(int(batch.targets.mask.sum()) for batch in batches(store, still, epoch)) for epoch in range(still.epochs)
    ]
    # Without mosaic nothing is cropped here: every image keeps its one box.
    assert counts[2:] == [8, 8] and min(counts[:2]) > 8


@pytest.mark.parametrize("mosaic", [True, False])
def test_boxes_stay_tight_around_what_they_mark(mosaic: bool) -> None:
    """A white rectangle on black, through every geometric change, is where its box says."""
    size = 96
    settings = TrainSettings(
        data="x", size=size, degrees=12.0, shear=5.0, scale=0.3, brightness=0.0, contrast=0.0, quarter_turn=0.5
    )
    found = turned = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        width, height = rng.integers(24, 50, 2)
        image = np.zeros((size, size - 20, 3), np.uint8)
        x, y = rng.integers(2, size - 22 - width), rng.integers(2, size - 2 - height)
        image[y : y + height, x : x + width] = 255
        boxes = np.array([[x, y, x + width, y + height]], np.float32)
        marked = Sample(image, boxes, np.array([1]), gray=True)
        empty = Sample(np.zeros_like(image), boxes[:0], np.zeros(0, np.int64), gray=True)
        sample = augment(
            rng, 0, 10**6, lambda index, m=marked, e=empty: m if index == 0 else e, settings, mosaic=mosaic, pad_value=0
        )
        assert sample.image.shape == (size, size, 3) and sample.image.dtype == np.uint8
        rows, columns = np.nonzero(sample.image[..., 0] > 127)
        if not len(sample.boxes):
            assert len(rows) < 0.5 * width * height  # nearly, or wholly, cropped away
            continue
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        # A corner of a turned rectangle covers its last pixels only in part; and where it is cut by the edge, less is
        # left of it than of the box around the whole.
        assert (sample.boxes[0, :2] - seen[:2] < 2.5).all() and (seen[2:] - sample.boxes[0, 2:] < 2.5).all(), seed
        if min(seen) == 0 or max(seen) == size:
            continue
        assert np.abs(sample.boxes[0] - seen).max() < 2.5, seed
        found += 1
        turned += bool(np.abs(sample.boxes[0, 2:] - sample.boxes[0, :2] - (width, height)).max() > 2)
    assert found > 20 and turned > 10


def test_boxes_of_a_mosaic_end_where_their_images_are_cut() -> None:
    """A mosaic's canvas cuts images off, and shifted or small it leaves a margin in which there is nothing."""
    size = 96
    settings = TrainSettings(data="x", size=size, brightness=0.0, contrast=0.0)
    image = np.full((size, size, 3), 60, np.uint8)
    image[10:80, 20:90] = 255
    marked = Sample(image, np.array([[20, 10, 90, 80]], np.float32), np.array([0]), gray=True)
    sound = Sample(np.full_like(image, 60), marked.boxes[:0], marked.labels[:0], gray=True)
    margins = 0
    for seed in range(600):
        rng = np.random.default_rng(seed)
        sample = augment(rng, 0, 10**6, lambda index: sound if index else marked, settings, mosaic=True, pad_value=0)
        rows, columns = np.nonzero(sample.image[..., 0] > 150)
        margins += bool((sample.image[..., 0] == 0).any())
        for box in sample.boxes:
            seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(box - seen).max() < 2.5, seed
    assert margins > 30


def test_quarter_turns_are_exact_and_as_often_as_asked_for() -> None:
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    boxes = np.array([[0, 1, 2, 4], [5, 0, 6, 1]], np.float32)
    for clockwise in (True, False):
        turned, moved = quarter_turn(image, boxes, clockwise=clockwise)
        assert turned.shape == (6, 4, 3)
        for (x0, y0, x1, y1), (a, b, c, d) in zip(boxes.astype(int), moved.astype(int), strict=True):
            assert np.array_equal(turned[b:d, a:c], np.rot90(image[y0:y1, x0:x1], -1 if clockwise else 1))
    # The top left corner goes to the top right, clockwise; back again gives what was there.
    assert np.array_equal(quarter_turn(image, boxes, clockwise=True)[0][0, -1], image[0, 0])
    there, moved = quarter_turn(image, boxes, clockwise=True)
    back, returned = quarter_turn(there, moved, clockwise=False)
    assert np.array_equal(back, image) and np.array_equal(returned, boxes)

    size = 40
    bar = Sample(np.zeros((size, size, 3), np.uint8), np.array([[4, 18, 36, 22]], np.float32), np.array([0]), gray=True)
    still = dict.fromkeys(("mosaic", "scale", "translate", "flip_lr", "flip_ud"), 0.0)
    for share, low, high in ((0.0, 0, 0), (0.5, 70, 130), (1.0, 200, 200)):
        settings = TrainSettings(data="x", size=size, quarter_turn=share, **still)
        upright = 0
        for seed in range(200):
            (box,) = augment(np.random.default_rng(seed), 0, 1, lambda _: bar, settings, mosaic=False).boxes
            upright += bool(box[3] - box[1] > box[2] - box[0])
        assert low <= upright <= high
    with pytest.raises(TrainingError, match=r"--quarter-turn is 1\.5"):
        TrainSettings(data="x", quarter_turn=1.5)


@pytest.mark.parametrize("mosaic", [False, True])
def test_turn_classes_turns_images_of_these_classes_alone(mosaic: bool) -> None:
    size = 40
    blank = np.zeros((size, size, 3), np.uint8)
    lying = np.array([[4, 18, 36, 22], [4, 28, 36, 32]], np.float32)
    still = dict.fromkeys(("scale", "translate", "flip_lr", "flip_ud"), 0.0)
    settings = TrainSettings(data="x", size=size, quarter_turn=1.0, turn_classes=("scratch", "crack"), **still)
    turning = turning_labels(settings, ("inclusion", "scratch", "crack"))
    assert turning == {1, 2}
    images = [
        Sample(blank, lying, np.array([1, 2]), gray=True),
        Sample(blank, lying, np.array([0, 0]), gray=True),
        Sample(blank, lying, np.array([1, 0]), gray=True),
        Sample(blank, lying[:0], np.zeros(0, np.int64), gray=True),
    ]
    seen = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        first = seed % len(images)
        sample = augment(rng, first, len(images), images.__getitem__, settings, mosaic=mosaic, turning=turning)
        for box, label in zip(sample.boxes, sample.labels.tolist(), strict=True):
            if min(box[:2]) > 0 and max(box[2:]) < size:  # a bar cut by the edge has another shape
                seen.add((label, bool(box[3] - box[1] > box[2] - box[0])))
    # In the third image a scratch lies beside an inclusion, so it stays as it is.
    assert seen == {(1, True), (2, True), (0, False), (1, False)}


def test_turn_classes_need_turns_and_classes_of_the_data() -> None:
    with pytest.raises(TrainingError, match="give --quarter-turn"):
        TrainSettings(data="x", turn_classes=("scratch",))
    settings = TrainSettings(data="x", quarter_turn=0.5, turn_classes=("scratch", "dent"))
    with pytest.raises(TrainingError, match=r"--turn-classes dent: .* theirs are inclusion, scratch"):
        turning_labels(settings, ("inclusion", "scratch"))
    assert turning_labels(TrainSettings(data="x", quarter_turn=0.5), ("inclusion",)) is None


def test_gray_images_stay_gray_and_coloured_ones_change_hue() -> None:
    rng = np.random.default_rng(0)
    gray = np.repeat(rng.integers(60, 180, (32, 32, 1), dtype=np.uint8), 3, 2)
    colour = rng.integers(60, 180, (32, 32, 3), dtype=np.uint8)
    settings = TrainSettings(data="x", size=32, hue=0.1, mosaic=0.0, scale=0.0, translate=0.0, flip_lr=0.0, flip_ud=0.0)
    none = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64))

    def drawn(image: np.ndarray, is_gray: bool) -> np.ndarray:
        sample = augment(
            np.random.default_rng(5), 0, 1, lambda _: Sample(image, *none, is_gray), settings, mosaic=False
        )
        return sample.image.astype(int)

    changed = drawn(gray, True)
    assert (changed[..., 0] == changed[..., 1]).all() and (changed[..., 1] == changed[..., 2]).all()
    # One curve for all pixels: equal stays equal, and the order is kept.
    order = np.argsort(gray[..., 0].ravel(), kind="stable")
    assert (np.diff(changed[..., 0].ravel()[order]) >= 0).all() and (changed[..., 0] != gray[..., 0]).any()
    spread = drawn(colour, False)
    assert (spread != drawn(colour, True)).any()


def test_crowds_are_no_targets_and_boxes_scale_with_the_image(tmp_path: Path) -> None:
    from PIL import Image

    file = tmp_path / "wide.png"
    Image.fromarray(np.full((40, 100, 3), 90, np.uint8)).save(file)
    boxes = np.array([[10, 4, 50, 36], [0, 0, 100, 40]], np.float32)
    record = Record(
        "wide", str(file), "train", 100, 40, boxes, np.array([0, 0]), np.array([False, True]), np.zeros(2, bool)
    )
    sample = ImageStore([record], 50, 0).load(0)
    assert sample.image.shape == (20, 50, 3) and sample.gray
    assert sample.boxes.tolist() == [[5, 2, 25, 18]]
