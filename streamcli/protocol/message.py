"""Events of one answer in, the message they build out: no text is lost silently, none is invented.

Contract: `Accumulator.receive` takes each event's name and data in order and raises at the first that breaks the
rules, having changed nothing; what was built until then stays readable, and `deviations` may go on from there. The type
inside the data decides, the event's name only stands in for it. Only `message_stop` makes a message complete, and after
it nothing counts. Unknown events, blocks, deltas and fields never fail. A tool's input is a whole JSON object or stays
text beside the block's first input, as `partial_json`. Work is linear in the bytes: fragments are joined when somebody
looks. No I/O. Source: streamcli(7), section "EVENT STREAM".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from streamcli.errors import UnexpectedResponseError, malformed, status_error

from . import tool_input
from .jsontext import exact, loads, object_in

if TYPE_CHECKING:
    from collections.abc import Callable

# How many bytes of text count as short; few answers are longer. A piece takes some bytes besides its characters.
_MOST_TEXT, _PIECE_BYTES = 4 << 20, 56

_TOOL_INPUTS = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})

# Blocks that come whole in content_block_start; a delta on one of them is a fault.
_WHOLE_BLOCKS = frozenset(
    {
        "redacted_thinking",
        "container_upload",
        "fallback",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "mcp_tool_result",
        "mcp_tool_listing",
        "advisor_tool_result",
    }
)


class Block:
    """A content block as sent, and the fragments of the one field that grows.

    `grown_by` is the type of the deltas that bring them, `fragment` the field of the deltas that holds them. `number`
    says when it was started, `place` where it stands in the message.
    """

    def __init__(self, fields: dict[str, Any], number: int, *, is_open: bool = False) -> None:
        self.fields = dict(fields)
        self.kind: str = fields["type"]
        self.number = self.place = number
        self.is_open = is_open
        self.accepts = False  # a tool input that deviates and can be read
        self.grows = ""
        self.pieces: list[str] = []
        self.grown_by, self.fragment = _GROWN_BY.get(self.kind, ("", ""))
        if self.kind in {"text", "thinking"}:
            self.grow(self.kind)
        if isinstance(fields.get("citations"), list):
            self.fields["citations"] = list(fields["citations"])
        if not isinstance(fields.get("partial_json", ""), str):  # what a tool input's fragments would be kept as
            raise malformed(f"a {self.kind} block whose partial_json is not a string")

    def grow(self, field: str) -> None:
        """Let `field` be the one that grows, from what it holds."""
        start = self.fields.get(field)
        if not isinstance(start, str | None):
            raise malformed(f"a {self.kind} block whose {field} is not a string")
        if start:
            self.pieces.append(start)
        self.grows = field

    def snapshot(self) -> dict[str, Any]:
        """The block so far, which shares nothing with what is still being built."""
        fields = dict(self.fields)
        if self.grows:
            fields[self.grows] = "".join(self.pieces)
        if isinstance(fields.get("citations"), list):
            fields["citations"] = list(fields["citations"])
        return fields

    def close(self) -> None:
        """Nothing more comes: the input of a tool is what its fragments make, or stays text."""
        if self.kind in _TOOL_INPUTS:
            found = self._input()
            if found.deviation and not self.accepts:
                raise malformed(f"the input of tool {self.fields.get('name')!r} {found.deviation}")
            self.fields.pop("partial_json", None)
            if found.whole:
                self.fields["input"] = found.value
            else:
                self.fields["input"] = self.fields.get("input") or {}
                self.fields["partial_json"] = "".join(self.pieces)
        self.is_open = False

    def accept_input(self) -> str:
        """Let a tool input count if it can be read; how it differs from an object, or ""."""
        self.accepts = True
        return self._input().deviation if self.kind in _TOOL_INPUTS else ""

    def _input(self) -> tool_input.ToolInput:
        text = "".join(self.pieces)
        if text.strip(tool_input.BLANKS):
            return tool_input.read(text)
        start = self.fields.get("input")
        return tool_input.ToolInput({} if start is None else start)


class Accumulator:
    """The message that a stream of events builds.

    `started` is true once message_start came, `complete` once message_stop did. With `keep_text` false, text and
    thinking are only kept as long as they are short, so that memory stays bounded however long the answer is; `whole`
    says whether they were kept.
    """

    def __init__(self, *, keep_text: bool = True) -> None:
        self.started = False
        self.complete = False
        self.whole = True
        # How many more bytes of text may be kept, or None for any number.
        self._room = None if keep_text else _MOST_TEXT
        self._message: dict[str, Any] = {}
        # In the order in which they were started.
        self.blocks: list[Block] = []

    def receive(self, name: str, data: bytes) -> dict[str, Any] | None:
        """Take one event. Returns it parsed, or None if it builds nothing: a ping, an unknown event, a late one.

        Raises ProtocolError for a malformed event, and the APIStatusError that an `error` event is.
        """
        if self.complete:
            return None
        if name not in NAMES:
            self._look_into(name, data)
            return None
        if name == "error":
            raise status_error(None, object_or_text(data))
        try:
            event = loads(data)
        except ValueError:
            event = None
        if type(event) is not dict:
            raise malformed(f"data that is not one JSON object: {data[:60].decode('utf-8', 'replace')!r}")
        if event.setdefault("type", name) == "content_block_delta" and self.started:  # nearly all there are
            self._grow_block(event)
            return event
        event = exact(event, data)
        event.setdefault("type", name)
        return event if self.take(event) else None

    def take(self, event: dict[str, Any]) -> bool:
        """Take one event that is parsed already; returns whether it is of a type that is known. Raises as `receive`."""
        kind = event["type"]
        if type(kind) is not str:
            raise malformed(f"an event's type is {kind!r}")
        handler = _HANDLERS.get(kind)
        if handler is None:
            _check_unknown(event)
            return False
        if not self.started and kind not in _FIRST:
            raise malformed(f"{kind} came before message_start")
        handler(self, event)
        return True

    def _look_into(self, name: str, data: bytes) -> None:
        """An event of an unknown name is skipped, unless it hides what must not be lost."""
        value = object_or_text(data)
        if value == DONE:
            raise malformed(f"the event {name!r} holds {DONE}")
        kind = value.get("type") if isinstance(value, dict) else None
        if kind == "error":
            raise status_error(None, value)
        if isinstance(kind, str) and kind in _HANDLERS:
            raise malformed(f"a {kind} in an event that is called {name!r}")

    @property
    def stop_reason(self) -> str | None:
        """Why the model stopped, or None while that is unknown."""
        reason = self._message.get("stop_reason")
        return reason if isinstance(reason, str) else None

    @property
    def usage(self) -> dict[str, Any]:
        """The usage counters so far, as the API names them."""
        return dict(self._message.get("usage") or {})

    @property
    def text(self) -> str:
        """All text blocks so far, joined."""
        return "".join("".join(block.pieces) for block in self._ordered() if block.kind == "text")

    def snapshot(self) -> dict[str, Any] | None:
        """The message so far, or None before message_start. It shares nothing with what is still being built.

        A tool input is the one of content_block_start until its block is whole; where the fragments are not a whole
        object it stays so, and they stand beside it as `partial_json`.
        """
        return {**self._message, "content": [block.snapshot() for block in self._ordered()]} if self.started else None

    def _ordered(self) -> list[Block]:
        return sorted(self.blocks, key=lambda block: block.place)

    def _begin_message(self, event: dict[str, Any]) -> None:
        if self.started:
            raise malformed("a second message_start")
        message = dict(_field(event, "message", dict))
        content = message.get("content") or []
        _usage(message)
        if not isinstance(content, list) or not all(map(_is_block, content)):
            raise malformed("message_start has content that is not a list of blocks")
        blocks = [Block(fields, number) for number, fields in enumerate(content)]
        self._message = message
        for block in blocks:
            self._add_block(block)
        self.started = True

    def _start_block(self, event: dict[str, Any]) -> None:
        index = _index(event)
        if index != len(self.blocks):
            known = "was started before" if index < len(self.blocks) else f"leaves a gap after {len(self.blocks)}"
            raise malformed(f"content block {index} {known}")
        fields = _field(event, "content_block", dict)
        if not _is_block(fields):
            raise malformed("a content block has no type")
        self._add_block(Block(fields, index, is_open=True))

    def _add_block(self, block: Block) -> None:
        self.blocks.append(block)
        if self._room is not None:
            self._room -= sum(map(len, block.pieces))
            if self._room <= 0:
                self._drop_text()
        target = block.fields.get("to")
        if block.kind == "fallback" and isinstance(target, dict) and isinstance(target.get("model"), str):
            self._message["model"] = target["model"]

    def _grow_block(self, event: dict[str, Any]) -> None:
        block = self._open_block(event)
        delta = event.get("delta")
        if type(delta) is not dict:
            raise malformed("a content_block_delta without a delta object")
        kind = delta.get("type")
        if (not kind or kind != block.grown_by) and not self._amend_block(block, delta):
            return
        fragment = delta.get(block.fragment)
        if type(fragment) is not str:
            raise malformed(f"a delta whose {block.fragment} is not a string")
        if self._room is None or kind == "input_json_delta":
            block.pieces.append(fragment)
        elif self._room > 0:
            block.pieces.append(fragment)
            self._room -= len(fragment) + _PIECE_BYTES
            if self._room <= 0:
                self._drop_text()

    def _drop_text(self) -> None:
        self.whole = False
        for block in self.blocks:
            if block.grows and block.kind not in _TOOL_INPUTS:
                block.fields[block.grows] = ""
                block.pieces.clear()

    def _amend_block(self, block: Block, delta: dict[str, Any]) -> bool:
        """Apply a delta other than the block's usual one; returns whether it has a fragment of the field that grows."""
        kind = delta.get("type")
        if type(kind) is not str:
            raise malformed("a delta without a type")
        rule = DELTAS.get(kind)
        if rule is None:
            return False
        if block.kind not in rule.blocks and block.kind in KNOWN_BLOCKS:
            raise malformed(f"a {kind} on a {block.kind} block")
        if rule.apply:
            rule.apply(block, delta)
            return False
        _field(delta, rule.field, str)  # before anything changes
        if not block.grows:
            block.grow(rule.field)
            if not self.whole:
                block.pieces.clear()
        block.grown_by, block.fragment = kind, rule.field
        return True

    def _stop_block(self, event: dict[str, Any]) -> None:
        self._open_block(event).close()

    def _amend_message(self, event: dict[str, Any]) -> None:
        delta = event.get("delta")
        usage = _usage(event)
        if delta is not None:
            if not isinstance(delta, dict):
                raise malformed("a message_delta whose delta is not an object")
            self._message |= {key: value for key, value in _without_nulls(delta).items() if key not in _NEVER_AMENDED}
        if usage is not None:
            known = self._message.get("usage")
            self._message["usage"] = usage if known is None else known | _without_nulls(usage)
        for key, value in _without_nulls(event).items():  # beta: beside the delta, not in it
            if key not in _OF_THE_EVENT and not (key in _IDENTITY and key in self._message):
                self._message[key] = value

    def _end_message(self, event: dict[str, Any]) -> None:  # noqa: ARG002 - every handler takes its event
        for block in self.blocks:
            if block.is_open:
                block.close()
        self.complete = True

    def _fail(self, event: dict[str, Any]) -> NoReturn:
        raise status_error(None, event)

    def _open_block(self, event: dict[str, Any]) -> Block:
        index = event.get("index")
        if type(index) is not int or index < 0:
            index = _index(event)  # which raises
        try:
            block = self.blocks[index]
        except IndexError:
            raise malformed(f"content block {index} was never started") from None
        if not block.is_open:
            raise malformed(f"content block {index} is closed")
        return block


