"""Prompt files: those that come with the package, what is wrong with a user's, and the command that says so."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from agssp_zoo import cli
from agssp_zoo.errors import DataError, InvalidArgumentError
from agssp_zoo.training.anomaly.prompts import FOLDER, check_prompts, find_prompts, load_prompts, prompt_files

SHIPPED = {
    *("generic_metal", "hot_rolled_strip", "cold_rolled_strip", "casting_billet", "steel_pipe", "plate", "rail"),
    *("aluminium", "magnetic_tile", "machined_part"),
}
GOOD = """
object = "brass fitting"
normal = ["{object} with a golden shine", "plain {object}"]

[[defects]]
name = "tarnish"
appearance = "a brown film"

[[defects]]
name = "scratch"
appearance = "a bright line"
"""
Run = Any


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process; returns (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Writes GOOD with some text replaced."""

    def make(old: str = "", new: str = "") -> Path:
        assert old in GOOD
        file = tmp_path / "brass.toml"
        file.write_text(GOOD.replace(old, new, 1) if old else new or GOOD)
        return file

    return make


def messages(file: Path) -> list[str]:
    prompts, problems = check_prompts(file)
    assert (prompts is None) == bool(problems)
    return [f"[{problem.code}] {problem.message}" for problem in problems]


def test_the_package_describes_these_objects():
    assert set(prompt_files()) == SHIPPED
    for name, path in prompt_files().items():
        prompts, problems = check_prompts(path)
        assert problems == () and prompts == load_prompts(name) and prompts.name == name
        assert len(prompts.normal) >= 2 and len(prompts.defects) >= 5
        assert not any(set(state) & set("{}") for state in (*prompts.normal_states, *prompts.defect_states))


def test_descriptions_are_sentences_about_the_object(write: Any):
    prompts = load_prompts(write())
    assert (prompts.name, prompts.object, prompts.aliases) == ("brass", "brass fitting", ())
    assert prompts.normal_states == ("brass fitting with a golden shine", "plain brass fitting")
    assert prompts.defect_states == (
        "brass fitting with tarnish defect, it appears as a brown film",
        "brass fitting with scratch defect, it appears as a bright line",
    )


@pytest.mark.parametrize("name", ["Hot-rolled strip", "hot_rolled_strip", "NEU", " hot  rolled "])
def test_a_name_may_be_written_in_several_ways(name: str):
    assert find_prompts(name) == FOLDER / "hot_rolled_strip.toml"


def test_names_and_aliases_are_unambiguous():
    owners: dict[str, str] = {}
    for name in SHIPPED:
        for alias in (name, *load_prompts(name).aliases):
            plain = alias.lower().replace("-", "_").replace(" ", "_")
            assert owners.setdefault(plain, name) == name
            assert find_prompts(alias).stem == name


def test_a_users_file_is_taken_by_its_path(write: Any, monkeypatch: pytest.MonkeyPatch):
    file = write()
    monkeypatch.chdir(file.parent)
    assert load_prompts("brass.toml").object == load_prompts(str(file)).object == "brass fitting"
    (file.parent / "rail").write_text("a file of the same name")
    assert load_prompts("rail").object == "steel rail head"
    shutil.copy(file, file.parent / "no_suffix")
    assert load_prompts("./no_suffix").object == "brass fitting"


def test_an_object_without_prompts_is_an_error_that_helps():
    with pytest.raises(
        InvalidArgumentError, match=r"no prompts for 'rial'; did you mean 'rail'\? .*Choose one of alumini"
    ):
        load_prompts("rial")
    with pytest.raises(InvalidArgumentError, match=r"no prompts for 'quartz'; Choose.*copy .*generic_metal\.toml"):
        load_prompts("quartz")
    with pytest.raises(DataError, match=r"mine/quartz\.toml: there is no such prompt file"):
        load_prompts("mine/quartz.toml")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('object = "brass fitting"', "", "[missing-field] 'object' is missing; give the noun"),
        (
            'normal = ["{object} with a golden shine", "plain {object}"]',
            "",
            "[missing-field] 'normal' is missing; give",
        ),
        ('appearance = "a brown film"', "", "[missing-field] defect 1 (tarnish): 'appearance' is missing; give how it"),
        ('name = "scratch"', "", "[missing-field] defect 2: 'name' is missing; give what it is called"),
        (
            "plain {object}",
            "plain {objekt}",
            "[placeholder] normal 2 holds a stray {objekt} ('plain {objekt}'); only {object}",
        ),
        ("plain {object}", "plain {object} {", "[placeholder] normal 2 holds a stray { ("),
        ("plain {object}", "plain", "[placeholder] normal 2 holds {object} 0 times ('plain'); name the object once"),
        ("plain {object}", "{object} on {object}", "[placeholder] normal 2 holds {object} 2 times"),
        ("a brown film", "a film on {object}", "[placeholder] defect 1 (tarnish): appearance holds a stray {object}"),
        ("brass fitting", "{} fitting", "[placeholder] object holds a stray {} ('{} fitting'); write the name itself"),
        ("object =", "objct =", "[unknown-key] 'objct' is no key of a prompt file; did you mean 'object'?"),
        (
            "appearance =",
            "looks =",
            "[unknown-key] defect 1 (tarnish): 'looks' is no key of a prompt file; known are name,",
        ),
        ('"brass fitting"', "3", "[wrong-type] 'object' is 3; give the noun"),
        ('["{object} with a golden shine", "plain {object}"]', "[]", "[wrong-type] 'normal' is []; give a list of"),
        ('"plain {object}"', "7", "[wrong-type] normal 2 is 7; give descriptions"),
        ("a brown film", " ", "[empty] defect 1 (tarnish): 'appearance' is empty; give how it looks"),
        ("a brown film", "a brown film.", "[full-stop] defect 1 (tarnish): 'appearance' ends with a full stop"),
        (
            "a brown film",
            "a brown\\nfilm",
            "[blanks] defect 1 (tarnish): 'appearance' has blanks at an end, or several",
        ),
        ("tarnish", "tarnish defect", "[says-defect] defect 1 (tarnish defect): the word is added to the name"),
        ("tarnish", "scratch", "[twice] two defects are the same: scratch; remove one"),
        ("plain {object}", "{object} with a golden shine", "[twice] two normal states are the same"),
        ("a brown film", "a film " * 30 + "x", "[too-long] a description has 69 words"),
        ("a brown film", "a-film-" * 30 + "x", "[too-long] a description has 69 words"),
    ],
)
def test_what_is_wrong_is_said(write: Any, old: str, new: str, expected: str):
    file = write(old, new)
    assert any(message.startswith(expected) for message in messages(file)), messages(file)
    with pytest.raises(DataError, match=r"brass\.toml: "):
        load_prompts(file)


