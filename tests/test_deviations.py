"""streamcli.protocol.deviations: what servers really send is read right, and what was wrong with it is named."""

import contextlib
import json
import re
from pathlib import Path

import httpx
import pytest
from faults_command import ask
from hypothesis import example, given, settings
from hypothesis import strategies as st
from server import Server, head

from streamcli import Client
from streamcli.errors import APIError, APIStatusError, ProtocolError
from streamcli.output.formats import Events, FinalMessage, Snapshots, Summary, Text, Thinking
from streamcli.output.meter import Meter
from streamcli.protocol import history, records
from streamcli.protocol.deviations import KINDS
from streamcli.protocol.exchange import Exchange
from streamcli.protocol.jsontext import dumps, loads
from streamcli.protocol.message import text_of
from streamcli.protocol.request import Request

WILD = json.loads((Path(__file__).parent / "vectors" / "wild.json").read_text("utf-8"))
HEADERS = {"content-type": "text/event-stream"}


class Read:
    """What an exchange made of a stream that came in these pieces."""

    def __init__(self, pieces, *, strict=False):
        self.exchange = Exchange(Request("POST", "http://localhost", {}, b"{}"), strict=strict)
        assert self.exchange.accepted(200, HEADERS)
        self.text, self.error, self.raws, self.events = "", None, [], []
        try:
            for piece in pieces:
                for raw, event, _ in self.exchange.receive(self.exchange.body.decoded(piece)):
                    self.raws += [raw] if raw else []
                    if event is not None:
                        self.events.append(event)
                        self.text += text_of(event)
                if self.exchange.complete:
                    break
            self.exchange.end()
        except APIError as error:
            self.error = error

    @property
    def status(self):
        """The exit status, where no stop reason makes it another one."""
        if not isinstance(self.error, APIStatusError):
            return self.error.exit_code if self.error else 0
        return 8 if self.text else 5 if self.error.status_code == 200 else self.error.exit_code

    @property
    def content(self):
        return (self.exchange.snapshot() or {}).get("content")

    def said(self):
        """All that must be the same however the stream is cut."""
        return self.text, self.status, self.content, self.exchange.deviations, str(self.error)


def in_any_order(content):
    return sorted(content, key=lambda block: [str(block.get(key)) for key in ("type", "text", "thinking", "id")])


def alike(block, expected):
    """Of a block the keys that are expected; what is expected to be nothing may be missing."""
    return {key: block.get(key) or value if value in (None, "") else block.get(key) for key, value in expected.items()}


def whole(vector):
    return [vector["stream"].encode()]


@pytest.mark.parametrize("vector", WILD, ids=lambda vector: vector["name"])
class TestWild:
    def test_is_read_as_one_would(self, vector):
        read = Read(whole(vector))
        # What a stop reason makes of a complete answer is the command's business.
        statuses = {0, 9, 11} & {*([vector["status"]] if isinstance(vector["status"], int) else vector["status"])}
        assert read.text == vector["text"]
        assert read.status == (0 if statuses else vector["status"])
        assert read.exchange.deviations.keys() == set(vector.get("deviations", ()))
        if vector.get("content") is not None:
            expected = in_any_order(vector["content"])
            assert [alike(*pair) for pair in zip(in_any_order(read.content), expected, strict=True)] == expected

    def test_is_read_the_same_however_it_is_cut(self, vector):
        [stream] = whole(vector)
        expected = Read([stream]).said()
        assert Read(stream[i : i + 1] for i in range(len(stream))).said() == expected
        for cut in range(1, len(stream)):
            assert Read([stream[:cut], stream[cut:]]).said() == expected

    def test_is_refused_at_its_first_deviation_where_that_is_wanted(self, vector):
        strict = Read(whole(vector), strict=True)
        if "deviations" in vector:
            assert isinstance(strict.error, ProtocolError)
        else:
            assert strict.said() == Read(whole(vector)).said()
        assert strict.exchange.deviations == {}

    def test_its_events_are_well_formed(self, vector):
        """A plain accumulator takes what is handed on, and builds the same message of it."""
        read = Read(whole(vector))
        if read.error or "repeated message_start" in read.exchange.deviations:
            return
        stream = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in read.events)
        again = Read([stream], strict=True)
        if not {"stray stop", "tool input"} & read.exchange.deviations.keys():
            assert again.error is None
            assert (again.text, again.content) == (read.text, read.content)


