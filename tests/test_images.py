"""Anything -> uint8 RGB, and what a source stands for."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from agssp_zoo import sources
from agssp_zoo.errors import ImageError, InvalidArgumentError, SourceError
from agssp_zoo.images import iter_pages, read_image
from agssp_zoo.sources import iter_sources, with_an_end


@pytest.fixture
def color() -> np.ndarray:
    """A picture without any symmetry, (6, 8, 3)."""
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, data: bytes, bits: int = 8, color_type: int = 0) -> bytes:
    """A PNG file by hand, also one that Pillow would not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


# --- what values become -----------------------------------------------------------------------------------------------


def test_eight_bits_stay_as_they_are(color, tmp_path):
    gray = color[..., 0]
    path = tmp_path / "größe [1].png"
    Image.fromarray(color).save(path)
    for source in (color, Image.fromarray(color), path, str(path), path.read_bytes(), memoryview(path.read_bytes())):
        image = read_image(source)
        assert image.dtype == np.uint8 and np.array_equal(image, color)
    assert np.array_equal(read_image(color, channel_order="bgr"), color[..., ::-1])
    assert np.array_equal(read_image(path, channel_order="bgr"), color), "a file knows its order"
    for source in (gray, gray[..., None], Image.fromarray(gray), encoded(Image.fromarray(gray), "BMP")):
        assert np.array_equal(read_image(source), np.repeat(gray[..., None], 3, 2))
    assert np.array_equal(read_image(np.asfortranarray(color[::-1])), color[::-1])


