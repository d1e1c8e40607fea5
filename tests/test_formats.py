"""streamcli.output.formats: what each format says, when, and how it ends."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server import (
    MESSAGE_STOP,
    block_start,
    block_stop,
    cut_at,
    delta,
    event,
    message_delta,
    message_start,
    opening,
    text_delta,
    text_events,
    text_stream,
)

from streamcli.cli.io import Diagnostics
from streamcli.cli.outputs import Output
from streamcli.errors import APIError, APITimeoutError, IncompleteStreamError, OutputError, status_error
from streamcli.output import formats
from streamcli.output import meter as meters
from streamcli.output.terminal import Shown
from streamcli.protocol.exchange import Exchange
from streamcli.protocol.request import Request


class Kept:
    """What an output writes, until it is taken."""

    def __init__(self):
        self.parts = []

    def write(self, data):
        self.parts.append(data)


def shown(output_format, *, visible, ends_line):
    return Output(output_format, Kept(), Shown(visible=visible, ends_line=ends_line))


def on_terminal(output_format):
    return shown(output_format, visible=True, ends_line=True)


def output(made):
    """`made`, or the output of the format that it is."""
    return made if isinstance(made, Output) else Output(made, Kept())


HEADERS = {"content-type": "text/event-stream", "request-id": "req_1"}
OUTPUT_FORMATS = {
    "text": formats.Text,
    "events": formats.Events,
    "sse": formats.RawStream,
    "snapshots": formats.Snapshots,
    "message": formats.FinalMessage,
    "summary": lambda: formats.Summary(meters.Meter(clock=itertools.count().__next__)),
    "smooth text": lambda: formats.SmoothText(4),
    "thoughts": formats.Thinking,
    "text on a terminal": lambda: on_terminal(formats.Text()),
    "text made visible": lambda: shown(formats.Text(), visible=True, ends_line=False),
    "text obeyed on a terminal": lambda: shown(formats.Text(), visible=False, ends_line=True),
    "events on a terminal": lambda: on_terminal(formats.Events()),
}


def exchange():
    fresh = Exchange(Request("POST", "http://localhost", {}, b""))
    assert fresh.accepted(200, HEADERS)
    return fresh


def writes(made, *reads, error=None):
    """What the format writes for each network read, and at the end."""
    current, out_of = exchange(), output(made)
    output_format = out_of.format
    out_of.begin(current)
    out = []
    for data in reads:
        output_format.read(data)
        try:
            for received in current.receive(data):
                output_format.add(received)
        except APIError as fault:
            error = fault
        out.append(taken(out_of))
    if error:
        out_of.fail(error, Diagnostics())
    else:
        output_format.finish()
    return [*out, taken(out_of, last=not error)]


def taken(made, *, last=False):
    made.flush(last=last)
    parts, made.descriptor.parts = made.descriptor.parts, []
    return b"".join(parts)


def written(output_format, *reads, error=None):
    return b"".join(writes(output_format, *reads, error=error))


@pytest.mark.parametrize("name", OUTPUT_FORMATS)
@given(st.data())
def test_reads_cut_anywhere_make_the_same_output(name, data):
    stream = text_stream("a\r", "\n é\x1b[m\u202e 🌍")
    cuts = data.draw(st.lists(st.integers(0, len(stream))))
    assert written(OUTPUT_FORMATS[name](), *cut_at(stream, cuts)) == written(OUTPUT_FORMATS[name](), stream)


@pytest.mark.parametrize("name", OUTPUT_FORMATS)
def test_nothing_is_left_behind_from_an_attempt_that_failed(name):
    made = output(OUTPUT_FORMATS[name]())
    made.begin(exchange())
    current = exchange()
    made.begin(current)
    for received in current.receive(opening("lost\r")):
        made.format.add(received)
    made.begin(exchange())
    assert taken(made) == b""


class TestText:
    def test_each_read_gives_its_text_at_once(self):
        reads = [opening("one", " two"), text_delta(" three"), block_stop() + message_delta() + MESSAGE_STOP]
        assert writes(formats.Text(), *reads) == [b"one two", b" three", b"", b""]

    def test_a_failure_adds_nothing(self):
        assert written(formats.Text(), opening("Hel"), error=IncompleteStreamError("cut")) == b"Hel"


class TestOnTerminal:
    @pytest.mark.parametrize("text", ["Hel", "Hel\n"])
    @pytest.mark.parametrize("error", [None, IncompleteStreamError("cut")])
    def test_the_line_ends_however_the_run_does(self, text, error):
        assert written(on_terminal(formats.Text()), opening(text), error=error) == b"Hel\n"

    def test_a_character_cut_in_two_reads_is_shown_whole(self):
        first, second = opening("é").replace(rb"\u00e9", "é".encode()).split(b"\xa9")
        output_format = on_terminal(formats.RawStream())
        shown = writes(output_format, first, b"\xa9" + second)
        assert shown[0].endswith(b'"text": "')
        assert shown[1].startswith("é".encode())

    def test_a_line_that_a_pause_broke_off_is_ended_though_nothing_follows(self):
        made = on_terminal(formats.Text())
        made.begin(exchange())
        for received in made.format.exchange.receive(text_stream("a")):
            made.format.add(received)
        out = taken(made)
        made.format.turn(tools=False)
        made.begin(exchange())
        made.format.finish()
        assert out + taken(made, last=True) == b"a\n"

    def test_events_stay_events(self):
        stream = text_stream("a\x1b")
        assert written(on_terminal(formats.Events()), stream) == written(formats.Events(), stream)


class TestEvents:
    def test_the_data_goes_out_as_it_came(self):
        stream = message_start() + b'data:{ "type" :"ping" ,"\xc3\xa9":"\xff"}\n\n' + MESSAGE_STOP
        assert written(formats.Events(), stream).split(b"\n")[1] == b'{ "type" :"ping" ,"\xc3\xa9":"\xff"}'

    @given(st.binary(max_size=40).filter(lambda data: b"\r" not in data))
    def test_an_unknown_event_is_one_line_of_json_whatever_its_data(self, data):
        lines = b"".join(b"data: %s\n" % line for line in data.split(b"\n"))
        out = written(formats.Events(), message_start() + b"event: new\n" + lines + b"\n" + MESSAGE_STOP)
        assert out.count(b"\n") == 3
        assert isinstance(json.loads(out.split(b"\n")[1].decode("utf-8", "replace")), dict)

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (IncompleteStreamError("cut", request_id="req_1"), ["streamcli.incomplete_stream", "cut", "req_1"]),
            (APITimeoutError("late"), ["streamcli.timeout_error", "late", None]),
            (OutputError("full"), ["streamcli.output_error", "full", None]),
            (
                status_error(429, {"error": {"type": "rate_limit_error", "message": "slower"}}, request_id="req_1"),
                ["rate_limit_error", "slower", None],
            ),
            (status_error(502, "<html>", request_id="req_1"), ["streamcli.status_error", "<html>", "req_1"]),
        ],
        ids=["cut", "timeout", "output", "error response", "error response without JSON"],
    )
    def test_the_last_line_is_the_error(self, error, said):
        last = json.loads(written(formats.Events(), opening("a"), error=error).splitlines()[-1])
        assert last["type"] == "error"
        assert [last["error"]["type"], last["error"]["message"], last.get("request_id")] == said

    def test_the_last_line_is_the_server_s_own_error_with_all_its_fields(self):
        body = {"type": "error", "error": {"type": "new_error", "message": "m", "extra": [1]}, "request_id": "req_9"}
        data = event("error", **{name: value for name, value in body.items() if name != "type"})
        assert json.loads(written(formats.Events(), opening("a"), data).splitlines()[-1]) == body


class TestSnapshots:
    def test_the_last_equals_the_message(self):
        stream = text_stream("a", "b")
        assert written(formats.Snapshots(), stream).splitlines(keepends=True)[-1] == written(
            formats.FinalMessage(), stream
        )

    def test_there_is_one_for_every_event_that_builds_the_message(self):
        stream = message_start() + event("ping") + event("unknown", a=1) + message_delta() + MESSAGE_STOP
        assert len(written(formats.Snapshots(), stream).splitlines()) == 3


class TestSmoothText:
    def test_each_piece_is_a_sentence_or_as_long_as_was_asked(self):
        pieces = writes(formats.SmoothText(8), text_stream("Yes. No", "! Perhaps not"))
        assert [piece for piece in pieces if piece] == [b"Yes. No! Perhaps ", b"not"]

    def test_each_is_taken_alone(self):
        output_format = formats.SmoothText(80)
        output_format.begin(exchange())
        for received in output_format.exchange.receive(text_stream("One. Two. Thr")):
            output_format.add(received)
        assert list(iter(output_format.take, b"")) == [b"One. ", b"Two. "]
        output_format.finish()
        assert list(iter(output_format.take, b"")) == [b"Thr"]

    def test_what_was_held_of_a_failed_attempt_is_dropped_by_the_next(self):
        output_format = formats.SmoothText(80)
        output_format.begin(exchange())
        for received in output_format.exchange.receive(opening("One. Tw")):
            output_format.add(received)
        assert output_format.take() == b"One. "
        output_format.begin(exchange())
        output_format.finish()
        assert output_format.take() == b""

    def test_one_read_may_hold_any_number_of_pieces(self):
        assert len(writes(formats.SmoothText(2), text_stream("a" * 3_000_000))[0]) == 3_000_000  # minutes, if quadratic

    @given(st.lists(st.text()), st.integers(1, 9))
    def test_it_is_the_text(self, texts, most):
        assert written(formats.SmoothText(most), text_stream(*texts)) == written(formats.Text(), text_stream(*texts))


class TestExtract:
    def test_nothing_is_written_before_the_end(self):
        assert writes(formats.Extract(), *text_events("```\na\n```\n"))[:-1] == [b""] * 6

    def test_an_answer_that_failed_leaves_nothing(self):
        assert written(formats.Extract(), opening("```\na\n```\n"), error=IncompleteStreamError("cut")) == b""

    def test_without_a_block_it_is_nothing(self):
        assert written(formats.Extract(), text_stream("a")) == b""


class TestThinking:
    def stream(self, *thoughts):
        start = [message_start(), block_start(type="thinking", thinking="", signature="")]
        return b"".join([*start, *(delta("thinking_delta", thinking=thought) for thought in thoughts)])

    def test_they_end_their_line(self):
        assert written(formats.Thinking(), self.stream("a", "b") + block_stop()) == b"ab\n"
        assert written(formats.Thinking(), self.stream("a\n") + block_stop()) == b"a\n"

    def test_they_end_it_where_the_stream_is_cut(self):
        assert written(formats.Thinking(), self.stream("a"), error=IncompleteStreamError("cut")) == b"a\n"

    def test_text_is_none(self):
        assert written(formats.Thinking(), text_stream("a")) == b""


RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "7"}


class TestTurns:
    """What follows where a message is complete and tools were run."""

    def two(self, made, results, *texts):
        out, out_of = [], output(made)
        output_format = out_of.format
        for place, text in enumerate(texts):
            out_of.begin(exchange())
            for received in output_format.exchange.receive(text_stream(text)):
                output_format.add(received)
            out.append(taken(out_of))
            if place < len(texts) - 1:
                output_format.turn(tools=bool(results))
                output_format.results(results)
                out.append(taken(out_of))
        output_format.finish()
        return b"".join([*out, taken(out_of, last=True)])

    def test_text_after_tools_begins_on_a_line_of_its_own(self):
        assert self.two(formats.Text(), [RESULT], "a", "b") == b"a\nb"
        assert self.two(formats.Text(), [RESULT], "a\n", "b") == b"a\nb"
        assert self.two(formats.Text(), [RESULT], "", "b") == b"b"
        assert self.two(formats.SmoothText(9), [RESULT], "a", "b") == b"a\nb"

    def test_text_after_a_pause_goes_on(self):
        assert self.two(formats.Text(), [], "a", "b") == b"ab"
        assert self.two(formats.SmoothText(9), [], "a", "b") == b"ab"

    def test_a_terminal_ends_the_line_before_the_tools_are_run(self):
        made = on_terminal(formats.Text())
        made.begin(exchange())
        for received in made.format.exchange.receive(text_stream("a")):
            made.format.add(received)
        made.format.turn(tools=True)
        assert taken(made) == b"a\n"

    def test_a_terminal_shows_one_line_end_between_turns(self):
        assert self.two(on_terminal(formats.Text()), [RESULT], "a", "b") == b"a\nb\n"

    def test_events_hold_the_results(self):
        line = self.two(formats.Events(), [RESULT], "a", "b").splitlines()[6]
        assert json.loads(line) == RESULT | {"type": "streamcli.tool_result"}

    def test_a_block_may_span_a_pause_and_not_tools(self):
        assert self.two(formats.Extract(), [], "```\na", "b\n```") == b"ab\n"
        assert self.two(formats.Extract(), [RESULT], "```\na\n```", "b") == b""


class TestFinal:
    def test_nothing_is_written_of_an_answer_that_failed(self):
        assert written(formats.FinalMessage(), opening("a"), error=IncompleteStreamError("cut")) == b""


class TestSummary:
    @given(st.text(), st.text())
    def test_a_fact_is_one_line_whatever_it_holds(self, model, name):
        stream = message_start(model=model, usage={name: 1}) + MESSAGE_STOP
        lines = written(OUTPUT_FORMATS["summary"](), stream).decode().split("\n")
        assert lines[0] == "id: msg_1"
        assert all(": " in line for line in lines[:-1])
        assert lines[-1] == ""
