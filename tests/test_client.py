"""The library as its users use it: each scenario runs through both halves, against a real server.

Slow are the cuts, for each is a whole stream, and the silences, for they pass.
"""

import asyncio
import contextlib
import copy
import gc
import gzip
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref

import httpx
import orjson
import pytest
from driver import ASK
from hypothesis import given, settings
from hypothesis import strategies as st
from server import (
    HANG,
    LAST_CHUNK,
    MESSAGE_STOP,
    PATIENCE,
    RESET,
    UNREAD,
    Server,
    block_start,
    block_stop,
    bytewise,
    chunk,
    cuts,
    delta,
    error_response,
    event,
    head,
    json_response,
    message_delta,
    message_start,
    ok,
    opening,
    text_delta,
    text_events,
    text_stream,
)

import streamcli.client.async_client
from streamcli import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AsyncClient,
    AuthenticationError,
    BadRequestError,
    Client,
    ContentTooLargeError,
    IncompleteStreamError,
    InternalServerError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
    StreamError,
    UnexpectedResponseError,
    UsageError,
)

TOOL_DELTAS = [delta("input_json_delta", 1, partial_json=part) for part in ('{"city": ', '"Par', 'is"}')]
TOOL_STREAM = [
    *[message_start(), block_start(), text_delta("Let me see."), block_stop()],
    *[block_start(1, type="tool_use", id="toolu_1", name="weather", input={}), *TOOL_DELTAS, block_stop(1)],
    *[message_delta("tool_use", 30), MESSAGE_STOP],
]
THINKING_STREAM = [
    *[message_start(), block_start(type="thinking", thinking="", signature="")],
    *[delta("thinking_delta", thinking="Hm"), delta("signature_delta", signature="sig"), block_stop()],
    *[block_start(1, type="text", text=""), text_delta("42", 1), block_stop(1), message_delta(), MESSAGE_STOP],
]


# A silence that is soon too long, but not for a busy machine.
SHORT = httpx.Timeout(9, read=0.3)


def said(*texts):
    return [ok(*text_events(*texts))]


def caught(call, cls=APIError):
    with pytest.raises(cls) as caught:
        call()
    return caught.value


class TestUses:
    """What the library is used for."""

    def test_print_text_as_it_comes(self, driver, server):
        said_a, said_b = threading.Event(), threading.Event()
        server.responses = [
            (head(chunked=True), chunk(opening("a")), said_a, chunk(text_delta("b")), said_b)
            + (chunk(block_stop() + message_delta() + MESSAGE_STOP), LAST_CHUNK)
        ]
        with driver.client(server).messages.stream(**ASK) as stream:
            texts = iter(stream.text_stream)
            assert next(texts) == "a"  # the server says no more before it is allowed to
            said_a.set()
            assert next(texts) == "b"
            said_b.set()
            assert list(texts) == []

    def test_the_final_message_with_usage_and_stop_reason(self, driver, server):
        server.responses = said("Hello", " there")
        with driver.client(server).messages.stream(**ASK) as stream:
            message = stream.get_final_message()
        assert (message.id, message.role, message.model) == ("msg_1", "assistant", "m")
        assert [block.text for block in message.content] == ["Hello there"]
        assert (message.usage.input_tokens, message.usage.output_tokens) == (3, 7)
        assert message.stop_reason == "end_turn"

    def test_every_event_by_type(self, driver, server):
        server.responses = [
            ok(message_start(), event("ping"), *text_events("a")[1:-1], event("new", x=1), MESSAGE_STOP)
        ]
        seen = {}
        with driver.client(server).messages.stream(**ASK) as stream:
            for received in stream:
                seen[received.type] = received
        assert list(seen) == [
            "message_start",
            "ping",
            "content_block_start",
            "content_block_delta",
            "text",
            "content_block_stop",
            "message_delta",
            "new",
            "message_stop",
        ]
        assert seen["message_start"].message.usage.input_tokens == 3
        assert seen["content_block_start"].content_block.type == "text"
        assert seen["content_block_delta"].delta.text == seen["text"].text == seen["text"].snapshot == "a"
        assert seen["content_block_stop"].content_block.text == "a"
        assert seen["message_delta"].delta.stop_reason == "end_turn"
        assert seen["message_delta"].usage.output_tokens == 7
        assert seen["new"].x == 1
        assert seen["message_stop"].message.content[0].text == "a"

    def test_tool_use_with_its_fragments_and_the_parsed_input_after(self, driver, server):
        server.responses = [ok(*TOOL_STREAM)]
        fragments, inputs = [], []
        with driver.client(server).messages.stream(**ASK, tools=[{"name": "weather"}]) as stream:
            for received in stream:
                if received.type == "content_block_delta" and received.delta.type == "input_json_delta":
                    fragments.append(received.delta.partial_json)
                if received.type == "content_block_stop" and received.content_block.type == "tool_use":
                    inputs.append((received.content_block.name, received.content_block.input))
            message = stream.get_final_message()
        assert "".join(fragments) == '{"city": "Paris"}'
        assert inputs == [("weather", {"city": "Paris"})]
        assert message.stop_reason == "tool_use"
        assert message.content[1].input.city == "Paris"
        assert server.requests[0].json["tools"] == [{"name": "weather"}]

    def test_tokens_counted_live(self, driver, server):
        counts = [message_delta(None, tokens) for tokens in (2, 5, 9)]
        server.responses = [ok(*text_events("a")[:-2], *counts, MESSAGE_STOP)]
        with driver.client(server).messages.stream(**ASK) as stream:
            live = [received.usage.output_tokens for received in stream if received.type == "message_delta"]
            assert live == [2, 5, 9]
            assert stream.current_message_snapshot.usage.output_tokens == 9

    def test_a_buffered_display(self, driver, server):
        words = ["One ", "two ", "three ", "four ", "five."]
        server.responses = said(*words)
        shown, buffer = [], ""
        with driver.client(server).messages.stream(**ASK) as stream:
            for text in stream.text_stream:
                buffer += text
                if len(buffer) >= 8:
                    shown.append(buffer)
                    buffer = ""
        assert [*shown, buffer] == ["One two ", "three four ", "five."]

    def test_a_snapshot_in_mid_stream(self, driver, server):
        server.responses = said("a", "b", "c")
        with driver.client(server).messages.stream(**ASK) as stream:
            texts = iter(stream.text_stream)
            assert [next(texts), next(texts)] == ["a", "b"]
            snapshot = stream.current_message_snapshot
            assert snapshot.content[0].text == "ab"  # though the read held all three
            assert snapshot.stop_reason is None
            final = stream.get_final_message()
        assert final.content[0].text == "abc"
        assert snapshot.content[0].text == "ab"

    def test_errors_are_caught_before_the_stream_and_in_it(self, driver, server):
        overloaded = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
        server.responses = [
            error_response(401, "authentication_error", "invalid x-api-key"),
            ok(opening("a"), overloaded),
        ]
        messages, caught = driver.client(server).messages, []
        for _ in range(2):
            try:
                with messages.stream(**ASK) as stream:
                    for _ in stream.text_stream:
                        pass
            except APIError as error:
                caught.append((type(error), error.message, error.request_id, error.partial))
        assert caught[0] == (AuthenticationError, "invalid x-api-key", "req_1", None)
        assert caught[1][:3] == (OverloadedError, "Overloaded", "req_1")
        assert caught[1][3]["content"] == [{"type": "text", "text": "a"}]

    def test_timeouts_are_caught_before_the_stream_and_in_it(self, driver, server):
        server.responses = [(HANG,), (head(), opening("a"), HANG)]
        messages = driver.client(server, timeout=SHORT, max_retries=0).messages
        before = caught(lambda: messages.stream(**ASK).__enter__(), APITimeoutError)
        assert "within the idle timeout of 0.3 s" in str(before)
        with messages.stream(**ASK) as stream:
            assert next(iter(stream.text_stream)) == "a"
            within = caught(stream.until_done, APITimeoutError)
        assert within.partial["content"][0]["text"] == "a"
        assert server.hung_up(0)
        assert server.hung_up(1)

    def test_a_conversation(self, driver, server):
        server.responses = [ok(*TOOL_STREAM), ok(*text_events("Sunny."))]
        client = driver.client(server)
        messages = [{"role": "user", "content": "Weather in Paris?"}]
        with client.messages.stream(**ASK | {"messages": messages}) as stream:
            message = stream.get_final_message()
        messages += [{"role": message.role, "content": message.content}]
        messages += [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "sun"}]}]
        with client.messages.stream(**ASK | {"messages": messages}) as stream:
            assert stream.get_final_text() == "Sunny."
        assert server.requests[1].json["messages"][1] == {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}},
            ],
        }

    def test_a_system_prompt(self, driver, server):
        server.responses = said("a")
        with driver.client(server).messages.stream(**ASK, system="Be brief.") as stream:
            stream.until_done()
        assert server.requests[0].json == {**ASK, "system": "Be brief.", "stream": True}

    def test_temperature(self, driver, server):
        server.responses = said("a")
        with driver.client(server).messages.stream(**ASK, temperature=0.2) as stream:
            stream.until_done()
        assert server.requests[0].json["temperature"] == 0.2
        assert server.requests[0].headers["anthropic-version"] == "2023-06-01"

    def test_extended_thinking_through_beta(self, driver, server):
        server.responses = [ok(*THINKING_STREAM)]
        thinking = {"type": "enabled", "budget_tokens": 1024}
        thoughts = []
        with driver.client(server).beta.messages.stream(**ASK, thinking=thinking, betas=["b1", "b2"]) as stream:
            for received in stream:
                if received.type == "thinking":
                    thoughts.append((received.thinking, received.snapshot))
                if received.type == "signature":
                    thoughts.append(received.signature)
            message = stream.get_final_message()
        assert thoughts == [("Hm", "Hm"), "sig"]
        assert [block.type for block in message.content] == ["thinking", "text"]
        assert (message.content[0].thinking, message.content[0].signature) == ("Hm", "sig")
        assert server.requests[0].headers["anthropic-beta"] == "b1,b2"
        assert "betas" not in server.requests[0].json

    def test_the_request_id_from_the_headers(self, driver, server):
        server.responses = said("a")
        with driver.client(server).messages.stream(**ASK) as stream:
            assert stream.response.headers["request-id"] == stream.request_id == "req_1"
            assert stream.response.status_code == 200

    def test_a_stream_driven_by_hand(self, driver, server):
        server.responses = said("a", "b")
        manager = driver.client(server).messages.stream(**ASK)
        assert server.requests == []
        stream = manager.__enter__()
        try:
            types = [next(stream).type for _ in range(4)]
        finally:
            manager.__exit__(None, None, None)
        assert types == ["message_start", "content_block_start", "content_block_delta", "text"]

    @pytest.mark.parametrize("timeout", [httpx.Timeout(120.0), 120, 120.0, None])
    def test_timeouts_of_every_kind(self, driver, server, timeout):
        server.responses = said("a")
        with driver.client(server, timeout=timeout).messages.stream(**ASK) as stream:
            assert stream.get_final_text() == "a"
        with driver.client(server).messages.stream(**ASK, timeout=timeout) as stream:
            assert stream.get_final_text() == "a"
        assert "timeout" not in server.requests[1].json

    def test_a_timeout_of_one_call(self, driver, server):
        server.responses = [(HANG,)]
        client = driver.client(server, timeout=60, max_retries=0)
        for call in (
            client.messages.stream(**ASK, timeout=0.02).__enter__,
            lambda: client.messages.create(**ASK, timeout=0.02),
        ):
            assert "timeout of 0.02 s" in str(caught(call, APITimeoutError))


