"""The body of a request in, the same with marks for the server's prompt cache out.

Contract: a mark says that the request is kept up to the end of its block, so that the next one that begins so need
not be read anew. No block is marked that the API takes no mark on, and nothing that was given is changed. No I/O.
Source: streamcli(7), section "Prompt cache".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .history import is_blank

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

# How many marks a request may have.
MOST = 4
# How long the API keeps what is marked, if nothing is said and at most.
_USUAL, _LONG = "5m", "1h"
# What a request consists of, in the order in which it is read.
_SECTIONS = ("tools", "system", "messages")
_UNMARKED = frozenset({"thinking", "redacted_thinking", "fallback", "mcp_tool_listing"})

# The keys and indexes that lead to a block.
Place = tuple[str | int, ...]


class Marks(NamedTuple):
    """The marks of each request of a run: at `front`, and with `goes_on` at the end, where the next one goes on."""

    lifetime: str
    front: Place | None
    goes_on: bool = False

    def on(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """`body` with the marks; a block that has one keeps it."""
        marked = dict(body)
        mark = {"type": "ephemeral"} | ({"ttl": self.lifetime} if self.lifetime != _USUAL else {})
        # A mark on the whole request stands at its end.
        end = _last(_blocks(body)) if self.goes_on and not body.get("cache_control") else None
        for place in filter(None, (self.front, end)):
            marked = _with_mark(marked, place, mark)
        return marked


def front(body: Mapping[str, Any], *, question: int = 1, own: Container[str] = ()) -> Place | None:
    """The last block that can be marked in front of the question, or None.

    `question` is how many blocks at the end of the messages are it. Of what is shared with other requests, the first of
    tools, system and messages that is this one's `own` is the end.
    """
    shared: list[tuple[Place, Mapping[str, Any]]] = []
    for section in _SECTIONS:
        if section in own:
            return _last(shared)
        shared += _blocks_of(section, body.get(section))
    return _last(shared[: len(shared) - question])


def checked(body: dict[str, Any]) -> dict[str, Any]:
    """`body`. Raises ValueError, which says what the request has, if the API would not take its marks."""
    marks = [mark for _, block in _blocks(body) for mark in _marks_in(block)]
    marks += filter(None, [body.get("cache_control")])
    if len(marks) > MOST:
        raise ValueError(f"has {len(marks)} cache marks (cache_control), and the API takes at most {MOST}")
    is_long = [isinstance(mark, Mapping) and mark.get("ttl") == _LONG for mark in marks]
    if is_long != sorted(is_long, reverse=True):
        raise ValueError("has a cache mark of 1h after one of 5m, but the API takes them only in the other order")
    return body


def _marks_in(block: Mapping[str, Any]) -> Iterator[Any]:
    inner = block.get("content")
    for each in inner if isinstance(inner, list) else ():
        if isinstance(each, Mapping):
            yield from _marks_in(each)
    if block.get("cache_control"):
        yield block["cache_control"]


def _blocks(body: Mapping[str, Any]) -> list[tuple[Place, Mapping[str, Any]]]:
    return [pair for section in _SECTIONS for pair in _blocks_of(section, body.get(section))]


def _blocks_of(section: str, value: Any) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """The blocks of one section, and where they are; a string is one block of text."""
    if section != "messages":
        yield from _listed((section,), value)
        return
    for number, message in enumerate(value if isinstance(value, list) else ()):
        if isinstance(message, Mapping):
            yield from _listed((section, number, "content"), message.get("content"))


def _listed(way: Place, value: Any) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    for number, block in enumerate(_as_blocks(value) if isinstance(value, str | list) else ()):
        if isinstance(block, Mapping):
            yield (*way, number), block


def _as_blocks(value: str | list[Any]) -> list[Any]:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


def _last(blocks: Iterable[tuple[Place, Mapping[str, Any]]]) -> Place | None:
    return next((place for place, block in reversed(list(blocks)) if _takes_mark(block)), None)


def _takes_mark(block: Mapping[str, Any]) -> bool:
    return not (is_blank(block) or block.get("type") in _UNMARKED or block.get("defer_loading"))


def _with_mark(value: Any, place: Place, mark: Mapping[str, Any]) -> Any:
    """A copy of `value` with the mark on the block at `place`."""
    if not place:
        return value if value.get("cache_control") else {**value, "cache_control": mark}
    key, *way = place
    copy: Any = list(_as_blocks(value)) if isinstance(key, int) else dict(value)
    copy[key] = _with_mark(copy[key], tuple(way), mark)
    return copy