_HANDLERS: dict[str, Callable[[Accumulator, dict[str, Any]], None]] = {
    "message_start": Accumulator._begin_message,
    "content_block_start": Accumulator._start_block,
    "content_block_delta": Accumulator._grow_block,
    "content_block_stop": Accumulator._stop_block,
    "message_delta": Accumulator._amend_message,
    "message_stop": Accumulator._end_message,
    "error": Accumulator._fail,
}


class _Delta(NamedTuple):
    """What a delta type means: which block types it may change, its field, and how to apply it if not by appending."""

    blocks: frozenset[str]
    field: str
    apply: Callable[[Block, dict[str, Any]], None] | None = None


def _sign(block: Block, delta: dict[str, Any]) -> None:
    block.fields["signature"] = _field(delta, "signature", str)


def _cite(block: Block, delta: dict[str, Any]) -> None:
    citations = block.fields.get("citations") or []
    if not isinstance(citations, list):
        raise malformed(f"a {block.kind} block whose citations are not a list")
    citations.append(_field(delta, "citation", dict))
    block.fields["citations"] = citations


def _compact(block: Block, delta: dict[str, Any]) -> None:
    block.fields.update({key: delta[key] for key in ("content", "encrypted_content") if key in delta})


DELTAS: dict[str, _Delta] = {
    "text_delta": _Delta(frozenset({"text"}), "text"),
    "thinking_delta": _Delta(frozenset({"thinking"}), "thinking"),
    "input_json_delta": _Delta(_TOOL_INPUTS, "partial_json"),
    "signature_delta": _Delta(frozenset({"thinking"}), "signature", _sign),
    "citations_delta": _Delta(frozenset({"text"}), "citation", _cite),
    "compaction_delta": _Delta(frozenset({"compaction"}), "content", _compact),
}
_GROWN_BY = {block: (kind, rule.field) for kind, rule in DELTAS.items() if not rule.apply for block in rule.blocks}
KNOWN_BLOCKS = _WHOLE_BLOCKS.union(*(rule.blocks for rule in DELTAS.values()))