SCRIPTS = {
    "sync": """
import signal, sys, threading
from streamcli import Client
def main():
    with Client(base_url=sys.argv[1]) as client:
        with client.messages.stream(model="m", max_tokens=1, messages=[]) as stream:
            for text in stream.text_stream:
                if sys.argv[2] == "handler":
                    signal.signal(signal.SIGINT, lambda *_: sys.exit(3))
                print(text, flush=True)
""",
    "async": """
import asyncio, signal, sys
from streamcli import AsyncClient
async def stream():
    async with AsyncClient(base_url=sys.argv[1]) as client:
        async with client.messages.stream(model="m", max_tokens=1, messages=[]) as stream:
            async for text in stream.text_stream:
                if sys.argv[2] == "handler":
                    signal.signal(signal.SIGINT, lambda *_: sys.exit(3))
                print(text, flush=True)
def main():
    asyncio.run(stream())
""",
}


class TestCtrlC:
    @pytest.fixture(params=SCRIPTS)
    def interrupted(self, request, server):
        """Run the script, send SIGINT once it has shown text; its status and what it left on stderr."""

        def interrupted(ending, how):
            server.responses = [(head(), opening("a"), HANG)]
            program = [sys.executable, "-Werror", "-c", SCRIPTS[request.param] + ending, server.url, how]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            with subprocess.Popen(program, **pipes) as process:
                assert process.stdout.readline() == "a\n"
                process.send_signal(signal.SIGINT)
                _, stderr = process.communicate(timeout=30)
            assert server.hung_up()
            return process.returncode, stderr

        return interrupted

    def test_in_mid_stream_is_a_keyboard_interrupt_and_the_connection_is_closed(self, interrupted):
        ending = "try:\n    main()\nexcept KeyboardInterrupt:\n    sys.exit(5)\n"
        assert interrupted(ending, "default") == (5, "")

    def test_that_nobody_catches_shows_one_traceback_only(self, interrupted):
        status, stderr = interrupted("main()\n", "default")
        assert status == -signal.SIGINT
        assert stderr.count("Traceback") <= 2  # asyncio shows the cancelled task as the cause
        assert stderr.rstrip().endswith("KeyboardInterrupt")
        assert "Warning" not in stderr
        assert "never" not in stderr

    def test_through_a_handler_that_exits(self, interrupted):
        assert interrupted("main()\n", "handler") == (3, "")

    def test_raised_by_the_caller_s_own_code_closes_the_connection(self, driver, server):
        server.responses = [(head(), opening("a"), HANG)]
        manager = driver.client(server).messages.stream(**ASK)

        def interrupted():
            with manager as stream:
                for _ in stream.text_stream:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert server.hung_up()


def event_error(kind, message="no"):
    return event("error", error={"type": kind, "message": message})


# What may happen after the first text: what the server does, which error that is, and its exit status.
FAULTS = {
    "the last chunk without message_stop": ((LAST_CHUNK,), IncompleteStreamError, 8),
    "closed between chunks": ((), IncompleteStreamError, 8),
    "closed inside a chunk": ((b"ff\r\ndata",), IncompleteStreamError, 8),
    "closed inside an event": ((chunk(b"event: content_block_del"),), IncompleteStreamError, 8),
    "closed inside a character": ((chunk(text_delta("é")[:-12]),), IncompleteStreamError, 8),
    "closed before message_stop's blank line": ((chunk(MESSAGE_STOP[:-1]), LAST_CHUNK), IncompleteStreamError, 8),
    "reset": ((RESET,), IncompleteStreamError, 8),
    "reset inside a chunk": ((b"ff\r\ndata", RESET), IncompleteStreamError, 8),
    "a bad chunk size": ((b"zz\r\n",), ProtocolError, 8),
    "a chunk that does not end": ((b"1\r\nxyz",), ProtocolError, 8),
    "an overloaded_error": ((chunk(event_error("overloaded_error")),), OverloadedError, 5),
    "an api_error": ((chunk(event_error("api_error")),), InternalServerError, 5),
    "a rate_limit_error": ((chunk(event_error("rate_limit_error")),), RateLimitError, 5),
    "an invalid_request_error": ((chunk(event_error("invalid_request_error")),), BadRequestError, 3),
    "an error nobody knows": ((chunk(event_error("meltdown")),), APIStatusError, 3),
    "an error without a name": (
        (chunk(b'data: {"type":"error","error":{"type":"api_error"}}\n\n'),),
        APIStatusError,
        5,
    ),
    "an error that is no JSON": ((chunk(b"event: error\ndata: bad gateway\n\n"),), APIStatusError, 3),
    "data that is no JSON": ((chunk(b"event: message_delta\ndata: {\n\n"),), ProtocolError, 8),
    "data that is no object": ((chunk(b"event: message_delta\ndata: null\n\n"),), ProtocolError, 8),
    "an index that leaves a gap": ((chunk(block_start(5)),), ProtocolError, 8),
    "a delta to a block that never began": ((chunk(text_delta("b", 3)),), ProtocolError, 8),
    "a delta to a closed block": ((chunk(block_stop() + text_delta("b")),), ProtocolError, 8),
    "a second message_start": ((chunk(message_start()),), ProtocolError, 8),
    "silence": ((HANG,), APITimeoutError, 7),
}


