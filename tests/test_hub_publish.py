"""Publishing: a model folder goes up in one commit, and comes down again as it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import write_safetensors
from hub_server import Answer, HubServer, run

from agssp_zoo import card, publish, registry, registry_update
from agssp_zoo.config import ModelConfig
from agssp_zoo.errors import AgsspZooError, IntegrityError, InvalidArgumentError
from agssp_zoo.folder import model_files, read_checksums, update_checksums, write_folder

CLI = [sys.executable, "-m", "agssp_zoo"]


def publish_cli(hub: HubServer, home: Path, *arguments: str, token: str | None = HubServer.token) -> Answer:
    environment = {"HF_TOKEN": token} if token else {}
    return run([*CLI, "publish", *arguments], hub.url, home, **environment)


def test_a_folder_goes_up_in_one_commit_and_comes_down_as_it_was(
    hub: HubServer, tiny_folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    (tiny_folder / "images").mkdir()
    for name in ("images/sheet [1].png", "100%.txt", "st*r.txt", "Größe #2.txt"):
        (tiny_folder / name).write_text(name)
    update_checksums(tiny_folder)
    answer = publish_cli(hub, home, str(tiny_folder), "--repo-id", "factory/line3")
    assert answer.code == 0 and answer.err == "", answer.err
    line = answer.json()["yolov8_s.agssp"]
    repository = hub.repositories["factory/line3"]
    assert len(repository.commits) == 2, "that of create_repo, and ours"
    assert line == {"revision": repository.commits[-1][0], "files": publish.registry_files(tiny_folder)}  # type: ignore[comparison-overlap]

    down = run([*CLI, "download", "hf://factory/line3", "--to", str(tmp_path / "down"), "--json"], hub.url, home)
    assert down.code == 0 and down.err == "", down.err
    assert {n: (tmp_path / "down" / n).read_bytes() for n in [*model_files(tiny_folder), "checksums.json"]} == {
        n: (tiny_folder / n).read_bytes() for n in [*model_files(tiny_folder), "checksums.json"]
    }

    # A new version takes the place of the old one, files that are gone included; the same again changes nothing.
    (tiny_folder / "notes.md").write_text("more")
    update_checksums(tiny_folder)
    publish_cli(hub, home, str(tiny_folder), "--repo-id", "factory/line3")
    assert "notes.md" in repository.commits[-1][1]
    (tiny_folder / "notes.md").unlink()
    update_checksums(tiny_folder)
    again = publish_cli(hub, home, str(tiny_folder), "--repo-id", "factory/line3").json()["yolov8_s.agssp"]
    assert set(repository.commits[-1][1]) == {".gitattributes", "checksums.json", *model_files(tiny_folder)}
    assert again["revision"] == repository.commits[-1][0]  # type: ignore[index]
    uploads = len(hub.requests("PUT", "/upload/"))
    assert uploads == 1, "weights that the Hub has are not sent again"


def test_all_folders_are_checked_before_the_first_goes_up(
    hub: HubServer, tmp_path: Path, tiny_config: ModelConfig
) -> None:
    cards = tmp_path / "cards"
    for name in ("yolov8_s.one", "yolov8_s.two"):
        write_folder(cards / name, tiny_config.replace(name=name), {"model.safetensors": write_safetensors})
    (cards / "yolov8_s.two" / "README.md").write_text("no header")
    answer = publish_cli(hub, tmp_path, "--all", str(cards))
    assert answer.code == 1 and "README.md differs from its checksum" in answer.err and not hub.log
    update_checksums(cards / "yolov8_s.two")
    answer = publish_cli(hub, tmp_path, "--all", str(cards))
    assert answer.code == 2 and "YAML header" in answer.err and "license" in answer.err and not hub.log
    (cards / "yolov8_s.two" / "README.md").write_text(card.render_card(tiny_config))
    update_checksums(cards / "yolov8_s.two")
    dry = publish_cli(hub, tmp_path, "--all", str(cards), "--dry-run").json()
    assert not hub.log and [entry["revision"] for entry in dry.values()] == [None, None]  # type: ignore[index]
    answer = publish_cli(hub, tmp_path, "--all", str(cards))
    assert set(hub.repositories) == {"agssp-zoo/yolov8_s.one", "agssp-zoo/yolov8_s.two"}, answer.err
    assert set(answer.json()) == {"yolov8_s.one", "yolov8_s.two"}


def test_refusals_of_the_hub_are_one_line(hub: HubServer, tiny_folder: Path, tmp_path: Path) -> None:
    for token in (None, "hf_wrong"):
        answer = publish_cli(hub, tmp_path, str(tiny_folder), "--repo-id", "factory/line3", token=token)
        assert answer.code == 1 and len(answer.err.strip().splitlines()) == 1, answer.err
        assert "factory/line3 cannot be published" in answer.err and "hf auth login" in answer.err
    answer = publish_cli(hub, tmp_path, str(tiny_folder), "--repo-id", "no such name")
    assert answer.code == 2 and len(answer.err.strip().splitlines()) == 1, answer.err
    assert publish_cli(hub, tmp_path).code == publish_cli(hub, tmp_path, "--all", "--repo-id", "a/b").code == 2
    assert hub.repositories == {}


def test_what_may_not_be_published_is_refused(tiny_folder: Path, tmp_path: Path, tiny_config: ModelConfig) -> None:
    assert publish.check_folder(tiny_folder) == tiny_config

    def refused(kind: type[AgsspZooError], words: str) -> None:
        with pytest.raises(kind, match=words):
            publish.check_folder(tiny_folder)

    (tiny_folder / "model.pth").write_bytes(b"x")
    refused(InvalidArgumentError, r"model\.pth")
    (tiny_folder / "model.pth").unlink()
    (tiny_folder / "extra.txt").write_text("x")
    refused(IntegrityError, r"extra\.txt is not listed")
    (tiny_folder / "extra.txt").unlink()
    weights = (tiny_folder / "model.safetensors").read_bytes()
    (tiny_folder / "model.safetensors").write_bytes(weights[:-1])
    refused(IntegrityError, "differs from its checksum")
    update_checksums(tiny_folder)
    refused(IntegrityError, "truncated")
    (tiny_folder / "model.safetensors").unlink()
    refused(IntegrityError, "lacks model.safetensors")
    (tiny_folder / "model.safetensors").write_bytes(weights)
    header = (
        "---\nlicense: mit\nlibrary_name: timm\npipeline_tag: object-detection\ndatasets: []\nmetrics: [map]\n---\n"
    )
    (tiny_folder / "README.md").write_text(header)
    update_checksums(tiny_folder)
    refused(InvalidArgumentError, "library_name: timm; it must be agssp-zoo")
    for encoding in ("utf-8-sig", "cp1252", "utf-16"):  # as editors on Windows may save it
        (tiny_folder / "README.md").write_bytes(card.render_card(tiny_config, text="Größe").encode(encoding))
        update_checksums(tiny_folder)
        refused(InvalidArgumentError, r"README\.md is not plain UTF-8")
    (tiny_folder / "checksums.json").unlink()
    refused(IntegrityError, "has no checksums.json")


def test_cards_carry_what_the_hub_reads(tiny_config: ModelConfig, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    provenance = {
        "license": "Apache-2.0",
        "datasets": ["NEU DET"],
        "metrics": {"map50_95": 0.41},
        "seed": 3,
        "a|b": "c|d",
    }
    text = card.render_card(tiny_config.replace(provenance=provenance), files=["config.json"], text="## Limits\n\nFew.")
    header = ModelCard(text).data.to_dict()
    assert header["license"] == "apache-2.0" and header["datasets"] == ["neu-det"] and header["metrics"] == ["map50_95"]
    assert header["library_name"] == "agssp-zoo" and header["pipeline_tag"] == "object-detection"
    assert (
        "## Limits" in text
        and "| seed | 3 |" in text
        and "0. pit" in text
        and 'load_detector("yolov8_s.agssp")' in text
    )
    backbone = ModelConfig(name="resnet50.agbp", architecture="resnet50", task="backbone")
    header = ModelCard(card.render_card(backbone)).data.to_dict()
    assert header["pipeline_tag"] == "image-feature-extraction" and header["license"] == "unknown"
    converted = backbone.replace(name="resnet50.mine", provenance={"source": "checkpoint of the AGSSP authors"})
    header = ModelCard(card.render_card(converted)).data.to_dict()
    assert header["license"] == "other" and header["license_link"].startswith("https://")
    assert 'load_backbone("path/of/this/folder")' in card.render_card(converted)


def test_a_file_is_added_to_the_list_of_a_card(tiny_config: ModelConfig) -> None:
    names = ["config.json", "model.safetensors"]
    backbone = ModelConfig(name="resnet50.agbp", architecture="resnet50", task="backbone")
    for config in (tiny_config, backbone):
        text = card.render_card(config, files=names, text="## Limits\n\nFew.")
        for added in (["model.onnx"], ["model.int8.onnx", "model.onnx"]):
            expected = card.render_card(config, files=[*names, *added], text="## Limits\n\nFew.")
            text = card.with_file(text, added[0], config.task)
            assert text == expected, "where render_card has it"
            assert card.with_file(text, added[0], config.task) == text, "listed already"
    assert "backbone in one file" in text and "detector" not in text
    files = text[text.index("## Files") :]
    for own in (
        text.replace("## Files\n", "## Files\n\nThose of line 3:\n"),
        text.replace("- `config.json`", "* `config.json`"),
        text.replace("## Files", "## What lies here"),
        text.replace("\n\n## Citation", "\nand no more.\n\n## Citation"),
        f"{text}\n{files}",
        card.render_card(tiny_config),
        "Mine.",
    ):
        assert card.with_file(own, "model.fp16.onnx", "backbone") == own, "in the user's own words"


def test_the_registry_takes_over_folders_and_commits(
    tiny_folder: Path, tmp_path: Path, tiny_config: ModelConfig
) -> None:
    document = json.loads(registry.REGISTRY.read_text())
    folder = write_folder(tmp_path / "yolov8_s.mine", tiny_config.replace(name="yolov8_s.mine"), {})
    files = publish.registry_files(folder)
    first = registry_update.update(document, [folder], {})
    assert first["models"]["yolov8_s.mine"]["files"] == files and "revision" not in first["models"]["yolov8_s.mine"]
    pinned = registry_update.update(first, [folder], {"yolov8_s.mine": {"revision": "a" * 40, "files": files}})
    assert pinned["models"]["yolov8_s.mine"]["revision"] == "a" * 40
    assert registry_update.update(pinned, [folder], {}) == pinned, "nothing changed"
    (folder / "README.md").write_text(card.render_card(tiny_config, text="better"))
    assert set(read_checksums(folder)) == set(update_checksums(folder, ["README.md"]))
    assert "revision" not in registry_update.update(pinned, [folder], {})["models"]["yolov8_s.mine"]
    with pytest.raises(InvalidArgumentError, match="same name"):
        registry_update.update(document, [tiny_folder], {})
