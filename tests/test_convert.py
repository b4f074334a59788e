"""Conversion of the authors' checkpoints: what is read, what is refused, and that every entry is accounted for."""

from __future__ import annotations

import functools
import importlib.util
import os
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from agssp_zoo import models  # noqa: E402
from agssp_zoo.checkpoint import Opaque  # noqa: E402
from agssp_zoo.config import ModelConfig  # noqa: E402
from agssp_zoo.convert import convert_checkpoint, guess_architecture, load_checkpoint, official_name  # noqa: E402
from agssp_zoo.errors import (  # noqa: E402
    CheckpointError,
    InvalidArgumentError,
    ModelNotFoundError,
    UnsafeCheckpointError,
)
from agssp_zoo.folder import ModelFolder  # noqa: E402

PARITY = Path(__file__).parents[1].parent / "shared" / "reference" / "parity"
needs_reference = pytest.mark.skipif(not PARITY.is_dir(), reason="needs the authors' layouts")


# --- checkpoints as the authors' tools write them ---------------------------------------------------------------------


def layout(name):
    """Names and shapes of one of the authors' layouts."""
    spec = importlib.util.spec_from_file_location("parity_weights", PARITY / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {key: shape for key, (shape, _) in module.read_keys(PARITY / f"{name}.keys.txt").items()}


def drawn(name):
    """A state dict of that layout with random values."""
    generator = torch.Generator().manual_seed(5)
    return OrderedDict(
        (key, torch.rand(shape, generator=generator) if shape else torch.tensor(7))
        for key, shape in layout(name).items()
    )


class MethodOf:
    """Pickled as a call of getattr, as mmengine's statistics are."""

    def __init__(self, owner, name):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


@pytest.fixture
def history_buffer(monkeypatch):
    """The class of mmengine, of which a checkpoint holds many."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def mean(self):
            return 0

    HistoryBuffer.__module__ = module.__name__
    HistoryBuffer.__qualname__ = "HistoryBuffer"
    HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return HistoryBuffer


@pytest.fixture(scope="module")
def detector_file(tmp_path_factory):
    """A whole detector checkpoint with averaged and raw weights."""
    path = tmp_path_factory.mktemp("detector") / "best.pth"
    state = drawn("yolov8_s")
    raw = OrderedDict((f"module.{key}", torch.zeros_like(value)) for key, value in state.items())
    torch.save({"meta": {"epoch": 10, "seed": 2024}, "state_dict": state, "ema_state_dict": raw}, path)
    return path


# --- reading ----------------------------------------------------------------------------------------------------------


@needs_reference
def test_a_real_checkpoint_is_read():
    checkpoint = load_checkpoint(PARITY / "runner_checkpoint_head.pth")
    assert list(checkpoint) == ["meta", "state_dict", "message_hub", "ema_state_dict"]
    assert checkpoint["meta"]["dataset_meta"]["classes"] == ("anomaly",)
    assert checkpoint["meta"]["seed"] == 2024
    assert isinstance(checkpoint["message_hub"]["log_scalars"]["train/loss"], Opaque)
    state = checkpoint["state_dict"]
    assert state["backbone.stem.conv.weight"].shape == (32, 3, 3, 3)
    assert state["backbone.stem.bn.num_batches_tracked"].dtype == torch.int64
    with zipfile.ZipFile(PARITY / "runner_checkpoint_head.pth") as archive:
        first = np.frombuffer(archive.read("runner_checkpoint_head/data/0"), np.float32)
    np.testing.assert_array_equal(state["backbone.stem.conv.weight"].numpy().ravel(), first)


@pytest.mark.parametrize("zipped", [True, False])
def test_everything_such_files_hold(tmp_path, history_buffer, zipped):
    base = torch.arange(24.0).reshape(4, 6)
    content = {
        "meta": {
            "loss": np.float64(0.25),
            "single": np.float32(1.5),
            "count": np.int64(-3),
            "flag": np.bool_(True),
            "byte": np.uint8(200),
            "classes": ("a", "b"),
            "text": "é",
            "bytes": b"\x00\xff",
            "set": {1, 2},
        },
        "message_hub": {"log": history_buffer(), "how": MethodOf(history_buffer, "mean"), "array": np.ones(3)},
        "state_dict": OrderedDict(
            part=base[1:3, ::2],
            transposed=base.t(),
            base=base,
            half=torch.ones(3, dtype=torch.float16),
            brain=torch.ones(3, dtype=torch.bfloat16),
            flags=torch.tensor([True, False]),
            empty=torch.empty(0, 4),
            scalar=torch.tensor(5),
            parameter=torch.nn.Parameter(torch.ones(2, 2)),
        ),
    }
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    read = load_checkpoint(path)
    assert read["meta"] == {
        "loss": 0.25,
        "single": 1.5,
        "count": -3,
        "flag": True,
        "byte": 200,
        "classes": ("a", "b"),
        "text": "é",
        "bytes": b"\x00\xff",
        "set": {1, 2},
    }
    assert all(isinstance(value, Opaque) for value in read["message_hub"].values())
    for name, tensor in content["state_dict"].items():
        assert read["state_dict"][name].dtype == tensor.dtype
        assert torch.equal(read["state_dict"][name], tensor.detach())
    path.unlink()
    assert torch.equal(read["state_dict"]["base"], base)  # also after the file is gone


# --- refusing ---------------------------------------------------------------------------------------------------------


class Call:
    """Pickled as a call of anything."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def attacks(marker):
    """(what the message must name, the object), each of which would leave a file if it were executed."""
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w').close()"
    return [
        ("posix.system", Call(os.system, command)),
        ("builtins.eval|__builtin__.eval", Call(eval, code)),
        ("builtins.exec|__builtin__.exec", Call(exec, code)),
        ("(subprocess|commands).Popen", Call(subprocess.Popen, ["touch", str(marker)])),
        ("functools.partial", Call(functools.partial, os.system, command)),
        ("pickle|_pickle", Call(pickle.loads, pickle.dumps(Call(os.system, command)))),
        ("torch.serialization.load", Call(torch.load, str(marker))),
    ]


@pytest.mark.parametrize("writer", ["zip", "legacy", "protocol 0", "protocol 4", "bare pickle"])
def test_malicious_pickles_are_refused_unexecuted(tmp_path, writer):
    marker = tmp_path / "executed"
    for number, (named, attack) in enumerate(attacks(marker)):
        path = tmp_path / f"{number}.pth"
        content = {"meta": attack, "state_dict": {"a": torch.ones(2)}}
        if writer == "bare pickle":
            path.write_bytes(pickle.dumps({"meta": attack}))
        else:
            protocol = int(writer[-1]) if writer.startswith("protocol") else 2
            torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=writer != "legacy")
        with pytest.raises(UnsafeCheckpointError, match=named):
            load_checkpoint(path)
        with pytest.raises(UnsafeCheckpointError, match=str(path)):
            convert_checkpoint(path, "yolov8_s", tmp_path / "out")
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def zipped_pickle(path, data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/version", "3")


@pytest.mark.parametrize(
    ("named", "opcodes"),
    [
        # getattr(OrderedDict, "fromkeys")(...): its answer must not be callable.
        ("calls an object", b"c__builtin__\ngetattr\n(ccollections\nOrderedDict\nX\x08\x00\x00\x00fromkeystR(]tR."),
        # getattr by a dotted name, which newer protocols allow in the name itself.
        ("collections.OrderedDict.fromkeys", b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93."),
        # Changing an admitted function: BUILD with a pair of states sets attributes.
        ("sets _function", b"ctorch._utils\n_rebuild_tensor_v2\n(N}X\x09\x00\x00\x00_functionNstb."),
        # Text in other codecs than latin1: codecs can do more than encode text.
        ("'rot13'", b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR."),
        # Object arrays would unpickle inside numpy.
        ("type 'O8'", b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8I00\nI01\ntR."),
        # Calling a class that stands for a forgotten object is fine; calling the object is not.
        ("calls an object", b"cmmengine.logging.history_buffer\nHistoryBuffer\n(tR(tR."),
        # Names of modules that are never imported.
        ("antigravity.anything", b"cantigravity\nanything\n."),
        ("torch.jit", b"ctorch.jit\n_pickle\n."),
        ("torch.storage.FloatStorage", b"ctorch.storage\nFloatStorage\n."),
    ],
)
def test_crafted_opcodes_are_refused(tmp_path, named, opcodes):
    zipped_pickle(tmp_path / "x.pth", opcodes)
    with pytest.raises(UnsafeCheckpointError, match=named):
        load_checkpoint(tmp_path / "x.pth")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "state", [b"}X\x01\x00\x00\x00aI1\ns", b"(N}X\x08\x00\x00\x00__call__ccollections\nOrderedDict\nst"]
)
def test_one_file_cannot_spoil_the_next(tmp_path, state):
    """Setting attributes of the class that stands for HistoryBuffer fails, and would end with that file."""
    name = b"cmmengine.logging.history_buffer\nHistoryBuffer\n"
    zipped_pickle(tmp_path / "spoil.pth", name + state + b"b.")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "spoil.pth")
    zipped_pickle(tmp_path / "x.pth", name + b"(tR(tR.")
    with pytest.raises(UnsafeCheckpointError, match="calls an object"):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files(tmp_path, zipped):
    """Cut and changed files give one error, whatever goes wrong inside."""
    path, damaged = tmp_path / "x.pth", tmp_path / "damaged.pth"
    content = {"state_dict": {"a": torch.arange(300.0), "b": torch.ones(3, 4)}, "meta": {"epoch": 1}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for length in (0, 1, 7, 100, len(data) // 2, len(data) - 3):
        damaged.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"damaged\.pth"):
            load_checkpoint(damaged)
    generator = random.Random(1)
    failures = 0
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(generator.randint(1, 4)):
            changed[generator.randrange(len(data))] = generator.randrange(256)
        damaged.write_bytes(bytes(changed))
        try:
            load_checkpoint(damaged)
        except CheckpointError:
            failures += 1
    assert failures > 20
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path / "none.pth")


def test_data_that_lie_about_their_size(tmp_path):
    def tensor(count, size, stride, offset=0):
        storage = f"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuI{count}\ntQ"
        sizes = "".join(f"I{n}\n" for n in size)
        strides = "".join(f"I{n}\n" for n in stride)
        arguments = f"({storage}I{offset}\n({sizes}t({strides}tI00\n}}t"
        return f"}}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n{arguments}Rs.".encode("latin1")

    for name, data in {
        "more than there is": tensor(1000, (1000,), (1,)),
        "less than nothing": tensor(-2, (2,), (1,)),
        "beyond its data": tensor(2, (5,), (1,)),
        "before its data": tensor(2, (1,), (1,), -4),
        "strides beyond": tensor(2, (2,), (1000000,)),
    }.items():
        path = tmp_path / f"{name}.pth"
        zipped_pickle(path, data)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("x/data/0", struct.pack("<2f", 1, 2))
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
    path = tmp_path / "right.pth"
    zipped_pickle(path, tensor(2, (2, 1), (1, 1)))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/data/0", struct.pack("<2f", 1, 2))
    assert load_checkpoint(path)["a"].tolist() == [[1.0], [2.0]]


def test_small_files_that_unpack_to_large_ones(tmp_path):
    """What they ask for is not made: a table for numbers up to 2**31 has 32 GB."""
    memo = b"\x80\x02K\x01r" + struct.pack("<I", 2**31) + b"."
    (tmp_path / "legacy.pth").write_bytes(memo)
    zipped_pickle(tmp_path / "zip.pth", memo)
    zipped_pickle(tmp_path / "text.pth", b"}p2000000000\n.")
    for name in ("legacy", "zip", "text"):
        with pytest.raises(CheckpointError, match="fill the memory"):
            load_checkpoint(tmp_path / f"{name}.pth")
    zipped_pickle(tmp_path / "order.pth", b"}.")
    with zipfile.ZipFile(tmp_path / "order.pth", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/byteorder", bytes(2**27))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="big-endian"):
            load_checkpoint(tmp_path / "order.pth")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_other_kinds_of_files(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="a list, not a dict"):
        load_checkpoint(tmp_path / "list.pth")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(CheckpointError, match="zip file without a checkpoint"):
        load_checkpoint(tmp_path / "photos.zip")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"}.")
        archive.writestr("x/constants.pkl", b"}.")
    with pytest.raises(UnsafeCheckpointError, match="TorchScript"):
        load_checkpoint(tmp_path / "script.pt")
    torch.save({"meta": {}, "model": {}}, tmp_path / "no_state.pth")
    with pytest.raises(CheckpointError, match="no tensors: meta, model"):
        convert_checkpoint(tmp_path / "no_state.pth", "yolov8_s", tmp_path / "out")


# --- converting -------------------------------------------------------------------------------------------------------


@needs_reference
def test_a_detector_is_converted(tmp_path, detector_file):
    names = ["crazing", "inclusion", "patches", "pitted", "rolled", "scratches"]
    out = convert_checkpoint(detector_file, "yolov8_s", tmp_path / "out", class_names=names)
    assert sorted(p.name for p in out.iterdir()) == ["README.md", "checksums.json", "config.json", "model.safetensors"]
    folder = ModelFolder.open(out)
    config = ModelConfig.load(folder.file("config.json"))
    assert config.class_names == tuple(names)
    assert (config.preprocess.size, config.preprocess.resize, config.preprocess.rounding) == (
        (640, 640),
        "opencv",
        "floor",
    )
    assert (config.preprocess.pad_value, config.preprocess.pad_position) == (114, "center")
    post = config.postprocess
    assert (post.conf, post.iou, post.max_det, post.max_candidates, post.multi_label) == (0.25, 0.7, 300, 30000, True)
    assert config.provenance["left_out"] == {"counters of BatchNorm, which a fixed momentum does not need": 57}
    assert config.provenance["not_read"] == ["ema_state_dict"]
    assert config.provenance["checkpoint_meta"] == {"epoch": 10}
    module = models.load(config, folder.file("model.safetensors"))
    source = torch.load(detector_file, weights_only=True)["state_dict"]  # not the raw weights, which are zero
    own = module.state_dict()
    assert {official_name(name) for name in own} == set(source)
    for name, tensor in own.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, source[official_name(name)]), name
    with pytest.raises(InvalidArgumentError, match="is there already"):
        convert_checkpoint(detector_file, "yolov8_s", out)
    with pytest.raises(InvalidArgumentError, match="is there already"):  # said before a gigabyte is read
        convert_checkpoint(tmp_path / "none.pth", "yolov8_s", out)


@needs_reference
@pytest.mark.parametrize("source", ["agbp_cspdarknet_s", "agbp_resnet50", "yolov8_s"])
def test_a_backbone_is_converted(tmp_path, source):
    state = drawn(source)
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "x.pth")
    arch = "resnet50" if source == "agbp_resnet50" else "cspdarknet_s"
    out = convert_checkpoint(tmp_path / "x.pth", arch, tmp_path / "out")
    config = ModelConfig.load(out)
    assert (config.name, config.task, config.class_names) == (f"{arch}.agbp", "backbone", ())
    backbone = models.load(config, out / "model.safetensors")
    for name, tensor in backbone.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, state[official_name(name, "backbone")]), name
    left_out = config.provenance["left_out"]
    assert sum(left_out.values()) + sum(
        not name.endswith("num_batches_tracked") for name in backbone.state_dict()
    ) == len(state)
    if source == "yolov8_s":
        assert "the rest of the detector that the backbone is taken from" in left_out
        assert config.preprocess.std == (255.0, 255.0, 255.0)  # the detector's input
    else:
        assert left_out["the classifier of data set names, the auxiliary task of stage 1"] == 2
        assert config.preprocess.mean == (110.2955, 113.433, 109.914)
        assert config.preprocess.std == (32.028, 30.614, 30.27)