class TestFaultsInMidStream:
    @pytest.mark.parametrize(("steps", "cls", "exit_code"), FAULTS.values(), ids=FAULTS)
    def test_come_after_the_text_before_them_with_all_that_is_known(self, driver, server, steps, cls, exit_code):
        server.responses = [(head(chunked=True), chunk(opening("a")), *steps)]
        texts = []
        client = driver.client(server, timeout=SHORT if steps == (HANG,) else 9, strict=True)
        with client.messages.stream(**ASK) as stream:
            error = caught(lambda: texts.extend(stream.text_stream))
            assert stream.current_message_snapshot == error.partial
        assert isinstance(error, cls)
        assert error.exit_code == exit_code
        assert texts == ["a"]
        assert error.partial.content[0] == {"type": "text", "text": "a"}
        assert error.partial.stop_reason is None
        assert error.request_id == "req_1"
        assert len(server.requests) == 1  # once something was handed out nothing is tried again
        assert driver.waits == []

    @pytest.mark.parametrize("framing", ["chunked", "length", "close"])
    def test_a_stream_without_message_stop_is_incomplete_however_it_is_framed(self, driver, server, framing):
        server.responses = [ok(*text_events("a")[:-1], framing=framing)]
        with driver.client(server).messages.stream(**ASK) as stream:
            error = caught(stream.get_final_message, IncompleteStreamError)
        assert error.partial["stop_reason"] == "end_turn"

    def test_a_length_that_is_not_reached_is_incomplete(self, driver, server):
        server.responses = [head(length=9999) + opening("a")]
        with driver.client(server).messages.stream(**ASK) as stream:
            error = caught(stream.get_final_text, IncompleteStreamError)
        assert f"{server.host}:{server.port} broke off in mid-stream" in str(error)

    def test_an_error_before_message_start_has_no_partial(self, driver, server):
        server.responses = [ok(event_error("overloaded_error")), ok()]
        with driver.client(server).messages.stream(**ASK) as stream:
            assert caught(stream.until_done, OverloadedError).partial is None
        with driver.client(server).messages.stream(**ASK) as stream:
            assert caught(stream.until_done, IncompleteStreamError).partial is None
            with pytest.raises(IncompleteStreamError, match="no message has started"):
                _ = stream.current_message_snapshot

    def test_the_total_limit_ends_a_stream_that_drips(self, driver, server):
        drip = [step for _ in range(500) for step in (chunk(event("ping")), 0.01)]
        server.responses = [(head(chunked=True), chunk(opening("a")), *drip)]
        with driver.client(server, total_timeout=0.5).messages.stream(**ASK) as stream:
            error = caught(stream.until_done, APITimeoutError)
        assert error.message == "the total timeout of 0.5 s passed"
        assert error.partial["content"][0]["text"] == "a"
        assert server.hung_up()

    def test_pings_reset_the_idle_timeout(self, driver, server):
        pings = [step for _ in range(20) for step in (chunk(event("ping")), 0.05)]
        rest = chunk(block_stop() + message_delta() + MESSAGE_STOP)
        server.responses = [(head(chunked=True), chunk(opening("a")), *pings, rest, HANG)]
        with driver.client(server, timeout=0.5).messages.stream(**ASK) as stream:
            assert stream.get_final_text() == "a"

    def test_after_an_error_there_is_nothing_more_and_no_message(self, driver, server):
        server.responses = [ok(opening("a"), event_error("overloaded_error"), *text_events("b"))]
        with driver.client(server).messages.stream(**ASK) as stream:
            caught(stream.until_done, OverloadedError)
            assert list(stream) == []
            for call in (stream.get_final_message, stream.get_final_text, stream.until_done):
                assert caught(call, IncompleteStreamError).partial["content"][0]["text"] == "a"


class TestTheEnd:
    @pytest.mark.parametrize("framing", ["chunked", "length", "close"])
    def test_is_message_stop_however_the_body_is_framed(self, driver, server, framing):
        server.responses = [ok(*text_events("a", "b"), framing=framing)]
        with driver.client(server).messages.stream(**ASK) as stream:
            assert stream.get_final_text() == "ab"

    @pytest.mark.parametrize(
        "rest",
        [(HANG,), (RESET,), (chunk(event_error("api_error")),), (b"zz\r\n",), (chunk(b"event: x\ndata"),)],
        ids=["silence", "a reset", "an error event", "a bad chunk", "half an event"],
    )
    def test_is_message_stop_whatever_comes_after_it(self, driver, server, rest):
        stopped = threading.Event()
        server.responses = [(head(chunked=True), chunk(text_stream("a")), *rest)]
        with driver.client(server).messages.stream(**ASK) as stream:
            types = [received.type for received in stream]
            stopped.set()
            assert stream.get_final_text() == "a"
        assert types[-1] == "message_stop"
        if rest == (HANG,):
            assert server.hung_up()

    def test_a_message_may_be_complete_though_the_length_promised_more(self, driver, server):
        server.responses = [head(length=9999) + text_stream("a")]
        with driver.client(server).messages.stream(**ASK) as stream:
            assert stream.get_final_text() == "a"

    def test_may_be_asked_for_again(self, driver, server):
        server.responses = said("a", "b")
        with driver.client(server).messages.stream(**ASK) as stream:
            assert stream.get_final_text() == "ab"
            assert list(stream) == []
            assert list(stream.text_stream) == []
            assert stream.get_final_message().content[0].text == "ab"
            stream.until_done()
        assert stream.get_final_message().content[0].text == "ab"

    def test_events_and_text_draw_on_the_same_stream(self, driver, server):
        server.responses = said("a", "b", "c")
        with driver.client(server).messages.stream(**ASK) as stream:
            for received in stream:
                if received.type == "text":
                    break
            assert next(iter(stream.text_stream)) == "b"
            assert list(stream.text_stream) == ["c"]


STREAM = b"".join([*TOOL_STREAM[:4], event("ping"), *TOOL_STREAM[4:]])
EVENT_STREAM = {"content-type": "text/event-stream", "request-id": "req_1"}


class TestOddStreams:
    def test_events_without_a_type_are_what_their_names_say(self, driver, server):
        bare = re.sub(rb'data: {"type": "\w+"(, )?', b"data: {", text_stream("a", "b"))
        assert bare.endswith(b"event: message_stop\ndata: {}\n\n")
        server.responses = [ok(bare)]
        with driver.client(server).messages.stream(**ASK) as stream:
            assert "".join(stream.text_stream) == "ab"
            assert stream.get_final_text() == "ab"

    def test_bad_characters_become_the_replacement_character(self, driver, server):
        server.responses = [ok(*text_events("a?b")[:2], text_delta("a?b").replace(b"?", b"\xff"), *text_events()[2:])]
        with driver.client(server).messages.stream(**ASK) as stream:
            assert stream.get_final_text() == "a\ufffdb"

    def test_a_mark_at_the_start_and_other_line_ends_are_nothing_special(self, driver, server):
        server.responses = [ok(b"\xef\xbb\xbf" + text_stream("a").replace(b"\n", b"\r\n"))]
        with driver.client(server).messages.stream(**ASK) as stream:
            assert stream.get_final_text() == "a"

    def test_a_head_with_strange_bytes_is_read(self, driver, server):
        server.responses = [head(x="\xff\x1b[31m", request_id=None, **{"Request-Id": "r\xe9"}) + text_stream("a")]
        with driver.client(server).messages.stream(**ASK) as stream:
            assert stream.get_final_text() == "a"
            assert stream.request_id == "r\xe9"


