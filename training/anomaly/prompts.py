"""What a product looks like when it is sound and when it is not, as text files that anyone can add.

A prompt file is TOML::

    object = "steel strip"                  # what the sentences call it; a noun without "a" or "the"
    aliases = ["strip"]                     # optional: other names to ask for it by
    normal = ["{object} with an even gray surface"]

    [[defects]]
    name = "scratch"
    appearance = "a thin bright line"

A defect becomes the sentence "steel strip with scratch defect, it appears as a thin bright line". Files that come with
the package lie in ``prompts/`` and are asked for by name; any other by its path.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agssp_zoo.errors import DataError, InvalidArgumentError, MissingDependencyError
from agssp_zoo.file_names import user_path

from ..data.problems import Problem, Problems, some

FOLDER = Path(__file__).parent / "prompts"
SUFFIX = ".toml"
OBJECT = "{object}"
"""Where a normal state names the object."""
DETAILED = "{object} with {name} defect, it appears as {appearance}"
"""The detailed description of a defect (KeAD)."""
MAX_WORDS = 50
"""CLIP reads 77 tokens, templates included; a word is about one and a third. A compound with hyphens is several."""

_KEYS = ("object", "normal", "defects", "aliases")
_DEFECT_KEYS = ("name", "appearance")


@dataclass(frozen=True)
class Defect:
    """A kind of defect.

    Attributes:
        name: as in "with ... defect".
        appearance: as in "it appears as ...".
    """

    name: str
    appearance: str


@dataclass(frozen=True)
class PromptSet:
    """The descriptions of one material or product.

    Attributes:
        name: name of the file, without its suffix.
        object: what the sentences call it.
        normal: descriptions of its normal states, each with ``{object}`` once.
        defects: its kinds of defects.
        aliases: other names to ask for it by.
        path: the file.
    """

    name: str
    object: str
    normal: tuple[str, ...]
    defects: tuple[Defect, ...]
    aliases: tuple[str, ...] = ()
    path: str = ""

    @property
    def normal_states(self) -> tuple[str, ...]:
        """The descriptions of normal states, with the object's name in its place."""
        return tuple(state.replace(OBJECT, self.object) for state in self.normal)

    @property
    def defect_states(self) -> tuple[str, ...]:
        """The detailed descriptions of defects."""
        return tuple(DETAILED.format(object=self.object, name=d.name, appearance=d.appearance) for d in self.defects)


def prompt_files() -> dict[str, Path]:
    """Name -> file of the prompts that come with the package."""
    return {file.stem: file for file in sorted(FOLDER.glob(f"*{SUFFIX}"))}


def load_prompts(name_or_path: str | os.PathLike[str]) -> PromptSet:
    """Reads prompts.

    Args:
        name_or_path: the name of a file of the package or one of its aliases (case, blanks, ``-`` and ``_`` make no
            difference), or the path of a prompt file.

    Raises:
        InvalidArgumentError: there are no prompts of that name.
        DataError: there is no such file, or something is wrong with it.
    """
    file = find_prompts(name_or_path)
    prompts, problems = check_prompts(file)
    errors = [problem for problem in problems if problem.severity == "error"]
    if prompts is None:
        more = f" (and {len(errors) - 1} more: agssp-zoo prompts check {file})" if len(errors) > 1 else ""
        raise DataError(f"{file}: {errors[0].message}{more}")
    return prompts


def find_prompts(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of prompts; arguments and errors as for :func:`load_prompts`."""
    asked = os.fspath(name_or_path)
    path, names, wanted = user_path(asked), _names(), _plain(asked)
    if path.suffix != SUFFIX and not path.is_absolute() and wanted in names:
        return names[wanted]
    if path.is_file():
        return path
    if path.suffix == SUFFIX or os.sep in asked:
        raise DataError(f"{asked}: there is no such prompt file; check the path, or see `agssp-zoo prompts list`.")
    close = difflib.get_close_matches(wanted, names, 1)
    hint = f"did you mean {names[close[0]].stem!r}? " if close else ""
    raise InvalidArgumentError(
        f"There are no prompts for {asked!r}; {hint}Choose one of {', '.join(prompt_files())}, or describe the object "
        f"in a file of your own and give its path (copy {FOLDER / 'generic_metal.toml'})."
    )


@functools.cache
def _names() -> dict[str, Path]:
    """Every name of the package's prompts, plain; names come before aliases."""
    names: dict[str, Path] = {}
    for path in prompt_files().values():
        prompts, _ = check_prompts(path)
        for alias in prompts.aliases if prompts else ():
            names[_plain(alias)] = path
    return names | {_plain(name): path for name, path in prompt_files().items()}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().lower())