@pytest.mark.parametrize("vector", WILD, ids=lambda vector: vector["name"])
class TestTheLibrary:
    def test_hands_out_the_same_by_its_plain_loops(self, vector):
        whole_stream = vector["stream"].encode()

        def answer(request):
            return httpx.Response(200, headers=HEADERS, content=whole_stream)

        with Client(
            base_url="http://localhost", max_retries=0, http_client=httpx.Client(transport=httpx.MockTransport(answer))
        ) as client:
            texts, deltas = [], []
            ask = {"model": "m", "max_tokens": 9, "messages": []}
            with contextlib.suppress(APIError), client.messages.stream(**ask) as stream:
                texts.extend(stream.text_stream)
            with contextlib.suppress(APIError), client.messages.stream(**ask) as stream:
                for event in stream:
                    deltas += [event.text] if event.type == "text" else []
        assert "".join(texts) == "".join(deltas) == vector["text"]
        assert stream.deviations.keys() == set(vector.get("deviations", ()))


def test_every_kind_has_a_vector():
    assert {kind for vector in WILD for kind in vector.get("deviations", ())} == KINDS.keys()


def stream(*events):
    return [
        b"".join(b"data: " + (event.encode() if isinstance(event, str) else dumps(event)) + b"\n\n" for event in events)
    ]


START = {"type": "message_start", "message": {"id": "msg_1", "content": []}}
END = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
STOP = {"type": "message_stop"}
STOPPED = {"type": "content_block_stop", "index": 0}


def block_start(index, kind="text", **fields):
    return {"type": "content_block_start", "index": index, "content_block": {"type": kind, kind: "", **fields}}


def delta(index, kind, **fields):
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def text(index, value):
    return delta(index, "text_delta", text=value)


def texts(read):
    assert read.error is None
    return [block["text"] for block in read.content]


class TestIndex:
    def test_blocks_stand_by_their_index_in_whatever_order_they_come(self):
        events = [step for index in (7, -1, 3) for step in (block_start(index), text(index, str(index)))]
        read = Read(stream(START, *events, END, STOP))
        assert texts(read) == ["-1", "3", "7"]
        assert read.text == "7-13"
        assert read.exchange.accumulator.text == "-137"

    @pytest.mark.parametrize("index", ["0", " 0 ", 0.0])
    def test_may_be_text_or_a_fraction_if_it_is_a_whole_number(self, index):
        read = Read(stream(START, block_start(index), text(index, "a"), END, STOP))
        assert texts(read) == ["a"]
        assert read.exchange.deviations == {"index": 2}

    @pytest.mark.parametrize("index", [True, 0.5, "zero", [], {}, "1e3", ""])
    def test_that_is_no_whole_number_stays_an_error(self, index):
        assert isinstance(Read(stream(START, block_start(index), STOP)).error, ProtocolError)

    def test_that_comes_again_after_others_is_a_block_behind_them(self):
        events = [block_start(0), text(0, "a"), STOPPED, block_start(1), text(1, "b"), block_start(0), text(0, "c")]
        assert texts(Read(stream(START, *events, END, STOP))) == ["a", "b", "c"]

    def test_of_a_block_beside_another_is_free_for_the_server_s_own(self):
        events = [block_start(0, "thinking"), text(0, "a"), block_start(1), text(1, "b"), text(0, "c")]
        read = Read(stream(START, *events, END, STOP))
        assert [block.get("text") for block in read.content] == [None, "ac", "b"]
        assert read.exchange.deviations == {"kind": 1, "index": 1}


