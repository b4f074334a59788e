"""KeAD against its formulas written out slowly, its models from disk, its texts, and what it refuses."""

from __future__ import annotations

import json
import logging
import math
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from agssp_zoo import cli
from agssp_zoo.errors import (
    CheckpointError,
    DataError,
    HubError,
    InvalidArgumentError,
    ModelNotFoundError,
    UnsafeCheckpointError,
)
from agssp_zoo.training.anomaly import MapStore, text
from agssp_zoo.training.anomaly import clip as clip_module
from agssp_zoo.training.anomaly.clip import Clip, load_clip
from agssp_zoo.training.anomaly.kead import Kead, build
from agssp_zoo.training.anomaly.parallel_paths import ParallelPaths, default_taps
from agssp_zoo.training.anomaly.prompts import Defect, PromptSet, load_prompts
from agssp_zoo.training.anomaly.settings import MapSettings
from agssp_zoo.training.data.dataset import Dataset
from agssp_zoo.training.data.records import Record

TAPS = (2, 4, 6, 8)
PROMPTS = PromptSet(
    "strip", "steel strip", ("{object} of one colour",), (Defect("scratch", "a bright line"), Defect("pit", "a hole"))
)


@pytest.fixture(scope="module", autouse=True)
def model_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_clip.register(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def weights(model_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint on disk."""
    file = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    save_file({name: values.contiguous() for name, values in small_clip.build().state_dict().items()}, file)
    return file


@pytest.fixture(scope="module")
def clip(weights: Path) -> Clip:
    return load_clip(small_clip.NAME, str(weights))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("texts")


@pytest.fixture
def method(clip: Clip, cache: Path) -> Kead:
    return Kead(clip, PROMPTS, cache=cache)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 40, 40, generator=torch.Generator().manual_seed(seed))


def dataset(count: int) -> Dataset:
    none = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, bool))
    records = tuple(Record(f"{i}.png", f"/pool/{i}.png", "train", 40, 40, *none) for i in range(count))
    return Dataset((), records, path="/pool")


class Pool:
    """Images in memory, read as the driver reads them; notes which were asked for."""

    def __init__(self, tensors: Tensor, batch: int = 2) -> None:
        self.tensors, self.batch = tensors, batch
        self.asked: list[int] = []

    def __call__(self, indices: Sequence[int]) -> Iterator[Tensor]:
        self.asked += indices
        for start in range(0, len(indices), self.batch):
            yield self.tensors[list(indices[start : start + self.batch])]


# --- the formulas, literally ------------------------------------------------------------------------------------


def norm(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    rows = [(row - row.mean()) / math.sqrt(row.var() + 1e-5) for row in x]
    return np.stack(rows) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def softmax(row: np.ndarray) -> np.ndarray:
    raised = np.exp(row - row.max())
    return raised / raised.sum()


def unit(row: np.ndarray) -> np.ndarray:
    return row / math.sqrt((row**2).sum())


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    """Attention head by head and token by token."""
    size = q.shape[1] // heads
    out = np.zeros_like(q)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for token in range(len(q)):
            weights = softmax(k[:, part] @ q[token, part] * size**-0.5)
            out[token, part] = weights @ v[:, part]
    return out


def literal_tokens(state: dict[str, Tensor], image: Tensor) -> tuple[np.ndarray, list[np.ndarray]]:
    """One image through both paths as section 1 of the method's description has them: (class token, patches by tap)."""
    w = {name.removeprefix("visual."): values.double().numpy() for name, values in state.items() if "visual." in name}
    patch, heads = 8, 3
    kernel = w["conv1.weight"].reshape(len(w["conv1.weight"]), -1)
    picture = image.double().numpy()
    tokens = [w["class_embedding"]]
    for y in range(0, 40, patch):
        for x in range(0, 40, patch):
            tokens.append(kernel @ picture[:, y : y + patch, x : x + patch].reshape(-1))
    x = norm(np.stack(tokens) + w["positional_embedding"], w, "ln_pre")

    def embed(rows: np.ndarray) -> np.ndarray:
        return np.stack([unit(row) for row in norm(rows, w, "ln_post") @ w["proj"]])

    parallel, taps = None, []
    for number in range(1, 9):
        name = f"transformer.resblocks.{number - 1}"
        if number == 3:
            parallel = x.copy()
        y = norm(x, w, f"{name}.ln_1")
        q, k, v = np.split(y @ w[f"{name}.attn.in_proj_weight"].T + w[f"{name}.attn.in_proj_bias"], 3, axis=1)

        def project(rows: np.ndarray, name: str = name) -> np.ndarray:
            return rows @ w[f"{name}.attn.out_proj.weight"].T + w[f"{name}.attn.out_proj.bias"]

        if parallel is not None:
            parallel = parallel + project(attend(v, v, v, heads))
        x = x + project(attend(q, k, v, heads))
        hidden = norm(x, w, f"{name}.ln_2") @ w[f"{name}.mlp.c_fc.weight"].T + w[f"{name}.mlp.c_fc.bias"]
        hidden = np.vectorize(lambda value: 0.5 * value * (1 + math.erf(value / math.sqrt(2))))(hidden)
        x = x + hidden @ w[f"{name}.mlp.c_proj.weight"].T + w[f"{name}.mlp.c_proj.bias"]
        if number in TAPS:
            taps.append(embed(x if parallel is None else parallel)[1:])
    return embed(x)[0], taps


def literal_text(module: Any) -> tuple[np.ndarray, np.ndarray]:
    """Normal and abnormal feature, sentence by sentence."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenize = SimpleTokenizer(context_length=77)

    def feature(sentence: str) -> np.ndarray:
        with torch.no_grad():
            return unit(module.encode_text(tokenize([sentence]))[0].double().numpy())

    def mean(states: list[str]) -> np.ndarray:
        return np.mean([feature(template.format(state)) for state in states for template in text.TEMPLATES], axis=0)

    normal = [state.format(object="steel strip") for state in text.NORMAL_STATES] + ["steel strip of one colour"]
    abnormal = [state.format(object="steel strip") for state in text.ABNORMAL_STATES] + [
        "steel strip with scratch defect, it appears as a bright line",
        "steel strip with pit defect, it appears as a hole",
    ]
    empty = mean([""])
    return unit(unit(mean(normal)) - empty), unit(unit(mean(abnormal)) - empty)


def literal_score(feature: np.ndarray, normal: np.ndarray, abnormal: np.ndarray) -> float:
    return float(softmax(np.array([feature @ normal, feature @ abnormal]) / 0.07)[1])


def test_zero_shot_maps_are_the_formulas(clip: Clip, method: Kead):
    normal, abnormal = literal_text(clip.module)
    batch = images(2)
    maps, scores = method.maps(batch)
    assert maps.shape == (2, 5, 5) and maps.dtype == scores.dtype == torch.float32
    for image, found, score in zip(batch, maps, scores, strict=True):
        token, taps = literal_tokens(clip.module.state_dict(), image)
        expected = np.mean([[literal_score(row, normal, abnormal) for row in tap] for tap in taps], axis=0)
        assert np.ptp(expected) > 0.05, "the weights do not tell the patches apart"
        np.testing.assert_allclose(found.numpy(), expected.reshape(5, 5), atol=2e-5)
        assert float(score) == pytest.approx(literal_score(token, normal, abnormal), abs=2e-5)


def test_few_shot_maps_are_the_formulas(clip: Clip, cache: Path):
    method = Kead(clip, PROMPTS, few_shot=True, shots=3, cache=cache)
    normal_images, batch = images(3, seed=1), images(2, seed=2)
    method.prepare(Pool(normal_images), dataset(3))
    maps, scores = method.maps(batch)
    state = clip.module.state_dict()
    memory = [literal_tokens(state, image)[1] for image in normal_images]
    normal, abnormal = literal_text(clip.module)
    for image, found, score in zip(batch, maps, scores, strict=True):
        token, taps = literal_tokens(state, image)
        expected = np.zeros(25)
        for number, tap in enumerate(taps):
            for place, row in enumerate(tap):
                away = min(1 - float(row @ other) for shot in memory for other in shot[number])
                expected[place] += (literal_score(row, normal, abnormal) + 0.5 * away) / len(taps)
        np.testing.assert_allclose(found.numpy(), expected.reshape(5, 5), atol=2e-5)
        whole = (literal_score(token, normal, abnormal) + expected.max()) / 2
        assert float(score) == pytest.approx(whole, abs=2e-5)


def test_the_text_features_are_the_ensembles(clip: Clip, tmp_path: Path):
    found = text.text_features(clip, PROMPTS, tmp_path)
    np.testing.assert_allclose(found.numpy(), np.stack(literal_text(clip.module)), atol=1e-5)


def test_the_image_is_embedded_as_by_the_plain_encoder(clip: Clip):
    batch = images(3)
    with torch.no_grad():
        plain = clip.module.encode_image(batch, normalize=True)
        assert torch.allclose(clip.paths(batch).image, plain, atol=1e-5)


def test_a_map_depends_on_its_image_alone(method: Kead):
    batch = images(4)
    together, scores = method.maps(batch)
    for number in range(4):
        alone, score = method.maps(batch[number : number + 1])
        assert torch.allclose(alone[0], together[number], atol=1e-5) and torch.allclose(
            score[0], scores[number], atol=1e-5
        )


@pytest.mark.parametrize("taps", [(1, 8), (3, 5), (2, 4, 6, 7)])
def test_other_taps_leave_the_image_embedding_alone(clip: Clip, weights: Path, taps: tuple[int, ...]):
    other = load_clip(small_clip.NAME, str(weights), taps=taps)
    batch = images(1)
    with torch.no_grad():
        found = other.paths(batch)
        assert torch.allclose(found.image, clip.paths(batch).image, atol=1e-5)
    assert len(found.patches) == len(taps) and not torch.allclose(found.patches[0], found.patches[1], atol=1e-2)


@pytest.mark.parametrize("colour", [0, 128, 255])
def test_an_image_of_one_colour_has_a_finite_map(clip: Clip, cache: Path, colour: int):
    flat = clip.preprocess(np.full((30, 50, 3), colour, np.uint8))[None]
    method = Kead(clip, PROMPTS, few_shot=True, shots=1, cache=cache)
    method.prepare(Pool(flat), dataset(1))
    maps, scores = method.maps(flat)
    assert maps.isfinite().all() and scores.isfinite().all()
    zeros, _ = method.maps(torch.zeros(1, 3, 40, 40))
    assert zeros.isfinite().all()


def test_an_image_is_squashed_onto_the_canvas_and_normalised(clip: Clip):
    image = np.random.default_rng(0).integers(0, 256, (70, 33, 3), dtype=np.uint8)
    found = clip.preprocess(image)
    squashed = np.asarray(Image.fromarray(image).resize((40, 40), Image.Resampling.BICUBIC), np.float64) / 255
    expected = (squashed - np.array(clip.mean)) / np.array(clip.std)
    assert found.shape == (3, 40, 40) and found.dtype == torch.float32 and found.is_contiguous()
    np.testing.assert_allclose(found.numpy(), expected.transpose(2, 0, 1), atol=1e-5)


# --- normal images ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [1, 2, 5])
def test_exactly_k_normal_images_are_remembered(clip: Clip, cache: Path, shots: int):
    method = Kead(clip, PROMPTS, few_shot=True, shots=shots, cache=cache)
    assert method.prepares_on == "normal" and not method.bounded
    pool = Pool(images(5, seed=3))
    method.prepare(pool, dataset(5))
    assert pool.asked == list(range(shots))
    assert {name: tuple(values.shape) for name, values in method.state().items()} == {
        f"memory.{tap}": (shots * 25, 24) for tap in TAPS
    }
    assert method.settings()["shots"] == shots


def test_a_normal_image_is_at_distance_0_of_itself(clip: Clip, cache: Path, method: Kead):
    batch = images(2, seed=4)
    few = Kead(clip, PROMPTS, few_shot=True, cache=cache)
    few.prepare(Pool(batch), dataset(2))
    assert few.settings()["shots"] == "all"
    assert torch.allclose(few.maps(batch)[0], method.maps(batch)[0], atol=1e-5)
    assert (few.maps(images(2, seed=5))[0] > method.maps(images(2, seed=5))[0] + 1e-3).all()


def test_a_large_memory_is_searched_in_blocks(clip: Clip, cache: Path, monkeypatch: pytest.MonkeyPatch):
    method = Kead(clip, PROMPTS, few_shot=True, cache=cache)
    method.prepare(Pool(images(6)), dataset(6))
    whole = method.maps(images(2, seed=1))
    monkeypatch.setattr("agssp_zoo.training.anomaly.kead._BLOCK", 50 * 7)  # 7 rows at a time
    blocks = method.maps(images(2, seed=1))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, blocks, strict=True))


def test_what_was_learnt_is_carried_over(clip: Clip, cache: Path):
    first, second = (Kead(clip, PROMPTS, few_shot=True, shots=2, cache=cache) for _ in range(2))
    first.prepare(Pool(images(2)), dataset(2))
    second.load_state(first.state())
    assert torch.equal(first.maps(images(1))[0], second.maps(images(1))[0])
    one = Kead(clip, PROMPTS, few_shot=True, shots=1, cache=cache)
    with pytest.raises(DataError, match="not of this method's settings"):
        one.load_state(first.state())


def test_too_few_normal_images_are_an_error(clip: Clip, cache: Path):
    method = Kead(clip, PROMPTS, few_shot=True, shots=4, cache=cache)
    with pytest.raises(DataError, match="normal images and was given none; name them by --normal"):
        method.maps(images(1))
    with pytest.raises(DataError, match=r"/pool: 3 normal images, but --shots asks for 4"):
        method.prepare(Pool(images(3)), dataset(3))
    with pytest.raises(DataError, match=r"/pool: no normal images, but --shots asks for all"):
        Kead(clip, PROMPTS, few_shot=True, cache=cache).prepare(Pool(images(1)), dataset(0))
    unread = images(4)
    unread[2] = 0
    with pytest.raises(DataError, match=r"/pool/2\.png: the normal image cannot be read"):
        method.prepare(Pool(unread), dataset(4))
    with pytest.raises(InvalidArgumentError, match="--shots 4, but there are no normal images"):
        Kead(clip, PROMPTS, shots=4, cache=cache)


# --- texts ------------------------------------------------------------------------------------------------------


def test_there_are_four_generic_states_a_side_and_21_templates():
    assert len(set(text.NORMAL_STATES)) == len(set(text.ABNORMAL_STATES)) == 4
    assert len(set(text.TEMPLATES)) == 21
    assert all("photo" in template and template.count("{}") == 1 for template in text.TEMPLATES)
    made = text.sentences(PROMPTS)
    assert (len(made.normal), len(made.abnormal), len(made.empty)) == (5 * 21, 6 * 21, 21)
    assert not any(set("{}") & set(sentence) for side in (made.normal, made.abnormal, made.empty) for sentence in side)
    assert "a photo of steel strip with pit defect, it appears as a hole." in made.abnormal
    assert "a photo of ." in made.empty


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sentences were encoded, call by call."""
    calls: list[int] = []
    encode = Clip.encode_text

    def count(self: Clip, sentences: Sequence[str]) -> Tensor:
        calls.append(len(sentences))
        return encode(self, sentences)

    monkeypatch.setattr(Clip, "encode_text", count)
    return calls


def test_texts_are_encoded_once_for_a_model_and_its_sentences(clip: Clip, encoded: list[int], tmp_path: Path):
    first = text.text_features(clip, PROMPTS, tmp_path)
    assert encoded == [105, 126, 21]
    assert torch.equal(text.text_features(clip, PROMPTS, tmp_path), first) and len(encoded) == 3
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]
    other = PromptSet("strip", "steel strip", PROMPTS.normal, PROMPTS.defects[:1])
    assert not torch.allclose(text.text_features(clip, other, tmp_path), first) and len(encoded) == 6
    torch.manual_seed(1)
    model = load_clip(small_clip.NAME, "none")
    assert model.sha256 != clip.sha256
    text.text_features(model, PROMPTS, tmp_path)
    assert len(encoded) == 9 and len(list(tmp_path.iterdir())) == 3


def test_a_damaged_cache_file_is_made_anew(clip: Clip, encoded: list[int], tmp_path: Path):
    first = text.text_features(clip, PROMPTS, tmp_path)
    (file,) = tmp_path.iterdir()
    for damage in (b"", file.read_bytes()[:200], file.read_bytes().replace(clip.sha256.encode(), b"0" * 64)):
        file.write_bytes(damage)
        assert torch.equal(text.text_features(clip, PROMPTS, tmp_path), first)
    assert len(encoded) == 12
    assert torch.equal(text.text_features(clip, PROMPTS, tmp_path), first) and len(encoded) == 12


def test_a_cache_that_cannot_be_written_only_costs_time(clip: Clip, encoded: list[int], tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    for count in (3, 6):
        text.text_features(clip, PROMPTS, blocked / "texts")
        assert len(encoded) == count


def test_the_cache_lies_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert text.cache_folder() == tmp_path / "agssp-zoo" / "text"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert text.cache_folder() == tmp_path / ".cache" / "agssp-zoo" / "text"


def test_a_description_that_is_cut_is_an_error(clip: Clip, tmp_path: Path):
    long = PromptSet("strip", "strip", ("{object} " + "abc123 " * 30,), PROMPTS.defects)
    with pytest.raises(InvalidArgumentError, match=r"longer than the 77 tokens .*shorten it in the prompt file"):
        Kead(clip, long, cache=tmp_path)


# --- models -----------------------------------------------------------------------------------------------------


def evil() -> Any:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (Path("touched"),)

    return Evil()


@pytest.mark.parametrize("layout", ["state.pt", "training.pt", "state.pth"])
def test_checkpoints_of_torch_give_the_same_model(clip: Clip, tmp_path: Path, layout: str):
    file, state = tmp_path / layout, clip.module.state_dict()
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}} if "tr" in layout else state, file
    )
    other = load_clip(small_clip.NAME, str(file))
    assert other.sha256 == clip.sha256
    assert torch.equal(other.paths(images(1)).patches[3], clip.paths(images(1)).patches[3])