@pytest.mark.parametrize("tables", ["", "defects = 3", 'defects = ["scratch"]', "defects = []"])
def test_defects_have_to_be_tables(write: Any, tables: str):
    found = messages(write("", 'object = "tap"\nnormal = ["{object}"]\n' + tables))
    assert len(found) == 1 and 'name = "scratch" and appearance = ' in found[0]


def test_a_file_that_is_no_toml_is_said_with_its_line(write: Any, tmp_path: Path):
    file = write("plain {object}", 'plain" {object}')
    _, (problem,) = check_prompts(file)
    assert (problem.code, problem.line, problem.file) == ("not-toml", 3, str(file))
    file.write_bytes(b'object = "\xff"')
    assert messages(file) == ["[unreadable] it is not UTF-8 text; save it as UTF-8"]
    assert "cannot be read" in messages(tmp_path)[0]


def test_a_file_with_a_byte_order_mark_is_read(write: Any):
    file = write()
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert load_prompts(file).object == "brass fitting"


# --- agssp-zoo prompts ------------------------------------------------------------------------------------------


def test_check_says_every_problem_with_its_file(write: Any, run: Run):
    file = write(
        "",
        'objct = "tap"\nnormal = ["{object} {shine}", "good"]\n'
        '[[defects]]\nname = "dent"\n[[defects]]\nappearance = "x"\n',
    )
    code, out, _ = run("prompts", "check", file, "rail")
    lines = out.splitlines()
    assert code == 1 and len(lines) == 7
    assert all(line.startswith(f"{file}: error [") and line.endswith(".") for line in lines[:6])
    assert [line.split("[")[1].split("]")[0] for line in lines[:6]] == [
        *("unknown-key", "missing-field", "placeholder", "placeholder", "missing-field", "missing-field"),
    ]
    assert lines[6] == f"{FOLDER / 'rail.toml'}: fine (steel rail head: 3 normal states, 8 defects)"
    code, out, _ = run("prompts", "check", file, "--json")
    found = json.loads(out)
    assert code == 1 and found["files"] == [str(file)] and len(found["problems"]) == 6
    with pytest.raises(DataError, match=rf"and 5 more: agssp-zoo prompts check {file}"):
        load_prompts(file)


def test_check_is_content_with_good_files(write: Any, run: Run):
    code, out, err = run("prompts", "check", write())
    assert (code, err) == (0, "") and out.endswith("brass.toml: fine (brass fitting: 2 normal states, 2 defects)\n")
    code, out, _ = run("prompts", "check")
    assert code == 0 and len(out.splitlines()) == len(SHIPPED)


def test_check_counts_the_tokens_that_maps_by_text_make(write: Any, run: Run, monkeypatch: pytest.MonkeyPatch):
    tokenizer = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    text = pytest.importorskip("agssp_zoo.training.anomaly.text")
    clip = pytest.importorskip("agssp_zoo.training.anomaly.clip")
    file = write("a brown film", "electrochemically polymerised " * 12 + "film")
    prompts, found = check_prompts(file)
    assert prompts is not None and not found  # few words, many tokens
    longest = max(clip.count_tokens(text.sentences(prompts).abnormal))
    code, out, _ = run("prompts", "check", file)
    assert longest > 77 and code == 1 and out.count("error [too-long]") == 1
    assert f"a description has {longest} tokens with its template ('brass fitting with tarnish" in out
    # It is what the model itself refuses.
    tokens = clip.Clip("clip", "", False, *[None] * 5, tokenizer=tokenizer)._tokens
    with pytest.raises(InvalidArgumentError, match="longer than the 77 tokens"):
        tokens(text.sentences(prompts).abnormal)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert run("prompts", "check", file)[0] == 0  # which counts words only


def test_check_says_when_there_is_no_such_file(run: Run):
    code, out, err = run("prompts", "check", "nowhere.toml")
    assert (code, out) == (1, "") and "nowhere.toml: there is no such prompt file" in err


def test_list_shows_what_there_is(run: Run):
    code, out, _ = run("prompts", "list")
    assert code == 0 and all(name in out for name in SHIPPED) and "rolled-in scale" in out
    assert str(FOLDER / "generic_metal.toml") in out
    code, out, _ = run("prompts", "list", "--json")
    found = json.loads(out)
    assert set(found) == SHIPPED and found["rail"]["object"] == "steel rail head"
    assert found["magnetic_tile"]["defects"]["blowhole"] == "a small round dark or bright hole"
