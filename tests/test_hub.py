"""Downloads: the real huggingface_hub client, each in its own process, against a Hub on the loopback interface."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_safetensors
from hub_server import Answer, HubServer, client_environment, python

from agssp_zoo.config import ModelConfig
from agssp_zoo.folder import sha256_file, write_folder

REPO = "agssp-zoo/yolov8_s.agssp"
FILES = '("config.json", "model.safetensors")'
RESOLVE = """
import json, pathlib, sys
from agssp_zoo import errors, hub, hub_transfer, registry
registry.REGISTRY = pathlib.Path({registry!r})
hub.CHECKOUT_MODELS = pathlib.Path("/nonexistent/model_cards")
hub_transfer.WAITS = (0.1, 0.1, 0.1)
hub_transfer.STALE = {stale}
try:
    folder = hub.resolve({name!r}, files={files}, **{options!r})
    print(json.dumps({{"path": str(folder.path), "classes": folder.config.class_names}}))
except errors.AgsspZooError as error:
    print(json.dumps({{"error": type(error).__name__, "message": str(error)}}))
"""


class Client:
    """Resolves models in fresh processes, with one cache and one registry for all of them."""

    def __init__(self, hub: HubServer, home: Path) -> None:
        self.hub, self.home = hub, home
        self.registry = home / "registry.json"
        self.pin({})

    def pin(self, entry: dict[str, object]) -> None:
        """Makes a registry that knows yolov8_s.agssp only."""
        model = {"description": "", "license": None, **entry}
        self.home.mkdir(exist_ok=True)
        self.registry.write_text(
            json.dumps(
                {
                    "schema_version": 1,
                    "namespace": "agssp-zoo",
                    "default_detector": "yolov8_s.agssp",
                    "architectures": {"yolov8_s": {"task": "detector", "default_tag": "agssp"}},
                    "models": {"yolov8_s.agssp": model},
                }
            )
        )

    def code(self, name: str, files: str = FILES, stale: float = 60.0, **options: object) -> str:
        return RESOLVE.format(registry=str(self.registry), name=name, files=files, stale=stale, options=options)

    def resolve(
        self, name: str = "yolov8_s", *, environment: dict[str, str] | None = None, **kw: object
    ) -> dict[str, str]:
        """What a process got: ``path`` and ``classes``, or ``error`` and ``message``."""
        answer: Answer = python(self.code(name, **kw), self.hub.url, self.home, **(environment or {}))
        assert answer.code == 0, answer.err
        result: dict[str, str] = json.loads(answer.out.splitlines()[-1])
        return result

    def failure(self, name: str = "yolov8_s", **kw: object) -> tuple[str, str]:
        """The error's class and message; the process must not have found the model."""
        result = self.resolve(name, **kw)
        assert "error" in result, result
        return result["error"], result["message"]

    @property
    def cached(self) -> list[Path]:
        """All files below the cache that hold data."""
        return [p for p in (self.home / "hub").rglob("*") if p.is_file() and ".locks" not in p.parts]


@pytest.fixture
def client(hub: HubServer, tmp_path: Path) -> Client:
    return Client(hub, tmp_path / "home")


@pytest.fixture
def published(hub: HubServer, client: Client, tiny_folder: Path) -> Client:
    """yolov8_s.agssp lies on the Hub and is pinned in the registry."""
    publish(hub, client, tiny_folder)
    return client


def publish(hub: HubServer, client: Client, folder: Path) -> str:
    revision = hub.add(REPO, folder)
    names = [p.name for p in folder.iterdir() if p.name != "checksums.json"]
    files = {name: {"sha256": sha256_file(folder / name), "size": (folder / name).stat().st_size} for name in names}
    client.pin({"revision": revision, "files": files})
    return revision