class TestCuts:
    def of(self, driver, *bodies):
        """A client to whom these bodies come one after the other, each in its pieces."""
        left = map(driver.body, bodies)
        return driver.mocked(lambda request: httpx.Response(200, headers=EVENT_STREAM, stream=next(left)))

    def final(self, client):
        with client.messages.stream(**ASK) as stream:
            return json.dumps([*stream]), stream.get_final_message()

    def test_no_cut_changes_what_comes_out(self, driver):
        events, message = self.final(self.of(driver, [STREAM]))
        assert self.final(self.of(driver, bytewise(STREAM))) == (events, message)
        client = self.of(driver, *cuts(STREAM))
        for _ in cuts(STREAM):
            with client.messages.stream(**ASK) as stream:
                assert stream.get_final_message() == message

    @pytest.mark.parametrize("framing", ["chunked", "length", "close"])
    def test_over_a_socket_byte_by_byte(self, driver, server, framing):
        server.responses = [ok(STREAM, framing=framing), tuple(bytewise(ok(STREAM, framing=framing)))]
        assert self.final(driver.client(server)) == self.final(driver.client(server))

    def test_with_each_byte_in_a_chunk_of_its_own(self, driver, server):
        server.responses = [ok(STREAM), ok(*bytewise(STREAM))]
        assert self.final(driver.client(server)) == self.final(driver.client(server))

    def test_a_stream_that_ends_at_any_byte_is_incomplete_and_its_text_is_kept(self, driver):
        beginnings = [data for data, _ in cuts(text_stream("a", "b", "c"))]
        client = self.of(driver, *([data] for data in beginnings))
        for _ in beginnings:
            texts = []
            with client.messages.stream(**ASK) as stream:
                error = caught(lambda: texts.extend(stream.text_stream), IncompleteStreamError)  # noqa: B023
            blocks = error.partial["content"] if error.partial else []
            assert "".join(texts) == "".join(block["text"] for block in blocks)


# What may happen instead of a stream: what the server does, the error, its exit status, how often it is tried.
REFUSALS = {
    "400": (error_response(400), BadRequestError, 3, 1),
    "401": (error_response(401), AuthenticationError, 4, 1),
    "403": (error_response(403), PermissionDeniedError, 4, 1),
    "404": (error_response(404), NotFoundError, 3, 1),
    "413": (error_response(413), ContentTooLargeError, 3, 1),
    "408": (error_response(408), APIStatusError, 5, 3),
    "409": (error_response(409), APIStatusError, 5, 3),
    "429": (error_response(429), RateLimitError, 5, 3),
    "500": (error_response(500), InternalServerError, 5, 3),
    "503": (error_response(503), InternalServerError, 5, 3),
    "529": (error_response(529), OverloadedError, 5, 3),
    "529, do not retry": (error_response(529, x_should_retry="false"), OverloadedError, 5, 1),
    "400, do retry": (error_response(400, x_should_retry="true"), BadRequestError, 3, 3),
    "429, come back tomorrow": (error_response(429, retry_after="86400"), RateLimitError, 5, 1),
    "a redirect": (head(307, length=0, location="https://evil.example/"), APIStatusError, 3, 1),
    "an HTML body": (head(502, type="text/html", length=7) + b"<h1>No!", InternalServerError, 5, 3),
    "a body that is cut": (head(400, type="application/json", length=99) + b'{"type"', BadRequestError, 3, 1),
    "a body that is reset": ((head(400, length=99) + b"x", RESET), BadRequestError, 3, 1),
    "a page": (head(type="text/html") + b"<p>Please log in", UnexpectedResponseError, 3, 1),
    "a whole message": (json_response({"type": "message"}), UnexpectedResponseError, 3, 1),
    "an error in JSON with 200": (
        json_response(json.loads(error_response(400).split(b"\r\n\r\n")[1])),
        BadRequestError,
        3,
        1,
    ),
    "a coding that was not asked for": (head(content_encoding="br") + b"\x1f\x8b", UnexpectedResponseError, 3, 1),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", IncompleteStreamError, 8, 3),
    "101": (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n", UnexpectedResponseError, 3, 1),
    "a garbage status line": (b"SSH-2.0-OpenSSH\r\n\r\n", UnexpectedResponseError, 3, 1),
    "TLS": (b"\x15\x03\x01\x00\x02\x02\x16", UnexpectedResponseError, 3, 1),
    "HTTP/0.9": (b"<p>hi", UnexpectedResponseError, 3, 1),
    "two lengths": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        UnexpectedResponseError,
        3,
        1,
    ),
    "a head without end": (b"HTTP/1.1 200 OK\r\nx: " + b"x" * 200_000, UnexpectedResponseError, 3, 1),
    "half a head": (head()[:-9], APIConnectionError, 6, 3),
    "closed before the head": (b"", APIConnectionError, 6, 3),
    "reset before the head": ((RESET,), APIConnectionError, 6, 3),
    "closed before the request": ((UNREAD,), APIConnectionError, 6, 3),
}


class TestRefusals:
    @pytest.mark.parametrize(("answer", "cls", "exit_code", "attempts"), REFUSALS.values(), ids=REFUSALS)
    def test_are_errors_that_say_what_happened(self, driver, server, answer, cls, exit_code, attempts):
        server.responses = [answer]
        error = caught(driver.client(server).messages.stream(**ASK).__enter__)
        assert isinstance(error, cls)
        assert error.exit_code == exit_code
        assert server.connections == attempts
        assert len(driver.waits) == attempts - 1
        assert error.partial is None
        assert "sk-secret" not in str(error)
        assert "\n" not in str(error)

    def test_carry_the_request_id_and_the_headers(self, driver, server):
        server.responses = [error_response(429, retry_after="99")]
        error = caught(driver.client(server).messages.stream(**ASK).__enter__, RateLimitError)
        assert (error.request_id, error.headers["Retry-After"]) == ("req_1", "99")
        assert (error.status_code, error.type) == (429, "invalid_request_error")

    @pytest.mark.parametrize("status", [200, 302, 401])
    def test_do_not_say_the_key_back(self, driver, server, status):
        said_back = event_error("authentication_error", "no such key: sk-secret") if status == 200 else b"sk-secret"
        server.responses = [head(status, location="http://x/?sk-secret") + said_back]
        with pytest.raises(APIStatusError) as caught, driver.client(server).messages.stream(**ASK) as stream:
            stream.until_done()
        assert "***" in str(caught.value)
        assert "sk-secret" not in str(caught.value) + repr(caught.value)

    def test_of_a_body_without_end_are_cut_short(self, driver, server):
        server.responses = [lambda request: endless()]
        error = caught(driver.client(server).messages.stream(**ASK).__enter__, NotFoundError)
        assert len(str(error)) < 300
        assert server.hung_up()

    def test_interim_answers_are_skipped(self, driver, server):
        server.responses = [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + said("a")[0]]
        with driver.client(server).messages.stream(**ASK) as stream:
            assert stream.get_final_text() == "a"

    def test_interim_answers_for_ever_end_with_the_total_timeout(self, driver, server):
        server.responses = [[b"HTTP/1.1 102 Processing\r\n\r\n", 0.01] * 500]
        manager = driver.client(server, total_timeout=0.2).messages.stream(**ASK)
        assert "total timeout of 0.2 s" in str(caught(manager.__enter__, APITimeoutError))


def endless():
    yield head(404, type="text/plain")
    while True:
        yield b"no such thing " * 1000