def test_a_folder_of_open_clip_is_a_model(clip: Clip, weights: Path, tmp_path: Path):
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(ModelNotFoundError, match=r"holds no open_clip_config\.json"):
        load_clip(str(folder))
    about = {"model_cfg": small_clip.CONFIG, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    with pytest.raises(ModelNotFoundError, match="holds no weights"):
        load_clip(str(folder))
    (folder / "open_clip_model.safetensors").write_bytes(weights.read_bytes())
    (folder / "another.pt").write_bytes(b"never read")
    other = load_clip(str(folder))
    assert (other.name, other.sha256, other.mean) == ("mine", clip.sha256, (0.5, 0.4, 0.3))


def test_a_pickle_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    state = small_clip.build().state_dict()
    torch.save({"state_dict": state, "hook": evil()}, "evil.pt")
    Path("plain.pt").write_bytes(pickle.dumps(evil()))
    for file in ("evil.pt", "plain.pt"):
        with pytest.raises(UnsafeCheckpointError, match="nothing of it was executed"):
            load_clip(small_clip.NAME, file)
    assert not Path("touched").exists()


def test_weights_that_do_not_fit_are_an_error(weights: Path, tmp_path: Path):
    deeper = small_clip.register(tmp_path, "agssp-test-deeper", layers=9)
    with pytest.raises(CheckpointError, match=r"cannot be read as weights of agssp-test-deeper .*Missing key"):
        load_clip(deeper, str(weights))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: cannot be read"):
        load_clip(small_clip.NAME, str(cut))
    other = tmp_path / "weights.npz"
    other.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is no file of weights"):
        load_clip(small_clip.NAME, str(other))


def test_unknown_models_and_weights_are_errors_that_help(weights: Path):
    with pytest.raises(ModelNotFoundError, match=r"no model 'ViT-B-16-plus-24', .*did you mean .*ViT-B-16-plus-240"):
        load_clip("ViT-B-16-plus-24")
    with pytest.raises(ModelNotFoundError, match=r"'laion' is no file, and no weights of ViT-B-16 .*openai"):
        load_clip("ViT-B-16", "laion")
    with pytest.raises(InvalidArgumentError, match=r"Which weights of ViT-L-14-336\? .*openai"):
        load_clip("ViT-L-14-336")
    with pytest.raises(InvalidArgumentError, match="is a file of weights, and --clip-weights none others"):
        load_clip(str(weights), "none")
    with pytest.raises(InvalidArgumentError, match=r"taps \[3, 2\]"):
        load_clip(small_clip.NAME, "none", taps=(3, 2))
    with pytest.raises(InvalidArgumentError, match="out of 1-8"):
        load_clip(small_clip.NAME, "none", taps=(3, 9))
    with pytest.raises(InvalidArgumentError, match="patches of 8 pixels"):
        load_clip(small_clip.NAME, "none", size=44)


def test_the_default_is_the_authors_model(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clip_module, "DEFAULT_MODEL", small_clip.NAME)  # the real one is large
    asked: list[tuple[str, str]] = []

    def note(open_clip: Any, model: str, weights: str, tag: Any) -> Path:
        asked.append((model, weights))
        raise HubError("no network")

    monkeypatch.setattr(clip_module, "find_weights", note)
    monkeypatch.setattr(clip_module, "_tag", lambda *_: {})
    with pytest.raises(HubError):
        load_clip(small_clip.NAME)
    assert asked == [(small_clip.NAME, "laion400m_e32")]


def test_weights_that_cannot_be_downloaded_say_how_else(monkeypatch: pytest.MonkeyPatch, model_name: str):
    import open_clip

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    tag = {"hf_hub": "timm/some/", "mean": (0.5, 0.5, 0.5)}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: tag)
    with pytest.raises(HubError, match=r"no route to host.*--clip-weights FILE"):
        load_clip(model_name, "some_tag")