# --- checking ---------------------------------------------------------------------------------------------------


def check_prompts(
    path: str | os.PathLike[str], *, tokens: bool = False
) -> tuple[PromptSet | None, tuple[Problem, ...]]:
    """Reads a prompt file critically.

    Args:
        path: the file.
        tokens: where open_clip is installed, also count the tokens that CLIP makes of each sentence, as maps by text
            do; importing it takes seconds.

    Returns:
        The prompts, ``None`` when there is an error; and all that is wrong, each with what to do about it.
    """
    file = Path(path)
    problems = Problems()
    values = _read(file, problems)
    prompts = None if values is None else _parse(file, values, problems)
    if prompts is not None and tokens:
        _check_tokens(file, prompts, problems)
    bad = any(problem.severity == "error" for problem in problems)
    return None if bad else prompts, tuple(problems)


def _read(file: Path, problems: Problems) -> dict[str, Any] | None:
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        problems.error("unreadable", file, f"it cannot be read ({error.strerror or error}); check path and permissions")
    except UnicodeDecodeError:
        problems.error("unreadable", file, "it is not UTF-8 text; save it as UTF-8")
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+)", str(error))
        what = f"it is not TOML: {error}; texts stand in double quotes, lists in [ ]"
        problems.error("not-toml", file, what, line=int(place[1]) if place else None)
    return None


def _parse(file: Path, values: dict[str, Any], problems: Problems) -> PromptSet:
    """The prompts as far as they go; what is wrong is noted."""
    check = _Checks(file, problems)
    check.keys(values, _KEYS, "")
    name = check.text(values, "object", 'the noun that the sentences use, such as object = "steel strip"')
    check.placeholders(name, "object", "write the name itself")
    normal = check.texts(values, "normal", 'descriptions, such as normal = ["{object} with an even colour"]')
    for number, state in enumerate(normal, 1):
        check.placeholders(state, f"normal {number}", f"only {OBJECT} has a meaning there", (OBJECT,))
        if state.count(OBJECT) != 1:
            what = f"normal {number} holds {OBJECT} {state.count(OBJECT)} times ({state!r}); name the object once by it"
            problems.error("placeholder", file, what)
    defects = check.defects(values)
    aliases = check.texts(values, "aliases", 'other names, such as aliases = ["strip"]') if "aliases" in values else []
    check.repeated(normal, "normal states")
    check.repeated([defect.name for defect in defects], "defects")
    prompts = PromptSet(file.stem, name, tuple(normal), tuple(defects), tuple(aliases), str(file))
    for state in (*prompts.normal_states, *prompts.defect_states):
        if (count := _count_words(state)) > MAX_WORDS:
            what = f"a description has {count} words ({state[:40]!r}...); CLIP reads about {MAX_WORDS}"
            problems.error("too-long", file, f"{what}: shorten it")
    return prompts


def _count_words(state: str) -> int:
    return len(re.findall(r"\w+", state))


def _check_tokens(file: Path, prompts: PromptSet, problems: Problems) -> None:
    """Notes states that are too long in a template of maps by text, as far as their words do not tell already."""
    try:
        from .clip import CONTEXT, count_tokens
        from .text import in_templates, states

        normal, abnormal = states(prompts)
        short = [state for state in (*normal, *abnormal) if _count_words(state) <= MAX_WORDS]
        counts = count_tokens(in_templates(short))
    except (ImportError, MissingDependencyError):
        return
    each = len(counts) // len(short) if short else 0
    for number, state in enumerate(short):
        longest = max(counts[number * each : (number + 1) * each])
        if longest > CONTEXT:
            what = f"a description has {longest} tokens with its template ({state[:40]!r}...); CLIP reads {CONTEXT}"
            problems.error("too-long", file, f"{what}: shorten it")


