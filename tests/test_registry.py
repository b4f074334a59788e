"""The registry, the model folder, and the order in which a model is looked for; nothing here uses the network."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from conftest import write_safetensors

import agssp_zoo
from agssp_zoo import errors, hub, registry
from agssp_zoo.config import ModelConfig
from agssp_zoo.folder import ModelFolder, copy_folder, read_checksums, sha256_file, update_checksums, write_folder

ROOT = Path(__file__).parents[1]
CARDS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/config.json"))
MODELS = [registry.model_info(name) for name in registry.list_models()]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No model folders but those that a test makes, and no Hub."""
    for variable in ("AGSSP_ZOO_HOME", "AGSSP_ZOO_NAMESPACE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(hub, "CHECKOUT_MODELS", tmp_path / "checkout" / "model_cards")

    def refuse(*_: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(hub, "huggingface_hub", refuse)


# --- what the registry says


def test_every_entry_is_consistent() -> None:
    document = json.loads(registry.REGISTRY.read_text())
    for name in registry.architectures():
        default = registry.model_info(name)
        assert default.default and default.name == f"{name}.{document['architectures'][name]['default_tag']}"
        assert default.tag == {"backbone": "agbp", "detector": "agssp"}[default.task], "as the design promises"
    detector = registry.model_info(registry.default_detector())
    assert detector.task == "detector"
    for info in MODELS:
        assert info.name == f"{info.architecture}.{info.tag}" and info.task in registry.TASKS and info.description
        assert info.revision is None or (re.fullmatch("[0-9a-f]{40}", info.revision) and "config.json" in info.files)
        assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) and file.size > 0 for file in info.files.values())
        assert info.authors_file is None or info.authors_file in (info.authors_link or "")


def test_the_registered_architectures_are_those_that_can_be_built() -> None:
    models = pytest.importorskip("agssp_zoo.models")
    built = {name: architecture.task for name, architecture in models.ARCHITECTURES.items()}
    assert registry.architectures() == built


@pytest.mark.parametrize("folder", CARDS, ids=lambda path: path.name)
def test_registry_card_and_hash_agree(folder: Path) -> None:
    """What lies in model_cards is whole, publishable, and what the registry says."""
    from agssp_zoo.publish import check_folder, registry_files

    config = check_folder(folder)
    info = registry.model_info(folder.name)
    assert config.name == info.name == folder.name
    assert config.architecture == info.architecture and config.task == info.task
    stated = {name: {"sha256": file.sha256, "size": file.size} for name, file in info.files.items()}
    assert stated == registry_files(folder), "run `python -m agssp_zoo.registry_update`"


def test_listing_and_looking_up() -> None:
    assert agssp_zoo.list_models() == sorted(info.name for info in MODELS)
    assert agssp_zoo.list_models("yolo*", task="detector") == [
        n for n in agssp_zoo.list_models() if n.startswith("yolo")
    ]
    assert agssp_zoo.list_models("yolo*", task="backbone") == []
    assert agssp_zoo.list_models("resnet50") == [i.name for i in MODELS if i.architecture == "resnet50"]
    assert all(name.endswith(".agbp") for name in agssp_zoo.list_models("*.agbp"))
    with pytest.raises(errors.InvalidArgumentError, match="'detector'"):
        agssp_zoo.list_models(task="segmentation")
    assert agssp_zoo.model_info("yolov8_s") == agssp_zoo.model_info("yolov8_s.agssp")
    for wrong, close in (("yolo8_s", "'yolov8_s'"), ("resnet", "'resnet50'"), ("yolov8_n.agsp", "'yolov8_n.agssp'")):
        with pytest.raises(errors.ModelNotFoundError, match=re.escape(close)):
            agssp_zoo.model_info(wrong)
    with pytest.raises(errors.ModelNotFoundError, match="agssp-zoo list"):
        agssp_zoo.model_info("qqq")


# --- where a model is looked for


def make(folder: Path, class_name: str, name: str = "yolov8_s.agssp") -> Path:
    config = ModelConfig(name=name, architecture="yolov8_s", task="detector", class_names=(class_name,))
    return write_folder(folder, config, {"model.safetensors": write_safetensors})


def found(name: str | Path, **kw: str) -> str:
    return hub.resolve(name, **kw).config.class_names[0]  # type: ignore[arg-type]


