"""The model card: README.md of a model folder, with the YAML header that the Hub reads.

What the card says stands in config.json: the task, the classes, and the provenance, of which these keys are read into
the header: ``license`` (an SPDX identifier), ``license_link``, ``datasets`` (names), ``metrics`` (name -> value).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from agssp_zoo.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pathlib import Path

    from agssp_zoo.config import ModelConfig

LIBRARY = "agssp-zoo"
PIPELINE_TAGS = {"detector": "object-detection", "backbone": "image-feature-extraction"}
REQUIRED_KEYS = ("license", "library_name", "pipeline_tag", "datasets", "metrics")
"""What the header of a published card must state."""
BYTE_ORDER_MARK = "\ufeff"
AUTHORS = "https://github.com/clovermini/AGSSP"
CITATION = (
    "Liu, Li, Du, Hou, Sun, Jin, Xu: *Advancing metallic surface defect detection via anomaly-guided pretraining on a "
    "large industrial dataset.* Pattern Recognition, 2026, 113788 ([arXiv 2509.18919](https://arxiv.org/abs/2509.18919))."
)


def render_card(config: ModelConfig, *, files: Iterable[str] = (), text: str = "") -> str:
    """A model card.

    Args:
        config: the model's config; its provenance is printed as a table.
        files: the files of the folder.
        text: Markdown to stand after the first paragraph, e.g. figures and known limits.

    Returns:
        The whole README.md.
    """
    provenance = dict(config.provenance)
    header = _header(config, provenance)
    parts = [f"---\n{_yaml(header)}---\n", f"# {config.name}\n", _summary(config), _usage(config)]
    if text:
        parts.append(text.strip() + "\n")
    if config.class_names:
        parts.append("## Classes\n\n" + "".join(f"{i}. {name}\n" for i, name in enumerate(config.class_names)))
    if provenance:
        rows = "".join(f"| {key} | {_cell(value)} |\n" for key, value in provenance.items())
        parts.append(f"## Where the weights come from\n\n| | |\n|---|---|\n{rows}")
    if names := sorted(set(files)):
        parts.append(_FILES_HEADING + "".join(_file_line(name, config.task) for name in names))
    parts.append(f"## Citation\n\n{CITATION}\n")
    return "\n".join(parts)


_FILES = {
    "config.json": ": architecture, preprocessing, postprocessing",
    "model.safetensors": ": the weights for PyTorch",
    "model.onnx": ": the whole detector in one file, from uint8 image to boxes, for ONNX Runtime in any language",
}
_BACKBONE_FILES = {
    **_FILES,
    "model.onnx": ": the whole backbone in one file, from uint8 image to maps, for ONNX Runtime in any language",
}
_FILES_HEADING = "## Files\n\n"
_FILES_SECTION = re.compile(rf"(?<=\n){_FILES_HEADING}((?:- `[^`\n]+`(?::[^\n]*)?\n)+)(?=\n## |\Z)")


def _file_line(name: str, task: str) -> str:
    """The line about a file in the list of them."""
    return f"- `{name}`{(_BACKBONE_FILES if task == 'backbone' else _FILES).get(name, '')}\n"


def with_file(text: str, name: str, task: str) -> str:
    """A card that lists one more file.

    Args:
        text: the card. One without a list of files as :func:`render_card` writes it stays as it is.
        name: the file's; one that is listed already stays as it is.
        task: the model's, ``"detector"`` or ``"backbone"``.

    Returns:
        The card's text.
    """
    sections = list(_FILES_SECTION.finditer(text))
    if len(sections) != 1:
        return text
    lines = sections[0][1].splitlines(keepends=True)
    if any(line.startswith(f"- `{name}`") for line in lines):
        return text
    lines = sorted([*lines, _file_line(name, task)], key=lambda line: line.split("`")[1])
    return text[: sections[0].start(1)] + "".join(lines) + text[sections[0].end(1) :]


def read_header(card: Path) -> dict[str, Any]:
    """The YAML header of a card; empty when there is none, or it is no mapping.

    Raises:
        InvalidArgumentError: the file is not UTF-8, or begins with a byte order mark, behind which the Hub sees none.
    """
    import yaml  # type: ignore[import-untyped, unused-ignore]

    try:
        text = card.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        text = BYTE_ORDER_MARK
    if text.startswith(BYTE_ORDER_MARK):
        raise InvalidArgumentError(f"{card} is not plain UTF-8; save it as UTF-8 without a byte order mark.")
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in lines[1:]:
        return {}
    try:
        header = yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))
    except yaml.YAMLError:
        return {}
    return header if isinstance(header, dict) else {}


def _header(config: ModelConfig, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the YAML header."""
    header: dict[str, Any] = {"license": str(provenance.get("license") or "unknown").lower()}
    link = provenance.get("license_link") or (AUTHORS if "AGSSP authors" in str(provenance.get("source")) else None)
    if header["license"] == "unknown" and link:  # the Hub's way to say that it has to be read elsewhere
        header = {"license": "other", "license_name": "as-stated-by-the-authors", "license_link": str(link)}
    tags = ["defect-detection", "surface-inspection", "steel", config.architecture]
    return {
        **header,
        "library_name": LIBRARY,
        "pipeline_tag": PIPELINE_TAGS[config.task],
        "tags": tags,
        "datasets": [_slug(name) for name in _names(provenance.get("datasets"))],
        "metrics": [_slug(name) for name in _names(provenance.get("metrics"))] or ["map"],
    }


def _names(value: object) -> list[str]:
    """One name, several, or a mapping's keys as a list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(name) for name in value]  # type: ignore[attr-defined]


def _slug(name: str) -> str:
    """A name as the Hub writes them."""
    return name.strip().lower().replace(" ", "-")


def _yaml(values: Mapping[str, Any]) -> str:
    """Scalars and lists of strings as YAML, of which JSON's strings are a part."""
    text = ""
    for key, value in values.items():
        if isinstance(value, list):
            text += f"{key}:" + (" []\n" if not value else "\n" + "".join(f"- {json.dumps(v)}\n" for v in value))
        else:
            text += f"{key}: {json.dumps(value)}\n"
    return text


def _summary(config: ModelConfig) -> str:
    """What the model is, in a sentence."""
    if config.task == "backbone":
        return f"A `{config.architecture}` backbone for images of metallic surfaces: multi-scale feature maps.\n"
    count = len(config.class_names)
    kinds = "one class of defect" if count == 1 else f"{count} classes of defects"
    return f"A `{config.architecture}` detector for {kinds} on metallic surfaces.\n"


def _usage(config: ModelConfig) -> str:
    """The lines that use it; by name where the registry knows it."""
    from agssp_zoo.registry import find

    name = config.name if find(config.name) else "path/of/this/folder"
    if config.task == "backbone":
        code = (
            f'backbone = agssp_zoo.load_backbone("{name}")\n'
            'maps = backbone(backbone.preprocess("surface.jpg"))  # one (1, channels, height, width) a stage'
        )
        extra = "[torch]"
    else:
        code = (
            f'detector = agssp_zoo.load_detector("{name}")\n'
            'for found in detector.predict("surface.jpg"):\n'
            "    print(found.boxes, found.scores, found.labels)"
        )
        extra = ""
    return f"```python\n# pip install agssp-zoo{extra}\nimport agssp_zoo\n\n{code}\n```\n"


def _cell(value: object) -> str:
    """A value in a table cell."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|").replace("\n", " ")
