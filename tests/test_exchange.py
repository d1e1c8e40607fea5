"""streamcli.protocol.exchange: what an answer means, when to try again, how a stream ends."""

import json

import pytest
from server import MESSAGE_STOP, block_start, event, message_start, opening, text_delta, text_events, text_stream

from streamcli.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    GatewayTimeoutError,
    IncompleteStreamError,
    InternalServerError,
    NotFoundError,
    OverloadedError,
    ProtocolError,
    RateLimitError,
    UnexpectedResponseError,
)
from streamcli.protocol.exchange import Exchange
from streamcli.protocol.request import Request

STREAM = {"content-type": "text/event-stream", "request-id": "req_1"}


def exchange(**options):
    return Exchange(Request("POST", "https://host/v1/messages", {}, b"{}"), **options)


def begun(**options):
    begun = exchange(**options)
    assert begun.accepted(200, STREAM)
    return begun


class TestAnEventStreamIsAcceptedByItsHead:
    @pytest.mark.parametrize("kind", ["text/event-stream", "Text/Event-Stream ; charset=latin-1", "text/event-stream;"])
    def test_in_any_case_and_with_parameters(self, kind):
        assert exchange().accepted(200, {"content-type": kind})

    @pytest.mark.parametrize(
        ("status", "headers"),
        [
            (202, STREAM),
            (204, STREAM),
            (301, STREAM),
            (429, STREAM),
            (200, {}),
            (200, {"content-type": "text/event-streams"}),
            (200, {"content-type": "text/html"}),
            (200, {**STREAM, "content-encoding": "br"}),
        ],
    )
    def test_and_by_nothing_else(self, status, headers):
        assert not exchange().accepted(status, headers)

    @pytest.mark.parametrize("coding", [" Identity ", "none", "utf-8", "gzip", "deflate"])
    def test_in_a_coding_that_can_be_undone(self, coding):
        assert exchange().accepted(200, {**STREAM, "content-encoding": coding})

    @pytest.mark.parametrize("status", [200, 201, 203])
    def test_with_the_statuses_that_servers_send_it_with(self, status):
        assert exchange().accepted(status, STREAM)

    @pytest.mark.parametrize(("status", "headers"), [(201, STREAM), (200, {**STREAM, "content-encoding": "gzip"})])
    def test_but_only_as_documented_where_that_is_wanted(self, status, headers):
        assert exchange(strict=True).accepted(status, headers) is False


def error_body(kind, message="no"):
    return json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()


REFUSED = error_body("overloaded_error")
AS_JSON = {"content-type": "application/json"}