def test_another_size_resizes_the_position_embeddings(weights: Path, cache: Path):
    larger = load_clip(small_clip.NAME, str(weights), size=64)
    method = Kead(larger, PROMPTS, cache=cache)
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    maps, _ = method.maps(method.preprocess(image)[None])
    assert maps.shape == (1, 8, 8) and method.settings()["size"] == [64, 64]


def test_the_program_keeps_its_logging(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    load_clip(small_clip.NAME, "none")
    assert logging.getLogger().handlers == [] and logging.getLogger().manager.disable == 0
    assert capsys.readouterr() == ("", "")


def test_taps_keep_their_proportions_in_deeper_towers():
    assert default_taps(12) == (3, 6, 9, 12)
    assert default_taps(24) == (6, 12, 18, 24)
    assert default_taps(8) == TAPS


@pytest.mark.parametrize(
    ("name", "grid", "depth"),
    [("ViT-B-16-plus-240", 15, 12), ("ViT-L-14-336", 24, 24), ("ViT-H-14", 16, 32), ("ViT-M-16-alt", 14, 12)],
)
def test_towers_of_open_clip_fit(name: str, grid: int, depth: int):
    """Shapes alone: nothing is computed, so that size does not matter."""
    import open_clip
    from open_clip.model import _build_vision_tower

    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        paths = ParallelPaths(_build_vision_tower(config["embed_dim"], config["vision_cfg"]), name=name)
        side = config["vision_cfg"]["image_size"]
        found = paths(torch.empty(1, 3, side, side))
    assert paths.grid == (grid, grid) and paths.taps == tuple(depth * part // 4 for part in range(1, 5))
    assert found.image.shape == (1, config["embed_dim"])
    assert [tuple(tap.shape) for tap in found.patches] == [(1, grid * grid, config["embed_dim"])] * 4


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"timm_model_name": "vit_tiny_patch16_224", "image_size": 32, "timm_pool": "avg"}, "is a timm model"),
        ({"layers": [1, 1, 1, 1], "width": 16}, r"\(ModifiedResNet\) is no vision transformer"),
        ({"attentional_pool": True, "attn_pooler_heads": 4}, "from a pool over the patches"),
        ({"pool_type": "avg"}, "from a pool over the patches"),
        ({"qk_norm": True}, "attention of another kind"),
    ],
)
def test_other_towers_are_refused(tmp_path: Path, changes: dict[str, Any], why: str):
    name = small_clip.register(tmp_path, f"agssp-test-{next(iter(changes))}", **changes)
    with pytest.raises(
        InvalidArgumentError, match=rf"KeAD cannot use {name}: .*{why}.*Choose a CLIP vision transformer"
    ):
        load_clip(name, "none")