_JSON_TYPES: dict[type, str] = {dict: "an object", str: "a string"}

KNOWN_TYPES = frozenset(_HANDLERS)
NAMES = KNOWN_TYPES | {"message"}  # which is the name of an event that was given none
_FIRST = frozenset({"message_start", "error"})
_NEVER_AMENDED = frozenset({"type", "content", "usage"})
# A key beside the delta is the message's, unless it belongs to the event, or to another kind of event.
_OF_THE_EVENT = _NEVER_AMENDED | {"delta", "index", "message", "content_block", "error", "request_id"}
_IDENTITY = frozenset({"id", "model", "role"})
# With this the Chat Completions protocol ends a stream; servers that speak both send it here too.
DONE = "[DONE]"
OF_CHAT_COMPLETIONS = (
    "the server speaks Chat Completions, not Messages: check --base-url, and whether it has /v1/messages"
)


def text_of(event: dict[str, Any]) -> str:
    """The text that an accepted event adds to the answer, or ""."""
    kind = event["type"]
    if kind == "content_block_delta":
        delta = event["delta"]
        return delta["text"] if delta.get("type") == "text_delta" else ""
    if kind == "content_block_start":
        return block_text(event["content_block"])
    return "".join(map(block_text, event["message"].get("content") or ())) if kind == "message_start" else ""