class TestStarts:
    def test_that_bring_something_begin_a_block(self):
        events = [block_start(0), text(0, "a"), block_start(0, text="b"), text(0, "c")]
        assert texts(Read(stream(START, *events, END, STOP))) == ["a", "bc"]

    def test_of_the_same_tool_go_on_with_it_and_of_another_do_not(self):
        tool = {"kind": "tool_use", "tool_use": None, "input": {}}
        one, other = block_start(0, id="1", name="t", **tool), block_start(0, id="2", name="t", **tool)
        fragment = delta(0, "input_json_delta", partial_json='{"a":')
        rest = delta(0, "input_json_delta", partial_json="1}")
        read = Read(stream(START, one, fragment, one, rest, other, fragment, rest, END, STOP))
        assert [(block["id"], block["input"]) for block in read.content] == [("1", {"a": 1}), ("2", {"a": 1})]
        assert read.exchange.deviations == {"repeated start": 1, "index": 1}

    def test_that_are_missing_are_put_in_for_text_and_thinking_only(self):
        read = Read(stream(START, text(0, "a"), delta(3, "thinking_delta", thinking="t"), text(0, "b"), END, STOP))
        assert read.content == [{"type": "text", "text": "ab"}, {"type": "thinking", "thinking": "t"}]
        for kind, field in (("input_json_delta", "partial_json"), ("signature_delta", "signature")):
            assert isinstance(Read(stream(START, delta(0, kind, **{field: "x"}), STOP)).error, ProtocolError)


class TestMessageStart:
    def test_that_is_missing_is_put_in_without_what_nobody_sent(self):
        read = Read(stream(block_start(0), text(0, "a"), END, STOP))
        assert read.exchange.snapshot() == {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": "a"}],
            "stop_reason": "end_turn",
        }

    @pytest.mark.parametrize("event", [STOP, {"type": "message_delta", "delta": {"content": "lost?"}}])
    def test_is_not_put_in_before_what_does_not_show_a_message(self, event):
        assert isinstance(Read(stream(event, STOP)).error, ProtocolError)

    def test_that_comes_again_counts_only_before_any_content(self):
        later = {"type": "message_start", "message": {"id": "msg_2", "content": []}}
        read = Read(stream(START, later, block_start(0), END, STOP))
        assert read.exchange.snapshot()["id"] == "msg_2"
        assert isinstance(Read(stream(START, block_start(0), later, END, STOP)).error, ProtocolError)


class TestDone:
    def test_after_a_stop_reason_ends_the_message(self):
        read = Read(stream(START, block_start(0), text(0, "a"), END, "[DONE]"))
        assert texts(read) == ["a"]
        assert read.events[-1] == STOP

    def test_before_one_ends_nothing(self):
        read = Read(stream(START, block_start(0), text(0, "a"), "[DONE]"))
        assert "ended before message_stop" in str(read.error)
        assert read.exchange.deviations == {"[DONE]": 1}

    def test_under_a_name_of_its_own_is_the_same(self):
        [before] = stream(START, block_start(0), END)
        assert Read([before + b"event: done\ndata: [DONE]\n\n"]).error is None

    def test_joined_to_the_event_before_it_is_the_same(self):
        [before] = stream(START, block_start(0))
        read = Read([before + b"data: " + json.dumps(END).encode() + b"\ndata: [DONE]\n\n"])
        assert read.error is None
        assert read.exchange.deviations == {"joined events": 1, "[DONE]": 1}


class TestToolInput:
    @pytest.mark.parametrize(
        ("fragment", "value"),
        [('{"a":"b\tc\n"}', {"a": "b\tc\n"}), ("[1,2]", [1, 2]), ('"x"', "x"), ("3", 3), ('{}{"a":1}', {"a": 1})],
    )
    def test_that_has_one_reading_is_taken_as_what_it_is(self, fragment, value):
        tool = block_start(0, "tool_use", id="1", name="t", input={}, tool_use=None)
        read = Read(stream(START, tool, delta(0, "input_json_delta", partial_json=fragment), END, STOP))
        assert read.content[0]["input"] == value
        assert "partial_json" not in read.content[0]
        assert read.exchange.deviations == {"tool input": 1}

    @pytest.mark.parametrize("fragment", ['{"a":', "{a: 1}", '{"a": NaN}', '{"a":1}{"b":2}', '{}{"a":', "{}}"])
    def test_that_has_none_is_kept_as_text_and_no_deviation(self, fragment):
        tool = block_start(0, "tool_use", id="1", name="t", input={}, tool_use=None)
        for strict in (False, True):
            read = Read(
                stream(START, tool, delta(0, "input_json_delta", partial_json=fragment), END, STOP), strict=strict
            )
            assert (read.error, read.exchange.deviations) == (None, {})
            assert (read.content[0]["input"], read.content[0]["partial_json"]) == ({}, fragment)


