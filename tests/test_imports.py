"""What importing costs, and which packages stay out; every check in a fresh process."""

from __future__ import annotations

import ast
import configparser
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import agssp_zoo
from agssp_zoo.cli import COMMANDS

ROOT = Path(__file__).parents[1]
HEAVY = (
    *(
        "numpy",
        "PIL",
        "onnxruntime",
        "onnx",
        "torch",
        "torchvision",
        "huggingface_hub",
        "safetensors",
        "httpx",
        "httpx2",
    ),
    *("requests", "importlib.metadata", "scipy", "cv2", "timm", "accelerate"),
)
PRINT_LOADED = "import json, sys; print(json.dumps([m for m in {heavy!r} if m in sys.modules]))"


def loaded_by(code: str) -> list[str]:
    """Which of the heavy packages are loaded after ``code`` ran in a fresh process."""
    script = f"{code}\n{PRINT_LOADED.format(heavy=HEAVY)}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return names


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); before = set(sys.modules); import agssp_zoo;"
        "agssp_zoo.__version__; dir(agssp_zoo); new = set(sys.modules) - before;"
        "print(sorted(m for m in new if m.partition('.')[0] not in {'agssp_zoo', *sys.stdlib_module_names}), len(new))"
    )
    # Without site, so that what an editable installation loads at the start counts for nobody.
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("[] "), done.stdout + done.stderr
    assert int(done.stdout.split()[1]) <= 45, "typing and what it needs; nothing that takes time"
    assert loaded_by("import agssp_zoo") == []


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import agssp_zoo as z; z.list_models(); z.model_info('yolov8_s'); z.errors.HubError", set()),
        ("import agssp_zoo; agssp_zoo.ModelConfig", set()),
        ("import agssp_zoo.hub, agssp_zoo.folder, agssp_zoo.publish, agssp_zoo.card", set()),
        ("import agssp_zoo; agssp_zoo.load_detector; agssp_zoo.Detections", {"numpy", "PIL"}),
        ("from agssp_zoo.cli import main; main(['list'])", set()),
        ("from agssp_zoo.cli import main; main(['predict', '--help'])", {"numpy", "PIL"}),
    ],
)  # fmt: skip
def test_what_each_use_loads(code: str, allowed: set[str]) -> None:
    assert set(loaded_by(code)) <= allowed


def test_without_torch_the_public_names_are_those_that_can_be_had() -> None:
    code = (
        "import sys, importlib.util as u, inspect, pydoc; find = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a); sys.modules['torch'] = None;"
        "import agssp_zoo; names = dict(inspect.getmembers(agssp_zoo));"
        "text = pydoc.render_doc(agssp_zoo, renderer=pydoc.plaintext);"
        "exec('from agssp_zoo import *'); assert load_detector is names['load_detector'] and 'load_backbone' in text;"
        "assert 'Backbone' not in names and 'convert_checkpoint' not in agssp_zoo.__all__;\n"
        "for name in ('convert_checkpoint', 'Backbone'):\n"
        "  try: getattr(agssp_zoo, name)\n"
        "  except agssp_zoo.errors.MissingDependencyError as error: assert '[torch]' in str(error), error\n"
        "  else: raise SystemExit(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_top_level_help_imports_no_command() -> None:
    modules = [module for module, _ in COMMANDS.values()]
    check = f"assert not set({modules}) & set(sys.modules)"
    code = f"import sys; from agssp_zoo.cli import main; assert main(['--help']) == 0; {check}"
    assert loaded_by(code) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_figures_promised() -> None:
    """At most 40 ms of CPU and 25 MB for the import, 0.3 s for the help; the benchmarks measure them properly."""
    code = (  # VmHWM and not ru_maxrss, which starts from what the forking process had
        "import time; start = time.process_time(); import agssp_zoo; spent = time.process_time() - start;"
        "print(spent, open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    seconds, kilobytes = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    assert min(seconds) <= 0.040 and min(kilobytes) <= 25_000
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "agssp_zoo", "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 0.3


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help_loads_neither_torch_nor_onnxruntime(command: str) -> None:
    code = f"from agssp_zoo.cli import main; assert main([{command!r}, '--help']) == 0"
    assert not set(loaded_by(code)) & {"torch", "torchvision", "onnxruntime", "onnx", "huggingface_hub", "timm"}


def test_the_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse(Path(agssp_zoo.__file__).read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (alias.asname or alias.name): node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == agssp_zoo._HOMES
    assert sorted(agssp_zoo.__all__) == sorted([*seen, "__version__"])
    assert set(agssp_zoo.__all__) <= set(dir(agssp_zoo))
    with pytest.raises(AttributeError, match="no attribute 'load_everything'"):
        agssp_zoo.load_everything  # noqa: B018
    for name in agssp_zoo.__all__:
        assert getattr(agssp_zoo, name) is getattr(agssp_zoo, name)


def test_the_version_is_that_of_the_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] in (agssp_zoo.__version__, "attr: agssp_zoo.__version__")


def test_a_training_command_without_torch_asks_for_the_one_extra_that_it_needs() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from agssp_zoo.cli import main;"
        "raise SystemExit(main(['agssp', '--images', 'x', '--model', 'yolov8_n', '--out', 'y']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "pip install 'agssp-zoo[train]'" in done.stderr, done.stderr