@needs_reference
def test_class_names(tmp_path, detector_file):
    with pytest.raises(CheckpointError, match=r"has 6 classes, but 2 class names were given"):
        convert_checkpoint(detector_file, "yolov8_s", tmp_path / "out", class_names=("a", "b"))
    made_up = convert_checkpoint(detector_file, "yolov8_s", tmp_path / "six")
    assert ModelConfig.load(made_up).class_names == tuple(f"class_{i}" for i in range(6))
    assert ModelConfig.load(made_up).name == "yolov8_s.agssp_finetuned"
    state = drawn("yolov8_s_1class")
    for number, (meta, expected) in enumerate(
        [
            ({"dataset_meta": {"classes": ("flaw",)}}, ("flaw",)),
            ({"dataset_meta": {"CLASSES": ["flaw"]}}, ("flaw",)),
            ({"dataset_meta": {"classes": ("a", "b")}}, ("anomaly",)),  # not those of this head
            ({"dataset_meta": None}, ("anomaly",)),
            ({}, ("anomaly",)),
        ]
    ):
        torch.save({"meta": meta, "state_dict": state}, tmp_path / "one.pth")
        out = convert_checkpoint(tmp_path / "one.pth", "yolov8_s", tmp_path / str(number))
        config = ModelConfig.load(out)
        assert config.class_names == expected
        assert config.name == "yolov8_s.agssp"
        assert config.postprocess.multi_label is False
    out = convert_checkpoint(tmp_path / "one.pth", "yolov8_s.agssp_mine", tmp_path / "named", class_names=["dent"])
    assert ModelConfig.load(out).name == "yolov8_s.agssp_mine"
    torch.save({"state_dict": drawn("agbp_cspdarknet_s")}, tmp_path / "backbone.pth")
    with pytest.raises(InvalidArgumentError, match="has no classes"):
        convert_checkpoint(tmp_path / "backbone.pth", "cspdarknet_s", tmp_path / "b", class_names=["a"])


