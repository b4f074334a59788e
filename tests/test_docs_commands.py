"""What the documentation says to type parses, its settings are allowed, and its tables are what the program makes."""

from __future__ import annotations

import argparse
import csv
import importlib
import re
import shlex
from pathlib import Path

import pytest

from agssp_zoo import cli
from agssp_zoo.training.anomaly.settings import MapSettings
from agssp_zoo.training.pretrain.chain_settings import ChainSettings
from agssp_zoo.training.pretrain.recipes import load_recipe
from agssp_zoo.training.pretrain.settings import PretrainSettings
from agssp_zoo.training.pretrain.stage2_settings import DetectorSettings
from agssp_zoo.training.settings import TrainSettings, given_settings

ROOT = Path(__file__).parents[1]
REPRODUCE = ROOT / "docs" / "reproduce.md"
PAPER = ROOT.parent / "shared" / "reference" / "paper_results.csv"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MORE_PAGES = [
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
    *sorted((ROOT / "model_cards").glob("*/README.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
SETTINGS = {"finetune": TrainSettings, "pretrain-detector": DetectorSettings, "pretrain-backbone": PretrainSettings}


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def command_lines(page: Path) -> list[str]:
    """The lines of shell blocks that run this package, continued lines joined."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(("agssp-zoo ", "accelerate launch "))]


COMMANDS = [pytest.param(page, line, id=f"{page.name}: {line[:60]}") for page in PAGES for line in command_lines(page)]


def parse(line: str) -> tuple[str, argparse.Namespace]:
    """The sub-command of a line, and its arguments."""
    words = shlex.split(line, comments=True)
    if words[0] == "agssp-zoo":
        return words[1], cli._parse(words[1:])
    module = words[words.index("-m") + 1]
    name = next((name for name, (place, _) in cli.COMMANDS.items() if place == module), "")
    assert name, f"{module} is the module of no command"
    parser = argparse.ArgumentParser(prog=module, allow_abbrev=False)
    importlib.import_module(module).add_arguments(parser)
    return name, parser.parse_args(words[words.index("-m") + 2 :])


def test_there_are_commands() -> None:
    assert len(command_lines(REPRODUCE)) > 25
    assert any(page.name == "README.md" for page, _ in (one.values for one in COMMANDS))


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_parses_and_its_settings_are_allowed(page: Path, line: str) -> None:
    name, args = parse(line)
    if name == "anomaly-maps":
        MapSettings(**{**given_settings(args, MapSettings), "data": tuple(args.data)})
    elif name == "agssp":
        ChainSettings(**given_settings(args, ChainSettings))
    elif name in SETTINGS:
        given = given_settings(args, SETTINGS[name])
        recipe = dict(load_recipe(given["recipe"]).settings) if given.get("recipe") else {}
        plain = (
            SETTINGS[name]().to_dict() | recipe | {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}
        )
        assert SETTINGS[name].from_dict(plain).out


def test_a_wrong_command_would_be_found(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("agssp-zoo finetune --dota sets", "accelerate launch -m agssp_zoo.training.finetune --epoch 3"):
        with pytest.raises(SystemExit):
            parse(line)
        assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize("page", [*PAGES, *MORE_PAGES], ids=lambda page: f"{page.parent.name}/{page.name}")
def test_commands_named_in_the_text_are_there_and_parse(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page.read_text(encoding="utf-8")
    assert not set(re.findall(r"`agssp-zoo ([a-z][a-z-]*)", text)) - set(cli.COMMANDS)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for command in re.findall(r"`(agssp-zoo [a-z-]+ [^`]+)`", prose):
        line = " ".join(command.split())
        try:
            parse(line)
        except SystemExit:
            said = capsys.readouterr().err
            part = line.rpartition(" ")[2].startswith("--") and "expected one argument" in said
            assert part, f"{line}: {said}"  # `agssp-zoo val --tile` names an option


def test_every_model_that_a_command_starts_from_is_made_by_another() -> None:
    made, made_by_python = set[str](), set(re.findall(r'"(models/[\w.]+)"', "".join(blocks(REPRODUCE, "python"))))
    started = set[str]()
    for line in command_lines(REPRODUCE):
        name, args = parse(line)
        values = vars(args)
        out = values.get("out")
        made |= {f"{out}/{end}" for end in ("", "best", "last")} | {str(out)} if out else set()
        if name == "agssp":
            values = {
                key: value for key, value in values.items() if key not in ("maps", "detector")
            }  # options of steps
        for option in ("model", "backbone_weights", "weights", "maps", "images", "data"):
            value = values.get(option, "")
            for path in value if isinstance(value, list) else [str(value)]:
                if path.startswith(("runs/", "models/")) or (path in ("pool", "maps") and name != "prepare-data"):
                    started.add(path)
    assert len(started) > 10
    assert not started - made - made_by_python


def test_every_row_of_the_paper_is_there() -> None:
    from benchmarks.reproduce import ROWS

    if not PAPER.is_file():
        pytest.skip("the paper's table is not here")
    lines = [line for line in PAPER.read_text().splitlines() if not line.startswith("#")]
    rows = list(csv.DictReader(lines))
    assert [(row.backbone, row.detector, row.method, row.data) for row in ROWS] == [
        (row["backbone"], row["detector"], row["method"], row["pretraining_data"]) for row in rows
    ]
    for row, paper in zip(ROWS, rows, strict=True):
        assert (row.map50, row.map50_95) == (
            float(paper["casting_billet_map50"]),
            float(paper["casting_billet_map50_95"]),
        )
        assert row.sets == (4 if paper["gc10_det_map50"] else 1)
        assert (row.first != "") == (row.data == "industrial") and row.second == ("agssp" in row.method)


def test_the_tables_are_what_the_program_makes() -> None:
    from benchmarks.reproduce import ROWS, fill

    text = REPRODUCE.read_text(encoding="utf-8")
    assert fill(text) == text, "run: python -m benchmarks.reproduce --write"
    assert all(f"| {number} | {row.backbone} | " in text for number, row in enumerate(ROWS, 1))


def test_rows_that_run_have_commands_and_their_architectures() -> None:
    from agssp_zoo import models
    from benchmarks.reproduce import ROWS

    text = "\n".join(command_lines(REPRODUCE))
    for number, row in enumerate(ROWS, 1):
        assert (f"--out runs/row{number}/casting_billet" in text) == (row.state == "runs"), number
        families = {"yolo": "yolov8", "cspdarknet": "s"}
        name = "_".join(families.get(part, part) for part in (row.detector, row.backbone))
        assert (row.state == "architecture") == (name not in models.ARCHITECTURES), number


def test_hours_follow_from_what_the_page_says() -> None:
    from benchmarks import reproduce as r

    row = next(row for row in r.ROWS if (row.backbone, row.method) == ("resnet50", "agssp"))
    stage1, stage2 = r.first_cost(row), r.detector_cost(row, learn="head")
    assert stage2.rate == pytest.approx(30e12 / stage2.operations)
    assert stage1.rate == 1500  # held up by the CPU
    expected = 86_000 / r.maps_cost().rate + 86_000 * 200 / stage1.rate + 86_000 * 10 / stage2.rate
    assert r.pretraining_hours(row, 86_000) == pytest.approx(expected / 3600)
    # frozen layers save their backward pass, and a ResNet-50 is known to take 4.1e9 multiplications and additions
    assert r.count("resnet50", 224, learn=False) == pytest.approx(2 * 4.1e9, rel=0.02)
    forward = r.count("resnet50", 224, learn=False)
    assert forward < r.count("resnet50", 224, freeze=2) < r.count("resnet50", 224) < 3 * forward


def test_the_python_of_the_page_makes_a_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from safetensors.torch import save_file

    import agssp_zoo
    from agssp_zoo import models

    network = models.build(models.default_config("resnet50"))
    state = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "resnet50.safetensors")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(REPRODUCE, "python")
    exec(compile(code, "docs/reproduce.md", "exec"), {})
    loaded = agssp_zoo.load_backbone(str(tmp_path / "models" / "resnet50.imagenet"))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in state.items())