class TestRetries:
    def test_end_with_the_first_answer(self, driver, server):
        server.responses = [error_response(529), (RESET,), *said("a")]
        told = []
        client = driver.client(server, on_retry=lambda error, wait: told.append((type(error), wait)))
        with client.messages.stream(**ASK) as stream:
            assert stream.get_final_text() == "a"
        assert [cls for cls, _ in told] == [OverloadedError, APIConnectionError]
        assert [wait for _, wait in told] == driver.waits
        assert 0.375 <= driver.waits[0] <= 0.5
        assert 0.75 <= driver.waits[1] <= 1

    def test_wait_as_long_as_the_server_asks(self, driver, server):
        server.responses = [
            error_response(429, retry_after="7"),
            error_response(429, retry_after_ms="1500"),
            *said("a"),
        ]
        with driver.client(server).messages.stream(**ASK) as stream:
            stream.until_done()
        assert driver.waits == [7, 1.5]

    @pytest.mark.parametrize("retries", [0, 1, 4])
    def test_are_as_many_as_are_asked_for(self, driver, server, retries):
        server.responses = [error_response(503)]
        caught(driver.client(server, max_retries=retries).messages.stream(**ASK).__enter__, InternalServerError)
        assert len(server.requests) == retries + 1
        assert len({request.body for request in server.requests}) == 1

    def test_stop_where_the_total_limit_would_pass(self, driver, server):
        server.responses = [error_response(429, retry_after="30")]
        manager = driver.client(server, total_timeout=5).messages.stream(**ASK)
        assert "would pass before another attempt" in str(caught(manager.__enter__, APITimeoutError))
        assert len(server.requests) == 1

    def test_of_a_connection_that_nobody_takes(self, driver):
        with Server() as gone:
            pass
        error = caught(driver.client(gone).messages.stream(**ASK).__enter__, APIConnectionError)
        assert str(error) == f"cannot connect to 127.0.0.1:{gone.port}: connection refused"
        assert len(driver.waits) == 2

    def test_by_hand_begin_the_stream_anew(self, driver, server):
        server.responses = [ok(event_error("overloaded_error")), *said("a")]
        with driver.client(server).messages.stream(**ASK) as stream:
            error = caught(stream.until_done, OverloadedError)
            stream.retry(error)
            assert stream.get_final_text() == "a"
            assert caught(lambda: stream.retry(BadRequestError("no", status_code=400)), BadRequestError)


class TestTheRestOfTheAPI:
    def test_create_returns_the_whole_message(self, driver, server):
        server.responses = [
            error_response(529),
            json_response({"type": "message", "content": [{"type": "text", "text": "a"}]}),
        ]
        message = driver.client(server).messages.create(**ASK, betas=["b"], extra_headers={"x-a": "1"})
        assert message.content[0].text == "a"
        request = server.requests[1]
        assert (request.json, request.headers["anthropic-beta"], request.headers["x-a"]) == (ASK, "b", "1")

    def test_a_whole_answer_may_take_longer_than_a_silence_in_a_stream(self, driver):
        patience = []

        def handler(request):
            patience.append(request.extensions["timeout"]["read"])
            return httpx.Response(200, json={"type": "message"})

        driver.mocked(handler).messages.create(**ASK)
        driver.mocked(handler).messages.create(**ASK, timeout=3)
        driver.mocked(handler, timeout=7).messages.create(**ASK)
        driver.mocked(handler).messages.count_tokens(**ASK)
        assert patience == [600, 3, 7, 90]

    @pytest.mark.parametrize("coded", [False, True])
    def test_a_whole_response_has_a_longest_length(self, driver, server, monkeypatch, coded):
        for module in ("network.async_body", "network.body", "protocol.responses"):
            monkeypatch.setattr(f"streamcli.{module}.MAX_BODY", 100_000)
        body = json.dumps({"type": "message", "text": "x" * 200_000}).encode()
        coding = {"content_encoding": "gzip"} if coded else {}
        server.responses = [head(type="application/json", **coding) + (gzip.compress(body) if coded else body)]
        error = caught(lambda: driver.client(server).messages.create(**ASK), UnexpectedResponseError)
        assert "the response is longer than " in str(error)

    def test_count_tokens(self, driver, server):
        server.responses = [json_response({"input_tokens": 12})]
        assert driver.client(server).messages.count_tokens(model="m", messages=[]).input_tokens == 12
        assert server.requests[0].path == "/v1/messages/count_tokens"
        assert server.requests[0].json == {"model": "m", "messages": []}

    def test_models_are_listed_page_after_page(self, driver, server):
        pages = [{"data": [{"id": "a"}, {"id": "b"}], "has_more": True, "last_id": "b"}, {"data": [{"id": "c"}]}]
        server.responses = [json_response(page) for page in pages]
        assert [model.id for model in driver.client(server).models.list()] == ["a", "b", "c"]
        paths = [(request.method, request.path) for request in server.requests]
        assert paths == [("GET", "/v1/models?limit=1000"), ("GET", "/v1/models?limit=1000&after_id=b")]

    @pytest.mark.parametrize(
        ("answer", "cls"),
        [
            (error_response(404), NotFoundError),
            (head(type="text/html") + b"<p>", UnexpectedResponseError),
            (json_response([1]), UnexpectedResponseError),
            (head(type="application/json", length=99) + b"{", IncompleteStreamError),
            (head(429, type="application/json", length=99, x_should_retry="false") + b"{", RateLimitError),
            ((head(type="application/json"), b"{", HANG), APITimeoutError),
        ],
        ids=["404", "a page", "a list", "cut", "a refusal that is cut", "silence"],
    )
    def test_faults_are_errors_too_and_nothing_stays_open(self, driver, server, answer, cls):
        server.responses = [answer]
        client = driver.client(server, timeout=SHORT)
        for call in (client.messages.create, client.messages.count_tokens):
            error = caught(lambda call=call: call(**ASK), cls)
            assert error.request_id == "req_1"


ODD_TIMEOUTS = [float("nan"), float("inf"), -1, 0, 1e12, "5", (), [], httpx.Timeout(5, read=float("nan"))]


class TestWhatCannotBeMeant:
    @pytest.mark.parametrize("timeout", ODD_TIMEOUTS, ids=repr)
    def test_a_timeout_that_is_no_time_is_a_usage_error(self, driver, server, timeout):
        caught(lambda: driver.client(server, timeout=timeout), UsageError)
        client = driver.client(server)
        caught(lambda: client.messages.create(**ASK, timeout=timeout), UsageError)
        if not isinstance(timeout, httpx.Timeout):
            caught(lambda: driver.client(server, total_timeout=timeout), UsageError)
        assert server.connections == 0

    @pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("place", [lambda x: x, lambda x: [None, (x,)], lambda x: {"a": [{"b": x}]}])
    def test_a_number_that_json_does_not_have_is_a_usage_error(self, driver, server, number, place):
        error = caught(lambda: driver.client(server).messages.create(**ASK, temperature=place(number)), UsageError)
        assert "infinite or NaN" in str(error)
        assert server.connections == 0


class TestWhatIsAsked:
    def test_goes_out_as_it_is_known_or_not(self, driver, server):
        server.responses = said("a")
        fields = {"top_k": 3, "metadata": {"user_id": "u"}, "new_field": [1, {"a": None}]}
        extra = {"max_tokens": 5, "x": 1}
        with driver.client(server).messages.stream(**ASK, **fields, extra_body=extra, extra_headers={"X-A": "é"}) as s:
            s.until_done()
        assert server.requests[0].json == {**ASK, **fields, **extra, "stream": True}
        assert server.requests[0].headers["x-a"] == "é"
        assert (server.requests[0].method, server.requests[0].path) == ("POST", "/v1/messages")

    def test_carries_the_client_s_headers_version_and_credential(self, driver, server):
        server.responses = said("a")
        settings = {"default_headers": {"X-A": "1"}, "api_version": "2030-01-01", "api_key": None, "auth_token": "tok"}
        with driver.client(server, **settings).messages.stream(**ASK) as stream:
            stream.until_done()
        headers = server.requests[0].headers
        assert (headers["x-a"], headers["anthropic-version"]) == ("1", "2030-01-01")
        assert headers["authorization"] == "Bearer tok"
        assert "x-api-key" not in headers
        assert headers["accept-encoding"] == "identity"

    def test_comes_from_the_environment(self, driver, server, monkeypatch):
        server.responses = said("a")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", " sk-env\n")
        monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "X-B: 2")
        with driver.client(api_key=None).messages.stream(**ASK) as stream:
            stream.until_done()
        assert server.requests[0].headers["x-api-key"] == "sk-env"
        assert server.requests[0].headers["x-b"] == "2"

    @pytest.mark.parametrize(
        "settings",
        [{"api_key": "a\nb"}, {"base_url": "nowhere"}, {"base_url": "http://host"}, {"default_headers": {"x": "€"}}],
        ids=lambda settings: next(iter(settings)),
    )
    def test_is_refused_before_anything_is_sent_where_it_cannot_be(self, driver, server, settings):
        error = caught(lambda: driver.client(server, **settings).messages.stream(**ASK).__enter__(), UsageError)
        assert error.exit_code == 2
        assert server.connections == 0

    def test_a_key_in_a_header_does_not_go_out_in_clear_either(self, driver):
        settings = {"api_key": None, "base_url": "http://host", "default_headers": {"X-Api-Key": "k"}}
        assert "plain http" in str(caught(lambda: driver.client(**settings), UsageError))

    def test_a_body_that_is_no_json_is_a_usage_error(self, driver, server):
        caught(driver.client(server).messages.stream(**ASK, x=object()).__enter__, UsageError)
        caught(lambda: driver.client(server).messages.stream(**ASK, stream=False), UsageError)
        caught(lambda: driver.client(server).messages.create(**ASK, stream=True), UsageError)
        assert server.connections == 0