def test_sixteen_bits_are_their_high_byte():
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    expected = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, 2)
    files = [encoded(Image.fromarray(values), kind) for kind in ("PNG", "TIFF")]
    big_endian = struct.pack(">4sIH", b"MM\x00*", 8, 8)
    entries = [(256, 4, 64), (257, 4, 64), (258, 3, 16 << 16), (259, 3, 1 << 16), (262, 3, 1 << 16)]
    entries += [(273, 4, 200), (278, 4, 64), (279, 4, 8192)]
    big_endian += b"".join(struct.pack(">HHII", tag, kind, 1, value) for tag, kind, value in entries) + bytes(4)
    files.append(big_endian.ljust(200, b"\0") + values.astype(">u2").tobytes())
    for source in (values, values[..., None], np.dstack([values] * 3), Image.fromarray(values), *files):
        assert np.array_equal(read_image(source), expected)
    rows = b"".join(b"\0" + np.repeat(row.astype(">u2"), 3).tobytes() for row in values)
    assert np.array_equal(read_image(png(64, 64, rows, 16, 2)), expected), "colour of 16 bits a channel"
    # A 12-bit camera is dark unless the reader is told: the rule does not look at the values.
    camera = values >> 4
    assert read_image(camera).max() == 15
    assert np.array_equal(read_image(camera, bits=12), expected)
    assert read_image(values, bits=12).max() == 255, "what is above is clipped"
    integers = encoded(Image.fromarray(values.astype(np.int32)), "TIFF")
    assert np.array_equal(read_image(integers), expected)
    with pytest.raises(ImageError, match="70000"):
        read_image(encoded(Image.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF"))


def test_any_byte_order():
    values = np.random.default_rng(0).integers(0, 65536, (40, 50), np.uint16)
    for dtype in (">u2", "<u2"):
        assert np.array_equal(read_image(values.astype(dtype)), read_image(values))
        assert np.array_equal(read_image(values.astype(dtype) >> 4, bits=12), read_image(values >> 4, bits=12))
    assert np.array_equal(read_image((values / 65535).astype(">f4")), read_image((values / 65535).astype(np.float32)))


def test_floats_are_shares_of_white(tmp_path):
    values = np.linspace(0, 1, 256).reshape(16, 16)
    expected = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None], 3, 2)
    tiff = encoded(Image.fromarray(values.astype(np.float32)), "TIFF")
    for source in (values, values.astype(np.float32), values.astype(np.float16), tiff, values + 1e-6):
        assert np.abs(read_image(source).astype(int) - expected).max() <= (source is not values and 1)
    for value, word in ((np.nan, "NaN"), (np.inf, "NaN or infinite"), (255.0, "0-1"), (-0.5, "0-1")):
        wrong = values.copy()
        wrong[3, 3] = value
        with pytest.raises(ImageError, match=word):
            read_image(wrong)
    with pytest.raises(ImageError, match="NaN"):
        read_image(encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"))


def test_other_modes(color):
    rgb = Image.fromarray(color)
    bits = (color[..., 0] > 127).astype(np.uint8) * 255
    one = Image.fromarray(bits).convert("1", dither=Image.Dither.NONE)
    for source in (one, encoded(one, "PNG"), encoded(one, "TIFF"), bits.astype(bool)):
        assert np.array_equal(read_image(source)[..., 1], bits)
    # Alpha is dropped, the colours below it stay, even where nothing of them shows.
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(np.where(bits, 0, 90).astype(np.uint8)))
    for source in (rgba, encoded(rgba, "PNG"), np.asarray(rgba)):
        assert np.array_equal(read_image(source), color)
    assert np.array_equal(read_image(np.asarray(rgba), channel_order="bgr"), color[..., ::-1])
    gray = Image.fromarray(color[..., 0])
    gray.putalpha(Image.fromarray(bits))
    assert gray.mode == "LA" and np.array_equal(read_image(encoded(gray, "PNG"))[..., 2], color[..., 0])
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(read_image(encoded(palette, "PNG")), expected)
    assert np.array_equal(read_image(encoded(palette, "PNG", transparency=3)), expected)
    for mode in ("CMYK", "YCbCr", "HSV", "LAB"):
        image = rgb.convert(mode) if mode != "LAB" else Image.new("LAB", (4, 4), (128, 128, 128))
        assert np.array_equal(read_image(image), np.asarray(image.convert("RGB")))
    cmyk = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    assert np.abs(read_image(cmyk)[4, 4].astype(int) - (255, 0, 0)).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_orientation_is_obeyed(color, orientation, kind):
    """What is saved turned, with the note to turn it back, is read upright."""
    turned = {
        1: color, 2: color[:, ::-1], 3: color[::-1, ::-1], 4: color[::-1],
        5: color.transpose(1, 0, 2), 6: np.rot90(color, 1), 7: color[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(color, 3),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    big = np.ascontiguousarray(turned).repeat(16, 0).repeat(16, 1)
    data = encoded(Image.fromarray(big), kind, exif=exif, **({} if kind == "TIFF" else {"quality": 95}))
    image = read_image(data)
    assert image.shape == (96, 128, 3)
    centers = image[8::16, 8::16].astype(int)
    assert np.abs(centers - color).max() < (60 if kind in ("JPEG", "WEBP") else 1)
    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(read_image(opened), image)


def test_pages_of_a_tiff_and_first_frame_of_an_animation(color, tmp_path):
    pages = [Image.fromarray(np.full((6, 8 + i, 3), 40 * i, np.uint8)) for i in range(3)]
    path = tmp_path / "pages.tif"
    with TiffImagePlugin.AppendingTiffWriter(str(path), True) as writer:
        for i, page in enumerate(pages):
            page.save(writer, "TIFF", tiffinfo={254: int(i == 1)})  # the second is a preview
            writer.newFrame()
    assert [(image.shape, number) for image, number in iter_pages(path)] == [((6, 8, 3), 0), ((6, 10, 3), 2)]
    assert read_image(path).shape == (6, 8, 3)
    items = list(iter_sources(path))
    assert [(item.path, item.page) for item in items] == [(str(path), 0), (str(path), 2)]
    assert items[1].reload is not None and items[1].reload().max() == 80
    assert [number for _, number in iter_pages(path, first=1)] == [2] and not list(iter_pages(path, first=3))
    with pytest.raises(ImageError, match="no page 1"):
        sources.load(str(path), 1)
    gif = encoded(pages[0], "GIF", save_all=True, append_images=[Image.new("RGB", (8, 6), "white")])
    assert [(image.max(), number) for image, number in iter_pages(gif)] == [(0, None)]


def test_a_page_that_is_read_again_costs_one_page(tmp_path, monkeypatch):
    """Not all before it, too: pictures of a TIFF of hundreds of pages would take hours."""
    path = tmp_path / "pages.tif"
    pages = [Image.new("L", (8, 6), level) for level in range(9)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    items = list(iter_sources(path))
    decoded = []
    load = TiffImagePlugin.TiffImageFile.load
    monkeypatch.setattr(
        TiffImagePlugin.TiffImageFile, "load", lambda self: (decoded.append(self.tell()), load(self))[1]
    )
    assert items[8].reload is not None and items[8].reload().max() == 8
    assert set(decoded) == {8}


# --- bad input --------------------------------------------------------------------------------------------------------


def noise_file(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise), kind)


BAD_FILES = {
    "empty.png": (b"", "empty"),
    "text.png": (b"this is no image", "no image of a known format"),
    "cut.jpg": (noise_file("JPEG")[:3000], "truncated"),
    "cut.png": (noise_file("PNG")[:3000], "truncated"),
    "cut.tif": (noise_file("TIFF")[:3000], "truncated"),
    "flipped.png": (noise_file("PNG")[:200] + b"\xff" * 50 + noise_file("PNG")[250:], "damaged"),
    "bomb.png": (png(60000, 60000, b""), "MAX_IMAGE_PIXELS"),
    "nothing.png": (png(0, 0, b""), "damaged|no image"),
    "pixel.png": (encoded(Image.new("L", (1, 1)), "PNG"), "1x1 pixels"),
    "line.png": (encoded(Image.new("L", (500, 1)), "PNG"), "500x1 pixels"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_give_one_error_that_names_them(name, tmp_path):
    data, words = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ImageError, match=words) as caught:
        read_image(path)
    assert str(path) in str(caught.value) and str(caught.value).endswith((".", "..."))
    with pytest.raises(ImageError, match=words):
        read_image(data)


def test_a_bomb_on_a_later_page(tmp_path, monkeypatch):
    path = tmp_path / "pages.tif"
    Image.new("L", (8, 8)).save(path, save_all=True, append_images=[Image.new("L", (100, 100))])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    first, second = iter_sources(path)
    assert isinstance(first.image, np.ndarray)
    assert isinstance(second.image, ImageError) and "MAX_IMAGE_PIXELS" in str(second.image)
    assert str(second.image).startswith(f"{path}, page 1: ")


def test_a_damaged_page_is_named(tmp_path):
    path = tmp_path / "pages.tif"
    pages = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (60, 80, 3), dtype=np.uint8)) for i in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:], compression="tiff_adobe_deflate")
    with Image.open(path) as opened:
        opened.seek(2)
        place = opened.tag_v2[273][0]  # of the page's first strip
    data = path.read_bytes()
    path.write_bytes(data[:place] + b"\xff" * 400 + data[place + 400 :])
    *good, bad = iter_sources(path)
    assert [item.page for item in good] == [0, 1]
    assert str(bad.image).startswith(f"{path}, page 2 is damaged or truncated")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((0, 0, 3), np.uint8), "0x0"),
        (np.zeros((1, 1, 3), np.uint8), "1x1"),
        (np.zeros((3, 40, 50), np.uint8), "transpose"),
        (np.zeros((40, 50, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((2, 40, 50, 3), np.uint8), "list"),
        (np.zeros(40, np.uint8), "shape"),
        (np.zeros((40, 50), np.int64), "int64"),
        (np.zeros((40, 50), complex), "complex"),
        (np.zeros((40, 50), object), "object"),
    ],
)
def test_bad_arrays(array, words):
    with pytest.raises(ImageError, match=words):
        read_image(array)
    (item,) = iter_sources(array)
    assert isinstance(item.image, ImageError)


