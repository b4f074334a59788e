"""The model card: README.md of a model folder, with the YAML header that the Hub reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agssp_zoo.config import ModelConfig


def render_card(config: ModelConfig, *, files: Iterable[str] = ()) -> str:
    """A default card."""
    return f"---\nlibrary_name: agssp-zoo\n---\n\n# {config.name}\n"
