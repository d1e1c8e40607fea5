"""JSON text in and out, without loss: what orjson rejects or rounds is mended here and nowhere else.

Contract: ValueError is the only exception. No I/O.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LEVELS = 2048
# A pair of escaped surrogates, an escaped backslash, or a surrogate that stands alone.
_SURROGATES = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
# orjson silently turns integers beyond 64 bits into floats; 19 digits fit, or 18 after a minus. To look for fixed
# strings, in a text where every digit is a 0, is ten times as fast as a pattern; and `in` takes three times as long as
# `find`, for it tries first whether it was given a number.
_LONG_INTEGER, _LONG_NEGATIVE, _IN_BOTH = b"0" * 20, b"-" + b"0" * 19, b"0" * 19
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")


def loads(text: bytes) -> Any:
    """The value of one JSON text. Bad UTF-8 and lone surrogates become U+FFFD; any other fault is ValueError."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return orjson.loads(_mended(text))


def loads_exact(text: bytes) -> Any:
    """As `loads`, with integers of any size kept exact, at the price of one more look at the text."""
    return exact(loads(text), text)  # orjson alone decides what is JSON


def loads_strict(text: bytes) -> Any:
    """As `loads_exact`, but bad UTF-8 and lone surrogates are ValueError too."""
    return exact(orjson.loads(text), text)


def value_in(text: bytes, other: Any, read: Callable[[bytes], Any] = loads) -> Any:
    """The value that the JSON text is, or `other` for any other text; `read` may be `loads_exact`."""
    try:
        return read(text)
    except ValueError:
        return other


def object_in(text: bytes, read: Callable[[bytes], Any] = loads) -> dict[str, Any] | None:
    """The object that the JSON text is, or None for any other text; `read` may be `loads_exact`."""
    value = value_in(text, None, read)
    return value if isinstance(value, dict) else None


def exact(value: Any, text: bytes) -> Any:
    """`value`, which `loads` gave for `text`, with its integers exact; what orjson reads, the standard library does."""
    digits = text.translate(_DIGITS_AS_ZEROS)
    if digits.find(_IN_BOTH) < 0 or (_LONG_INTEGER not in digits and _LONG_NEGATIVE not in digits):
        return value
    with _deep():
        return json.loads(_mended(text))


def dumps(value: Any) -> bytes:
    """Compact JSON text in UTF-8. What JSON cannot express (other objects, lone surrogates) is ValueError."""
    try:
        return orjson.dumps(value)
    except TypeError as exc:  # what the standard library writes: long integers, and more levels than 254
        try:
            with _deep():
                return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError):
            raise ValueError(str(exc)) from exc


@contextlib.contextmanager
def _deep() -> Iterator[None]:
    """Let what orjson reads, 1024 levels of it, be written too, inside what is made of it."""
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(usual + _LEVELS)
    try:
        yield
    finally:
        sys.setrecursionlimit(usual)


def _mended(text: bytes) -> bytes:
    whole = text.decode("utf-8", "replace").encode()
    return _SURROGATES.sub(lambda match: rb"\ufffd" if match[1] else match[0], whole)
