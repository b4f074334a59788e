"""The programs of examples/ beyond Python: each must find the same boxes as Python in the same image.

They need tools that a Python developer may not have; then the tests say so and are skipped. ``make examples-deps``
brings all of them on Debian, and with ``EXAMPLES_REQUIRED=1``, as in CI, a missing one is a failure.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, open_browser
from PIL import Image

import agssp_zoo
from agssp_zoo.thresholds import set_thresholds
from agssp_zoo.training.synthetic import draw_sample

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
MODEL = ROOT / "model_cards" / "yolov8_n.agssp_neu_det" / "model.onnx"
PIXELS = 0.5
"""A side of a box may lie so far from Python's, in pixels of the image."""
CONF = 0.1

# Nothing to resize; enlarged with padding; shrunk by less than half; by more than three times, tall with odd sides.
# The number is that of the drawn surface; each has several defects that are found.
SURFACES = ((0, (256, 256)), (2, (180, 310)), (10, (301, 400)), (8, (1001, 299)))

Line = tuple[str, float, list[float]]


def need(condition: object, what: str) -> None:
    """Skips, or fails where the examples have to be tested."""
    if not condition:
        reason = f"{what} is not here; `make examples-deps` brings it"
        pytest.fail(reason) if os.environ.get("EXAMPLES_REQUIRED") else pytest.skip(reason)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Drawn surfaces as PNG."""
    folder = tmp_path_factory.mktemp("images")
    for place, (number, size) in enumerate(SURFACES):
        Image.fromarray(draw_sample(number, seed=7, size=size, style="neu").image).save(folder / f"{place}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def expected(images: list[Path]) -> list[list[Line]]:
    """What Python finds."""
    detector = agssp_zoo.load_detector(MODEL)
    lines = [
        [(one.name, float(one.score), list(map(float, one.box))) for one in found]
        for found in detector.predict(list(map(str, images)), conf=CONF)
    ]
    assert all(lines) and sum(map(len, lines)) > 12  # else the tests say little
    return lines


def parsed(text: str) -> list[Line]:
    """The lines that a program prints."""
    rows = (line.split("\t") for line in text.splitlines())
    return [(name, float(score), list(map(float, box))) for name, score, *box in rows]


def compare(found: list[Line], expected: list[Line], threshold: float = CONF) -> None:
    """The same detections, but for those whose score lies at the threshold."""
    edge = 0.01
    for some, others in ((found, expected), (expected, found)):
        for name, score, box in some:
            distances = [
                float(np.abs(np.subtract(box, other)).max())
                for label, value, other in others
                if label == name and abs(value - score) < edge
            ]
            assert min(distances, default=np.inf) <= PIXELS or score < threshold + edge, (name, score, box, others)


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def with_own_thresholds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with a low threshold for one class, and high ones for the others."""
    path = tmp_path_factory.mktemp("model") / "own.onnx"
    shutil.copyfile(MODEL, path)
    names = agssp_zoo.load_detector(path).names
    set_thresholds(path, {name: 0.05 if name == "inclusion" else 0.6 for name in names})
    return path


# --- programs of the command line -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Builds the C++ program as its README says; the command that starts it."""
    for tool in ("cmake", "g++"):
        need(shutil.which(tool), tool)
    need((EXAMPLES / "cpp" / "third_party" / ".complete").is_file(), "ONNX Runtime for C++")
    build = tmp_path_factory.mktemp("build")
    done = run("cmake", "-S", EXAMPLES / "cpp", "-B", build)
    need(done.returncode == 0, f"what the C++ example is built with ({done.stderr.strip()[:300]})")
    done = run("cmake", "--build", build)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout + done.stderr
    return [str(build / "detect")]


@pytest.fixture(scope="module")
def node() -> list[str]:
    """The command that starts the Node program."""
    need(shutil.which("node"), "node")
    need((EXAMPLES / "node" / "node_modules" / "onnxruntime-node").is_dir(), "onnxruntime-node")
    return ["node", str(EXAMPLES / "node" / "detect.mjs")]


@pytest.fixture(params=["cpp", "node"])
def command(request: pytest.FixtureRequest) -> list[str]:
    """What starts a program."""
    command: list[str] = request.getfixturevalue(request.param)
    return command