def test_the_order_of_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(hub.CHECKOUT_MODELS / "yolov8_s.agssp", "checkout")
    with pytest.raises(errors.WeightsNotPublishedError):
        hub.resolve("yolov8_s")  # that folder is in no checkout
    (hub.CHECKOUT_MODELS.parent / "setup.cfg").touch()
    assert found("yolov8_s") == found("yolov8_s.agssp") == "checkout"
    monkeypatch.setenv("AGSSP_ZOO_HOME", str(tmp_path / "home"))
    assert found("yolov8_s") == "checkout"
    make(tmp_path / "home" / "yolov8_s.agssp", "home")
    assert found("yolov8_s") == "home"
    make(tmp_path / "home" / "line3", "line3")  # a name of one's own
    assert found("line3") == "line3"
    (tmp_path / "yolov8_s").mkdir()  # e.g. of some run; no model folder
    assert found("yolov8_s") == "home"
    (tmp_path / "yolov8_s").rmdir()
    make(tmp_path / "yolov8_s", "local")
    assert (
        found("yolov8_s") == found("./yolov8_s") == found(Path("yolov8_s")) == found(tmp_path / "yolov8_s") == "local"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found("~/yolov8_s") == "local"
    with pytest.raises(errors.InvalidArgumentError, match="no revisions"):
        found("./yolov8_s", revision="main")


def test_what_cannot_be_found_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def message(name: str | Path, kind: type[errors.AgsspZooError] = errors.ModelNotFoundError) -> str:
        with pytest.raises(kind) as caught:
            hub.resolve(name)
        assert type(caught.value) is kind
        return str(caught.value)

    assert "'yolov8_s'" in message("yolov8s")
    assert "give hf://factory/line3" in message("factory/line3")
    assert "is not a folder" in message("./yolov8_s") and "holds no config.json" in message(tmp_path)
    assert "agssp-zoo list" in message("", errors.InvalidArgumentError)
    unpublished = [info for info in MODELS if info.revision is None]
    for info in unpublished:
        text = message(info.name, errors.WeightsNotPublishedError)
        if info.name == registry.default_detector():
            assert "the default detector" in text
        if info.files:  # in the repository
            assert f"model_cards/{info.name} of" in text and "set AGSSP_ZOO_HOME to its folder model_cards" in text
            continue
        assert f"$AGSSP_ZOO_HOME/{info.name}" in text
        if info.authors_link:
            assert info.authors_link in text and f"agssp-zoo convert CHECKPOINT --arch {info.architecture} " in text


# --- model folders


def test_a_folder_is_read_only_as_its_checksums_say(tmp_path: Path) -> None:
    path = make(tmp_path / "model", "pit")
    folder = ModelFolder.open(path)
    weights = path / "model.safetensors"
    assert folder.file("model.safetensors") == weights and folder.names == (
        "README.md",
        "config.json",
        "model.safetensors",
    )
    assert folder.has("model.safetensors") and not folder.has("model.onnx")
    with pytest.raises(errors.ModelNotFoundError, match=r"holds no model\.onnx; it holds README\.md"):
        folder.file("model.onnx")
    (path / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(errors.IntegrityError, match="not listed"):
        ModelFolder.open(path).file("model.onnx")
    update_checksums(path, ["model.onnx"])
    assert ModelFolder.open(path).file("model.onnx").read_bytes() == b"onnx"
    good = weights.read_bytes()
    for bad in (good[:-5], good[:-1] + b"?", b""):
        weights.write_bytes(bad)
        with pytest.raises(errors.IntegrityError, match="differs from its checksum"):
            folder.file("model.safetensors")
    (path / "checksums.json").unlink()  # a folder put together by hand: the file's own header must do
    nested = b"[" * 100_000
    nested = len(nested).to_bytes(8, "little") + nested
    for bad in (good[:-5], good[:50], good + b"x", b"", b"\xff" * 100, b"no safetensors file", nested):
        weights.write_bytes(bad)
        with pytest.raises(errors.IntegrityError, match="truncated or is no safetensors"):
            ModelFolder.open(path).file("model.safetensors")
    weights.write_bytes(good)
    assert ModelFolder.open(path).file("model.safetensors") == weights
    for text in ("[]", "{", '{"a": "b"}', "{}", "[" * 100_000):
        (path / "checksums.json").write_text(text)
        with pytest.raises(errors.IntegrityError, match=r"checksums\.json is not a list"):
            ModelFolder.open(path)
    for name in ("../secret", "/etc/passwd", "", "a\\b"):
        with pytest.raises(errors.InvalidArgumentError, match="not the name"):
            folder.file(name)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    config = ModelConfig(name="yolov8_s.x", architecture="yolov8_s", task="detector", class_names=("pit",))

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "out", config, {"model.safetensors": fail})
    assert list(tmp_path.iterdir()) == []
    path = make(tmp_path / "deep" / "out", "old")
    with pytest.raises(errors.InvalidArgumentError, match="is there already"):
        make(path, "new")
    with pytest.raises(OSError, match="disk full"):
        write_folder(path, config, {"model.safetensors": fail}, overwrite=True)
    assert ModelConfig.load(path).class_names == ("old",)
    write_folder(path, config, {}, card="mine", overwrite=True)
    assert ModelConfig.load(path) == config and (path / "README.md").read_text() == "mine"
    assert read_checksums(path) == {n: sha256_file(path / n) for n in ("README.md", "config.json")}
    assert [p.name for p in path.parent.iterdir()] == ["out"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(errors.InvalidArgumentError, match="no model folder"):
        write_folder(tmp_path / "photos", config, {}, overwrite=True)

    copy = copy_folder(ModelFolder.open(path), tmp_path / "copy")
    assert read_checksums(copy) == read_checksums(path)
    (path / "README.md").write_text("changed")
    with pytest.raises(errors.IntegrityError, match="differs"):
        copy_folder(ModelFolder.open(path), tmp_path / "copy2")
    assert not (tmp_path / "copy2").exists()


def test_an_empty_folder_is_filled_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder and a mounted disk cannot be put in another's place."""
    model = ModelFolder.open(make(tmp_path / "model", "pit"))
    here = tmp_path / "here"
    here.mkdir()
    before = here.stat().st_ino
    monkeypatch.chdir(here)
    assert copy_folder(model, ".") == Path()
    assert here.stat().st_ino == before and read_checksums(here) == read_checksums(model.path)
    assert sorted(p.name for p in here.iterdir()) == sorted([*model.names, "checksums.json"])
    with pytest.raises(errors.InvalidArgumentError, match="is there already"):
        copy_folder(model, ".")

    there = tmp_path / "there"
    there.mkdir()
    replace = Path.replace

    def fail_late(path: Path, target: Path) -> Path:
        if path.name == "config.json" and target.parent == there:
            raise OSError("disk full")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail_late)
    with pytest.raises(OSError, match="disk full"):
        copy_folder(model, there)
    assert list(there.iterdir()) == []


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    disk, link = tmp_path / "disk", tmp_path / "link"
    disk.mkdir()
    link.symlink_to(disk / "model")
    for name in ("old", "new"):
        assert copy_folder(ModelFolder.open(make(tmp_path / name, name)), link, overwrite=True) == link
        assert ModelConfig.load(disk / "model").class_names == (name,)
        assert link.is_symlink() and [p.name for p in disk.iterdir()] == ["model"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "link", "new", "old"]


@pytest.mark.parametrize(
    ("version", "words"),
    [(0, "schema_version is 0; the first one is 1"), (-1, "is -1"), (2, "pip install -U"), (None, "is missing")],
)
def test_a_config_of_an_unknown_schema_is_refused(version: int | None, words: str) -> None:
    plain = ModelConfig("yolov8_s", "yolov8_s", "detector", class_names=("a",)).to_dict()
    assert ModelConfig.from_dict(plain).class_names == ("a",)
    with pytest.raises(errors.ConfigError, match=words):
        ModelConfig.from_dict({**plain, "schema_version": version})


@pytest.mark.parametrize("stride", [1, 16, 48])
def test_a_stride_that_the_network_cannot_take_is_refused(tmp_path: Path, stride: int) -> None:
    """On such a canvas the maps of YOLOv8's levels do not fit each other."""
    plain = ModelConfig("mine", "yolov8_s", "detector", class_names=("a",)).to_dict()
    plain["preprocess"]["stride"] = stride
    (tmp_path / "config.json").write_text(json.dumps(plain))
    with pytest.raises(errors.ConfigError, match=f"stride is {stride}, but yolov8_s needs a multiple of 32; set it to"):
        agssp_zoo.load_detector(tmp_path)
    plain["preprocess"]["stride"] = 64
    assert ModelConfig.from_dict(plain).preprocess.stride == 64
    plain["architecture"] = "dino_swin_b"  # takes any side
    plain["preprocess"]["stride"] = 1
    assert ModelConfig.from_dict(plain).preprocess.stride == 1


def test_a_config_that_answers_nothing_is_refused() -> None:
    """JSON as Python reads it may hold NaN, with which a detector would answer that there is nothing."""
    plain = ModelConfig("yolov8_s", "yolov8_s", "detector", class_names=("a",)).to_dict()
    for key, value in (("mean", math.nan), ("mean", -math.inf), ("std", math.nan), ("std", math.inf), ("std", 0.0)):
        preprocess = {**plain["preprocess"], key: [value, 1.0, 1.0]}
        with pytest.raises(errors.ConfigError, match=rf"preprocess\.{key} is"):
            ModelConfig.from_json(json.dumps({**plain, "preprocess": preprocess}))
    with pytest.raises(errors.ConfigError, match="not valid JSON"):
        ModelConfig.from_json("[" * 100_000)
