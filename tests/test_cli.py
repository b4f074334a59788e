"""The command line: what it prints, its exit codes, and that an error is one line."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

import agssp_zoo
from agssp_zoo import cli, errors, hub, registry
from agssp_zoo.config import ModelConfig
from agssp_zoo.folder import write_folder


@pytest.fixture(autouse=True)
def nothing_local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("AGSSP_ZOO_HOME", "AGSSP_ZOO_NAMESPACE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(hub, "CHECKOUT_MODELS", tmp_path / "none" / "model_cards")
    monkeypatch.setenv("COLUMNS", "100")


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
def raising(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the sub-command ``list`` raise an error."""

    def install(error: BaseException) -> None:
        def run_command(args: argparse.Namespace) -> int:
            raise error

        module = types.SimpleNamespace(add_arguments=lambda parser: None, run=run_command)
        monkeypatch.setitem(sys.modules, "agssp_zoo.commands.list", module)
        monkeypatch.setattr("agssp_zoo.commands.list", module)

    return install


def test_help_names_every_command_and_usage_errors_are_2(run: Run) -> None:
    code, out, err = run("--help")
    assert code == 0 and err == "" and [c for c in cli.COMMANDS if c not in out] == []
    assert run("--version")[1] == f"agssp-zoo {agssp_zoo.__version__}\n"
    for wrong in ((), ("frobnicate",), ("list", "--frobnicate"), ("info",), ("list", "--task", "x"), ("convert", "a")):
        code, out, err = run(*wrong)
        assert code == 2 and out == "" and "usage: agssp-zoo" in err
    assert run("list", "--tas", "detector")[0] == 2, "no abbreviations, which a new option could make ambiguous"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.HubError("no network.\nNone."), 1, "agssp-zoo: no network. None."),
        (errors.InvalidArgumentError("conf is 3."), 2, "agssp-zoo: conf is 3."),
        (errors.TrainingError("The disk is full."), 1, "agssp-zoo: The disk is full."),
        (errors.SettingError("--epochs is 0."), 2, "agssp-zoo: --epochs is 0."),
        (ModuleNotFoundError("No module", name="torch"), 1, "pip install 'agssp-zoo[torch]'"),
        (ModuleNotFoundError("No module", name="onnx.helper"), 1, "pip install 'agssp-zoo[export]'"),
        (KeyError("boxes"), 1, "KeyError: 'boxes' (run again with --debug to see where)"),
        (OSError(28, "No space left on device"), 1, "cannot be written (No space left on device); make room"),
        (OSError(13, "Permission denied", "a/b.json"), 1, "a/b.json cannot be used (Permission denied); give another"),
        (OSError(24, "Too many open files", "a.jpg"), 1, "ulimit -n"),
        (OSError(5, "Input/output error"), 1, "run again with --debug"),
        (MemoryError(), 1, "take a smaller size or batch"),
        (KeyboardInterrupt(), 130, "agssp-zoo: interrupted."),
    ],
)
def test_an_error_is_one_line_unless_debugging(
    run: Run, raising: Any, error: BaseException, code: int, line: str
) -> None:
    raising(error)
    got, out, err = run("list")
    assert (got, out) == (code, "") and err.count("\n") == 1 and err.startswith("agssp-zoo: ") and line in err
    for arguments in (("--debug", "list"), ("list", "--debug")):
        with pytest.raises(type(error)):
            run(*arguments)


def test_list_shows_what_there_is(run: Run) -> None:
    code, out, err = run("list")
    lines = out.splitlines()
    assert (code, err) == (0, "") and [line.split()[0] for line in lines[1:]] == agssp_zoo.list_models()
    assert {line.split()[2] for line in lines[1:]} <= {"disk", "hub", "convert", "-"}
    code, out, _ = run("list", "yolo*", "--task", "detector", "--json")
    entries = json.loads(out)
    assert code == 0 and [entry["name"] for entry in entries] == agssp_zoo.list_models("yolo*", task="detector")
    assert next(e for e in entries if e["name"] == "yolov8_s.agssp")["where"] == "convert"
    assert run("list", "qqq*") == (0, "", "") and json.loads(run("list", "qqq*", "--json")[1]) == []


