"""streamcli.protocol.records: dicts with attributes, and the events of a stream as they are handed out."""

import copy
import json
import pickle

import orjson
import pytest
from server import MESSAGE_STOP, block_start, block_stop, delta, message_delta, message_start, text_delta, text_events

from streamcli.protocol.message import Accumulator
from streamcli.protocol.records import ContentBlock, Delta, Event, Message, Record, Usage, events
from streamcli.protocol.sse import Decoder

NESTED = {"a": {"b": [{"c": 1}, [{"d": 2}]]}, "items": 3, "usage": {"output_tokens": 4}}


class TestRecord:
    def test_reads_keys_as_attributes_all_the_way_down(self):
        record = Record(NESTED)
        assert record.a.b[0].c == record["a"]["b"][0]["c"] == 1
        assert record.a.b[1][0].d == 2

    def test_is_the_dict_it_was_made_of(self):
        record = Record(NESTED)
        assert record == NESTED
        assert isinstance(record, dict)
        assert json.loads(json.dumps(record)) == orjson.loads(orjson.dumps(record)) == NESTED

    def test_shares_nothing_with_what_it_was_made_of(self):
        source = copy.deepcopy(NESTED)
        record = Record(source)
        record["a"]["b"].append(1)
        record["usage"]["output_tokens"] = 9
        assert source == NESTED

    def test_lacks_with_an_attribute_error_what_was_not_sent(self):
        with pytest.raises(AttributeError, match="Usage has no 'input_tokens'"):
            _ = Record(NESTED).usage.input_tokens
        assert getattr(Record(NESTED), "b", None) is None
        assert not hasattr(Record(NESTED), "b")

    def test_takes_no_attribute_that_would_not_be_a_key(self):
        with pytest.raises(AttributeError):
            Event(NESTED).b = 1

    def test_gives_keys_named_like_methods_by_brackets(self):
        assert Record(NESTED)["items"] == 3

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r)), Record])
    def test_can_be_copied(self, copied):
        record = Record(NESTED)
        other = copied(record)
        assert other == record
        other.a["b"] = None
        assert record == NESTED

    def test_knows_the_kinds_that_the_api_documents(self):
        event = Event({"message": {"content": [{"type": "text"}], "usage": {}}, "delta": {}, "content_block": {}})
        assert [type(x) for x in (event.message, event.message.content[0], event.message.usage)] == [
            Message,
            ContentBlock,
            Usage,
        ]
        assert (type(event.delta), type(event.content_block)) == (Delta, ContentBlock)

    def test_may_be_nested_as_deep_as_a_parser_lets_through(self):
        record = Event(orjson.loads(b'{"a":' * 500 + b"[" * 500 + b"]" * 500 + b"}" * 500))
        assert type(record.a.a.a) is Record


def handed_out(*stream):
    accumulator = Accumulator()
    for raw in Decoder().feed(b"".join(stream)):
        yield from events(accumulator.receive(raw.event, raw.data), accumulator)


def test_a_derived_event_follows_its_delta():
    taken = list(handed_out(*text_events("a", "b")))
    assert [event.type for event in taken] == [
        "message_start",
        "content_block_start",
        *["content_block_delta", "text"] * 2,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert [(event.text, event.snapshot) for event in taken if event.type == "text"] == [("a", "a"), ("b", "ab")]


def test_a_derived_event_has_no_more_keys_than_it_says():
    *_, derived = handed_out(message_start(), block_start(), text_delta("a"))
    assert derived["snapshot"] == "a"
    with pytest.raises(KeyError):
        derived["other"]


def test_a_stop_carries_what_it_ends():
    *_, stop, _, end = handed_out(*text_events("a", "b"))
    assert stop == {"type": "content_block_stop", "index": 0, "content_block": {"type": "text", "text": "ab"}}
    assert end.message.content == [{"type": "text", "text": "ab"}]
    assert end.message.stop_reason == "end_turn"


# A block, the delta that grows it, and what the derived event is called, carries, and shows as its snapshot.
DELTAS = [
    ("text", {"text": ""}, "text_delta", {"text": "a"}, "text", "a"),
    ("tool_use", {"input": {}}, "input_json_delta", {"partial_json": '{"a'}, "input_json", '{"a'),
    ("thinking", {"thinking": ""}, "thinking_delta", {"thinking": "h"}, "thinking", "h"),
    ("text", {"text": ""}, "citations_delta", {"citation": {"b": 1}}, "citation", [{"b": 1}]),
    ("thinking", {"thinking": ""}, "signature_delta", {"signature": "s"}, "signature", None),
    ("compaction", {}, "compaction_delta", {"content": "c"}, "compaction", None),
]


@pytest.mark.parametrize(
    ("block", "start", "kind", "fields", "name", "snapshot"), DELTAS, ids=[row[2] for row in DELTAS]
)
def test_each_known_delta_has_its_derived_event(block, start, kind, fields, name, snapshot):
    *_, raw, derived = handed_out(message_start(), block_start(type=block, **start), delta(kind, **fields))
    assert raw.delta == {"type": kind, **fields}
    assert derived == {"type": name, **fields}
    assert getattr(derived, "snapshot", None) == snapshot


def test_a_delta_that_nobody_knows_has_none():
    *_, last = handed_out(message_start(), block_start(), delta("sparkle_delta", sparkle=1))
    assert last == {"type": "content_block_delta", "index": 0, "delta": {"type": "sparkle_delta", "sparkle": 1}}


def test_text_that_a_block_starts_with_is_text_too():
    taken = list(handed_out(message_start(), block_start(type="text", text="a"), text_delta("b")))
    assert [(event.text, event.snapshot) for event in taken if event.type == "text"] == [("a", "a"), ("b", "ab")]


def test_an_event_that_is_kept_never_changes():
    citation = delta("citations_delta", citation={"a": 1})
    text = [message_start(), block_start(), text_delta("a"), citation, text_delta("b"), citation, block_stop()]
    halves = [delta("input_json_delta", 1, partial_json=half) for half in "{}"]
    tool = [block_start(1, type="tool_use", input={}), *halves, block_stop(1)]
    kept, seen = [], []
    for event in handed_out(*text, *tool, message_delta(), MESSAGE_STOP):
        kept.append(event)
        seen.append((json.dumps(event), json.dumps(getattr(event, "snapshot", None))))
    assert [(json.dumps(event), json.dumps(getattr(event, "snapshot", None))) for event in kept] == seen


def test_a_copied_derived_event_has_its_snapshot_as_a_key():
    *_, text = handed_out(message_start(), block_start(), text_delta("a"))
    assert "snapshot" not in text
    assert copy.deepcopy(text) == {"type": "text", "text": "a", "snapshot": "a"}


def test_what_is_documented_as_nullable_is_none_where_a_server_leaves_it_out():
    message = Message({"content": [{"type": "text", "text": "a"}], "usage": {"input_tokens": 1}})
    assert (message.stop_reason, message.stop_details, message.container) == (None, None, None)
    assert (message.usage.cache_read_input_tokens, message.content[0].citations) == (None, None)
    with pytest.raises(AttributeError):
        _ = message.usage.output_tokens
    with pytest.raises(AttributeError):
        _ = message.content[0].name
    assert json.loads(json.dumps(message)) == message
    assert message.keys() == {"content", "usage"}