def test_a_pinned_model_is_downloaded_once_and_then_nobody_is_asked(
    hub: HubServer, published: Client, tiny_folder: Path
) -> None:
    found = published.resolve()
    assert found["classes"] == ["pit", "scratch"]
    weights = Path(found["path"], "model.safetensors")
    assert weights.read_bytes() == (tiny_folder / "model.safetensors").read_bytes()
    assert all("/resolve/" in path or path.startswith("/cdn/") for path in hub.requests()), "nothing but the files"
    assert not hub.requests(match="README"), "only what is needed"
    assert not [h for _, _, h in hub.log if "torch" in h.get("User-Agent", "")], "no telemetry"

    hub.log.clear()
    assert published.resolve() == found
    assert published.resolve(local_files_only=True) == found
    assert published.resolve(environment={"HF_HUB_OFFLINE": "1"}) == found
    assert hub.log == []

    # Nor is telemetry sent by a huggingface_hub that somebody else has imported before.
    early = f"import huggingface_hub\n{published.code('yolov8_s', force_download=True)}"
    assert "path" in python(early, hub.url, published.home, AI_AGENT="x").out
    assert all("/resolve/" in path or path.startswith("/cdn/") for path in hub.requests())
    assert not [h for _, _, h in hub.log if "torch" in h.get("User-Agent", "")]
    hub.log.clear()

    # A file that is not there yet: offline it is an error, on every file, without a request.
    for options, environment in (({"local_files_only": True}, {}), ({}, {"HF_HUB_OFFLINE": "1"})):
        kind, message = published.failure(files='("README.md",)', environment=environment, **options)
        assert kind == "HubError" and "README.md is not in the cache" in message and "download NAME --to" in message
    assert hub.log == []
    published.resolve(files='("README.md",)')
    assert hub.requests(match="README")

    hub.log.clear()
    assert published.resolve(force_download=True) == found
    assert len(hub.requests("GET", "/cdn/")) == 1
    assert published.failure(force_download=True, local_files_only=True)[0] == "InvalidArgumentError"
    kind, message = published.failure(force_download=True, environment={"HF_HUB_OFFLINE": "1"})
    assert kind == "InvalidArgumentError" and "HF_HUB_OFFLINE" in message


def test_a_branch_is_followed_only_when_asked_and_one_commit_serves_all_files(
    hub: HubServer, client: Client, tiny_folder: Path, tmp_path: Path, tiny_config: ModelConfig
) -> None:
    first = hub.add("factory/line3", tiny_folder)
    found = client.resolve("hf://factory/line3")
    assert Path(found["path"]).name == first
    other = write_folder(
        tmp_path / "other",
        tiny_config.replace(class_names=("dent",)),
        {"model.safetensors": lambda path: write_safetensors(path, 5000)},
    )
    second = hub.add("factory/line3", other)
    hub.log.clear()
    assert client.resolve("hf://factory/line3") == found
    assert client.resolve("hf://factory/line3", environment={"HF_HUB_OFFLINE": "1"}) == found
    assert hub.log == []
    assert client.resolve("hf://factory/line3", force_download=True)["classes"] == ["dent"]
    assert Path(client.resolve("hf://factory/line3")["path"]).name == second
    assert client.resolve(f"hf://factory/line3@{first}")["classes"] == ["pit", "scratch"]
    assert client.resolve("hf://factory/line3", revision=first)["classes"] == ["pit", "scratch"]

    # A namespace of one's own has its own models, at main, registered or not.
    hub.add("factory/yolov8_s.agssp", other)
    environment = {"AGSSP_ZOO_NAMESPACE": "factory"}
    assert client.resolve("yolov8_s", environment=environment)["classes"] == ["dent"]
    assert client.resolve("line3", environment=environment)["classes"] == ["dent"]
    kind, message = client.failure("yolov8_z", environment=environment)
    assert kind == "ModelNotFoundError" and "'yolov8_s'" in message