def test_list_shows_local_models_with_names_of_their_own(
    run: Run, tiny_config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("AGSSP_ZOO_HOME", str(home))
    assert json.loads(run("list", "--json")[1]), "a home that is not there"
    for name in ("line3", "yolov8_s.agssp", "yolov8_s", "yolov8_n", "no name"):
        write_folder(home / name, tiny_config.replace(name=name, provenance={"license": "mit"}), {})
    (home / "notes").mkdir()
    local = ["line3", "yolov8_n"]  # yolov8_s means the folder yolov8_s.agssp
    code, out, _ = run("list", "--json")
    entries = {entry["name"]: entry for entry in json.loads(out)}
    assert code == 0 and list(entries) == sorted([*agssp_zoo.list_models(), *local])
    assert [name for name, entry in entries.items() if entry["where"] == "local"] == local
    assert entries["yolov8_s.agssp"]["where"] == "disk" and entries["line3"].keys() == entries["yolov8_s.agssp"].keys()
    assert (entries["line3"]["task"], entries["line3"]["license"]) == ("detector", "mit")
    assert all(hub.resolve(name).path == home / name for name in local)
    line = next(line for line in run("list")[1].splitlines() if line.startswith("line3 "))
    assert line.split() == ["line3", "detector", "local", "yolov8_s", "in", str(home / "line3")]
    assert "line3" in run("list", "yolov8_s", "--task", "detector")[1] and "line3" not in run("list", "swin*")[1]
    assert "line3" not in run("list", "--task", "backbone")[1]
    (home / "line3" / "config.json").write_text("{}")
    code, out, err = run("list", "line*")
    assert (code, err) == (0, "") and out.splitlines()[1].split()[:3] == ["line3", "-", "local"]
    assert "differs from its checksum" in out


def test_info_tells_what_is_known(run: Run, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run("info", "yolov8_s")
    assert code == 0 and str(agssp_zoo.model_info("yolov8_s").authors_link) in out and "agssp-zoo convert" in out
    about = json.loads(run("info", "yolov8_s", "--json")[1])
    assert about["name"] == "yolov8_s.agssp" and about["default"] and "config" not in about
    code, out, _ = run("info", tiny_folder)
    assert code == 0 and "pit, scratch" in out and "preprocess.size" in out
    monkeypatch.setenv("AGSSP_ZOO_HOME", str(tiny_folder.parent))
    tiny_folder.rename(tiny_folder.parent / "yolov8_s.agssp")
    about = json.loads(run("info", "yolov8_s", "--json")[1])
    assert about["where"] == "disk" and about["config"]["class_names"] == ["pit", "scratch"]
    code, out, err = run("info", "yolo8_s")
    assert (code, out) == (1, "") and "'yolov8_s'" in err and err.count("\n") == 1


def test_info_is_about_the_folder_that_a_name_loads(
    run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_folder.rename("yolov8_s")
    assert json.loads(run("download", "yolov8_s", "--json")[1])["folder"] == "yolov8_s"
    about = json.loads(run("info", "yolov8_s", "--json")[1])
    assert about["folder"] == "yolov8_s" and about["config"]["class_names"] == ["pit", "scratch"]
    assert "convert" not in run("info", "yolov8_s")[1]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_names_that_the_output_cannot_hold_are_escaped(tiny_config: ModelConfig, tmp_path: Path, encoding: str) -> None:
    """Windows writes into files and pipes in a code page; file names of Linux may be no UTF-8."""
    names = ("裂纹", "Einschlüsse", "𝄞")
    odd = os.fsencode(tmp_path) + b"/\xe4"
    write_folder(os.fsdecode(odd), tiny_config.replace(class_names=names), {}, card="x")

    def run(*arguments: str | bytes) -> bytes:
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        words = [sys.executable, "-m", "agssp_zoo", *arguments]
        return subprocess.run(words, capture_output=True, check=True, env=environment).stdout

    about = json.loads(run("info", odd, "--json").decode(encoding))
    assert tuple(about["config"]["class_names"]) == names and os.fsencode(about["folder"]) == odd
    text = run("info", odd).decode(encoding)
    assert ("裂纹" if encoding == "utf-8" else r"\u88c2\u7eb9") in text
    assert run("download", odd).decode(encoding).strip() == rf"{tmp_path}/\udce4"
    encoding, plain = f"{encoding}:surrogateescape", encoding  # as in the locale C
    assert run("download", odd).strip() == odd
    assert json.loads(run("info", odd, "--json").decode(plain))["config"] == about["config"]


def test_download_makes_a_folder_of_its_own(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    code, out, _ = run("download", tiny_folder, "--to", tmp_path / "copy")
    assert code == 0 and out.strip() == str(tmp_path / "copy")
    assert (tmp_path / "copy" / "checksums.json").read_text() == (tiny_folder / "checksums.json").read_text()
    code, _, err = run("download", tiny_folder, "--to", tmp_path / "copy")
    assert code == 2 and "is there already" in err
    assert run("download", tiny_folder, "--to", tmp_path / "copy", "--overwrite")[0] == 0
    code, _, err = run("download", "yolov8_s")
    assert code == 1 and "not published" in err and err.count("\n") == 1
    (tiny_folder / "model.safetensors").write_bytes(b"damaged")
    code, _, err = run("download", tiny_folder, "--to", tmp_path / "copy", "--overwrite")
    assert code == 1 and "differs from its checksum" in err
    assert json.loads(run("info", tmp_path / "copy", "--json")[1])["config"]["name"] == "yolov8_s.agssp", "as it was"
    spaced = (tmp_path / "copy").rename(tmp_path / "my copy")
    (spaced / "config.json").write_text("{}")
    assert f"run `python -m agssp_zoo.folder '{spaced}'`" in run("info", spaced)[2], "can be copied as it stands"


def test_a_name_that_only_begins_like_a_home_folder_is_a_name(
    run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("download", str(tiny_folder), "--to", "~nobody_of_that_name/model")
    assert code == 0, err
    folder = tmp_path / "~nobody_of_that_name" / "model"
    assert (folder / "config.json").is_file()
    assert run("info", "~nobody_of_that_name/model", "--json")[0] == 0
    monkeypatch.setenv("AGSSP_ZOO_HOME", "~nobody_of_that_name")
    assert hub.resolve("model").path.resolve() == folder


def test_convert_refuses_what_it_does_not_know(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    code, _, err = run("convert", tmp_path / "none.pth", "--arch", "yolov8_s", "--out", tmp_path / "out")
    assert code == 1 and "none.pth" in err and err.count("\n") == 1
    (tmp_path / "evil.pth").write_bytes(b"cos\nsystem\n(S'touch evil'\ntR.")
    code, _, err = run("convert", tmp_path / "evil.pth", "--arch", "yolov8_s", "--out", tmp_path / "out")
    assert code == 1 and err.count("\n") == 1 and not (tmp_path / "out").exists()
    code, _, err = run("convert", tmp_path / "evil.pth", "--arch", "yolov9", "--out", tmp_path / "out")
    assert code == 1 and "yolov9" in err


def test_the_installed_command_is_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agssp_zoo"]
    done = subprocess.run([*command, "list", "--json"], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert [entry["name"] for entry in json.loads(done.stdout)] == agssp_zoo.list_models()
    # Whoever reads the output may stop reading it.
    reader = subprocess.Popen(
        [*command, "list", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert reader.stdout is not None and reader.stderr is not None
    reader.stdout.close()
    assert reader.stderr.read() == b"" and reader.wait() == 1
    reader.stderr.close()


def test_ctrl_c_ends_with_one_line(tmp_path: Path) -> None:
    # Where the tests run in the background of a shell, Python finds SIGINT ignored; in a user's terminal it does not.
    code = (
        "import signal, sys, time, agssp_zoo.cli as c, agssp_zoo.commands.list as l\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def run(args):\n    print('ready', flush=True); time.sleep(30)\n"
        "l.run = run\nsys.exit(c.main(['list']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err == "agssp-zoo: interrupted.\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_what_ends_a_process_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, code: int) -> None:
    script = (
        "import signal, sys, tempfile, time, agssp_zoo.cli as c, agssp_zoo.commands.list as l\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "def run(args):\n"
        "    with tempfile.TemporaryDirectory(dir='.'):\n"
        "        print('ready', flush=True); time.sleep(30)\n"
        "l.run = run\nsys.exit(c.main(['list']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n" and any(tmp_path.iterdir())
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert process.returncode == code and err == f"agssp-zoo: ended by {number.name}.\n"
    assert not any(tmp_path.iterdir())


def test_handlers_of_others_stay(run: Run) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        for handler in (signal.SIG_DFL, signal.SIG_IGN, lambda number, frame: None):
            signal.signal(signal.SIGTERM, handler)
            assert run("list")[0] == 0 and signal.getsignal(signal.SIGTERM) == handler
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_failure(tmp_path: Path, closed: str) -> None:
    command = f"exec {sys.executable} -m agssp_zoo"
    assert subprocess.run(f"{command} list {closed}", shell=True, cwd=tmp_path, check=False).returncode == 0
    assert subprocess.run(f"{command} info none {closed}", shell=True, cwd=tmp_path, check=False).returncode == 1


def test_ctrl_c_while_a_command_is_loaded_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_add_command", interrupted)
    assert run("list") == (130, "", "agssp-zoo: interrupted.\n")


def test_registered_names_complete_the_convert_help(run: Run) -> None:
    out = " ".join(run("convert", "--help")[1].split())
    assert all(name in out for name in registry.architectures())
