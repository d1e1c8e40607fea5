"""JSON text in and out, without loss: what orjson rejects or rounds is mended here and nowhere else.

Contract: ValueError is the only exception. No I/O.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

# An escaped backslash, a pair of escaped surrogates, or (the group) a surrogate that stands alone.
_SURROGATES = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
# orjson silently turns integers beyond 64 bits into floats; 19 digits fit, or 18 after a minus. To look for fixed
# strings, in a text where every digit is a 0, is ten times as fast as a pattern.
_LONG_INTEGERS = (b"0" * 20, b"-" + b"0" * 19)
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")


def loads(text: bytes) -> Any:
    """The value of one JSON text. Bad UTF-8 and lone surrogates become U+FFFD; any other fault is ValueError."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return orjson.loads(_mended(text))


def loads_exact(text: bytes) -> Any:
    """As `loads`, with integers of any size kept exact, at the cost of another look at the text."""
    value = loads(text)  # orjson alone decides what is JSON
    digits = text.translate(_DIGITS_AS_ZEROS)
    if not any(long in digits for long in _LONG_INTEGERS):
        return value
    try:
        return json.loads(_mended(text))
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def dumps(value: Any) -> bytes:
    """Compact JSON text in UTF-8. What JSON cannot express (other objects, lone surrogates) is ValueError."""
    try:
        return orjson.dumps(value)
    except TypeError as exc:  # integers beyond 64 bits, which the standard library writes
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError):
            raise ValueError(str(exc)) from exc


def _mended(text: bytes) -> bytes:
    whole = text.decode("utf-8", "replace").encode()
    return _SURROGATES.sub(lambda match: rb"\ufffd" if match[1] else match[0], whole)