class TestClosing:
    def test_leaving_the_stream_early_closes_the_connection(self, driver, server):
        server.responses = [(head(), opening("a"), HANG)]
        with driver.client(server).messages.stream(**ASK) as stream:
            assert next(iter(stream.text_stream)) == "a"
        assert server.hung_up()

    def test_a_closed_stream_says_so(self, driver, server):
        server.responses = [ok(*text_events("a", "b"))]
        with driver.client(server).messages.stream(**ASK) as stream:
            assert next(iter(stream.text_stream)) == "a"
            stream.close()
            stream.close()
            for call in (stream.get_final_message, stream.get_final_text, stream.until_done, lambda: next(stream)):
                error = caught(call, IncompleteStreamError)
                assert error.message == "the stream was closed before message_stop"
                assert error.partial["content"][0]["text"] == "a"

    def test_a_manager_sends_when_it_is_entered_and_each_time_anew(self, driver, server):
        server.responses = [*said("a"), *said("b")]
        manager = driver.client(server).messages.stream(**ASK)
        assert server.connections == 0
        texts = []
        for _ in range(2):
            with manager as stream:
                texts.append(stream.get_final_text())
        assert texts == ["a", "b"]

    def test_a_manager_that_is_never_entered_costs_nothing(self, driver, server):
        driver.client(server).messages.stream(**ASK)
        gc.collect()
        assert server.connections == 0

    def test_a_manager_that_failed_to_enter_can_be_left(self, driver, server):
        server.responses = [error_response(400)]
        manager = driver.client(server).messages.stream(**ASK)
        caught(manager.__enter__, BadRequestError)
        manager.__exit__(None, None, None)

    def test_a_stream_is_a_context_manager_too(self, driver, server):
        server.responses = [(head(), opening("a"), HANG)]
        with driver.client(server).messages.stream(**ASK).__enter__() as stream:
            next(stream)
        assert server.hung_up()

    def test_an_exception_of_the_caller_passes_through_and_closes(self, driver, server):
        server.responses = [(head(), opening("a"), HANG)]
        manager = driver.client(server).messages.stream(**ASK)

        def failing():
            with manager as stream:
                return next(stream).nothing

        with pytest.raises(AttributeError):
            failing()
        assert server.hung_up()

    def test_a_closed_client_sends_nothing(self, driver, server):
        client = driver.client(server)
        client.close()
        client.close()
        assert str(caught(client.messages.stream(**ASK).__enter__, UsageError)) == "the client is closed"

    def test_a_client_given_to_us_is_left_open(self, driver, server):
        http_client = driver.http_client(None)
        with driver.made({"api_key": "k", "base_url": server.url, "http_client": http_client}):
            pass
        assert not http_client.is_closed


FORKS = """
import os, sys
from streamcli import Client

with Client(base_url=sys.argv[1]).messages.stream(model="m", max_tokens=1, messages=[]) as stream:
    next(stream)
    if not os.fork():
        END
        sys.exit()
    os.wait()
    print("the child has ended", flush=True)
    print(stream.get_final_text())
"""
# It forks while its loop does not run: in the child of one that does, sys.exit() hangs since Python 3.14.
FORKS_ASYNC = """
import asyncio, os, sys
from streamcli import AsyncClient

with asyncio.Runner() as runner:
    asked = AsyncClient(base_url=sys.argv[1]).messages.stream(model="m", max_tokens=1, messages=[])
    stream = runner.run(asked.__aenter__())
    runner.run(anext(stream))
    if not os.fork():
        END
        sys.exit()
    os.wait()
    print("the child has ended", flush=True)
    print(runner.run(stream.get_final_text()))
"""


