"""Recipes: settings of stage 1 under a name, kept as TOML files in ``training/recipes``.

A file holds ``about`` (what it is and where it comes from) and the table ``settings``, whose keys are fields of
:class:`~.settings.PretrainSettings`. There is no inheritance: a recipe says all that differs from the defaults.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from agssp_zoo.config import from_plain
from agssp_zoo.errors import ConfigError, SettingError

from .settings import PretrainSettings

PLACES = ("images", "exclude", "split", "format", "maps", "out", "recipe")
"""Settings that no recipe has: they name files of a machine."""


@dataclass(frozen=True)
class Recipe:
    """A named set of settings.

    Attributes:
        about: what it is, and where it comes from.
        settings: fields of :class:`PretrainSettings`.
    """

    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def list_recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(entry.name.removesuffix(".toml") for entry in _folder().iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str) -> Recipe:
    """Reads a recipe.

    Args:
        name: one of :func:`list_recipes`, or the path of a .toml file.

    Raises:
        SettingError: there is no such recipe.
        ConfigError: it has an unknown key or a wrong value.
    """
    entry: Any = Path(name) if name.endswith(".toml") else _folder() / f"{name}.toml"
    if not entry.is_file():
        names = list_recipes()
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}; or give a .toml file."
        raise SettingError(f"--recipe {name}: there is no such recipe; {hint}")
    where = f"recipe {name}"
    try:
        values = tomllib.loads(entry.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: not valid TOML ({error}).") from None
    recipe = from_plain(Recipe, values, where)
    if place := next((key for key in recipe.settings if key in PLACES), None):
        raise ConfigError(f"{where}: settings: {place} belongs on the command line, not into a recipe.")
    try:
        checked = from_plain(PretrainSettings, recipe.settings, f"{where}: settings")
    except SettingError as error:
        raise ConfigError(f"{where}: settings: {error}") from None
    return dataclasses.replace(recipe, settings={key: getattr(checked, key) for key in recipe.settings})


def with_recipe(given: Mapping[str, Any]) -> dict[str, Any]:
    """Given settings, with those of their recipe where they say nothing; errors as for :func:`load_recipe`."""
    name = given.get("recipe", "")
    return {**(load_recipe(name).settings if name else {}), **given}


def _folder() -> Any:
    """The folder of the recipes, also of an installed package."""
    return files("agssp_zoo.training").joinpath("recipes")
