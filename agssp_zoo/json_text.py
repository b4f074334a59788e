"""JSON as this package writes it: letters of all languages as they are, and nothing that UTF-8 cannot hold."""

from __future__ import annotations

import json
from typing import Any


def json_text(value: Any, *, indent: int | None = None) -> str:
    r"""A value as JSON that can be written as UTF-8.

    A file name whose bytes are no UTF-8 holds lone surrogates in Python. Each becomes an escape (``\udce4`` for the
    byte E4), which reads back as the same name, so that its file is found again.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
