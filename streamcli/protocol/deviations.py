"""Events that break the rules in, well-formed events out, wherever exactly one reading loses and invents nothing.

Contract: this module is entered when the accumulator rejects an event, and reads the rest of that stream. What a server
meant is handed on as events that the accumulator takes, each taken before the next one is asked for; what deviates is
counted by its kind, with the place where it came first. What has no such reading stays the ProtocolError that the
accumulator makes of it. No I/O. Source: streamcli(7), section "DEVIATIONS", which has an entry for each of KINDS.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from streamcli.errors import malformed, status_error

from .jsontext import dumps, loads_exact, object_in, value_in
from .message import DELTAS, DONE, KNOWN_BLOCKS, KNOWN_TYPES, NAMES, Accumulator, Block, object_or_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Event = dict[str, Any]


# The kinds of deviations, and who was seen to send them; how each is read is in the manual.
KINDS: dict[str, str] = {
    "index": "gateways that translate Chat Completions: thinking and text both at 0, counting from 1, or no index",
    "repeated start": "gateways that send a start before every piece",
    "missing start": "gateways that forward pieces as they come",
    "kind": "gateways that keep one block open for reasoning, text and tools",
    "stray stop": "gateways that close a tool's block before its input is whole, or twice",
    "missing message_start": "llama.cpp, where the first piece of text ends inside a character",
    "repeated message_start": "gateways that begin anew when a fallback takes over",
    "event name": "gateways that name every event alike",
    "null": "servers that serialise every field of a delta",
    "delta type": "gateways that copy the delta of another protocol",
    "no data": "keep-alives of proxies and load balancers",
    "joined events": "servers that leave out the blank line between events",
    "[DONE]": "servers that speak Chat Completions as well",
    "tool input": "models that write the input themselves, and the servers that pass it on",
}

# Deltas that may begin a block of their own, and the type of that block.
_GROW_ALONE = {"text_delta": "text", "thinking_delta": "thinking"}
_TYPE_OF_FIELD = {rule.field: kind for kind, rule in DELTAS.items()} | {"content": ""}
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
# What begins so is JSON that was cut or is broken, and may have held something.
_LIKE_JSON = (b"{", b"[", b'"')
_NOTHING = frozenset({b"", b"null"})
# What shows by itself that there is a message.
_BEGIN_MESSAGE = frozenset({"content_block_start", "content_block_delta", "message_delta"})


class Reader:
    """Reads the rest of a stream in which something deviated, into `accumulator`.

    `counts` says how often each of KINDS came, in the order of their first coming. A block has a number, by when it was
    started; an index, by which the wire means it; and a place in the message.
    """

    def __init__(self, accumulator: Accumulator) -> None:
        self._accumulator = accumulator
        self._all = accumulator.blocks
        self.counts: Counter[str] = Counter()
        self._first_seen: dict[str, str] = {}
        self._take_blocks()

    def _take_blocks(self) -> None:
        """Take the blocks that are there: of each its number, its index on the wire and its place are the same."""
        # Which blocks an index stands for: the one that was started last, then those beside it.
        self._by_index: dict[int | None, list[Block]] = {block.number: [block] for block in self._all}
        self._furthest = len(self._all) - 1

    def lines(self) -> list[str]:
        """A line for each kind that came: what it is, what was seen first, how often."""
        return [
            f"deviation: {kind}: {self._first_seen[kind]} (×{count})"  # noqa: RUF001 - meant
            for kind, count in self.counts.items()
        ]

    def _note(self, kind: str, seen: str) -> None:
        self.counts[kind] += 1
        self._first_seen.setdefault(kind, seen)

    def read(self, name: str, data: bytes) -> Iterator[Event]:
        """The events that one event stands for, each taken by the accumulator. Raises ProtocolError, APIStatusError."""
        for event in () if self._accumulator.complete else self._objects(name, data):
            yield from self._done() if event is None else self._read_one(name, event)

    def _done(self) -> Iterator[Event]:
        stop_reason = self._accumulator.stop_reason
        after = f"after stop reason {stop_reason}" if stop_reason else "before any stop reason"
        self._note("[DONE]", f"{DONE} came {after}")
        if stop_reason:
            yield from self._taken({"type": "message_stop"})

    def _objects(self, name: str, data: bytes) -> list[Event | None]:
        """The objects in the data of one event, none or several where events were joined; None stands for [DONE]."""
        if data.strip() == DONE.encode():
            return [None]
        if name == "error":
            raise status_error(None, object_or_text(data))
        value = value_in(data, None, loads_exact)
        if isinstance(value, dict):
            return [value]
        if name not in NAMES:
            return []
        bare = data.strip()
        if bare in _NOTHING or (name == "message" and value is None and not bare.startswith(_LIKE_JSON)):
            what = f"has the data {_shown(bare)}" if bare else "has no data"
            self._note("no data", f"{_called(name)} {what}")
            return []
        lines = [line for line in data.split(b"\n") if line.strip()]
        values: list[Any] = [
            None if line.strip() == DONE.encode() else object_in(line, loads_exact) or line for line in lines
        ]
        if len(lines) > 1 and all(isinstance(value, dict | None) for value in values):
            self._note("joined events", f"{_called(name)} holds {len(lines)} objects")
            return values
        raise malformed(f"data that is not one JSON object: {data[:60].decode('utf-8', 'replace')!r}")

    def _read_one(self, name: str, event: Event) -> Iterator[Event]:
        kind = event.setdefault("type", name)
        if not isinstance(kind, str):
            raise malformed(f"an event's type is {kind!r}")
        if name not in NAMES:
            if kind not in KNOWN_TYPES:
                return
            self._note("event name", f"a {kind} came in {_called(name)}")
        if kind in _BEGIN_MESSAGE and not self._accumulator.started and _is_a_beginning(event):
            self._note("missing message_start", f"{kind} came first")
            yield from self._taken({"type": "message_start", "message": _nobody_s_message()})
        read = _READERS.get(kind)
        yield from read(self, event) if read else self._taken(event)

    def _message_start(self, event: Event) -> Iterator[Event]:
        if event.get("message", event) is None:
            self._note("null", "the message of message_start is null")
            event = {**event, "message": _nobody_s_message()}
        if self._accumulator.started and not self._all:
            self._note("repeated message_start", "message_start came again")
            self._accumulator.started = False
        yield from self._taken(event)
        self._take_blocks()

    def _block_start(self, event: Event) -> Iterator[Event]:
        index = self._index(event)
        there = self._by_index.get(index, [])
        if there:
            if _brings_nothing(there[0], event.get("content_block")):
                self._note("repeated start", f"content block {index} was started again")
                return
            self._note("index", f"content block {index} was started again")
            for block in _open(there):
                yield from self._stopped(block)
        elif index is None:
            self._note("index", "a content block was started without an index")
        elif index != len(self._all):
            self._note("index", f"content block {index} was started without {len(self._all)}")
        yield from self._begun(event, index, behind=bool(there))

    def _begun(self, event: Event, index: int | None, *, behind: bool) -> Iterator[Event]:
        """The event as it starts the next block, which stands by its index, or `behind` all others."""
        place = self._furthest if behind or index is None else index
        self._furthest = max(self._furthest, place)
        beside = self._by_index[len(self._all) if index is None else index] = []
        yield from self._begun_at(place, event, beside)

    def _begun_at(self, place: int, event: Event, beside: list[Block]) -> Iterator[Event]:
        for started in self._taken({**event, "index": len(self._all)}):
            self._all[-1].place = place
            beside.append(self._all[-1])
            yield started

    def _block_delta(self, event: Event) -> Iterator[Event]:
        index = self._index(event)
        meant = self._meant(event, index)
        delta = self._delta(event)
        if delta is None:
            return
        event = {**event, "delta": delta}
        kind: str = delta["type"]
        block = self._taker(meant, kind)
        number = len(self._all)  # which the accumulator does not have, unless it begins now
        if block:
            number = block.number
            if not block.is_open:
                self._note("stray stop", f"a {kind} came after content block {index} was stopped")
                block.is_open = True
        elif kind in _GROW_ALONE:
            yield from self._begun_alone(event, index, meant)
        elif meant:
            number = meant[0].number
        yield from self._taken({**event, "index": number})

    def _begun_alone(self, event: Event, index: int | None, meant: list[Block]) -> Iterator[Event]:
        """The start of the block that a text or thinking delta needs."""
        kind = event["delta"]["type"]
        grown = _GROW_ALONE[kind]
        start = {"type": "content_block_start", "content_block": {"type": grown, grown: ""}}
        opened = next(_open(meant), None)
        if opened is None:
            self._note("missing start", f"a {kind} came for content block {index}, which is not open")
            yield from self._begun(start, index, behind=bool(meant))
        else:
            self._note("kind", f"a {kind} came for content block {index}, which is {opened.kind}")
            yield from self._begun_at(self._furthest if index is None else index, start, meant)

    def _block_stop(self, event: Event) -> Iterator[Event]:
        index = self._index(event)
        meant = [*_open(self._meant(event, index))]
        if not meant:
            self._note("stray stop", f"content block {index} was stopped, and was not open")
        for block in meant:
            yield from self._stopped(block, event)

    def _message_stop(self, event: Event) -> Iterator[Event]:
        for block in _open(self._all):
            self._check_input(block)
        yield from self._taken(event)

    def _stopped(self, block: Block, event: Event | None = None) -> Iterator[Event]:
        self._check_input(block)
        yield from self._taken({**(event or {"type": "content_block_stop"}), "index": block.number})

    def _check_input(self, block: Block) -> None:
        deviation = block.accept_input()
        if deviation:
            self._note("tool input", f"the input of content block {block.number} {deviation}")

    def _index(self, event: Event) -> int | None:
        """The index on the wire, or None where there is none. Raises ProtocolError for one that is not a number."""
        index = event.get("index")
        if type(index) is int or index is None:
            return index
        if isinstance(index, str) and _WHOLE_NUMBER.fullmatch(index.strip()):
            self._note("index", f"the index {index!r} is text")
            return int(index)
        if isinstance(index, float) and math.isfinite(index) and index == int(index):
            self._note("index", f"the index {index!r} has a fraction")
            return int(index)
        raise malformed(f"a content block index of {index!r}")

    def _meant(self, event: Event, index: int | None) -> list[Block]:
        """The blocks that an index stands for."""
        if index is not None:
            return self._by_index.setdefault(index, [])
        self._note("index", f"a {event['type']} has no index")
        return next((blocks for blocks in self._by_index.values() if blocks and blocks[-1] is self._all[-1]), [])

    def _taker(self, blocks: list[Block], kind: str) -> Block | None:
        """Of some blocks the one that a delta of that type belongs to: an open one, or one that lacks its end."""
        fitting = [block for block in blocks if _fits(block.kind, kind)]
        still_open = [*_open(fitting)]
        takers = still_open if kind in _GROW_ALONE else still_open or fitting
        return takers[-1] if takers else None

    def _delta(self, event: Event) -> Event | None:
        """The delta with its type and no deviation of its own, or None where it brings nothing."""
        delta = event.get("delta", event)
        if delta is None:
            self._note("null", "the delta of a content_block_delta is null")
            return None
        if not isinstance(delta, dict) or delta is event:
            raise malformed("a content_block_delta without a delta object")
        if delta.get("type") is None:
            kinds = [_TYPE_OF_FIELD[field] for field in delta if field in _TYPE_OF_FIELD]
            if len(kinds) != 1 or not kinds[0]:
                raise malformed("a delta without a type")
            self._note("delta type", f"a delta with {DELTAS[kinds[0]].field} has no type")
            delta = {**delta, "type": kinds[0]}
        if not isinstance(delta["type"], str):
            raise malformed(f"a delta's type is {delta['type']!r}")
        rule = DELTAS.get(delta["type"])
        if rule is None or rule.field not in delta:
            return delta
        value = delta[rule.field]
        if value is None:
            self._note("null", f"the {rule.field} of a {delta['type']} is null")
            return None
        if rule.field == "partial_json" and isinstance(value, dict):
            self._note("tool input", "the partial_json of a delta is an object")
            return {**delta, "partial_json": dumps(value).decode()}
        return delta

    def _taken(self, event: Event) -> Iterator[Event]:
        if self._accumulator.take(event):
            yield event


_READERS: dict[str, Callable[[Reader, Event], Iterator[Event]]] = {
    "message_start": Reader._message_start,
    "content_block_start": Reader._block_start,
    "content_block_delta": Reader._block_delta,
    "content_block_stop": Reader._block_stop,
    "message_stop": Reader._message_stop,
}


def _open(blocks: list[Block]) -> Iterator[Block]:
    return (block for block in blocks if block.is_open)


def _brings_nothing(block: Block, fields: Any) -> bool:
    """Whether a start only repeats that of an open block."""
    if not block.is_open or not isinstance(fields, dict):
        return False
    there = block.snapshot()
    grown = {"text", "thinking", "input"}
    return fields.get("type") == there["type"] and all(
        not value or (key not in grown and there.get(key) == value) for key, value in fields.items()
    )


def _fits(block: str, delta: str) -> bool:
    rule = DELTAS.get(delta)
    return rule is None or block in rule.blocks or block not in KNOWN_BLOCKS


def _is_a_beginning(event: Event) -> bool:
    """Whether the event shows that there is a message: an end alone must say why."""
    if event["type"] != "message_delta":
        return True
    delta = event.get("delta")
    return isinstance(delta, dict) and isinstance(delta.get("stop_reason"), str)


def _nobody_s_message() -> Event:
    return {"type": "message", "role": "assistant", "content": []}


def _called(name: str) -> str:
    return "an unnamed event" if name == "message" else f"an event called {name}"


def _shown(data: bytes) -> str:
    return repr(data[:40].decode("utf-8", "replace"))
