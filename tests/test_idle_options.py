"""Options that do nothing where they stand are refused as wrong usage, before anything is read or written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agssp_zoo.cli import main


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("download MODEL --overwrite", "give --to DIR"),
        ("thresholds MODEL --unreached own", "FILE of `agssp-zoo val`"),
        ("publish MODEL --dry-run --repo-id line3", "give owner/name"),
        ("publish MODEL --dry-run --repo-id a/b/c", "no repository name"),
        ("benchmark MODEL/model.onnx --revision main", "no revisions"),
        ("export MODEL --split test", "--validation"),
        ("export MODEL --max-drop 3", "for --int8"),
        ("export MODEL --fp16 --full-range", "for --int8"),
        ("export MODEL/model.onnx --fp16 --revision main", "no revisions"),
        ("check-data DATA --samples 3", "give that, too"),
        ("check-data DATA --seed 1", "give that, too"),
        ("check-data DATA --seed -1", "--seed is -1"),
        ("pack DATA --out OUT --seed 1", "--val-fraction"),
        ("pack DATA --out OUT --tolerance -1", "--tolerance is -1"),
        ("prepare-data --similar", "--similar needs --root"),
        ("prepare-data --with neu_det", "--with needs --root"),
        ("prompts list rail", "give check FILE"),
        ("pseudo-boxes DATA --format yolo", "--data names"),
        ("pseudo-boxes DATA --visualize -1", "--visualize is -1"),
        ("pseudo-boxes DATA --quantile 0.9 --margin 0.2", "give one of them"),
        ("val --data DATA --model MODEL --out OUT --overlap 0.3", "give tile"),
        ("val --data DATA --model MODEL --out OUT --split all --val-fraction 0.2", "split is 'all'"),
        ("anomaly-maps DATA --normal good", "--method auto does not use it; .* --method memory or --method kead"),
        ("anomaly-maps DATA --method own+mutual --shots 2", "--shots: --method own.mutual does not use it"),
        ("anomaly-maps DATA --method memory --normal good --object rail", "take --method kead"),
        ("finetune --data DATA --epochs 0", "--epochs is 0"),
        ("finetune", "--data"),
        ("finetune --data DATA --overlap 0.3", "without --tile"),
        ("finetune --data DATA --tile-empty 0", "without --tile"),
        ("finetune --data DATA --ema-decay 0 --ema-ramp 9", "without --ema-decay above 0"),
        ("finetune --data DATA --device gpu", "choose auto, cpu"),
        ("pretrain-backbone --images DATA --maps DATA --epochs 0", "--epochs is 0"),
        ("pretrain-backbone --images DATA --maps DATA --milestones 3", "without --schedule step"),
        ("pretrain-backbone --images DATA --maps DATA --schedule step --milestones 3 --final-lr 0", "--final-lr has"),
        ("pretrain-backbone --images DATA --maps DATA --nesterov", "without --optimizer sgd"),
        ("pretrain-backbone --images DATA --maps DATA --task none --label-smoothing 0.1", "without --task cls"),
        ("pretrain-backbone --images DATA --maps DATA --mask-ratio 0.3", "without --task simmim"),
        ("pretrain-backbone --images DATA --maps DATA --moco-width 64", "without --task mocov3"),
        ("pretrain-backbone --images DATA --maps DATA --map-weight 0 --form l2", "without --map-weight above 0"),
        ("pretrain-detector --images DATA --maps DATA --quantile 0.9 --margin 0.2", "give one of them"),
        ("pretrain-detector --images DATA --maps DATA --epochs 0", "--epochs is 0"),
    ],
)
def test_it_is_wrong_usage(
    line: str,
    said: str,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if line.split()[0] not in ("download", "publish", "prompts"):
        pytest.importorskip("accelerate")
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    if "model.onnx" in line:
        (tiny_folder / "model.onnx").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words = [
        w.replace("MODEL", str(tiny_folder)).replace("DATA", str(data)).replace("OUT", str(out)) for w in line.split()
    ]
    assert main(words) == 2
    answer = capsys.readouterr()
    assert answer.out == "" and answer.err.count("\n") == 1
    assert re.search(said, answer.err)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_the_default_may_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("accelerate")
    assert main(["finetune", "--data", "nowhere", "--overlap", "0.2"]) == 1 and "nowhere" in capsys.readouterr().err