class TestDropped:
    def test_a_stream_nobody_holds_is_closed(self, server):
        server.responses = [(head(), opening("a"), HANG)]
        client = Client(api_key="k", base_url=server.url)
        stream = client.messages.stream(**ASK).__enter__()
        assert next(iter(stream.text_stream)) == "a"
        del stream
        assert server.hung_up()

    def test_an_asynchronous_stream_nobody_holds_is_closed(self, server):
        server.responses = [(head(), opening("a"), HANG)]

        async def drop():
            client = AsyncClient(api_key="k", base_url=server.url)
            stream = await client.messages.stream(**ASK).__aenter__()
            assert await anext(aiter(stream.text_stream)) == "a"
            del stream
            assert await asyncio.to_thread(server.hung_up)

        asyncio.run(drop())

    def test_a_generator_that_is_abandoned_closes_its_stream(self, server):
        server.responses = [(head(), opening("a"), HANG)]
        client = Client(api_key="k", base_url=server.url)

        def texts():
            with client.messages.stream(**ASK) as stream:
                yield from stream.text_stream

        generator = texts()
        assert next(generator) == "a"
        del generator
        assert server.hung_up()

    def test_an_asynchronous_generator_that_is_abandoned_closes_its_stream(self, server):
        server.responses = [(head(), opening("a"), HANG)]

        async def texts(client):
            async with client.messages.stream(**ASK) as stream:
                async for text in stream.text_stream:
                    yield text

        async def drop():
            generator = texts(AsyncClient(api_key="k", base_url=server.url))
            assert await anext(generator) == "a"
            del generator
            assert await asyncio.to_thread(server.hung_up)

        asyncio.run(drop())

    def test_a_stream_that_outlives_its_loop_is_still_hung_up(self, server):
        server.responses = [(head(), opening("a"), HANG)]

        async def leave():
            stream = await AsyncClient(api_key="k", base_url=server.url).messages.stream(**ASK).__aenter__()
            assert await anext(aiter(stream.text_stream)) == "a"
            return stream

        stream = asyncio.run(leave())
        del stream
        assert server.hung_up()
        with pytest.warns(ResourceWarning, match="unclosed"):  # asyncio's own, and right
            gc.collect()

    def test_a_stream_that_outlives_its_loop_and_its_peer_is_dropped_in_silence(self, monkeypatch):
        def serve():
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.sendall(head() + opening("a"))
            return connection

        async def leave(url):
            serving = asyncio.create_task(asyncio.to_thread(serve))
            stream = await AsyncClient(api_key="k", base_url=url).messages.stream(**ASK).__aenter__()
            await anext(aiter(stream.text_stream))
            return stream, await serving

        with socket.create_server(("127.0.0.1", 0)) as listener:
            stream, connection = asyncio.run(leave(f"http://127.0.0.1:{listener.getsockname()[1]}"))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # to reset
        connection.close()
        faults = []
        monkeypatch.setattr(sys, "excepthook", lambda *fault: faults.append(fault))
        del stream
        assert faults == []
        with pytest.warns(ResourceWarning, match="unclosed"):  # asyncio's own, and right
            gc.collect()

    @pytest.mark.parametrize(
        ("program", "end"),
        [(FORKS, "sys.exit()"), (FORKS, "stream.close()"), (FORKS_ASYNC, "runner.run(stream.close())")],
    )
    def test_a_forked_child_does_not_cut_the_stream_of_its_parent(self, server, program, end):
        more = threading.Event()
        server.responses = [(head(), opening("a"), more, b"".join(text_events("a")[3:]))]
        command = [sys.executable, "-c", program.replace("END", end), server.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "the child has ended\n"
            more.set()
            assert process.stdout.read() == "a\n"

    def test_nothing_keeps_a_finished_stream_alive(self, driver, server):
        server.responses = said("a")
        with driver.client(server).messages.stream(**ASK) as stream:
            stream.until_done()
        alive = weakref.ref(getattr(stream, "_it", stream))
        del stream
        gc.collect()
        assert alive() is None


class TestTogether:
    def test_200_streams_at_once_each_get_their_own_answer_and_leave_nothing_open(self, server):
        began, all_began = [], threading.Event()

        def answer(request):
            number = request.json["messages"][0]["content"]
            yield head(chunked=True) + chunk(opening(f"{number} "))
            began.append(number)
            if len(began) == 200:
                all_began.set()
            server.wait(all_began)  # so all 200 are open at once
            yield chunk(text_delta("ends")) + chunk(block_stop() + message_delta() + MESSAGE_STOP) + LAST_CHUNK

        async def ask(client, number):
            messages = [{"role": "user", "content": str(number)}]
            async with client.messages.stream(**ASK | {"messages": messages}) as stream:
                return await stream.get_final_text()

        async def ask_all():
            async with AsyncClient(api_key="k", base_url=server.url) as client:
                texts = await asyncio.gather(*(ask(client, number) for number in range(200)))
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return texts

        server.responses = [answer]
        assert asyncio.run(ask_all()) == [f"{number} ends" for number in range(200)]
        gc.collect()
        assert len(began) == 200

    def test_threads_share_a_client(self, server):
        server.responses = said("a", "b")
        client, texts = Client(api_key="k", base_url=server.url), []

        def ask():
            with client.messages.stream(**ASK) as stream:
                texts.append(stream.get_final_text())

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert texts == ["ab"] * 20

    def test_a_stream_can_be_closed_from_another_thread_while_one_waits_in_it(self, server):
        server.responses = [(head(), opening("a"), HANG)]
        with Client(api_key="k", base_url=server.url).messages.stream(**ASK) as stream:
            texts = iter(stream.text_stream)
            assert next(texts) == "a"
            closer = threading.Timer(0.05, stream.close)
            closer.start()
            error = caught(lambda: next(texts), IncompleteStreamError)
            closer.join()
        assert error.message == "the stream was closed before message_stop"
        assert server.hung_up()

    def test_a_stream_can_be_closed_by_another_task_while_one_waits_in_it(self, server):
        server.responses = [(head(), opening("a"), HANG)]

        async def main():
            async with AsyncClient(api_key="k", base_url=server.url).messages.stream(**ASK) as stream:
                texts = aiter(stream.text_stream)
                assert await anext(texts) == "a"
                waiting = asyncio.ensure_future(anext(texts))
                await asyncio.sleep(0)
                await stream.close()
                with pytest.raises(IncompleteStreamError, match="the stream was closed before message_stop"):
                    await waiting

        asyncio.run(main())
        assert server.hung_up()

    def test_a_stream_whose_reading_was_cancelled_is_closed_and_did_not_end(self, server):
        server.responses = [(head(), opening("a"), HANG)]

        async def main():
            async with AsyncClient(api_key="k", base_url=server.url).messages.stream(**ASK) as stream:
                texts = aiter(stream.text_stream)
                assert await anext(texts) == "a"
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(texts), 0.01)
                with pytest.raises(IncompleteStreamError, match="the stream was closed before message_stop"):
                    await anext(texts)

        asyncio.run(main())
        assert server.hung_up()

    @pytest.mark.parametrize(
        ("answer", "reached"),
        [
            ((HANG,), "the request is out"),
            ((head(400, length=9), HANG), "it is refused"),
            ((head(), HANG), "it is accepted"),
            ((head(), opening("a"), HANG), "it has begun"),
        ],
        ids=["before the head", "in a refusal's body", "after the head", "in mid-stream"],
    )
    def test_a_cancelled_stream_closes_its_connection(self, server, monkeypatch, answer, reached):
        server.responses = [answer]
        error_body = streamcli.client.async_client.error_body

        async def ask(client, told):
            async def body_of(*pieces_and_beginning):
                told["it is refused"].set()
                return await error_body(*pieces_and_beginning)

            monkeypatch.setattr(streamcli.client.async_client, "error_body", body_of)
            async with client.messages.stream(**ASK) as stream:
                told["it is accepted"].set()
                async for _ in stream:
                    told["it has begun"].set()

        async def main():
            told = {name: asyncio.Event() for name in ("it is refused", "it is accepted", "it has begun")}
            async with AsyncClient(api_key="k", base_url=server.url) as client:
                task = asyncio.ensure_future(ask(client, told))
                await asyncio.to_thread(server.request)
                if reached in told:
                    await told[reached].wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await asyncio.to_thread(server.hung_up)

        asyncio.run(main())

    def test_a_task_cancelled_at_any_moment_leaves_no_connection(self):
        async def main(url):
            client = AsyncClient(base_url=url, max_retries=0)
            for turns in range(20):
                for _ in range(3):
                    task = asyncio.create_task(client.messages.stream(**ASK).__aenter__())
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task])
            await asyncio.to_thread(all_hung_up)

        def all_hung_up():
            listener.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(PATIENCE)
                        while connection.recv(65536):
                            pass

        with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
            asyncio.run(main(f"http://127.0.0.1:{listener.getsockname()[1]}"))

    def test_a_limit_of_asyncio_s_own_can_be_put_around_a_stream(self, server):
        server.responses = [(head(), opening("a"), HANG)]

        async def main():
            client = AsyncClient(api_key="k", base_url=server.url)
            async with asyncio.timeout(0.3), client.messages.stream(**ASK) as stream:
                await stream.until_done()

        with pytest.raises(TimeoutError):
            asyncio.run(main())
        assert server.hung_up()