class TestRefusal:
    @pytest.mark.parametrize(
        ("status", "headers", "body", "cls", "exit_code", "words"),
        [
            (400, {}, REFUSED, BadRequestError, 3, "status 400 overloaded_error: no"),
            (401, {}, REFUSED, AuthenticationError, 4, "status 401"),
            (429, {"retry-after": "61"}, REFUSED, RateLimitError, 5, "says to wait 61 s"),
            (529, {}, b"", OverloadedError, 5, "status 529: the server gave no reason"),
            (413, {}, b"<h1>Too\n  large</h1>", APIStatusError, 3, "status 413: Too large"),
            (404, {}, b'{"detail":"Not Found"}', NotFoundError, 3, 'status 404: {"detail":"Not Found"}'),
            (404, {}, b'{"error":"gone"}', NotFoundError, 3, "status 404: gone; asked https://host/v1/messages"),
            (400, {}, b"\xff\xfe\x00", BadRequestError, 3, "status 400"),
            (400, {"content-encoding": "gzip"}, b"it is not", BadRequestError, 3, "status 400: it is not"),
            (400, {}, b"x" * 9000, BadRequestError, 3, "x…"),
            (200, AS_JSON, REFUSED, OverloadedError, 5, "overloaded"),
            (307, {"location": "https://evil/\nx"}, b"", APIStatusError, 3, "redirect to https://evil/ x is not"),
            (302, {}, b"", APIStatusError, 3, "redirect to nowhere"),
            (
                502,
                {"server": "nginx"},
                b"",
                InternalServerError,
                5,
                "502: the gateway at host (nginx) gave no reason",
            ),
            (504, {}, b" \n", GatewayTimeoutError, 5, "status 504: the gateway at host gave no reason"),
            (407, {}, b"", APIConnectionError, 6, "proxy"),
            (204, {}, b"", IncompleteStreamError, 8, "empty"),
            (200, STREAM, b"", IncompleteStreamError, 8, "empty"),
            (200, {"content-type": "text/html"}, b"<p>Hi</p>", UnexpectedResponseError, 3, "text/html: Hi"),
            (200, {}, b"hi", UnexpectedResponseError, 3, "data without a content type: hi"),
            (
                200,
                {**STREAM, "content-encoding": "br"},
                b"\x01",
                UnexpectedResponseError,
                3,
                "the response is in the coding br",
            ),
            (200, AS_JSON, b'{"type":"message"}', UnexpectedResponseError, 3, "application/json"),
            (201, STREAM, b"data: 1", UnexpectedResponseError, 3, "data: 1"),
        ],
    )
    def test_is_the_error_that_the_answer_is(self, status, headers, body, cls, exit_code, words):
        error = exchange().error_response(status, headers, body)
        assert isinstance(error, cls)
        assert error.exit_code == exit_code
        assert words in str(error)
        assert "\n" not in str(error)

    def test_carries_the_request_id_of_the_head_or_else_of_the_body(self):
        body = json.dumps({"type": "error", "error": {}, "request_id": "req_body"}).encode()
        assert exchange().error_response(400, {"request-id": "req_head"}, body).request_id == "req_head"
        assert exchange().error_response(400, {}, body).request_id == "req_body"
        assert exchange().error_response(302, {"request-id": "req_head"}, b"").request_id == "req_head"


class TestAnswer:
    def test_is_the_object_of_the_body(self):
        assert exchange().json_object(200, {}, b'{"input_tokens":3}') == {"input_tokens": 3}

    @pytest.mark.parametrize(
        ("status", "body", "cls"),
        [
            (200, b"[1]", UnexpectedResponseError),
            (200, b"<p>", UnexpectedResponseError),
            (200, error_body("overloaded_error"), OverloadedError),
            (400, b'{"input_tokens":3}', BadRequestError),
            (200, b"", IncompleteStreamError),
        ],
    )
    def test_anything_else_is_an_error(self, status, body, cls):
        with pytest.raises(cls):
            exchange().json_object(status, {}, body)


class TestFailedAttempts:
    def test_are_counted_until_none_is_left(self):
        tried = exchange(max_retries=2)
        waits = [tried.failed(APIConnectionError("refused")) for _ in range(2)]
        assert 0.375 <= waits[0] <= 0.5
        assert 0.75 <= waits[1] <= 1
        fault = APIConnectionError("refused again")
        with pytest.raises(APIConnectionError) as caught:
            tried.failed(fault)
        assert caught.value is fault
        assert tried.attempt == 2

    def test_that_are_final_are_raised_at_once(self):
        with pytest.raises(BadRequestError):
            exchange().failed(BadRequestError("no", status_code=400))

    def test_that_would_outlast_the_total_limit_are_a_timeout_that_names_both(self):
        with pytest.raises(APITimeoutError, match=r"total timeout of 0.1 s .* after: refused") as caught:
            exchange(total=0.1).failed(APIConnectionError("refused"))
        assert isinstance(caught.value.__cause__, APIConnectionError)


