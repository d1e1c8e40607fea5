"""Bytes that a user wrote in, text or a JSON value out, or an error that names the source and the place.

Contract: input is UTF-8, nothing of it is replaced or rounded, and a byte order mark at its start is left out.
UsageError is the only exception. No I/O.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from typing import TYPE_CHECKING, Any

from streamcli.errors import UsageError, reason

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_QUOTED = re.compile(r"""(["'])((?:(?!\1).)*)\1""", re.DOTALL)
# A line of a shell, of an .env file or of PowerShell that sets a key.
_SETS_KEY = re.compile(r"(?:export\s+|set\s+|\$env:)?(\w*(?:KEY|TOKEN))\s*=\s*(.+?)(?:\s+#.*)?", re.IGNORECASE)
_OURS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")


def decoded(data: bytes, source: str) -> str:
    """The text that `data` is; messages call it `source`."""
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as fault:
        raise UsageError(f"{source} is not UTF-8: byte {fault.start + 1} is {data[fault.start]:#04x}") from None


def json_value(data: bytes, source: str, *, hint: str = "") -> Any:
    """The value of the JSON text `data`; `hint` ends the message about what is not JSON."""
    from .jsontext import loads_exact  # noqa: PLC0415 - a connection begins before orjson is imported

    decoded(data, source)
    try:
        return loads_exact(data.removeprefix(BOM_UTF8))
    except ValueError as fault:
        why = reason(fault)
        if b"\n" not in data.strip():  # `data` may be one line of a file, and not its first
            why = why.replace(": line 1 column", " at column")
        raise UsageError(f"{source} is not JSON: {why}{hint}") from None


def nearest(name: str, known: Collection[str]) -> str:
    """What to add to a message about an unknown name: the known one that may be meant, or nothing."""
    import difflib  # noqa: PLC0415 - only for a mistake

    names = {each.replace("_", "-"): each for each in known}
    close = [] if name in known else difflib.get_close_matches(name.replace("_", "-"), names, n=1)
    return f"; did you mean {names[close[0]]}?" if close else ""


def variable(environment: Mapping[str, str], name: str) -> str:
    """A variable's value without white space and quotes around it, which .env files leave; "" if it is unset."""
    return _bare(environment.get(name, ""))


def key_in(text: str) -> tuple[str, str]:
    """The key in what people keep as one, "" if there is none, and "bearer" if that says so, else "".

    It may stand in quotes, behind `Bearer`, or in a line `NAME=value`, among others if the name is one of ours.
    """
    text = _bare(text)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = [match for match in map(_SETS_KEY.fullmatch, lines) if match]
    ours = [match for name in _OURS for match in found if match[1] == name]
    line = next(iter(ours or (found if len(lines) == 1 else ())), None)
    text = _bare(line[2] if line else lines[0] if len(lines) == 1 else text)
    says_bearer = text[:7].lower() == "bearer "
    is_token = says_bearer or (line is not None and line[1] == _OURS[1])
    return _bare(text[7:]) if says_bearer else text, "bearer" if is_token else ""


def _bare(text: str) -> str:
    text = text.strip("\ufeff \t\r\n\v\f")
    match = _QUOTED.fullmatch(text)
    return match[2].strip() if match else text
