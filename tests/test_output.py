"""streamcli.output: what each form says, when, and how it ends."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server import (
    MESSAGE_STOP,
    block_stop,
    cut_at,
    event,
    message_delta,
    message_start,
    opening,
    text_delta,
    text_stream,
)

from streamcli import output
from streamcli.errors import APIError, APITimeoutError, IncompleteStreamError, OutputError, status_error
from streamcli.exchange import Exchange
from streamcli.request import Request

HEADERS = {"content-type": "text/event-stream", "request-id": "req_1"}
FORMS = {
    "text": output.Text,
    "events": output.Events,
    "sse": output.Raw,
    "snapshots": output.Snapshots,
    "message": output.Final,
    "summary": lambda: output.Summary(output.Timing(clock=itertools.count().__next__)),
    "text on a terminal": lambda: output.OnTerminal(output.Text()),
    "events on a terminal": lambda: output.OnTerminal(output.Events()),
}


def exchange():
    fresh = Exchange(Request("POST", "http://localhost", {}, b""))
    assert fresh.accepted(200, HEADERS)
    return fresh


def writes(form, *reads, error=None):
    """What the form writes for each network read, and at the end."""
    current = exchange()
    form.begin(current)
    out = []
    for data in reads:
        form.read(data)
        try:
            for received in current.receive(data):
                form.add(received)
        except APIError as fault:
            error = fault
        out.append(form.take())
    form.fail(error) if error else form.finish()
    out.append(form.take())
    return out


def written(form, *reads, error=None):
    return b"".join(writes(form, *reads, error=error))


@pytest.mark.parametrize("name", FORMS)
@given(st.data())
def test_reads_cut_anywhere_make_the_same_output(name, data):
    stream = text_stream("a\r", "\n é\x1b[m\u202e 🌍")
    cuts = data.draw(st.lists(st.integers(0, len(stream))))
    assert written(FORMS[name](), *cut_at(stream, cuts)) == written(FORMS[name](), stream)


@pytest.mark.parametrize("name", FORMS)
def test_nothing_is_left_behind_from_an_attempt_that_failed(name):
    form = FORMS[name]()
    form.begin(exchange())
    current = exchange()
    form.begin(current)
    for received in current.receive(opening("lost\r")):
        form.add(received)
    form.begin(exchange())
    assert form.take() == b""


class TestText:
    def test_each_read_gives_its_text_at_once(self):
        reads = [opening("one", " two"), text_delta(" three"), block_stop() + message_delta() + MESSAGE_STOP]
        assert writes(output.Text(), *reads) == [b"one two", b" three", b"", b""]

    def test_a_failure_adds_nothing(self):
        assert written(output.Text(), opening("Hel"), error=IncompleteStreamError("cut")) == b"Hel"


class TestOnTerminal:
    @pytest.mark.parametrize("text", ["Hel", "Hel\n"])
    @pytest.mark.parametrize("error", [None, IncompleteStreamError("cut")])
    def test_the_line_ends_however_the_run_does(self, text, error):
        assert written(output.OnTerminal(output.Text()), opening(text), error=error) == b"Hel\n"

    def test_a_character_cut_in_two_reads_is_shown_whole(self):
        first, second = opening("é").replace(rb"\u00e9", "é".encode()).split(b"\xa9")
        form = output.OnTerminal(output.Raw())
        shown = writes(form, first, b"\xa9" + second)
        assert shown[0].endswith(b'"text": "')
        assert shown[1].startswith("é".encode())

    def test_events_stay_events(self):
        stream = text_stream("a\x1b")
        assert written(output.OnTerminal(output.Events()), stream) == written(output.Events(), stream)


class TestEvents:
    def test_the_data_goes_out_as_it_came(self):
        stream = message_start() + b'data:{ "type" :"ping" ,"\xc3\xa9":"\xff"}\n\n' + MESSAGE_STOP
        assert written(output.Events(), stream).split(b"\n")[1] == b'{ "type" :"ping" ,"\xc3\xa9":"\xff"}'

    @given(st.binary(max_size=40).filter(lambda data: b"\r" not in data))
    def test_an_unknown_event_is_one_line_of_json_whatever_its_data(self, data):
        lines = b"".join(b"data: %s\n" % line for line in data.split(b"\n"))
        out = written(output.Events(), message_start() + b"event: new\n" + lines + b"\n" + MESSAGE_STOP)
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
        ids=["cut", "timeout", "output", "refusal", "refusal without JSON"],
    )
    def test_the_last_line_is_the_error(self, error, said):
        last = json.loads(written(output.Events(), opening("a"), error=error).splitlines()[-1])
        assert last["type"] == "error"
        assert [last["error"]["type"], last["error"]["message"], last.get("request_id")] == said

    def test_the_last_line_is_the_server_s_own_error_with_all_its_fields(self):
        body = {"type": "error", "error": {"type": "new_error", "message": "m", "extra": [1]}, "request_id": "req_9"}
        data = event("error", **{name: value for name, value in body.items() if name != "type"})
        assert json.loads(written(output.Events(), opening("a"), data).splitlines()[-1]) == body


class TestSnapshots:
    def test_the_last_equals_the_message(self):
        stream = text_stream("a", "b")
        assert written(output.Snapshots(), stream).splitlines(keepends=True)[-1] == written(output.Final(), stream)

    def test_there_is_one_for_every_event_that_builds_the_message(self):
        stream = message_start() + event("ping") + event("unknown", a=1) + message_delta() + MESSAGE_STOP
        assert len(written(output.Snapshots(), stream).splitlines()) == 3


class TestFinal:
    def test_nothing_is_written_of_an_answer_that_failed(self):
        assert written(output.Final(), opening("a"), error=IncompleteStreamError("cut")) == b""


class TestFacts:
    def facts(self, stream, *times):
        timing = output.Timing(clock=iter(times).__next__)
        current = exchange()
        for received in current.receive(stream):
            if timing.first_token is None:
                timing.seen(received)
        timing.stop()
        return output.facts(current, timing)

    def test_times_are_seconds_since_the_request(self):
        known = self.facts(text_stream("a", "b"), 100.0, 100.25, 102.0)
        assert (known["time_to_first_token"], known["duration"], known["output_tokens_per_second"]) == (0.25, 2.0, 3.5)

    def test_what_is_not_known_is_left_out(self):
        assert self.facts(opening(), 1.0, 1.0) == {
            "id": "msg_1", "model": "m", "request_id": "req_1", "input_tokens": 3, "output_tokens": 1, "duration": 0.0
        }  # fmt: skip

    def test_no_message_has_only_its_request_and_its_time(self):
        assert self.facts(b"", 1.0, 3.0) == {"request_id": "req_1", "duration": 2.0}

    def test_counters_keep_the_names_of_the_api(self):
        usage = {
            "input_tokens": 1,
            "cache_read_input_tokens": 0,
            "server_tool_use": {"web_search_requests": 2},
            "x": None,
        }
        lines = dict(output.fact_lines(self.facts(message_start(usage=usage), 0.0, 1.0)))
        assert lines["cache_read_input_tokens"] == "0"
        assert lines["server_tool_use.web_search_requests"] == "2"
        assert "x" not in lines

    def test_a_counter_that_is_no_number_gives_no_rate(self):
        known = self.facts(message_start(usage={"output_tokens": "many"}), 0.0, 1.0)
        assert "output_tokens_per_second" not in known

    @given(st.text(), st.text())
    def test_a_fact_is_one_line_whatever_it_holds(self, model, name):
        stream = message_start(model=model, usage={name: 1}) + MESSAGE_STOP
        lines = written(FORMS["summary"](), stream).decode().split("\n")
        assert lines[0] == "id: msg_1"
        assert all(": " in line for line in lines[:-1])
        assert lines[-1] == ""