class TestReceive:
    def test_hands_out_events_with_what_they_build(self):
        received = list(begun().receive(message_start() + event("ping") + event("sparkle", a=1)))
        assert [r.raw.event for r in received] == ["message_start", "ping", "sparkle"]
        assert [r.event is None for r in received] == [False, True, True]

    def test_lets_the_message_never_run_ahead_of_the_caller(self):
        stream = begun()
        texts = [stream.accumulator.text for _ in stream.receive(text_stream("a", "b"))]
        assert texts == ["", "", "a", "ab", "ab", "ab", "ab"]

    def test_hands_out_nothing_after_message_stop(self):
        stream = begun()
        assert len(list(stream.receive(text_stream("a") + text_stream("b")))) == len(text_events("a"))
        assert list(stream.receive(b"rubbish")) == []
        assert stream.complete
        stream.end()

    def test_raises_after_what_came_before(self):
        stream, seen = begun(), []
        with pytest.raises(OverloadedError) as caught:
            seen.extend(r.raw.event for r in stream.receive(opening("a") + error_event()))
        assert seen == ["message_start", "content_block_start", "content_block_delta"]
        assert caught.value.partial["content"] == [{"type": "text", "text": "a"}]
        assert caught.value.request_id == "req_1"

    def test_takes_the_request_id_of_an_error_event_where_the_head_had_none(self):
        stream = exchange()
        assert stream.accepted(200, {"content-type": "text/event-stream"})
        with pytest.raises(OverloadedError) as caught:
            list(stream.receive(error_event(request_id="req_event")))
        assert (caught.value.request_id, caught.value.partial) == ("req_event", None)

    def test_rejects_an_event_over_the_cap_after_the_events_before_it(self):
        stream, kibibyte = begun(max_event_bytes=2**20), b"x" * 2**10
        assert len(list(stream.receive(opening("a") + b"data: "))) == 3
        with pytest.raises(ProtocolError, match="larger than") as caught:
            list(stream.receive(kibibyte * 1025))
        assert caught.value.partial["content"][0]["text"] == "a"

    def test_begins_anew_with_another_attempt(self):
        stream = begun()
        list(stream.receive(opening("a")[:-7]))
        assert stream.accepted(200, STREAM)
        list(stream.receive(text_stream("b")))
        assert stream.accumulator.text == "b"

    def test_keeps_no_long_text_if_told_so(self):
        stream = begun(keep_text=False)
        list(stream.receive(text_stream("a" * (5 << 20), "b")))
        assert (stream.complete, stream.accumulator.text) == (True, "")


def error_event(**more):
    return event("error", error={"type": "overloaded_error", "message": "Overloaded"}, **more)


class TestEnd:
    def test_before_message_stop_is_incomplete_wherever_it_comes(self):
        whole = text_stream("a", "b")
        for cut in range(len(whole)):
            stream = begun()
            list(stream.receive(whole[:cut]))
            with pytest.raises(IncompleteStreamError) as caught:
                stream.end()
            assert caught.value.request_id == "req_1"
            assert caught.value.partial == stream.accumulator.snapshot()

    def test_does_not_count_an_event_without_its_blank_line(self):
        stream = begun()
        list(stream.receive(opening("a") + MESSAGE_STOP[:-1]))
        with pytest.raises(IncompleteStreamError):
            stream.end()

    def test_tells_of_an_event_over_the_cap_that_came_with_the_events_before_it(self):
        stream = begun(max_event_bytes=2**10)
        assert len(list(stream.receive(opening("a") + b"data: " + b"x" * 2**10))) == 3
        with pytest.raises(ProtocolError, match="larger than"):
            stream.end()

    def test_after_message_stop_is_fine_whatever_follows(self):
        stream = begun()
        list(stream.receive(message_start() + block_start() + text_delta("a") + MESSAGE_STOP + b"event: error\ndata"))
        stream.end()


def test_the_total_limit_is_told_where_reads_do_not_know_it():
    late = exchange(total=-1.0)
    with pytest.raises(APITimeoutError, match="total timeout of -1 s passed"):
        late.check_time()
    exchange(total=100.0).check_time()
    exchange().check_time()
