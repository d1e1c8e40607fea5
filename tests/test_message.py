"""streamcli.protocol.message: what events build, and which events are malformed."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcli.errors import APIError, APIStatusError, OverloadedError, ProtocolError
from streamcli.protocol.message import Accumulator, parsed, text_of

VECTORS = json.loads((Path(__file__).parent / "vectors" / "messages.json").read_text())
ERRORS = {
    "api_error": APIStatusError,
    "malformed": ProtocolError,
    "protocol": ProtocolError,
    "incomplete": type(None),  # the end of the stream is the business of streamcli.protocol.exchange
    "incomplete_tool_input": APIError,
}
START = {"type": "message_start", "message": {"id": "msg_1", "role": "assistant", "content": [], "usage": {}}}
STOP = {"type": "message_stop"}
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def payload(event):
    raw = event.get("raw")
    return json.dumps(event["data"]).encode() if raw is None else raw.encode("utf-8", "surrogatepass")


def accumulate(events, **options):
    """The accumulator after (name, data) pairs, and the error that ended it or None."""
    accumulator = Accumulator(**options)
    try:
        for name, data in events:
            accumulator.receive(name, data)
    except APIError as error:
        return accumulator, error
    return accumulator, None


def built(*events, **options):
    accumulator, error = accumulate([(event["type"], json.dumps(event).encode()) for event in events], **options)
    if error:
        raise error
    return accumulator


def block_start(index, **block):
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index, kind, **fields):
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def block_stop(index):
    return {"type": "content_block_stop", "index": index}


def fits(expect, accumulator, error):
    if "message" in expect:
        message = accumulator.snapshot()
        return (
            error is None
            and accumulator.complete
            and all(message[key] == value for key, value in expect["message"].items())
        )
    if not isinstance(error, ERRORS[expect["error"]]) or accumulator.complete:
        return False
    wanted = {"error_type": lambda: error.type, "error_message": lambda: error.message}
    seen = all(look() == expect[key] for key, look in wanted.items() if key in expect)
    return seen and accumulator.text == expect.get("partial_text", accumulator.text)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_vector(vector):
    accumulator, error = accumulate([(event["event"] or "message", payload(event)) for event in vector["events"]])
    outcomes = [vector["expect"], *vector.get("also_accept", [])]
    assert any(fits(expect, accumulator, error) for expect in outcomes), (error, accumulator.snapshot())


def test_there_are_95_vectors():
    assert len(VECTORS) == 95


@given(st.lists(TEXT))
def test_text_is_its_fragments_joined(fragments):
    deltas = [delta(0, "text_delta", text=fragment) for fragment in fragments]
    accumulator = built(START, block_start(0, type="text", text=""), *deltas, block_stop(0), STOP)
    assert accumulator.snapshot()["content"] == [{"type": "text", "text": "".join(fragments)}]
    assert accumulator.text == "".join(fragments)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


@given(st.dictionaries(TEXT, JSON_VALUES), st.integers(1, 9), st.booleans())
def test_tool_input_survives_any_fragmentation(value, size, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    fragments = [text[i : i + size] for i in range(0, len(text), size)]
    deltas = [delta(0, "input_json_delta", partial_json=fragment) for fragment in fragments]
    tool = block_start(0, type="tool_use", id="toolu_1", name="t", input={})
    accumulator = built(START, tool, *deltas, block_stop(0), STOP)
    assert accumulator.snapshot()["content"][0]["input"] == value


def test_tool_input_cut_anywhere_is_never_passed_on():
    text = json.dumps({"path": "/tmp", "recursive": True, "note": "fin", "n": 12345})
    tool = block_start(0, type="tool_use", id="toolu_1", name="t", input={})
    for cut in range(1, len(text)):
        accumulator = built(START, tool, delta(0, "input_json_delta", partial_json=text[:cut]), block_stop(0), STOP)
        [block] = accumulator.snapshot()["content"]
        assert (block["input"], block["partial_json"]) == ({}, text[:cut])


def test_a_tool_block_left_open_is_closed_by_message_stop():
    tool = block_start(0, type="tool_use", id="toolu_1", name="t", input={})
    whole = built(START, tool, delta(0, "input_json_delta", partial_json='{"a":1}'), STOP)
    assert whole.snapshot()["content"][0]["input"] == {"a": 1}
    cut = built(START, tool, delta(0, "input_json_delta", partial_json='{"a":'), STOP)
    assert cut.snapshot()["content"][0] == {**tool["content_block"], "partial_json": '{"a":'}


def test_the_input_a_block_began_with_stays_where_the_fragments_are_not_whole():
    tool = block_start(0, type="tool_use", id="toolu_1", name="t", input={"q": 1})
    accumulator = built(START, tool, delta(0, "input_json_delta", partial_json='{"a":'), STOP)
    assert accumulator.snapshot()["content"][0]["input"] == {"q": 1}


def test_integers_of_any_size_stay_exact_wherever_they_stand():
    big = 2**80 + 1
    start = {"type": "message_start", "message": {"content": [], "big": big}}
    tool = block_start(0, type="tool_use", id="toolu_1", name="t", input={"n": big})
    amended = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": big}}
    message = built(start, tool, amended, STOP).snapshot()
    assert (message["big"], message["content"][0]["input"]["n"], message["usage"]["output_tokens"]) == (big,) * 3


def test_a_key_beside_the_delta_of_a_message_delta_is_kept():
    amended = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "novelty": 1, "id": "other"}
    message = built(START, amended, STOP).snapshot()
    assert (message["novelty"], message["id"]) == (1, "msg_1")


@pytest.mark.parametrize("kind", ["message_stop", "message_delta", "content_block_stop", "ping"])
def test_text_is_read_only_of_the_events_that_have_some(kind):
    stray = {"type": kind, "index": 0, "delta": {"type": "text_delta", "text": "x"}, "content_block": {"type": "text"}}
    assert text_of(stray) == ""


def test_text_in_message_start_is_text():
    blocks = [{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "t"}, {"type": "text", "text": "b"}]
    event = {"type": "message_start", "message": {"content": blocks}}
    assert text_of(event) == "ab"
    assert built(event, STOP).text == "ab"


def test_blocks_may_interleave():
    accumulator = built(
        START,
        block_start(0, type="text", text=""),
        block_start(1, type="thinking", thinking=""),
        delta(0, "text_delta", text="a"),
        delta(1, "thinking_delta", thinking="b"),
        delta(0, "text_delta", text="c"),
        STOP,
    )
    assert [block.get("text") or block.get("thinking") for block in accumulator.snapshot()["content"]] == ["ac", "b"]


def test_known_deltas_on_a_block_nobody_knows_are_kept():
    hologram = block_start(0, type="hologram", text="a")
    accumulator = built(START, hologram, delta(0, "text_delta", text="b"), STOP)
    assert accumulator.snapshot()["content"] == [{"type": "hologram", "text": "ab"}]


@pytest.mark.parametrize(
    ("kind", "field", "value", "kept"),
    [
        ("signature_delta", "signature", "s", {"signature": "s"}),
        ("citations_delta", "citation", {"a": 1}, {"citations": [{"a": 1}]}),
        ("compaction_delta", "content", "c", {"content": "c"}),
    ],
)
def test_what_comes_whole_in_a_delta_is_kept_on_a_block_nobody_knows_too(kind, field, value, kept):
    accumulator = built(START, block_start(0, type="hologram"), delta(0, kind, **{field: value}), STOP)
    assert accumulator.snapshot()["content"] == [{"type": "hologram", **kept}]


def test_citations_that_are_not_a_list_take_no_further_one():
    with pytest.raises(ProtocolError, match="a text block whose citations are not a list"):
        built(START, block_start(0, type="text", text="", citations="some"), delta(0, "citations_delta", citation={}))


@pytest.mark.parametrize("block", [{"type": "compaction"}, {"type": "text", "text": ""}, {"type": "hologram"}])
def test_a_delta_whose_type_is_empty_is_one_that_nobody_knows(block):
    assert built(START, block_start(0, **block), delta(0, "", text="a"), STOP).snapshot()["content"] == [block]


def test_a_delta_on_a_block_that_comes_whole_is_rejected():
    with pytest.raises(ProtocolError, match="text_delta on a redacted_thinking block"):
        built(START, block_start(0, type="redacted_thinking", data=""), delta(0, "text_delta", text="b"))


def test_an_event_of_an_unknown_name_and_an_unknown_type_is_skipped():
    accumulator = built(START)
    assert accumulator.receive("sparkle", b"no json") is None
    assert accumulator.receive("sparkle", b'{"type":"glitter"}') is None


def test_the_type_decides_also_under_a_name_nobody_knows():
    accumulator = built(START)
    with pytest.raises(APIStatusError):
        accumulator.receive("sparkle", b'{"type":"error"}')
    with pytest.raises(ProtocolError, match="message_stop in an event that is called 'sparkle'"):
        accumulator.receive("sparkle", b'{"type":"message_stop"}')


def test_nothing_counts_after_message_stop():
    accumulator = built(START, STOP)
    assert accumulator.receive("error", b"{}") is None
    assert accumulator.receive("content_block_start", b"rubbish") is None


def test_an_error_event_before_message_start_is_its_class():
    with pytest.raises(OverloadedError) as caught:
        built({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}, "request_id": "req_1"})
    assert (caught.value.status_code, caught.value.request_id) == (529, "req_1")


def test_a_snapshot_never_changes_afterwards():
    events = [
        START,
        block_start(0, type="text", text="", citations=[]),
        delta(0, "text_delta", text="a"),
        delta(0, "citations_delta", citation={"type": "x"}),
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
    ]
    accumulator = Accumulator()
    taken = []
    for event in events:
        accumulator.receive(event["type"], json.dumps(event).encode())
        snapshot = accumulator.snapshot()
        taken.append((snapshot, json.dumps(snapshot)))
    assert all(json.dumps(snapshot) == text for snapshot, text in taken)


def test_without_keep_text_what_is_short_is_whole():
    events = [START, block_start(0, type="text", text="a"), delta(0, "text_delta", text="b"), STOP]
    accumulator = built(*events, keep_text=False)
    assert (accumulator.text, accumulator.whole) == ("ab", True)


def test_without_keep_text_nothing_piles_up_and_everything_is_still_checked():
    accumulator = built(START, block_start(0, type="text", text=""), keep_text=False)
    for _ in range(5):
        accumulator.receive("content_block_delta", json.dumps(delta(0, "text_delta", text="x" * (1 << 20))).encode())
    assert (accumulator.blocks[0].pieces, accumulator.text, accumulator.whole) == ([], "", False)
    for index, fields in [(1, {"type": "text"}), (2, {"type": "hologram"})]:
        block, more = block_start(index, text="a", **fields), delta(index, "text_delta", text="b")
        for event in (block, more):
            accumulator.receive(event["type"], json.dumps(event).encode())
        assert accumulator.blocks[index].pieces == []
    with pytest.raises(ProtocolError):
        accumulator.receive("content_block_delta", json.dumps(delta(0, "text_delta", text=1)).encode())


def test_without_keep_text_tool_inputs_are_kept():
    events = [
        START,
        block_start(0, type="tool_use", input={}),
        delta(0, "input_json_delta", partial_json='{"a":1}'),
        STOP,
    ]
    assert built(*events, keep_text=False).snapshot()["content"][0]["input"] == {"a": 1}


def test_the_fallback_block_names_the_model_that_answered():
    fallback = block_start(0, type="fallback", **{"from": {"model": "a"}, "to": {"model": "b"}})
    assert built(START, fallback, block_stop(0), STOP).snapshot()["model"] == "b"


def test_beta_fields_beside_the_delta_are_kept():
    amend = {"type": "message_delta", "delta": {}, "context_management": {"applied_edits": []}}
    assert built(START, amend, STOP).snapshot()["context_management"] == {"applied_edits": []}


def test_text_of_is_the_text_of_starts_and_deltas_only():
    assert text_of(block_start(0, type="text", text="a")) == "a"
    assert text_of(delta(0, "text_delta", text="b")) == "b"
    assert [text_of(e) for e in (START, STOP, delta(0, "thinking_delta", thinking="c"), block_stop(0))] == [""] * 4


@pytest.mark.parametrize(
    ("name", "data", "event"),
    [
        ("ping", b"", {"type": "ping"}),
        ("ping", b'{"type":"ping"}', {"type": "ping"}),
        ("new", b'{"a":1}', {"type": "new", "a": 1}),
        ("new", b"plain", {"type": "new", "data": "plain"}),
        ("new", b"[1]", {"type": "new", "data": "[1]"}),
    ],
)
def test_parsed_makes_an_object_of_anything(name, data, event):
    assert parsed(name, data) == event


@given(st.lists(st.tuples(st.sampled_from([*sorted(ERRORS), "message", "content_block_start"]), st.binary())))
def test_rubbish_raises_nothing_but_ours(events):
    accumulate([("message_start", json.dumps(START).encode()), *events])