class TestNothing:
    @pytest.mark.parametrize(
        "event",
        [
            {"type": "content_block_delta", "index": 0, "delta": None},
            delta(0, "text_delta", text=None),
            delta(0, "citations_delta", citation=None),
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": None}},
        ],
    )
    def test_is_handed_on_of_a_null(self, event):
        read = Read(stream(START, block_start(0), event, text(0, "a"), END, STOP))
        assert texts(read) == ["a"]
        assert read.exchange.deviations == {"null": 1}
        assert len(read.events) == 5

    @pytest.mark.parametrize("data", ["keep-alive", "null", "", "200 OK"])
    def test_is_in_an_unnamed_event_that_does_not_begin_like_json(self, data):
        read = Read(stream(START, block_start(0), data, text(0, "a"), END, STOP))
        assert texts(read) == ["a"]
        assert read.exchange.deviations == {"no data": 1}

    @pytest.mark.parametrize("data", ['{"type": "content_bl', "[1, 2]", '"half', "7"])
    def test_is_lost_where_the_data_might_have_been_something(self, data):
        assert isinstance(Read(stream(START, block_start(0), data, END, STOP)).error, ProtocolError)

    @pytest.mark.parametrize("data", ["half", "[1]", '{"type": "novelty"}'])
    def test_is_in_an_event_of_an_unknown_name_and_kind(self, data):
        [before] = stream(START, block_start(1))
        [after] = stream(text(1, "a"), END, STOP)
        read = Read([before + f"event: novelty\ndata: {data}\n\n".encode() + after])
        assert texts(read) == ["a"]
        assert read.exchange.deviations == {"index": 1}

    def test_is_in_what_follows_the_end(self):
        read = Read(stream(START, block_start(1), text(1, "a"), END, STOP))
        assert [received.event for received in read.exchange.receive(b"data: [DONE]\n\n")] == [None]
        assert read.exchange.deviations == {"index": 1}


class TestErrors:
    @pytest.mark.parametrize(
        "body", [{"error": {"message": "m"}}, {"error": "m"}, {"object": "error", "message": "m"}, {"detail": "m"}]
    )
    def test_without_the_envelope_are_errors(self, body):
        error = Read(stream(START, body)).error
        assert isinstance(error, APIStatusError)
        assert error.message == "m"
        assert error.data == dumps(body)

    @pytest.mark.parametrize("kind", [[], {}, 7])
    def test_are_deltas_whose_type_is_not_a_string_also_where_no_block_is_open(self, kind):
        assert isinstance(Read(stream(START, delta(0, kind, text="a"), STOP)).error, ProtocolError)

    def test_of_another_protocol_name_it(self):
        error = Read(stream({"object": "chat.completion.chunk", "choices": [{"delta": {"content": "hi"}}]})).error
        assert error.exit_code == 3
        assert "Chat Completions" in error.message


def test_a_line_for_each_kind_says_where_it_came_first_and_how_often():
    read = Read(stream(START, block_start(1), text(1, "a"), block_start(4), END, STOP))
    assert read.exchange.deviation_lines() == ["deviation: index: content block 1 was started without 0 (×2)"]  # noqa: RUF001


