"""The HTML report: whole, self-contained, true to the figures, and readable for any number of classes."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from random_cases import NAMES, make, random_case

from agssp_zoo.errors import DataError, ImageError, InvalidArgumentError
from agssp_zoo.plotting import class_color
from agssp_zoo.training.evaluation import Prediction, evaluate, write_report
from agssp_zoo.training.evaluation.about import About, machine, versions
from agssp_zoo.training.evaluation.gallery import Drawing, Look, choose, ink_on
from agssp_zoo.training.evaluation.plots import line_color, score_scale
from agssp_zoo.training.evaluation.runner import Validation
from agssp_zoo.training.evaluation.svg import Scale, luminance, shorten, thin
from agssp_zoo.training.evaluation.words import advice, count, percent, summary

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Reads a page strictly: every tag is closed in order. Collects texts, links and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.links, self.ids, self.attributes = [], [], [], [], []
        self.text_tags = {}
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.attributes.append((tag, attributes))
        self.links += [attributes[key] for key in ("href", "src", "xlink:href") if key in attributes]
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "title"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def count(self, tag, **wanted):
        return sum(t == tag and all(a.get(k.rstrip("_")) == v for k, v in wanted.items()) for t, a in self.attributes)


def report(tmp_path, metrics, **options):
    path = write_report(tmp_path / "report.html", metrics, **options)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"https?://|@import|url\(|<script", text)
    for tag, attributes in page.attributes:
        for key in ("d", "x", "y", "cx", "cy", "width", "height", "viewbox"):
            value = attributes.get(key) or ""
            assert "nan" not in value and "inf" not in value, (tag, attributes)
    return page, text


def gray_image(index):
    return np.full((300, 300, 3), 60 + index, np.uint8)


def complete(seed=0, **options):
    truth, answers = random_case(seed, **options)
    shown = {"ground_truth": truth, "predictions": answers, "load_image": gray_image}
    return truth, answers, shown


def test_the_report_states_the_figures(tmp_path):
    truth, answers, shown = complete()
    metrics = evaluate(truth, answers, NAMES, conf=0.001, miss_rate=0.25)
    about = About(
        command="agssp-zoo val --data d --model m --out o", data="/data/steel", data_fingerprint="f00d", split="val",
        model="yolov8_n.test", model_path="runs/x/best", model_file="model.onnx", model_sha256="ab" * 32,
        engine="onnx", device="cpu", settings={"size": 320}, ms_per_image=12.34, ms_per_stage={"inference": 11.0},
        machine=machine(), versions=versions(), created="2026-01-02T03:04:05+00:00",
    )  # fmt: skip
    page, text = report(tmp_path, metrics, about=about, **shown)
    for figure in (metrics.map50, metrics.map50_95, metrics.map75, metrics.map_small, metrics.best_f1.f1):
        assert f"{figure:.3f}" in page.text
    for label, entry in enumerate(metrics.classes):
        assert f"{entry.ap50:.3f}" in page.text and f"{entry.best_f1.precision:.3f}" in page.text
        color = "#" + "".join(f"{channel:02x}" for channel in class_color(label))
        assert f"background:{color}" in text and f'stroke="{line_color(color)}"' in text
        assert f"{entry.advice.threshold:.4g}" in page.text
    for stated in (about.command, "yolov8_n.test on steel, split val", about.model_sha256, "f00d", "size 320", "12.3",
                   "inference 11.0 ms", np.__version__, "labelled as", "detected as", "score threshold",
                   "recall (share of labelled boxes found)"):  # fmt: skip
        assert stated in page.text, stated
    for row in metrics.confusion.matrix[:-1, :-1]:
        assert all(not n or f">{n}<" in text for n in row)


def test_the_best_and_worst_images_are_shown_with_their_boxes(tmp_path):
    truth, answers, shown = complete()
    metrics = evaluate(truth, answers, NAMES)
    names = [f"strip-{index}" for index in range(len(truth))]
    page, text = report(tmp_path, metrics, image_names=names, gallery=4, **shown)
    assert page.count("figure", class_="card") == 8
    best, worst = choose(metrics.per_image, truth, len(NAMES), 4)
    assert all(names[r.index] in page.text for r in (*best, *worst))
    assert min(r.f1 for r in best) > max(r.f1 for r in worst) and worst[0].f1 == 0
    pictures = re.findall(r'<image id="image-(\d+)"[^>]*href="data:image/jpeg;base64,([^"]+)"', text)
    assert sorted(int(index) for index, _ in pictures) == sorted(r.index for r in (*best, *worst))
    for index, data in pictures:
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert picture.size == (300, 300)
        assert np.abs(np.asarray(picture).astype(int) - gray_image(int(index))).max() < 4
    missed = sum(len(r.missed_boxes) for r in (*best, *worst))
    assert page.text.count("missed: ") == missed
    assert page.text.count("false: ") == sum(r.false_alarms for r in (*best, *worst))

    without, _ = report(tmp_path, metrics)
    assert without.count("figure", class_="card") == 0 and "Images" not in without.text


def test_few_images_stand_once_and_errors_are_not_denied(tmp_path):
    """With fewer images than are shown, those with a found box and an error could be best and worst."""
    box, other = [0, 0, 10, 10], [30, 30, 40, 40]
    truth = [make([box], [0])] * 3
    answers = [make([box, *[other] * wrong], [0] * (1 + wrong), [0.5, *[0.9] * wrong]) for wrong in (1, 2, 3)]
    for first, shown in ((0, [[0, 1], [2]]), (2, [[2], []])):
        metrics = evaluate(truth[first:], answers[first:], ["pit"], resamples=0)
        chosen = choose(metrics.per_image, truth[first:], 1, 6)
        assert [[r.index + first for r in side] for side in chosen] == shown
        page, _ = report(tmp_path, metrics, ground_truth=truth[first:], predictions=answers[first:],
                         load_image=gray_image)  # fmt: skip
        assert "No image has an error" not in page.text
        assert ("No other image has an error" in page.text) == (not shown[1])


@pytest.mark.parametrize("classes", [1, 2, 20])
def test_any_number_of_classes(tmp_path, classes):
    names = [f"a rather long name of defect kind {label}" for label in range(classes)]
    truth, answers, shown = complete(3, classes=classes)
    page, _ = report(tmp_path, evaluate(truth, answers, names), gallery=2, **shown)
    assert all(name in page.text for name in names)
    assert page.count("rect", class_="cell") == (classes + 1) ** 2 - 1
    assert ("all, one threshold" in page.text) == (classes > 1)


def test_nothing_to_find_and_nothing_found(tmp_path):
    truth, answers, _ = complete(4)
    clean, nothing = [make([], []) for _ in truth], [make([], [], []) for _ in truth]
    page, _ = report(
        tmp_path, evaluate(truth, nothing, NAMES), ground_truth=truth, predictions=nothing, load_image=gray_image
    )
    assert "detected nothing at all" in page.text and "No threshold can be advised" in page.text
    assert "--false-alarms" not in page.text
    page, _ = report(
        tmp_path, evaluate(clean, answers, NAMES), ground_truth=clean, predictions=answers, load_image=gray_image
    )
    assert "nothing to find" in page.text and "every detection is a false alarm" in page.text
    assert "has an error" not in page.text and "--false-alarms names thresholds" in page.text
    page, _ = report(tmp_path, evaluate([], [], NAMES))
    assert "0 images" in page.text
    page, _ = report(tmp_path, evaluate(truth, answers, [*NAMES, "rust"]))
    assert "no labelled box of rust" in page.text


def test_of_a_crowded_image_the_missed_boxes_are_drawn_first(tmp_path):
    places = np.stack(np.meshgrid(np.arange(10), np.arange(5)), axis=-1).reshape(-1, 2) * 25.0
    boxes = np.concatenate([places, places + 10], axis=1)
    truth, answers = [make(boxes, [0] * 50)], [make(boxes[:48], [0] * 48, np.linspace(0.9, 0.5, 48))]
    page, _ = report(tmp_path, evaluate(truth, answers, ["pit"]), ground_truth=truth, predictions=answers,
                     load_image=gray_image)  # fmt: skip
    assert page.text.count("missed: pit") == 2
    assert "48 of 50 found; of 50 labelled and 48 detected boxes at most 40 each are drawn" in page.text


def test_an_interval_without_width_is_not_stated(tmp_path):
    box = [0, 0, 10, 10]
    for second, stated in ((box, False), ([50, 50, 60, 60], True)):
        truth = [make([box], [0])] * 8
        answers = [make([place], [0], [0.9]) for place in (box, second) for _ in range(4)]
        page, _ = report(tmp_path, evaluate(truth, answers, ["pit"]))
        assert ("map50 is uncertain" in page.text) == stated


def test_names_cannot_break_the_page(tmp_path):
    truth, answers, shown = complete(1, classes=2)
    names = ["<script>alert(1)</script>", 'a"b & c']
    page, text = report(
        tmp_path, evaluate(truth, answers, names), image_names=[f"<img src=x>{i}" for i in range(60)], **shown
    )
    assert "<script>" not in text and "<img" not in text
    assert names[0] in page.text and names[1] in page.text


def test_a_report_is_whole_or_the_old_one_stays(tmp_path):
    truth, answers, _ = complete(2)
    metrics = evaluate(truth, answers, NAMES)
    path = write_report(tmp_path / "report.html", metrics)
    before = path.read_text()

    def broken(index):
        raise ImageError(f"image {index} is gone")

    with pytest.raises(ImageError):
        write_report(path, metrics, ground_truth=truth, predictions=answers, load_image=broken)
    with pytest.raises(InvalidArgumentError, match="evaluated"):
        write_report(path, metrics, ground_truth=truth[1:], predictions=answers, load_image=gray_image)
    with pytest.raises(InvalidArgumentError, match="2 colours for 6 classes"):
        write_report(path, metrics, colors=["#000000", "#ffffff"])
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def test_save_writes_figures_and_report(tmp_path):
    truth, answers, _ = complete(2)
    metrics = evaluate(truth, answers, NAMES)

    class Record:
        def __init__(self, index):
            self.key, self.load_image = f"key{index}", lambda: gray_image(index)

    validation = Validation(metrics, About(model="m"), [Record(i) for i in range(60)], truth, answers)
    figures, page = validation.save(tmp_path / "deep" / "out", gallery=1)
    values = json.loads(figures.read_text(), parse_constant=pytest.fail)  # NaN would be such a constant
    assert values["map50"] == metrics.map50 and values["model"]["name"] == "m" and values["images"] == 60
    assert sorted(p.name for p in figures.parent.iterdir()) == ["metrics.json", "report.html"]
    assert "key" in page.read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/out: cannot be written"):
        validation.save(tmp_path / "file" / "out")


# --- sentences ------------------------------------------------------------------------------------------------------


def test_threshold_advice_in_words():
    truth = [make([[0, 0, 10, 10]], [0]) for _ in range(30)] + [make([], []) for _ in range(20)]
    answers = [make([[0, 0, 10, 10]], [0], [0.9 - 0.01 * i]) for i in range(30)]
    answers += [make([[0, 0, 5, 5]], [0], [0.71 if i < 4 else 0.1]) for i in range(20)]
    metrics = evaluate(truth, answers, ["pit", "rust"], miss_rate=0.1)
    words = advice(metrics.classes[0], metrics)
    assert words.startswith("set the threshold to 0.635. This misses 3 of 30 boxes (10 %;")
    assert "0.08 false alarms an image (about one in 12 images), of which 0.08 where no defect is labelled" in words
    assert "4 of 20 defect-free images would be stopped" in words
    assert "no labelled box" in advice(metrics.classes[1], metrics)

    strict = evaluate(truth, answers, ["pit"], miss_rate=0.01)
    assert "30 boxes are too few to check a rate of 1 %: label at least 100" in advice(strict.classes[0], strict)
    half = evaluate(truth, [*[make([], [], [])] * 15, *answers[15:]], ["pit"], miss_rate=0.1)
    words = advice(half.classes[0], half)
    assert "out of reach" in words and "15 of 30 boxes are missed (50 %)" in words
    assert "A score threshold of" in summary(half) and "20 images of these without any label" in summary(half)


def test_small_helpers():
    assert percent(0.05) == "5 %" and percent(0.123) == "12.3 %" and percent(None) == "–"
    assert count(1, "box", "boxes") == "1 box" and count(1234, "image") == "1\u202f234 images"
    assert shorten("crazing 0.62", 30) == "crazing 0.62"
    assert shorten("abcdefghijklmnop", 9) == "abcde…nop"
    scale = Scale(0.001, 10.0, (), log=True)
    assert [scale.place(v) for v in (0.0, 0.001, 0.1, 10.0, 99.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    many = thin([(i / 1000, 0.0) for i in range(10001)])
    assert len(many) < 40 and many[0][0] == 0 and many[-1][0] == 10
    assert ink_on("#ffff00") == "#000" and ink_on("#1010a0") == "#fff"
    assert all(luminance(line_color(c)) <= 0.35 for c in ("#ffffff", "#ffff00", "#33ff77"))
    assert line_color("#1010a0") == "#1010a0"


def test_the_axis_of_thresholds_fits_low_scores():
    truth, answers, _ = complete(5)
    assert score_scale(evaluate(truth, answers, NAMES)).high == 1.0
    low = [Prediction(a.boxes, a.scores * np.float32(0.003), a.labels) for a in answers]
    scale = score_scale(evaluate(truth, low, NAMES))
    assert scale.high == 0.01 and scale.ticks == (0, 0.002, 0.004, 0.006, 0.008, 0.01)


def test_tags_keep_off_each_other():
    drawing = Drawing(Look(["pit"], ["#ff8800"]), 300, 300)
    boxes = np.array([[20, 40, 200, 200], [22, 42, 202, 202], [18, 38, 190, 190], [0, 0, 300, 300]], np.float32)
    for box in boxes:
        drawing.box(box, 0, "pit 0.50", "")
    placed = drawing._taken
    for i, (x, y, wide) in enumerate(placed):
        assert x >= 0 and x + wide <= 300 and y >= 0 and y + 15 <= 300
        for ox, oy, other in placed[:i]:
            assert x + wide <= ox or ox + other <= x or y + 15 <= oy or oy + 15 <= y
