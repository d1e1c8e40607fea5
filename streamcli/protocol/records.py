"""Events and messages for the library's users: dicts, as sent, whose keys can also be read as attributes.

Contract: every dict inside one is one too, so `event.delta.text` and `message["content"][0].text` both work; unknown
keys stay. A missing key is AttributeError, or None where it is documented as nullable; no key is ever added. They are
plain dicts to json, orjson and copy. A key that is also the name of a dict method (`items`, `keys`, `get`) is read with
brackets. The classes below only name what the API documents, for type checkers; they hold nothing that was not sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from .message import Accumulator, Block, block_text, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


class Record(dict[str, Any]):
    """A JSON object with its keys as attributes."""

    __slots__ = ()
    # What the API documents as null in places, and servers leave out: reading it never fails.
    _nullable: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, fields: Mapping[str, Any] = {}, /, **more: Any) -> None:
        self.update(fields, **more)
        _deepen(self)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            if name in self._nullable:
                return None
            raise AttributeError(f"{type(self).__name__} has no {name!r}") from None

    def __deepcopy__(self, memo: dict[int, Any]) -> Record:
        return type(self)(self)

    def __copy__(self) -> Record:
        return self.__deepcopy__({})


# Without __init__, which would go into what is inside and so recurse as deep as a server nests it.
_empty = dict.__new__
_FLAT = frozenset({str, int, float, bool, type(None)})


def _deepen(record: Record) -> None:
    """Make a record of every dict inside, and a copy of every list, however deep a server nests them."""
    pending: list[tuple[Any, type[Record] | None]] = [(record, None)]
    for holder, of_list in pending:
        places: Iterable[tuple[Any, Any]] = enumerate(holder) if of_list else holder.items()
        for place, value in places:
            if type(value) in _FLAT:
                continue
            cls = of_list or _CLASSES.get(place, Record)
            if isinstance(value, dict):
                holder[place] = copy = _empty(cls)
                copy.update(value)
                pending.append((copy, None))
            elif isinstance(value, list):
                holder[place] = listed = list(value)
                pending.append((listed, cls))


def _all_records(values: list[Any]) -> Any:
    return Record(values=values)["values"]


class Usage(Record):
    """Token counters, cumulative."""

    __slots__ = ()
    _nullable = frozenset(
        {"cache_creation", "cache_creation_input_tokens", "cache_read_input_tokens", "inference_geo"}
        | {"output_tokens_details", "server_tool_use", "service_tier"}
    )

    if TYPE_CHECKING:
        input_tokens: int
        output_tokens: int
        cache_creation_input_tokens: int | None
        cache_read_input_tokens: int | None
        cache_creation: Record | None
        server_tool_use: Record | None
        output_tokens_details: Record | None
        service_tier: str | None
        inference_geo: str | None


class ContentBlock(Record):
    """One block of a message; which fields it has depends on its `type`."""

    __slots__ = ()
    _nullable = frozenset({"citations"})

    if TYPE_CHECKING:
        type: str
        text: str
        citations: list[Record] | None
        thinking: str
        signature: str
        id: str
        name: str
        input: Record


class Message(Record):
    """A message: `content` is a list of blocks, `stop_reason` None until it is known."""

    __slots__ = ()
    _nullable = frozenset(
        {"container", "context_management", "diagnostics", "stop_details", "stop_reason", "stop_sequence"}
    )

    if TYPE_CHECKING:
        id: str
        type: str
        role: str
        model: str
        content: list[ContentBlock]
        stop_reason: str | None
        stop_sequence: str | None
        stop_details: Record | None
        container: Record | None
        usage: Usage


class Delta(Record):
    """What a `content_block_delta` adds or a `message_delta` changes."""

    __slots__ = ()
    _nullable = frozenset({"container", "stop_details", "stop_reason", "stop_sequence"})

    if TYPE_CHECKING:
        type: str
        text: str
        partial_json: str
        thinking: str
        signature: str
        citation: Record
        stop_reason: str | None
        stop_sequence: str | None


class Event(Record):
    """One event of a stream, as sent; its `type` says which fields it has."""

    __slots__ = ()

    if TYPE_CHECKING:
        type: str
        index: int
        delta: Delta
        content_block: ContentBlock
        message: Message
        usage: Usage
        # Of the derived events
        text: str
        partial_json: str
        thinking: str
        signature: str
        citation: Record
        snapshot: Any


class _Grown(Event):
    """A derived event whose `snapshot`, the field so far, is put together when somebody looks.

    To do so for each event would be quadratic in the answer. Parts are only ever added, so the first `_count` of them
    always make what the field was at this event.
    """

    __slots__ = ("_count", "_join", "_parts")

    def __init__(self, fields: Mapping[str, Any], parts: list[Any], join: Callable[[list[Any]], Any]) -> None:
        self.update(fields)
        self._parts = parts
        self._count = len(parts)
        self._join = join

    def __missing__(self, key: str) -> Any:
        if key == "snapshot":
            return self._join(self._parts[: self._count])
        raise KeyError(key)

    def __deepcopy__(self, memo: dict[int, Any]) -> Event:
        return Event(self, snapshot=self["snapshot"])


_CLASSES: dict[str, type[Record]] = {
    "message": Message,
    "usage": Usage,
    "delta": Delta,
    "content_block": ContentBlock,
    "content": ContentBlock,
}

# Delta type -> the derived event's type and the field it carries over.
_DERIVED = {
    "text_delta": ("text", "text"),
    "input_json_delta": ("input_json", "partial_json"),
    "thinking_delta": ("thinking", "thinking"),
}


def events(event: dict[str, Any], accumulator: Accumulator) -> tuple[Event, ...]:
    """The event that was just accumulated, as a record, and the derived one after it.

    Text that a block or a message starts with has its derived event too, so that the texts add up to the message's.
    """
    kind = event.get("type")
    record = Event(event)
    derived = None
    if kind == "content_block_delta":
        derived = _derived(event["delta"], accumulator.blocks[event["index"]])
    elif kind == "content_block_start" and text_of(event):
        derived = _text(text_of(event), accumulator.blocks[event["index"]].pieces)
    elif kind == "message_start" and text_of(event):
        blocks = enumerate(event["message"]["content"])
        texts = [_text(block["text"], accumulator.blocks[index].pieces) for index, block in blocks if block_text(block)]
        return (record, *texts)
    elif kind == "content_block_stop":
        record["content_block"] = ContentBlock(accumulator.blocks[event["index"]].snapshot())
    elif kind == "message_stop":
        record["message"] = Message(accumulator.snapshot() or {})
    return (record, derived) if derived is not None else (record,)


def _text(text: str, pieces: list[str]) -> Event:
    return _Grown({"type": "text", "text": text}, pieces, "".join)


def _derived(delta: dict[str, Any], block: Block) -> Event | None:
    kind = delta["type"]
    if kind in _DERIVED:
        name, field = _DERIVED[kind]
        return _Grown({"type": name, field: delta[field]}, block.pieces, "".join)
    if kind == "citations_delta":
        event = Event({"type": "citation", "citation": delta["citation"]})
        return _Grown(event, block.fields["citations"], _all_records)
    if kind == "signature_delta":
        return Event({"type": "signature", "signature": delta["signature"]})
    if kind == "compaction_delta":
        return Event({**delta, "type": "compaction"})
    return None