def test_a_program_finds_what_python_finds(
    command: list[str], images: list[Path], expected: list[list[Line]], with_own_thresholds: Path
) -> None:
    """With the one threshold that the model comes with, and with one for each class."""
    for model, lowest in ((MODEL, 0.25), (with_own_thresholds, 0.05)):
        detector = agssp_zoo.load_detector(model)
        for image in images:
            done = run(*command, model, image)
            assert (done.returncode, done.stderr) == (0, ""), done.stderr
            (found,) = detector.predict(str(image))
            assert len(parsed(done.stdout)) == len(found)
            compare(parsed(done.stdout), [(one.name, one.score, list(one.box)) for one in found], lowest)


def with_gamma(png: bytes, gamma: float) -> bytes:
    """A PNG that says how bright its values are meant to be shown, which is none of a detector's business."""
    chunk = b"gAMA" + struct.pack(">I", round(gamma * 1e5))
    return png[:33] + struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


@pytest.mark.parametrize("kind", ["gray", "16 bits", "alpha", "gray and alpha", "palette", "gamma"])
def test_every_kind_of_png_is_what_it_is_to_python(command: list[str], tmp_path: Path, kind: str) -> None:
    image = draw_sample(2, seed=7, size=(180, 310), style="neu").image
    gray = image[..., 0]
    low_bits = np.random.default_rng(0).integers(150, 256, gray.shape, dtype=np.uint16)  # rounding would add one
    alpha = np.full((*gray.shape, 1), 60, np.uint8)
    pictures = {
        "gray": Image.fromarray(gray),
        "16 bits": Image.fromarray(gray.astype(np.uint16) * 256 + low_bits),
        "alpha": Image.fromarray(np.concatenate([image, alpha], -1)),
        "gray and alpha": Image.fromarray(np.concatenate([gray[..., None], alpha], -1)),
        "palette": Image.fromarray(image).quantize(64),
        "gamma": Image.fromarray(image),
    }
    path = tmp_path / "a.png"
    pictures[kind].save(path)
    if kind == "gamma":
        path.write_bytes(with_gamma(path.read_bytes(), 1.0))
    done = run(*command, MODEL, path)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    (found,) = agssp_zoo.load_detector(MODEL).predict(str(path))
    assert len(found) > 3
    for line, one in zip(parsed(done.stdout), found, strict=True):
        assert line[0] == one.name and abs(line[1] - one.score) < 0.002
        np.testing.assert_allclose(line[2], one.box, atol=0.05)


def test_bad_input_is_one_line(command: list[str], images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no image")
    (tmp_path / "no.onnx").write_bytes(b"no model at all")
    for arguments, words in (
        ((), "usage"),
        ((MODEL, tmp_path / "no.png"), "no.png"),
        ((MODEL, tmp_path / "nothing.png"), "nothing.png"),
        ((tmp_path / "no.onnx", images[0]), ""),
        ((tmp_path / "nothing.onnx", images[0]), "nothing.onnx"),
        ((MODEL, images[0], "high"), ""),
    ):
        done = run(*command, *arguments)
        assert done.returncode == 1 and not done.stdout, arguments
        assert words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_threshold_given_to_cpp_counts_for_all_classes(
    cpp: list[str], images: list[Path], expected: list[list[Line]], with_own_thresholds: Path
) -> None:
    for image, lines in zip(images, expected, strict=True):
        compare(parsed(run(*cpp, with_own_thresholds, image, CONF).stdout), lines)


def test_a_threshold_given_to_node_raises_those_of_the_file(
    node: list[str], images: list[Path], expected: list[list[Line]]
) -> None:
    found = parsed(run(*node, MODEL, images[1], 0.6).stdout)
    compare(found, [line for line in expected[1] if line[1] > 0.6], 0.6)
    assert found and all(score > 0.6 for _, score, _ in found)


# --- the page ---------------------------------------------------------------------------------------------------------


class _Files(http.server.SimpleHTTPRequestHandler):
    """A plain static file server for examples/web, with other folders at /model and /images."""

    elsewhere: dict[str, Path]

    def translate_path(self, path: str) -> str:
        first, _, rest = path.lstrip("/").partition("/")
        if first in self.elsewhere:
            return str(self.elsewhere[first] / rest)
        return super().translate_path(path)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    need(driver and chromium, "Chromium with chromedriver")
    with open_browser(str(driver), str(chromium)) as window:
        yield window


@pytest.fixture(scope="module")
def site(images: list[Path], with_own_thresholds: Path) -> Iterator[str]:
    need((EXAMPLES / "web" / "node_modules" / "onnxruntime-web").is_dir(), "onnxruntime-web")
    folders = {"cards": MODEL.parent, "images": images[0].parent, "own": with_own_thresholds.parent}
    handler = type("Files", (_Files,), {"elsewhere": folders})
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(EXAMPLES / "web"))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