def test_the_second_path_costs_little():
    """Multiplications of ViT-B-16-plus-240, against those of the plain tower; the measured time is in benchmarks/."""
    import open_clip
    from open_clip.model import _build_vision_tower
    from torch.utils.flop_counter import FlopCounterMode

    config = open_clip.get_model_config("ViT-B-16-plus-240")
    with torch.device("meta"):
        paths = ParallelPaths(_build_vision_tower(config["embed_dim"], config["vision_cfg"]))
        with FlopCounterMode(display=False) as counter:
            paths(torch.empty(1, 3, 240, 240))
    tokens, width = 226, 896
    plain = 2 * (12 * (12 * tokens * width**2 + 2 * tokens**2 * width) + 225 * 768 * width + width * 640)
    assert 0.95 < counter.get_total_flops() / plain < 1.08


# --- as the command builds it ------------------------------------------------------------------------------------


def test_options_make_the_method(clip: Clip, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = MapSettings(method="kead", encoder=small_clip.NAME, encoder_weights=str(weights), object="rail")
    method = build(options)
    assert method.bounded and method.prepares_on == "nothing" and method.state() == {}
    settings = json.loads(json.dumps(method.settings()))
    assert settings == {
        **{"method": "kead", "encoder": small_clip.NAME, "weights_sha256": clip.sha256, "quick_gelu": False},
        **{"size": [40, 40], "taps": list(TAPS), "object": "steel rail head", "temperature": 0.07, "shots": 0},
        "sentences_sha256": text.sentences(load_prompts("rail")).sha256,
    }
    maps, scores = method.maps(images(2))
    assert 0 < float(maps.min()) < float(maps.max()) < 1 and ((scores > 0) & (scores < 1)).all()
    assert list((tmp_path / "agssp-zoo" / "text").iterdir())
    few = build(
        MapSettings(
            encoder=small_clip.NAME, encoder_weights=str(weights), normal="good", shots=2, layers=(4, 8), size=48
        )
    )
    assert few.few_shot and few.shots == 2 and few.settings()["taps"] == [4, 8] and few.settings()["size"] == [48, 48]
    assert few.settings()["object"] == "metal surface"
    with pytest.raises(InvalidArgumentError, match="There are no prompts for 'cheese'"):
        build(MapSettings(encoder=small_clip.NAME, encoder_weights=str(weights), object="cheese"))
    with pytest.raises(InvalidArgumentError, match="--shots 2, but there are no normal images"):
        build(MapSettings(encoder=small_clip.NAME, encoder_weights=str(weights), shots=2))


def test_the_network_has_a_name_of_its_own_beside_other_methods(
    clip: Clip, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for number in range(3):
        file = tmp_path / "strip" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (30, 44, 3), dtype=np.uint8)).save(file)

    def run(out: str, *more: str) -> str:
        command = ["anomaly-maps", tmp_path / "strip", "--out", tmp_path / out, *more]
        code = cli.main([*map(str, command), "--device", "cpu", "--threads", "1", "--workers", "0"])
        error = capsys.readouterr().err
        assert bool(code) == bool(error)
        return error

    named = ("--clip", small_clip.NAME, "--clip-weights", str(weights))
    others = ("--encoder", "vit_tiny_patch16_224", "--encoder-weights", "none", "--size", "64", "--layers", "3")
    assert run("both", "--method", "kead+own", *named, *others) == ""
    kead, own = MapStore.open(tmp_path / "both").settings["parts"]
    assert (kead["encoder"], kead["weights_sha256"], kead["size"]) == (small_clip.NAME, clip.sha256, [40, 40])
    assert kead["taps"] == list(TAPS)
    assert (own["encoder"], own["size"], own["layers"]) == ("vit_tiny_patch16_224", 64, [3])
    # Alone both names are the same, and so are the stores.
    old = ("--encoder", small_clip.NAME, "--encoder-weights", str(weights))
    assert run("alone", "--method", "kead", "--size", "48", *old) == ""
    assert run("alone", "--method", "kead", "--size", "48", *named) == ""
    assert MapStore.open(tmp_path / "alone").settings["size"] == [48, 48]
    assert run("alone", "--method", "kead", "--size", "48", *old, *named) == ""
    error = run("none", "--method", "kead", *old, "--clip", "ViT-B-16")
    assert f"--encoder {small_clip.NAME} and --clip ViT-B-16: for --method kead alone" in error