def test_what_is_no_image_at_all(tmp_path):
    for source in (None, 3, {"a": 1}, object()):
        with pytest.raises(InvalidArgumentError, match=type(source).__name__):
            read_image(source)
    with pytest.raises(ImageError, match="There is no file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="folder"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="not a file name"):
        read_image("a\0b.png")
    with pytest.raises(InvalidArgumentError, match="channel_order"):
        read_image(np.zeros((4, 4)), channel_order="grb")
    with pytest.raises(InvalidArgumentError, match="bits"):
        read_image(np.zeros((4, 4)), bits=32)


def test_pillows_settings_are_left_alone():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    for data, _ in BAD_FILES.values():
        with pytest.raises(ImageError):
            read_image(data)
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == before == (89478485, False)


# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    """Images s1, S2, s10 of widths 11, 12 and 20, a sub-folder with two more, and files that are none."""
    where = tmp_path / "line"
    (where / "sub").mkdir(parents=True)
    for name, width in (("s1.png", 11), ("S2.PNG", 12), ("s10.bmp", 20), ("sub/s3.png", 13), ("sub/s[4].png", 14)):
        Image.new("L", (width, 5)).save(where / name)
    (where / "notes.txt").write_text("no image")
    (where / ".s0.png").write_bytes(b"hidden")
    return where


def widths(source: object) -> list[int]:
    return [item.image.shape[1] if isinstance(item.image, np.ndarray) else -1 for item in iter_sources(source)]


def test_folders_patterns_and_lists(folder):
    assert widths(folder) == [11, 12, 20]
    assert widths(str(folder / "*")) == [11, 12, 20]
    assert widths(folder / "**" / "*.png") == [11, 13, 14]
    assert widths(str(folder / "sub" / "s[34].png")) == [13]
    assert widths(folder / "sub" / "s[4].png") == [14], "the file of that very name"
    array = np.zeros((5, 30), np.uint8)
    sources_ = [folder / "s1.png", [array, str(folder)], Image.fromarray(array[:, :9]), folder / "sub"]
    assert widths(sources_) == [11, 30, 11, 12, 20, 9, 13, 14]
    assert widths(tuple(sources_)) == widths(iter(sources_)) == widths(sources_)
    items = list(iter_sources([folder, folder / "s1.png", array]))
    assert [item.listed for item in items] == [True, True, True, False, False]
    assert [item.path and Path(item.path).name for item in items] == ["s1.png", "S2.PNG", "s10.bmp", "s1.png", None]
    assert all(np.array_equal(item.reload(), item.image) for item in items)


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
def test_links_in_a_circle_and_pipes_stop_nothing(folder, monkeypatch):
    (folder / "s20.png").symlink_to("s20.png")  # the folder could not be listed for it
    (folder / "sub" / "up").symlink_to("..")  # every image came forty times
    os.mkfifo(folder / "s30.png")
    assert widths(folder) == [11, 12, 20, -1]
    assert widths(folder / "**" / "*.png") == [11, 13, 14]
    monkeypatch.chdir(folder)
    assert widths("**/s*") == [11, 20, 13, 14] and widths("sub/**/s[34].png") == [13]
    assert widths("**/sub/**/*3.png") == [13] and widths("sub/up/*1.png") == [11], "links are followed"
    with pytest.raises(ImageError, match=r"s30.png is a pipe"):  # and is not waited for
        read_image(folder / "s30.png")
    with pytest.raises(ImageError, match=r"null is a pipe, a socket or a device"):
        read_image("/dev/null")


def test_closed_folders_below_a_pattern_are_told(folder, monkeypatch):
    usual = os.scandir

    def scandir(path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied")
        return usual(path)

    monkeypatch.setattr(os, "scandir", scandir)
    items = list(iter_sources(folder / "**" / "*"))
    errors = [str(item.image) for item in items if isinstance(item.image, SourceError)]
    assert errors == [f"{folder / 'sub'} cannot be listed (Permission denied)."] and len(items) == 4


def test_what_is_not_found_is_an_item_with_an_error(folder):
    (folder / "s1.png").write_bytes(b"broken")
    (folder / "empty").mkdir()
    items = list(iter_sources([folder, folder / "none.png", folder / "*.gif", folder / "empty", folder / "S2.PNG"]))
    errors = [str(item.image) if isinstance(item.image, SourceError) else None for item in items]
    assert [error is None for error in errors] == [False, True, True, False, False, False, True]
    for error, words in zip([e for e in errors if e], ("s1.png", "none.png", "matches", "sub-folders"), strict=True):
        assert words in error
    assert [item.path for item in items if isinstance(item.image, SourceError)] == [
        *(str(folder / name) for name in ("s1.png", "none.png", "*.gif", "empty"))
    ]
    for wrong in (-3, True, None, {"a": folder}, {folder}, [folder, 3.5]):
        with pytest.raises(InvalidArgumentError, match="no image source"):
            list(iter_sources(wrong))


def test_open_files(folder, tmp_path):
    memory = io.BytesIO()
    Image.new("L", (13, 5), 200).save(memory, "PNG")  # and stands at its end
    with (folder / "s1.png").open("rb") as file, (folder / "s1.png").open() as text:
        items = list(iter_sources([file, memory, folder / "S2.PNG"]))
        assert [item.image.shape[1] for item in items] == [11, 13, 12] and [item.path for item in items[:2]] == [
            None
        ] * 2
        assert widths(memory) == [13] and read_image(memory).shape == (5, 13, 3)
        assert with_an_end(memory) is memory
        for wrong in (text, io.StringIO("a")):
            with pytest.raises(InvalidArgumentError, match="mode 'rb'"):
                list(iter_sources(wrong))
    assert all(np.array_equal(item.reload(), item.image) for item in items), "the file is closed, the bytes are kept"
    (item,) = iter_sources(file)
    assert isinstance(item.image, ImageError) and "closed" in str(item.image)
    (item,) = iter_sources(io.BytesIO(b"no image"))
    assert isinstance(item.image, ImageError) and "8 bytes is no image" in str(item.image)


def test_an_empty_path_is_not_the_current_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert len(widths(".")) == 3
    for wrong in ("", ["s1.png", ""]):
        with pytest.raises(InvalidArgumentError, match="path is empty"):
            widths(wrong)


def test_sources_are_lazy():
    def endless():
        while True:
            yield np.zeros((4, 4), np.uint8)

    items = iter_sources(endless())
    assert next(items).image.shape == (4, 4, 3) == next(items).image.shape


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        data = encoded(Image.new("RGB", (17, 5), "red"), "PNG")
        status, length = (404, 0) if self.path == "/none" else (200, len(data) + 10 * (self.path == "/cut"))
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.path == "/text":
            data = b"a" * len(data)
        self.wfile.write(b"" if status == 404 else data)

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_addresses(address, monkeypatch):
    (item,) = iter_sources(f"{address}/a.png?size=[1]*")
    assert item.image.shape == (5, 17, 3) and item.path == f"{address}/a.png?size=[1]*"
    assert np.array_equal(item.reload(), item.image)
    for path, words in (("none", "404"), ("cut", "connection was cut"), ("text", "no image")):
        (item,) = iter_sources([f"{address}/{path}"])
        assert isinstance(item.image, SourceError) and words in str(item.image) and address in str(item.image)
    monkeypatch.setattr(sources, "URL_LIMIT", 20)
    (item,) = iter_sources(f"{address}/a.png")
    assert "larger" in str(item.image)
    (item,) = iter_sources("http://127.0.0.1:9/a.png")
    assert "cannot be downloaded" in str(item.image)
    (item,) = iter_sources("http://[::1/a.png")
    assert isinstance(item.image, SourceError) and "cannot be downloaded" in str(item.image)


@pytest.mark.parametrize("name", ["~scan.png", "camera:0.png", "camera:1_a.png", "~/scan.png"])
def test_names_that_look_like_a_home_or_a_camera(name: str, tmp_path: Path, monkeypatch) -> None:
    """Listed from the current folder they have no folder in front of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("RGB", (9, 7)).save(tmp_path / name.removeprefix("~/"))
    for source in (name, f"./{name.removeprefix('~/')}", ".", "*.png"):
        (item,) = iter_sources(source)
        assert isinstance(item.image, np.ndarray) and item.image.shape == (7, 9, 3), (source, item.image)
        assert item.reload is not None and item.reload().shape == (7, 9, 3)
    assert read_image(Path(name)).shape == (7, 9, 3)