class _Checks:
    """Looks at one file's values, and notes what is wrong."""

    def __init__(self, file: Path, problems: Problems) -> None:
        self.file, self.problems = file, problems

    def error(self, code: str, message: str) -> None:
        self.problems.error(code, self.file, message)

    def keys(self, values: dict[str, Any], known: tuple[str, ...], where: str) -> None:
        """Notes keys that mean nothing."""
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
                self.error("unknown-key", f"{where}{key!r} is no key of a prompt file; {hint} Else remove it")

    def text(self, values: dict[str, Any], key: str, what: str, where: str = "") -> str:
        """A text that must be there; empty when it is not."""
        if key not in values:
            self.error("missing-field", f"{where}{key!r} is missing; give {what}")
            return ""
        return self._text(values[key], f"{where}{key!r}", what)

    def _text(self, value: Any, name: str, what: str) -> str:
        if not isinstance(value, str):
            self.error("wrong-type", f"{name} is {value!r}; give {what}")
            return ""
        if not value.strip():
            self.error("empty", f"{name} is empty; give {what}")
        elif value.strip() != value or "\n" in value:
            self.error("blanks", f"{name} has blanks at an end, or several lines ({value!r}); write it on one line")
        elif value.endswith("."):
            self.error(
                "full-stop", f"{name} ends with a full stop ({value!r}); it becomes part of a sentence: remove it"
            )
        return value.strip()

    def texts(self, values: dict[str, Any], key: str, what: str) -> list[str]:
        """A list of texts that must be there."""
        if key not in values:
            self.error("missing-field", f"{key!r} is missing; give {what}")
            return []
        items = values[key]
        if not isinstance(items, list) or not items:
            self.error("wrong-type", f"{key!r} is {items!r}; give a list of {what}")
            return []
        return [self._text(item, f"{key} {number}", what) for number, item in enumerate(items, 1)]

    def placeholders(self, text: str, name: str, rule: str, known: tuple[str, ...] = ()) -> None:
        """Notes braces that nothing will be put into."""
        left = functools.reduce(lambda rest, item: rest.replace(item, ""), known, text)
        if found := re.findall(r"\{[^{}]*\}|[{}]", left):
            self.error("placeholder", f"{name} holds a stray {some(found)} ({text!r}); {rule}")

    def defects(self, values: dict[str, Any]) -> list[Defect]:
        """The tables of defects."""
        example = '[[defects]] with name = "scratch" and appearance = "a thin bright line"'
        if "defects" not in values:
            self.error("missing-field", f"'defects' is missing; give one or more tables {example}")
            return []
        tables = values["defects"]
        if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
            self.error("wrong-type", f"'defects' is no list of tables; write each one as {example}")
            return []
        defects = []
        for number, table in enumerate(tables, 1):
            named = table.get("name")
            where = f"defect {number}{f' ({named})' if isinstance(named, str) else ''}: "
            self.keys(table, _DEFECT_KEYS, where)
            name = self.text(table, "name", 'what it is called, such as name = "scratch"', where)
            looks = self.text(table, "appearance", 'how it looks, such as appearance = "a thin bright line"', where)
            for text, key in ((name, "name"), (looks, "appearance")):
                self.placeholders(text, f"{where}{key}", "write plain words")
            if re.search(r"\bdefects?$", name, re.IGNORECASE):
                self.error("says-defect", f"{where}the word is added to the name ({name!r}); leave it out")
            defects.append(Defect(name, looks))
        return defects

    def repeated(self, texts: list[str], what: str) -> None:
        """Notes what stands twice and would count twice."""
        if twice := sorted({text for text in texts if text and texts.count(text) > 1}):
            self.error("twice", f"two {what} are the same: {some(twice)}; remove one")
