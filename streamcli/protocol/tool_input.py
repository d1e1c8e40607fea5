"""The fragments of a tool's input, joined, in; the input out, and whether it is one.

Contract: a whole JSON object is the input. Text with exactly one other reading gives that, and says how it deviates.
Anything else is not an input, above all one that was cut: half of an input is never handed out. No I/O.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .jsontext import loads_exact, value_in

BLANKS = " \t\r\n"
_BLANKED = dict.fromkeys(range(0x20), " ")


class ToolInput(NamedTuple):
    """The `value`, if the text is `whole`; `deviation` says how it differs from what is documented, or ""."""

    value: Any = None
    whole: bool = True
    deviation: str = ""


def read(text: str) -> ToolInput:
    """The input that `text`, which is not blank, stands for."""
    value = _value(text)
    if isinstance(value, dict):
        return ToolInput(value)
    if value is not _NOTHING:
        return ToolInput(value, deviation="is JSON, but not an object")
    stripped = text.lstrip(BLANKS)
    if stripped.startswith("{}"):
        value = _value(stripped[2:])
        if isinstance(value, dict):
            return ToolInput(value, deviation="begins with an empty object before the real one")
    value = _with_control_characters(text)
    if value is not _NOTHING:
        return ToolInput(value, deviation="holds a control character that is not escaped")
    return ToolInput(whole=False)


_NOTHING = object()


def _value(text: str) -> Any:
    return value_in(text.encode(), _NOTHING, loads_exact)


def _with_control_characters(text: str) -> Any:
    """The object that orjson, too, reads once blanks are in their place: no other parser's numbers and levels."""
    import json  # noqa: PLC0415 - for what orjson rejects

    if not isinstance(_value(text.translate(_BLANKED)), dict):
        return _NOTHING
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return _NOTHING