@pytest.mark.parametrize(
    ("kind", "match", "options"),
    [
        ("429", "/resolve/", {"headers": {"Retry-After": "0"}}),
        ("429", "/cdn/", {"headers": {"Retry-After": "0"}}),
        ("500", "/resolve/", {"times": 2}),
        ("503", "/cdn/", {}),
        ("cut", "/cdn/", {"times": 2}),
        ("cut", "/cdn/", {"after": 0}),
        ("reset", "/cdn/", {}),
        ("slow", "/cdn/", {"pause": 0.02}),
    ],
)
def test_passing_trouble_is_overcome_within_the_call(
    hub: HubServer, published: Client, tiny_folder: Path, kind: str, match: str, options: dict[str, object]
) -> None:
    hub.fail(kind, match, **options)  # type: ignore[arg-type]
    found = published.resolve()
    assert "error" not in found, found
    assert sha256_file(Path(found["path"], "model.safetensors")) == sha256_file(tiny_folder / "model.safetensors")
    assert all(fault.times == 0 for fault in hub.faults), "the failure has not happened"
    assert not [p for p in published.cached if "incomplete" in p.name]


def test_a_cut_connection_is_resumed_where_it_was_cut(
    hub: HubServer, client: Client, tmp_path: Path, tiny_config: ModelConfig
) -> None:
    size = 24_000_000  # huggingface_hub keeps whole pieces of 10 MiB
    folder = write_folder(
        tmp_path / "big", tiny_config, {"model.safetensors": lambda path: write_safetensors(path, size)}
    )
    publish(hub, client, folder)
    hub.fail("cut", "/cdn/", after=22_000_000)
    found = client.resolve()
    assert sha256_file(Path(found["path"], "model.safetensors")) == sha256_file(folder / "model.safetensors")
    ranges = [headers.get("Range") for verb, path, headers in hub.log if verb == "GET" and path.startswith("/cdn/")]
    assert ranges == [None, f"bytes={20 * 2**20}-"]


@pytest.mark.parametrize("kind", ["wrong", "short"])
def test_wrong_bytes_never_stay_in_the_cache(hub: HubServer, published: Client, kind: str) -> None:
    hub.fail(kind, "/cdn/", times=1 if kind == "wrong" else 99)
    error, message = published.failure()
    if kind == "wrong":
        assert error == "IntegrityError" and "model.safetensors differs from its checksum" in message
    else:  # as many bytes as this answer announced, but not as many as the file has
        assert error == "HubError" and "model.safetensors" in message
    assert not [p for p in published.cached if p.name == "model.safetensors" or p.stat().st_size > 3000]
    hub.faults.clear()
    assert "error" not in published.resolve()


def test_a_file_that_has_gone_bad_in_the_cache_is_not_used(hub: HubServer, published: Client) -> None:
    weights = Path(published.resolve()["path"], "model.safetensors")
    good = weights.read_bytes()
    weights.resolve().write_bytes(good[:-100])
    hub.log.clear()
    assert "error" not in published.resolve(), "downloaded anew"
    assert weights.read_bytes() == good and len(hub.requests("GET", "/cdn/")) == 1

    weights.resolve().write_bytes(good[::-1])
    error, message = published.failure(local_files_only=True)
    assert error == "IntegrityError" and "model.safetensors" in message
    assert published.failure(local_files_only=True)[0] == "HubError", "the bad file is gone"
    assert "error" not in published.resolve()