# Any JSON value at any place of any event gives the answer or one of our errors, in every output format.

ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.text(max_size=5) | st.sampled_from([0.5, "text", "error"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
EVENTS = [
    START
    | {"message": {"id": "msg_1", "model": "m", "content": [], "usage": {"input_tokens": 3}, "stop_reason": None}},
    block_start(0, "thinking", signature=""),
    delta(0, "thinking_delta", thinking="hm"),
    delta(0, "signature_delta", signature="s"),
    STOPPED,
    block_start(1),
    text(1, "a"),
    delta(1, "citations_delta", citation={"type": "char_location", "cited_text": "c"}),
    STOPPED | {"index": 1},
    {"type": "ping"},
    block_start(2, "tool_use", id="t", name="n", input={}, tool_use=None),
    delta(2, "input_json_delta", partial_json='{"a": 1}'),
    STOPPED | {"index": 2},
    END | {"usage": {"output_tokens": 7}, "context_management": {"edits": []}},
    STOP,
]


def places(value, path=()):
    """The way to every value inside one."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


PLACES = [path for path in places(EVENTS) if path]


def changed(value, path, new):
    if not path:
        return new
    made = dict(value) if isinstance(value, dict) else list(value)
    if path[1:] or not isinstance(made, dict) or path[0] in made:
        made[path[0]] = changed(made[path[0]], path[1:], new) if path[1:] else new
    return made


def written(events, *, strict=False):
    """Have every output format write the events; the error of ours that ended that, or None."""
    meter = Meter()
    writers = [Text(), Events(), FinalMessage(), Snapshots(), Summary(meter), Thinking()]
    exchange = Exchange(Request("POST", "http://localhost", {}, b"{}"), strict=strict)
    exchange.accepted(200, HEADERS)
    for writer in writers:
        writer.begin(exchange)
    [data] = stream(*events)
    try:
        for received in exchange.receive(data):
            for writer in writers:
                writer.add(received)
                writer.take()
            if received.event is not None:
                list(records.events(received.event, exchange.accumulator))
        exchange.end()
    except APIError as error:
        for writer in writers:
            writer.fail(error)
            writer.take()
        json.dumps(error.evidence())
        return
    meter.stop()
    for writer in writers:
        writer.finish()
        writer.take()
    history.sendable(exchange.snapshot()["content"])
    return


class TestAnyValueAnywhere:
    @settings(max_examples=300)
    @given(st.lists(st.tuples(st.sampled_from(PLACES), ANY), min_size=1, max_size=3), st.booleans())
    @example([((13, "delta", "stop_reason"), ["end_turn"])], False)
    def test_gives_the_answer_or_one_of_our_errors(self, changes, strict):
        events = EVENTS
        for path, new in changes:
            with contextlib.suppress(TypeError, KeyError, IndexError):
                events = changed(events, path, new)
        written(events, strict=strict)

    @pytest.mark.parametrize("path", [(10, "content_block", "input"), (0, "message", "new"), (7, "delta", "citation")])
    def test_may_be_nested_as_deep_as_can_be_read(self, path):
        deep = {"deep": loads(b"[" * 900 + b"]" * 900)}
        assert written(changed(EVENTS, path, deep)) is None

    @given(ANY)
    def test_of_an_error_response_is_an_error(self, body):
        exchange = Exchange(Request("POST", "http://localhost", {}, b"{}"))
        for data in (body, {"error": body}, {"error": {"type": body, "message": body, "details": body, "code": body}}):
            error = exchange.error_response(429, {}, json.dumps(data).encode())
            assert error.exit_code == 5
            json.dumps(error.evidence())
            assert str(error)


# The same through the command.

FORMATS = ["text", "events", "message", "summary", "snapshots", "sse"]


@pytest.mark.parametrize("vector", WILD, ids=lambda vector: vector["name"])
class TestTheCommand:
    @pytest.fixture
    def asked(self, vector):
        """A function that asks a server that says the vector."""
        with Server(head() + vector["stream"].encode()) as server:
            yield lambda *argv: ask(server, *argv)

    def test_names_what_deviated_and_ends_with_the_same_status_in_every_output_format(self, vector, asked):
        statuses = {vector["status"]} if isinstance(vector["status"], int) else {*vector["status"]}
        for name in FORMATS:
            ended = asked(*(["-v"] if name == "text" else [f"--{name}"]))
            # An error event is 8 once something was written, which is sooner in one format than in another.
            assert ended.status in statuses | ({8 if ended.out else 5} if "error" in vector["name"] else set())
            if name == "text":
                assert ended.out.decode() == vector["text"]
                named = re.findall(r"^streamcli: deviation: ([^:]+): .* \(×\d+\)$", ended.err, re.MULTILINE)  # noqa: RUF001
                assert sorted(named) == sorted(vector.get("deviations", ()))
            elif name == "message" and vector.get("content") is not None:
                content = in_any_order(json.loads(ended.out)["content"])
                expected = in_any_order(vector["content"])
                assert [alike(*pair) for pair in zip(content, expected, strict=True)] == expected
            elif name == "events" and ended.out:
                lines = [json.loads(line) for line in ended.out.splitlines()]
                assert all(isinstance(line, dict) for line in lines)
            elif name == "sse":
                assert vector["stream"].encode().startswith(ended.out.removesuffix(b"\n"))

    def test_refuses_it_where_that_is_wanted(self, vector, asked):
        if "deviations" in vector:
            assert asked("--strict").status == 8
