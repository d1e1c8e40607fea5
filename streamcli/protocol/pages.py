"""The page that a server or a gateway shows a browser in, its words out: title and text, no markup.

Contract: any text is taken, in time linear in it, and what is not markup comes out as it is. No I/O.
"""

from __future__ import annotations

import re
from html import unescape

_MARKUP = re.compile(r"\s*<[A-Za-z!?]")
# What these hold is not for reading.
_UNREAD = frozenset({"script", "style", "template"})


def words(text: str) -> str:
    """What a reader sees of `text`, where that is a page; a title that the page's text repeats is there once."""
    if not _MARKUP.match(text):
        return text
    first, *others = text.split("<")
    shown = [first]
    title, inside = "", ""
    for piece in others:
        tag, _, after = piece.partition(">")
        name = re.split(r"[\s/]", tag.removeprefix("/").lower(), maxsplit=1)[0]
        if tag.startswith("!--") and not inside:
            inside = "!--"
        if inside == "!--":
            _, end, after = piece.partition("-->")
            inside = "" if end else inside
        elif inside:
            inside = "" if tag.startswith("/") and name == inside else inside
        elif name in _UNREAD:
            inside = name
        if not inside:
            shown.append(after)
            title = after if name == "title" and not tag.startswith("/") else title
    title, said = _line(title), _line(" ".join(shown))
    repeated = said.removeprefix(title).strip()
    return repeated if title and repeated.startswith(title) else said


def _line(text: str) -> str:
    return " ".join(unescape(text).split())