def test_every_failure_is_one_clear_error(hub: HubServer, published: Client, tiny_folder: Path, tmp_path: Path) -> None:
    def expect(name: str, kind: str, *words: str, **kw: object) -> None:
        error, message = published.failure(name, **kw)
        assert error == kind and "\n" not in message
        assert [word for word in words if word not in message] == [], message

    hub.add("factory/secret", tiny_folder, private=True)
    hub.add("factory/gated", tiny_folder, gated=True)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    hub.add("factory/bare", bare)
    lacking = hub.add("factory/lacking", tiny_folder)
    del hub.repositories["factory/lacking"].commits[-1][1]["model.safetensors"]

    expect("hf://factory/none", "HubError", "factory/none", "no such repository", "hf auth login")
    expect("hf://factory/secret", "HubError", "factory/secret", "HF_TOKEN")
    expect("hf://factory/secret", "HubError", "HF_TOKEN", token="hf_wrong")
    assert published.resolve("hf://factory/secret", token=hub.token)["classes"] == ["pit", "scratch"]
    assert "error" not in published.resolve("hf://factory/secret", environment={"HF_TOKEN": hub.token})
    tokens = [h.get("Authorization") for _, path, h in hub.log if path.startswith("/cdn/")]
    assert set(tokens) == {None}, "the token stays with the Hub"
    expect("hf://factory/gated", "HubError", "access is restricted")
    expect("hf://factory/bare", "HubError", "checksums.json", "no such file", "model folder of agssp-zoo")
    expect("hf://factory/lacking", "HubError", "model.safetensors", "no such file", lacking)
    expect("hf://factory/secret@v9", "HubError", "no revision 'v9'", token=hub.token)
    expect("hf://factory", "InvalidArgumentError", "hf://owner/repo")
    expect("hf://factory/a--b", "InvalidArgumentError", "factory/a--b")
    expect("yolov8_s", "ModelNotFoundError", "model.onnx", "config.json", files='("model.onnx",)')
    expect("yolov8_s", "InvalidArgumentError", "pickle", files='("model.pth",)')
    expect("yolov8_s", "InvalidArgumentError", "name of a file", files='("../x",)')

    hub.fail("500", "/resolve/", times=99)
    expect("yolov8_s", "HubError", "HTTP 500", "later")
    hub.faults.clear()
    hub.fail("429", "/resolve/", times=99, headers={"Retry-After": "3600"})
    expect("yolov8_s", "HubError", "fewer requests")
    hub.faults.clear()

    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache should be")
    expect("yolov8_s", "HubError", "cache", cache_dir=str(blocked))

    closed = HubServer()
    closed.server.server_close()
    began = time.monotonic()
    nobody = published.code("yolov8_s").replace(".WAITS = (0.1, 0.1, 0.1)", ".WAITS")
    answer = python(nobody, closed.url, published.home)
    result = json.loads(answer.out)
    assert result["error"] == "HubError" and "cannot be reached" in result["message"], answer.err
    assert "download NAME --to" in result["message"]
    assert time.monotonic() - began < 10, "a missing network is told soon"


def test_an_unfinished_download_is_never_taken_for_a_file(hub: HubServer, published: Client) -> None:
    hub.fail("slow", "/cdn/", pause=0.5)
    environment = client_environment(hub.url, published.home)
    process = subprocess.Popen([sys.executable, "-c", published.code("yolov8_s")], env=environment)
    deadline = time.monotonic() + 30
    while not [p for p in published.cached if "incomplete" in p.name]:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = [p for p in published.cached if "incomplete" in p.name]
    assert left and not [p for p in published.cached if p.name == "model.safetensors"]
    for path in left:  # as if it had been killed a while ago
        os.utime(path, (time.time() - 100,) * 2)
    assert "error" not in published.resolve()
    assert not [p for p in published.cached if "incomplete" in p.name], "what it had left is gone"


def test_two_processes_at_once_download_a_file_once(hub: HubServer, published: Client, tiny_folder: Path) -> None:
    hub.fail("slow", "/cdn/", pause=0.2)
    environment = client_environment(hub.url, published.home)
    command = [sys.executable, "-c", published.code("yolov8_s", stale=0.0)]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert answers[0] == answers[1] == answers[2] and "path" in answers[0]
    assert sha256_file(Path(answers[0]["path"], "model.safetensors")) == sha256_file(tiny_folder / "model.safetensors")
    assert len(hub.requests("GET", "/cdn/")) == 1