DROP = """
const [address, name, text] = arguments;
const blob = address ? await (await fetch(address)).blob() : new Blob([text]);
const data = new DataTransfer();
data.items.add(new File([blob], name));
const options = { dataTransfer: data, bubbles: true, cancelable: true };
document.getElementById("drop").dispatchEvent(new DragEvent("drop", options));
"""
LINES = "return [...document.querySelectorAll('tr[data-line]')].map((row) => row.dataset.line).join('\\n')"


@pytest.fixture
def page(browser: Browser, site: str) -> Callable[[str], None]:
    """Opens the page with a model, and waits for it."""

    def open_page(model: str) -> None:
        browser.go(f"{site}/index.html?model={model}")
        browser.wait("return ['done', 'failed'].includes(document.body.dataset.state)")

    return open_page


def drop(browser: Browser, address: str, name: str, text: str = "") -> str:
    """Drops a file onto the page; what the page says then."""
    browser.run(DROP, address, name, text)
    browser.wait("return document.body.dataset.state !== 'busy'")
    return str(browser.run("return document.getElementById('status').textContent"))


def test_the_page_finds_what_python_finds_in_dropped_images(
    browser: Browser,
    page: Callable[[str], None],
    images: list[Path],
    expected: list[list[Line]],
    with_own_thresholds: Path,
) -> None:
    page("cards/model.onnx")
    for image, lines in zip(images, expected, strict=True):
        said = drop(browser, f"images/{image.name}", image.name)
        assert said.startswith("yolov8_n.agssp_neu_det, 6 classes. Last image: "), said
        compare(parsed(browser.run(LINES)), [line for line in lines if line[1] > 0.25], 0.25)
    drop(browser, "own/own.onnx", "own.onnx")
    (found,) = agssp_zoo.load_detector(with_own_thresholds).predict(str(images[-1]))
    lines = [(one.name, float(one.score), list(map(float, one.box))) for one in found]
    compare(parsed(browser.run(LINES)), lines, 0.05)  # the image is run again with the model that was dropped
    if folder := os.environ.get("SCREENSHOTS"):  # to look at
        drop(browser, "cards/model.onnx", "model.onnx")
        for i in (0, 1, 3):
            drop(browser, f"images/{images[i].name}", images[i].name)
            Path(folder, f"page{i}.png").write_bytes(browser.screenshot())


def test_the_page_says_what_is_wrong(
    browser: Browser, page: Callable[[str], None], site: str, images: list[Path]
) -> None:
    page("nothing.onnx")
    assert "There is no nothing.onnx beside this page" in browser.run("return document.body.innerText")
    assert browser.run("return document.getElementById('copy').offsetParent === null"), "there is nothing to copy"
    assert "no model yet" in drop(browser, f"images/{images[0].name}", "a.png")
    assert "no ONNX file" in drop(browser, "", "a.onnx", "text, not a model")
    assert "6 classes" in drop(browser, "cards/model.onnx", "model.onnx")
    assert browser.run(LINES), "the image that waited is run"
    assert "a.png is no image" in drop(browser, "", "a.png", "text, not an image")
    assert browser.run("return document.getElementById('status').className") == "bad"
    browser.go((EXAMPLES / "web" / "index.html").as_uri())
    assert "python3 -m http.server" in browser.wait("return document.getElementById('status').textContent")