class TestAClientGivenToUs:
    def test_streams_an_answer_made_whole(self, driver):
        client = driver.mocked(lambda request: httpx.Response(200, headers=EVENT_STREAM, content=text_stream("a", "b")))
        with client.messages.stream(**ASK) as stream:
            assert list(stream.text_stream) == ["a", "b"]

    def test_is_given_the_request_as_it_goes_out(self, driver):
        seen = []

        def handler(request):
            seen.append(request)
            return httpx.Response(200, headers=EVENT_STREAM, content=text_stream("a"))

        with driver.mocked(handler, timeout=7).messages.stream(**ASK) as stream:
            stream.until_done()
        [request] = seen
        assert request.url == "http://localhost/v1/messages"
        assert request.headers["x-api-key"] == "sk-secret"
        assert json.loads(request.content) == {**ASK, "stream": True}
        assert request.extensions["timeout"] == {"connect": 7, "read": 7, "write": 7, "pool": 7}

    def test_its_refusals_are_ours(self, driver):
        body = {"type": "error", "error": {"type": "authentication_error", "message": "bad key"}}
        client = driver.mocked(lambda request: httpx.Response(401, json=body))
        assert caught(client.messages.stream(**ASK).__enter__, AuthenticationError).message == "bad key"
        assert caught(lambda: client.messages.create(**ASK), AuthenticationError).message == "bad key"

    def test_its_redirects_are_not_followed(self, driver):
        client = driver.mocked(lambda request: httpx.Response(302, headers={"location": "https://evil/"}))
        assert "not followed" in str(caught(client.messages.stream(**ASK).__enter__, APIStatusError))

    @pytest.mark.parametrize(
        ("fault", "cls", "words", "attempts"),
        [
            (httpx.ConnectTimeout("late"), APITimeoutError, "the connect timeout passed: late", 3),
            (httpx.ReadTimeout(""), APITimeoutError, "the idle timeout passed", 1),
            (httpx.ConnectError("refused"), APIConnectionError, "no response: refused", 3),
            (httpx.RemoteProtocolError("hung up"), APIConnectionError, "no response: hung up", 3),
            (httpx.ProxyError("407"), APIConnectionError, "the proxy rejected the request: 407", 1),
            (httpx.UnsupportedProtocol("ftp"), APIConnectionError, "no response: ftp", 1),
            (httpx.LocalProtocolError("header"), APIConnectionError, "no response: header", 1),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
    )
    def test_its_faults_before_the_stream_are_ours(self, driver, fault, cls, words, attempts):
        calls = []

        def handler(request):
            calls.append(request)
            raise fault

        error = caught(driver.mocked(handler).messages.stream(**ASK).__enter__, cls)
        assert (str(error), len(calls)) == (words, attempts)
        assert error.__cause__ is fault

    def test_its_tls_faults_are_not_tried_again(self, driver, tls_server):
        tls_server.responses = [(HANG,)]
        client = driver.client(tls_server, http_client=driver.http_client(None))
        assert "CERTIFICATE_VERIFY_FAILED" in str(caught(client.messages.stream(**ASK).__enter__, APIConnectionError))
        assert tls_server.connections == 1

    @pytest.mark.parametrize(
        ("fault", "cls"),
        [
            (httpx.ReadTimeout("late"), APITimeoutError),
            (httpx.ReadError(""), IncompleteStreamError),
            (httpx.RemoteProtocolError("incomplete chunked read"), IncompleteStreamError),
            (httpx.StreamClosed(), IncompleteStreamError),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
    )
    def test_its_faults_in_mid_stream_are_ours(self, driver, fault, cls):
        body = driver.body([opening("a"), fault])
        client = driver.mocked(lambda request: httpx.Response(200, headers=EVENT_STREAM, stream=body))
        texts = []
        with client.messages.stream(**ASK) as stream:
            error = caught(lambda: texts.extend(stream.text_stream), cls)
        assert texts == ["a"]
        assert error.partial["content"][0]["text"] == "a"
        assert error.__cause__ is fault

    def test_the_total_limit_holds_between_its_reads(self, driver):
        body = driver.body(event("ping") for _ in iter(int, 1))
        client = driver.mocked(
            lambda request: httpx.Response(200, headers=EVENT_STREAM, stream=body), total_timeout=0.05
        )
        with client.messages.stream(**ASK) as stream:
            caught(stream.until_done, APITimeoutError)

    def test_may_be_a_real_one(self, driver, server):
        server.responses = [*said("a", "b"), (head(), opening("c"), HANG), (head(), opening("d"), RESET)]
        http_client = driver.http_client(None)
        client = driver.client(server, http_client=http_client, timeout=SHORT)
        with client.messages.stream(**ASK) as stream:
            assert stream.get_final_text() == "ab"
        with client.messages.stream(**ASK) as stream:
            assert caught(stream.until_done, APITimeoutError).partial["content"][0]["text"] == "c"
        with client.messages.stream(**ASK) as stream:
            assert caught(stream.until_done, IncompleteStreamError).partial["content"][0]["text"] == "d"


class TestWhatIsHandedOut:
    def test_serialises_as_it_was_sent(self, driver, server):
        start = event("message_start", message={"id": "m", "content": [], "usage": {"n": 1}, "later": {"a": [1]}}, x=2)
        server.responses = [ok(start, *text_events("a")[1:])]
        with driver.client(server).messages.stream(**ASK) as stream:
            first = next(stream)
            message = stream.get_final_message()
        sent = json.loads(start.partition(b"data: ")[2])
        assert orjson.loads(orjson.dumps(first)) == json.loads(json.dumps(first)) == first == sent
        assert message.later.a == [1]
        assert copy.deepcopy(message) == message
        with pytest.raises(AttributeError):
            _ = message.stop_detail

    def test_keeps_no_long_text_if_told_so(self, driver, server):
        server.responses = said("a", "b" * (5 << 20))
        with driver.client(server, keep_text=False).messages.stream(**ASK) as stream:
            assert [len(text) for text in stream.text_stream] == [1, 5 << 20]
            assert stream.get_final_message().content[0].text == ""

    def test_reads_give_the_bytes_to_who_passes_them_on(self, driver, server):
        server.responses = said("a", "b")
        with driver.client(server).messages.stream(**ASK) as stream:
            passed = b""
            for data in stream.reads():
                passed += data
                list(stream.exchange.receive(data))
        assert passed == text_stream("a", "b")

    def test_reads_of_a_closed_stream_say_so(self, driver, server):
        server.responses = [(head(), opening("a"), HANG)]
        with driver.client(server).messages.stream(**ASK) as stream:
            reads = iter(stream.reads())
            list(stream.exchange.receive(next(reads)))
        for again in (reads, iter(stream.reads())):
            assert caught(lambda again=again: next(again), IncompleteStreamError).partial.content[0].text == "a"


PIECES = st.sampled_from(
    [*text_events("a"), *TOOL_STREAM, *THINKING_STREAM, b"\n", b"\r\n", b"data: ", b"event: error\n"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def events_gone_wrong(draw):
    """A stream in which one value of one event was replaced by another, or left out."""
    stream = draw(st.sampled_from([text_events("a", "b"), TOOL_STREAM, THINKING_STREAM]))
    place = draw(st.integers(0, len(stream) - 1))
    name, _, data = stream[place].partition(b"\ndata: ")
    value = json.loads(data)
    holder = value
    while True:
        key = draw(st.sampled_from(sorted(holder)))
        if not (isinstance(holder[key], dict) and holder[key] and draw(st.booleans())):
            break
        holder = holder[key]
    if draw(st.booleans()):
        holder[key] = draw(VALUES)
    else:
        del holder[key]
    return b"".join([*stream[:place], name + b"\ndata: " + json.dumps(value).encode() + b"\n\n", *stream[place + 1 :]])


BODIES = st.binary() | st.lists(PIECES | st.binary(max_size=8)).map(b"".join) | events_gone_wrong()


class TestArbitraryBytes:
    def read(self, stream):
        """Read the stream to its end; any exception but APIError fails the test."""
        texts = []
        try:
            for received in stream:
                json.dumps(received)
                copy.deepcopy(received)
                texts += [received.text] if received["type"] == "text" else []
            message = stream.get_final_message()
        except (APIStatusError, StreamError, UnexpectedResponseError) as error:
            message = error.partial
        json.dumps(message)
        return texts, message

    @settings(max_examples=200)
    @given(body=BODIES)
    def test_after_the_head_raise_nothing_but_api_errors(self, driver, body):
        client = driver.mocked(lambda request: httpx.Response(200, headers=EVENT_STREAM, content=body))
        with client.messages.stream(**ASK) as stream:
            self.read(stream)

    @settings(max_examples=60)
    @given(body=BODIES, framing=st.sampled_from(["chunked", "length", "close", "raw"]))
    def test_over_a_socket_raise_nothing_but_api_errors(self, driver, server, body, framing):
        answer = head(chunked=True) + body if framing == "raw" else ok(body, framing=framing)
        server.responses = [answer]
        with driver.client(server).messages.stream(**ASK) as stream:
            self.read(stream)

    @settings(max_examples=60)
    @given(
        answer=st.binary(max_size=200)
        | st.lists(PIECES | st.binary(max_size=8)).map(lambda p: b"HTTP/1.1 " + b"".join(p))
    )
    def test_instead_of_an_answer_raise_nothing_but_api_errors(self, driver, server, answer):
        server.responses = [answer]
        caught(driver.client(server, max_retries=0, timeout=5).messages.stream(**ASK).__enter__)


class TestFailed:
    @pytest.mark.parametrize(
        "answer", [ok(opening("a"))[:-5], ok(opening("a"))[:-5] + b"zz\r\n"], ids=["cut", "framing"]
    )
    def test_a_stream_that_failed_is_freed_with_all_it_held(self, server, answer):
        server.responses = [answer]
        with Client(base_url=server.url) as client:
            with client.messages.stream(**ASK) as stream, pytest.raises(APIError):
                stream.until_done()
            gone = weakref.ref(stream)
            del stream
            gc.collect()
            assert gone() is None