def block_text(block: dict[str, Any]) -> str:
    """The text of a content block, or ""."""
    return (block.get("text") or "") if block.get("type") == "text" else ""


def parsed(name: str, data: bytes) -> dict[str, Any]:
    """Any event as an object, also one that builds nothing; data that is not an object is kept as text."""
    value = object_or_text(data)
    if isinstance(value, dict):
        return value if "type" in value else {"type": name, **value}
    return {"type": name, "data": value} if value else {"type": name}


def object_or_text(data: bytes) -> dict[str, Any] | str:
    """The JSON object that the data is, else its text."""
    value = object_in(data)
    return data.decode("utf-8", "replace") if value is None else value


def _is_block(fields: Any) -> bool:
    return isinstance(fields, dict) and type(fields.get("type")) is str


def _usage(holder: dict[str, Any]) -> dict[str, Any] | None:
    usage = holder.get("usage")
    if not isinstance(usage, dict | None):
        raise malformed("usage is not an object")
    return usage


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    """What is not null: that would say nothing of what is known."""
    return {key: value for key, value in fields.items() if value is not None}


def _check_unknown(event: dict[str, Any]) -> None:
    """Raise what an object of no known type says, if it is an error or of another protocol."""
    if event.get("error") or event.get("object") == "error" or (event["type"] == "message" and event.get("detail")):
        raise status_error(None, event)
    if str(event.get("object")).startswith("chat.completion") or isinstance(event.get("choices"), list):
        raise UnexpectedResponseError(OF_CHAT_COMPLETIONS)


def _index(event: dict[str, Any]) -> int:
    index = event.get("index")
    if type(index) is not int or index < 0:
        raise malformed(f"a content block index of {index!r}")
    return index


def _field(event: dict[str, Any], name: str, kind: type) -> Any:
    value = event.get(name)
    if not isinstance(value, kind):
        raise malformed(f"{event.get('type', 'an event')} whose {name} is not {_JSON_TYPES[kind]}")
    return value