@needs_reference
def test_every_entry_is_accounted_for(tmp_path):
    for change, message in (
        (lambda s: s.pop("neck.downsample_layers.1.bn.bias"), r"Missing \(1\): neck\.downsample_layers\.1\.bn\.bias\."),
        (lambda s: s.update(surprise=torch.ones(1)), r"Unknown \(1\): surprise\."),
        (
            lambda s: s.update({"backbone.stage2.0.conv.weight": torch.ones(128, 64, 1, 1)}),
            r"Misshapen \(1\): backbone\.stage2\.0\.conv\.weight \(128, 64, 1, 1\) instead of \(128, 64, 3, 3\)\.",
        ),
    ):
        state = drawn("yolov8_s_1class")
        change(state)
        torch.save({"state_dict": state}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=message):
            convert_checkpoint(tmp_path / "x.pth", "yolov8_s", tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"Missing \(\d+\):.*and \d+ more"):
        convert_checkpoint(PARITY / "runner_checkpoint_head.pth", "cspdarknet_s", tmp_path / "out")
    state = drawn("yolov8_s_1class")
    state["backbone.stem.bn.bias"][0] = float("nan")
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"holds NaN or infinity, .*: backbone\.stem\.bn\.bias\. "):
        convert_checkpoint(tmp_path / "x.pth", "yolov8_s", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pth"]  # nothing half-made is left


@needs_reference
@pytest.mark.parametrize(
    ("source", "guess"),
    [
        ("yolov8_s", "yolov8_s"),
        ("yolov8_s_1class", "yolov8_s"),
        ("yolov8_resnet50", "yolov8_resnet50"),
        ("yolov8_swin_b", "yolov8_swin_b"),
        ("yolov8_swin_b_simmim", "yolov8_swin_b_simmim"),
        ("faster_rcnn_swin_b", "faster_rcnn_swin_b"),
        ("dino_swin_b", "dino_swin_b"),
        ("agbp_cspdarknet_s", "cspdarknet_s"),
        ("agbp_resnet50", "resnet50"),
        ("agbp_swin_b", "swin_b"),
        ("agbp_swin_b_simmim", "swin_b_simmim"),
    ],
)
def test_the_architecture_is_guessed(source, guess):
    state = {key: torch.empty(shape, device="meta") for key, shape in layout(source).items()}
    assert guess_architecture(state) == guess


@needs_reference
def test_the_wrong_architecture_is_named(tmp_path, detector_file):
    for arch, message in (
        ("yolov8_n", "looks like yolov8_s, not yolov8_n; convert it with the architecture yolov8_s"),
        ("yolov8_resnet50", "looks like yolov8_s, not yolov8_resnet50"),
        ("resnet50", "looks like yolov8_s, not resnet50"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert_checkpoint(detector_file, arch, tmp_path / "out")
    torch.save({"state_dict": drawn("agbp_cspdarknet_s")}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="looks like cspdarknet_s, not yolov8_s"):
        convert_checkpoint(tmp_path / "b.pth", "yolov8_s", tmp_path / "out")
    torch.save(
        {"state_dict": {"encoder.x": torch.ones(1), "backbone.patch_embed.y": torch.ones(1)}}, tmp_path / "d.pth"
    )
    with pytest.raises(CheckpointError, match="looks like dino_swin_b, not yolov8_s; convert it with the"):
        convert_checkpoint(tmp_path / "d.pth", "yolov8_s", tmp_path / "out")
    with pytest.raises(ModelNotFoundError, match="yolov8_s"):
        convert_checkpoint(detector_file, "yolov8s", tmp_path / "out")
    torch.save({"state_dict": {"weight": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not fit yolov8_s"):
        convert_checkpoint(tmp_path / "other.pth", "yolov8_s", tmp_path / "out")