def test_the_command_makes_maps_by_text_and_by_normal_images(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "open_clip_config.json").write_text(json.dumps({"model_cfg": small_clip.CONFIG}))
    (model / "weights.safetensors").write_bytes(weights.read_bytes())
    generator = np.random.default_rng(0)
    for folder, count in (("strip", 5), ("good", 4)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            image = generator.integers(0, 256, (30, 44, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / folder / f"{number}.png")
    Image.new("RGB", (44, 30), (90, 90, 90)).save(tmp_path / "strip" / "flat.png")

    def run(out: str, *more: str) -> tuple[int, str]:
        command = ["anomaly-maps", tmp_path / "strip", "--method", "kead", "--encoder", model, "--out", tmp_path / out]
        code = cli.main([*map(str, command), "--device", "cpu", "--threads", "1", "--workers", "0", *more])
        return code, capsys.readouterr().err

    assert run("zero", "--object", "plate") == (0, "")
    zero = MapStore.open(tmp_path / "zero")
    assert (len(zero), zero.grid, zero.bounded, zero.settings["object"]) == (6, (5, 5), True, "steel plate")
    assert run("few", "--normal", str(tmp_path / "good"), "--shots", "3") == (0, "")
    few = MapStore.open(tmp_path / "few")
    assert not few.bounded and few.settings["shots"] == 3
    assert np.isfinite(few.maps).all() and np.isfinite(zero.maps).all()
    assert not np.allclose(few.map("0"), zero.map("0"), atol=1e-3)
    assert not few.map("flat").any() and not zero.map("flat").any() and zero.score("flat") == 0
    code, error = run("none", "--shots", "3")
    assert code == 2 and "name them by --normal" in error
    code, error = run("none", "--object", "cheese")
    assert code == 2 and "There are no prompts for 'cheese'" in error
    code, error = run("none", "--normal", str(tmp_path / "good"), "--shots", "5")
    assert code == 1 and error.count("\n") == 1 and "4" in error and "5" in error
    code, error = run("zero", "--object", "rail")
    assert code == 1 and "other settings: object" in error


def test_half_precision_only_concerns_the_network(method: Kead):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps, scores = method.maps(images(2))
    assert maps.dtype == scores.dtype == torch.float32
    assert torch.allclose(maps, method.maps(images(2))[0], atol=0.1)
