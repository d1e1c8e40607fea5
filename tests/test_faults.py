"""Each fault of the list, done to the real command by a real socket, pipe, terminal or signal.

ROWS, at the end, says which tests hold which row, and a test holds ROWS.

Slow is what waits for a silence or a limit to pass, and what is a true start (tests/starter.py): with little memory, in
other locales and namespaces, with descriptors closed.
"""

import contextlib
import datetime
import gzip
import itertools
import json
import os
import pty
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import zlib
from typing import NamedTuple

import pytest
from faults_command import (
    COMMAND,
    LITTLE_MEMORY,
    TRULY,
    Mute,
    Running,
    Terminal,
    allowed,
    ask,
    asking,
    bound,
    closed_port,
    each,
    full_backlog,
    is_connecting,
    read_all,
    shell,
    silent_resolver,
    small_pipe,
    streamcli,
    until,
    until_full,
)
from server import (
    HANG,
    LAST_CHUNK,
    MESSAGE_STOP,
    PATIENCE,
    RESET,
    UNREAD,
    Proxy,
    Server,
    block_start,
    block_stop,
    bytewise,
    chunk,
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

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is done here to the command is done with Linux")

KEY = "sk-ant-api03-SECRET"
WITH_KEY = {"ANTHROPIC_API_KEY": KEY}
HELLO = ok(*text_events("Hello", " world"))
# Within so many seconds a signal has to end a run here; on an idle machine it takes a tenth.
PROMPTLY = 2
# Another machine, as far as anybody can tell; it does not exist.
ELSEWHERE = "https://elsewhere.invalid"
BUSY = error_response(529, "overloaded_error", "busy", retry_after_ms="1")


def tool_answer(*fragments, stop_reason="tool_use", whole=True):
    """The events of an answer that calls a tool with the JSON `fragments`."""
    start = block_start(type="tool_use", id="toolu_1", name="weather", input={})
    deltas = [delta("input_json_delta", partial_json=fragment) for fragment in fragments]
    end = [block_stop(), message_delta(stop_reason), MESSAGE_STOP] if whole else []
    return b"".join([message_start(), start, *deltas, *end])


def error_event(kind="overloaded_error", message="busy"):
    return event("error", error={"type": kind, "message": message})


def last_line(out):
    """The last line of --events, which must be whole."""
    assert out.endswith(b"\n")
    return json.loads(out.splitlines()[-1])


# Tier 1: a wrong answer that looks right, or a secret lost


@each(
    chunked_with_its_last_chunk=ok(opening("Hel")),
    content_length_met=ok(opening("Hel"), framing="length"),
    content_length_too_short=head(length=len(opening("Hel"))) + text_stream("Hel", "lo"),
    closed=ok(opening("Hel"), framing="close"),
    http_1_0=head().replace(b"HTTP/1.1", b"HTTP/1.0") + opening("Hel"),
)
def test_a_body_that_ends_cleanly_without_message_stop_is_incomplete(answer, /):
    ended = ask(answer)
    assert (ended.status, ended.out) == (8, b"Hel")
    assert ended.error == "the stream ended before message_stop (request_id req_1)"


@each("br", "x-unknown", "gzip, gzip")
def test_a_body_in_a_coding_that_cannot_be_read_is_an_error(coding, /):
    with Server(head(content_encoding=coding) + text_stream("Hello")) as server:
        ended = ask(server)
    assert (ended.status, ended.out) == (3, b"")
    assert f"in the coding {coding}" in ended.error
    assert server.requests[0].headers["accept-encoding"] == "identity"


@each(gzip=gzip.compress, deflate=zlib.compress)
def test_a_compressed_body_is_read_and_is_incomplete_where_it_was_cut(compress, /):
    coding = "gzip" if compress is gzip.compress else "deflate"
    body = compress(text_stream("Hello"))
    assert ask(head(content_encoding=coding) + body) == (0, b"Hello", "")
    cut = ask(head(content_encoding=coding) + body[:-30])
    assert cut.status == 8
    assert b"Hello".startswith(cut.out)
    strict = ask(head(content_encoding=coding) + body, "--strict")
    assert (strict.status, strict.out) == (3, b"")


@each("", "1")
def test_a_full_device_is_status_10(unbuffered, /):
    with open("/dev/full", "wb") as full:
        ended = ask(HELLO, stdout=full, env={"PYTHONUNBUFFERED": unbuffered})
    assert (ended.status, ended.error) == (10, "cannot write to standard output: no space left on device")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_disk_that_fills_up_keeps_what_went_on_it_and_is_status_10(small_disk):
    long = ok(*text_events("a" * 100_000))
    reason = "no space left on device"
    with open(small_disk / "answer", "wb") as answer:
        ended = ask(long, stdout=answer, env={"PYTHONUNBUFFERED": "1"})
    assert (ended.status, ended.error) == (10, f"cannot write to standard output: {reason}")
    assert set((small_disk / "answer").read_bytes()) == {ord("a")}
    (small_disk / "answer").write_text("old")
    ended = ask(long, "-o", str(small_disk / "answer"))
    assert (ended.status, ended.error) == (10, f"cannot write to {small_disk / 'answer'}: {reason}")
    assert (small_disk / "answer").read_text() == "old"
    assert set((small_disk / "answer.partial").read_bytes()) == {ord("a")}


def test_a_file_size_limit_is_status_10_and_no_signal(tmp_path):
    with open(tmp_path / "answer", "wb") as answer:
        ended = ask(ok(*text_events("a" * 10_000)), stdout=answer, prefix=shell("ulimit -f 8"))
    assert (ended.status, ended.error) == (10, "cannot write to standard output: file too large")
    assert (tmp_path / "answer").read_bytes() == b"a" * 4096


def test_a_full_non_blocking_pipe_loses_nothing(server):
    text = "0123456789" * 50_000
    server.responses = [ok(*text_events(text))]
    with small_pipe() as (reads, writes):
        os.set_blocking(writes.fileno(), False)
        with asking(server, stdout=writes) as running:
            writes.close()
            until_full(reads)
            assert read_all(reads) == text.encode()
            assert running.end() == (0, b"", "")


def test_a_closed_stdout_is_found_before_a_request_is_spent(server):
    ended = ask(server, prefix=shell("exec >&-"))
    assert (ended.status, ended.error) == (10, "cannot write to standard output: it is closed")
    assert server.requests == []


@each("--version", "--help")
def test_help_that_nobody_gets_is_status_10(option, /):
    with open("/dev/full", "wb") as full:
        assert streamcli(option, stdout=full).status == 10
    assert streamcli(option, prefix=shell("exec >&-")).status == 10


@each(
    an_error_event_after_text=([], [head() + opening("Hel") + error_event()]),
    an_error_event_after_message_start_in_events=(["--events"], [head() + message_start() + error_event()]),
    a_reset_after_text=([], [head(chunked=True) + chunk(opening("Hel")), RESET]),
    a_breach_after_text=([], [head() + opening("Hel") + b"data: no json\n\n"]),
)
def test_nothing_is_retried_once_output_began(argv, steps, /):
    with Server(steps, HELLO) as server:
        ended = streamcli("--base-url", server.url, *argv, "hello")
    assert ended.status == 8
    assert server.connections == 1
    assert "retrying" not in ended.err


def test_what_failed_before_any_output_is_retried_and_said():
    with Server(BUSY, ok(message_start(), error_event()), HELLO) as server:
        ended = streamcli("--base-url", server.url, "hello")
    assert (ended.status, ended.out) == (0, b"Hello world")
    assert server.connections == 3
    first, second = ended.err.splitlines()
    assert first == "streamcli: retrying in 0.0 s after: status 529 overloaded_error: busy (request_id req_1)"
    assert second.startswith("streamcli: retrying in ")
    assert second.endswith(" s after: error event overloaded_error: busy (request_id req_1)")


@each(301, 302, 303, 307, 308)
def test_a_redirect_is_never_followed(status, /):
    with Server(HELLO) as other, Server(head(status, length=0, location=f"{other.url}/v1/messages")) as server:
        ended = ask(server, env=WITH_KEY)
    assert (ended.status, ended.out) == (3, b"")
    assert f"status {status}: a redirect to {other.url}/v1/messages is not followed" in ended.error
    assert (server.connections, other.connections) == (1, 0)


def test_a_redirect_to_itself_is_one_request(server):
    server.responses = [head(302, length=0, location="/v1/messages")]
    assert streamcli("--base-url", server.url, "hello").status == 3
    assert server.connections == 1


@each(
    a_line_end_in_a_key=([], {"ANTHROPIC_API_KEY": f"{KEY}\r\nx-evil: 1"}),
    a_line_end_in_a_token=([], {"ANTHROPIC_AUTH_TOKEN": f"{KEY}\r\nx-evil: 1"}),
    a_line_end_in_a_header=(["-H", f"x-api-key: {KEY}\r\nx-evil: 1"], {}),
    curly_quotes_in_a_key=([], {"ANTHROPIC_API_KEY": f"“{KEY}”"}),
    curly_quotes_in_a_header=(["-H", f"authorization: Bearer “{KEY}”"], {}),
    a_control_character=(["--api-key-cmd", f"printf '{KEY}\\033x'"], {}),
)
def test_a_key_that_no_header_can_carry_is_refused_and_never_shown(argv, env, /):
    with Server(HELLO) as server:
        ended = ask(server, *argv, env=env)
    assert (ended.status, ended.out, server.connections) == (2, b"", 0)
    assert "holds a character that no header can carry" in ended.error
    assert "SECRET" not in ended.err


def test_blanks_around_a_key_are_no_part_of_it(server, tmp_path):
    server.responses = [HELLO]
    (tmp_path / "key").write_text(f" \t{KEY}\r\n")
    assert ask(server, "--api-key-file", str(tmp_path / "key")).status == 0
    assert ask(server, env={"ANTHROPIC_API_KEY": f"\n{KEY} \n"}).status == 0
    assert [request.headers["x-api-key"] for request in server.requests] == [KEY, KEY]


def test_an_empty_key_is_no_key():
    ended = streamcli("--base-url", ELSEWHERE, "hello", env={"ANTHROPIC_API_KEY": " \n"})
    assert ended.status == 2
    assert ended.error.startswith("no API key")


@each("overloaded_error", "new_error")
def test_an_error_event_after_text_is_incomplete_and_says_what_came(kind, /):
    ended = ask(ok(opening("Hel"), error_event(kind, "too busy")))
    assert (ended.status, ended.out) == (8, b"Hel")
    assert ended.error == f"error event {kind}: too busy (request_id req_1)"


@each(("overloaded_error", 5), ("new_error", 5), ("invalid_request_error", 3), ("permission_error", 4))
def test_an_error_event_before_any_output_has_the_status_of_its_kind(kind, status, /):
    assert ask(ok(message_start(), error_event(kind))).status == status


def test_an_error_event_without_a_name_is_one():
    ended = ask(ok(opening("Hel"), b'data: {"type": "error", "error": {"type": "api_error", "message": "no"}}\n\n'))
    assert (ended.status, ended.out) == (8, b"Hel")
    assert ended.error == "error event api_error: no (request_id req_1)"


@each(
    by_the_end=(tool_answer('{"city": "Par', whole=False), 8),
    by_max_tokens=(tool_answer('{"city": "Par', stop_reason="max_tokens"), 0),
    by_the_model=(tool_answer('{"city": "Par'), 11),
)
def test_a_tool_input_cut_in_half_is_never_handed_out(stream, status, /):
    ended = ask(ok(stream), "--message")
    assert ended.status == status
    blocks = json.loads(ended.out)["content"] if ended.out else []
    assert [(block["input"], block["partial_json"]) for block in blocks if block["type"] == "tool_use"] == [
        ({}, '{"city": "Par') for _ in blocks
    ]


def test_message_stop_without_its_blank_line_never_came():
    ended = ask(ok(text_stream("Hello").removesuffix(b"\n")))
    assert (ended.status, ended.out) == (8, b"Hello")


def test_bad_utf8_is_replaced_in_place():
    stream = text_stream("a-BAD-z").replace(b"BAD", b"\xff-\xe2\x82-\xc0\xaf")
    assert ask(ok(stream)) == (0, "a-\ufffd-\ufffd-\ufffd\ufffd-z".encode(), "")


def test_a_body_that_ends_inside_a_character_is_incomplete():
    ended = ask(ok(opening("Hel"), b'data: {"type": "content_block_delta", "delta": {"text": "\xe2\x82'))
    assert (ended.status, ended.out) == (8, b"Hel")


@each(
    a_byte_order_mark=b"\xef\xbb\xbf" + text_stream("Hello"),
    no_event_names=re.sub(rb"event: .*\n", b"", text_stream("Hello")),
    carriage_returns=text_stream("Hello").replace(b"\n", b"\r"),
    both_line_ends=text_stream("Hello").replace(b"\n", b"\r\n"),
    mixed_line_ends=text_stream("Hello").replace(b"\n\n", b"\n\r\n"),
    byte_for_byte=[head(), *bytewise(text_stream("Hello"))],
)
def test_any_honest_spelling_of_a_stream_is_read(answer, /):
    assert ask(answer if isinstance(answer, list) else ok(answer)) == (0, b"Hello", "")


def test_separators_of_other_standards_are_text():
    text = "a\u2028b\u2029c\x85d"
    answer = ok(text_stream("TEXT").replace(b"TEXT", text.encode() + rb"\u000b\u000c\u001c"))
    assert ask(answer) == (0, text.encode() + b"\x0b\x0c\x1c", "")


# Clipboard, title, link, colour, the same with an 8-bit introducer, bell, delete, and text that runs backwards.
HOSTILE = "\x1b]52;c;ZXZpbA==\x07 \x1b]0;t\x1b\\ \x1b]8;;http://x\x07y \x1b[31m \x9b31m \x7f \u202e"
ACTIVE = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u202e]")


def test_control_sequences_pass_a_pipe_untouched():
    assert ask(ok(*text_events(*HOSTILE))) == (0, HOSTILE.encode(), "")


@each("", "--events", "--message", "--snapshots", "--summary", "--sse")
def test_control_sequences_are_shown_on_a_terminal_and_not_obeyed(form, /):
    events = b"".join([message_start(model=HOSTILE), *text_events(*HOSTILE)[1:]])
    raw = events.replace(rb"\u009b", "\x9b".encode()).replace(rb"\u007f", b"\x7f")  # as JSON may hold them
    with Server(ok(raw, event("new", x="\x9b"))) as server:
        argv = ["--base-url", server.url, "-I", *filter(None, [form]), "hello"]
        with Terminal(*argv) as terminal:
            ended = terminal.end()
    assert ended.status == 0
    assert not ACTIVE.search(ended.out.decode())
    if not form:
        assert ended.out == b"^[]52;c;ZXZpbA==^G ^[]0;t^[\\ ^[]8;;http://x^Gy ^[[31m \\x9b31m ^? \\u202e\n"


@each(
    an_error=error_response(400, "a\x1b[31m", HOSTILE),
    a_request_id=error_response(400, request_id="req\x1b]0;t\x07\x9b"),
    a_content_type=head(type="text/\x1b[31mplain", length=1) + b"x",
    a_body=head(400, type="text/html", length=len(HOSTILE.encode())) + HOSTILE.encode(),
    a_location=head(302, length=0, location="http://x/\x1b[31m"),
    an_error_event=ok(error_event("a\x9b", HOSTILE)),
    a_status_line=b"HTTP/1.1 \x1b[31m\r\n\r\n",
)
def test_control_sequences_in_what_a_server_says_are_never_on_stderr(answer, /):
    ended = ask(answer)
    assert ended.status in {3, 5}
    assert ended.error
    assert not ACTIVE.search(ended.err)


def test_lone_surrogates_are_replaced():
    answer = ok(*text_events("a\ud800b", "\ud83d", "\ude00", "\U0001f600"))
    assert ask(answer) == (0, "a\ufffdb\ufffd\ufffd\U0001f600".encode(), "")


def test_big_integers_stay_exact():
    ended = ask(ok(tool_answer('{"n": 123456789012345678901234567890}')), "--message")
    assert b'"input":{"n":123456789012345678901234567890}' in ended.out


@each(nan="NaN", an_endless_exponent="1E400", deep_nesting="[" * 2000 + "]" * 2000)
def test_an_input_that_no_parser_takes_is_none(number, /):
    given = f'{{"n": {number}}}'
    ended = ask(ok(tool_answer(given)), "--message")
    assert ended.status == 11
    assert ended.error.endswith("an input that is not complete JSON")
    assert json.loads(ended.out)["content"][0]["partial_json"] == given


# Tier 2: hangs and unbounded resources


@each(
    an_open_connection=[HANG],
    a_reset=[RESET],
    no_last_chunk=[],
    a_broken_chunk=[b"zzz\r\n"],
    another_event=[chunk(text_delta("!")), LAST_CHUNK],
)
def test_message_stop_is_the_end_whatever_comes_after(after, /):
    answer = [head(chunked=True) + chunk(text_stream("Hello")), *after]
    assert ask(answer, "--idle-timeout", "60") == (0, b"Hello", "")


@each(
    before_the_head=([HANG], b""),
    inside_the_head=([b"HTTP/1.1 200 OK\r\ncontent-", HANG], b""),
    after_the_head=([head(), HANG], b""),
    inside_an_event=([head() + opening("Hel") + text_delta("lo")[:40], HANG], b"Hel"),
    inside_a_chunk=([head(chunked=True) + chunk(opening("Hel") + b"rest")[:-4], HANG], b"Hel"),
)
def test_silence_is_status_7_and_named_the_idle_timeout(steps, out, /):
    with Server(steps) as server:
        ended = ask(server, "--idle-timeout", "0.3")
        assert server.hung_up()
    assert (ended.status, ended.out) == (7, out)
    assert "within the idle timeout of 0.3 s" in ended.error


def test_no_answer_to_a_connect_is_status_7_and_named_the_connect_timeout():
    with full_backlog() as port:
        argv = ["--base-url", f"http://127.0.0.1:{port}", "--connect-timeout", "0.3", "--retries", "0"]
        ended = streamcli(*argv, "hello")
    assert ended.status == 7
    assert ended.error == f"cannot connect to 127.0.0.1:{port} within the connect timeout of 0.3 s"


def test_no_answer_to_a_handshake_is_status_7_and_named_the_connect_timeout():
    with Mute() as mute:
        argv = ["--base-url", f"https://127.0.0.1:{mute.port}", "--connect-timeout", "0.3", "--retries", "0"]
        ended = streamcli(*argv, "hello", env=WITH_KEY)
        assert mute.heard.is_set()
    assert ended.status == 7
    assert (
        ended.error == f"the TLS handshake with 127.0.0.1:{mute.port} did not end within the connect timeout of 0.3 s"
    )


def test_no_answer_to_a_name_lookup_is_status_7_and_named_the_connect_timeout(tmp_path):
    argv = ["--base-url", ELSEWHERE, "--connect-timeout", "0.3", "--retries", "0", "hello"]
    with silent_resolver(tmp_path) as (prefix, asked):
        with Running(*argv, prefix=prefix, env=WITH_KEY) as running:
            ended = running.end(within=3)
        assert asked.is_set()
    assert ended.status == 7
    assert ended.error == "cannot connect to elsewhere.invalid:443 within the connect timeout of 0.3 s"


@each(
    pings=(head() + opening("Hel"), event("ping")),
    comments=(head() + opening("Hel"), b": so\n"),
    bytes_of_an_event=(head() + opening("Hel") + b"data: ", b"x"),
    blank_lines=(head() + opening("Hel"), b"\n"),
    bytes_of_a_head=(b"HTTP/1.1 200 OK\r\nx-a: ", b"a"),
    interim_answers=(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
)
def test_a_slow_drip_ends_at_the_total_timeout(first, drip, /):
    with Server([first, *[drip, 0.02] * 500]) as server:
        ended = ask(server, "--idle-timeout", "5", "--timeout", "0.8")
        assert server.hung_up()
    assert (ended.status, ended.out) == (7, b"Hel" if first.endswith(b"\n") or b"Hel" in first else b"")
    assert ended.error.startswith("the total timeout of 0.8 s passed")


def for_ever(data, first=b""):
    yield first
    while True:
        yield data


def test_a_flood_of_interim_answers_ends_at_the_total_timeout(server):
    server.responses = [for_ever(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)]
    ended = ask(server, "--timeout", "0.5", prefix=LITTLE_MEMORY)
    assert ended.status == 7
    assert ended.error.startswith("the total timeout of 0.5 s passed")


def test_pings_are_a_sign_of_life(server):
    server.responses = [[head() + opening("Hel"), *[event("ping"), 0.1] * 9]]
    ended = ask(server, "--idle-timeout", "0.7")
    assert (ended.status, ended.out) == (8, b"Hel")
    assert "the stream ended before message_stop" in ended.error


@pytest.mark.slow
def test_a_compression_bomb_is_unpacked_no_further_than_an_event_may_be_large():
    packed = gzip.compress(b"\0" * (512 << 20), 1)
    ended = ask(head(length=len(packed), content_encoding="gzip") + packed, prefix=LITTLE_MEMORY)
    assert (ended.status, ended.out) == (8, b"")
    assert "larger than 67108864 bytes" in ended.error


@each(
    a_line=(b"x" * 65536, b"data: ", [], 67108864),
    # What they take for each line is in the decoder's tests: 64 MiB of them are two seconds of work.
    data_lines=(b"data: x\n" * 8192, b"", ["--max-event-bytes", "4000000"], 4000000),
)
def test_an_event_without_end_is_refused_at_64_mib_or_where_it_was_said(piece, first, argv, limit, /):
    with Server(for_ever(piece, head() + opening("Hel") + first)) as server:
        with asking(server, *argv, prefix=LITTLE_MEMORY) as running:
            ended = running.end(2 * PATIENCE)
        assert server.hung_up()
    assert (ended.status, ended.out) == (8, b"Hel")
    assert f"larger than {limit} bytes" in ended.error


def test_an_event_of_a_fetched_file_is_read_and_the_limit_can_be_set():
    fetched = block_start(type="web_fetch_tool_result", tool_use_id="t", content={"data": "QUFB" * (17 << 18)})
    said = [block_stop(), block_start(1), text_delta("It says hello.", 1), block_stop(1), message_delta(), MESSAGE_STOP]
    answer = ok(message_start(), fetched, *said)
    assert ask(answer) == (0, b"It says hello.", "")
    ended = ask(answer, "--max-event-bytes", "100000")
    assert (ended.status, ended.out) == (8, b"")
    assert ended.error.startswith("an event of the stream is larger than 100000 bytes, the limit of max-event-bytes")
    assert ask(answer, env={"STREAMCLI_MAX_EVENT_BYTES": "0"}).status == 0


def test_comments_are_not_kept():
    answer = [head(), *[b": " + b"c" * 65534] * 800, b"\n", text_stream("Hello")]
    assert ask(answer, prefix=LITTLE_MEMORY) == (0, b"Hello", "")


def test_an_event_of_thousands_of_lines_is_one_event():
    lines = text_delta("Hello").replace(b", ", b",\n" + b"data: \n" * 20_000 + b"data: ")
    answer = ok(message_start(), block_start(), lines, block_stop(), message_delta(), MESSAGE_STOP)
    assert ask(answer) == (0, b"Hello", "")


@each(
    seconds={"retry_after": "0.01"},
    milliseconds_before_seconds={"retry_after_ms": "10", "retry_after": "70"},
)
def test_a_wait_that_the_server_asks_for_is_kept_and_said(headers, /):
    with Server(error_response(429, "rate_limit_error", "slow", **headers), HELLO) as server:
        ended = streamcli("--base-url", server.url, "hello")
    assert (ended.status, ended.out) == (0, b"Hello world")
    assert ended.err == "streamcli: retrying in 0.0 s after: status 429 rate_limit_error: slow (request_id req_1)\n"


@each("61", "9" * 30, "Wed, 21 Oct 2999 07:28:00 GMT")
def test_too_long_a_wait_fails_at_once_and_is_said(asked, /):
    with Server(error_response(429, "rate_limit_error", "slow", retry_after=asked)) as server:
        ended = streamcli("--base-url", server.url, "hello")
    assert (ended.status, server.connections) == (5, 1)
    assert re.search(r"slow; the server says to wait \d+ s", ended.error)


@each("inf", "nan", "-5", "5, 7", "", "Wed, 21 Oct 2015 07:28:00 GMT")
def test_nonsense_and_the_past_are_no_wait(asked, /):
    with Server(error_response(429, "rate_limit_error", "slow", retry_after=asked), HELLO) as server:
        with Running("--base-url", server.url, "hello") as running:
            running.until_err("\n")
        assert re.match(r"streamcli: retrying in 0\.[45] s after: status 429", running.err)


def test_a_wait_beyond_the_total_limit_fails_at_once(server):
    server.responses = [error_response(429, "rate_limit_error", "slow", retry_after="50")]
    ended = streamcli("--base-url", server.url, "--timeout", "20", "hello")
    assert ended.status == 7
    assert ended.error.startswith("the total timeout of 20 s would pass before another attempt after: status")


@each(2**31, 10**30, -1)
def test_an_index_is_not_believed(index, /):
    stream = ok(message_start(), block_start(index))
    assert "the stream ended before message_stop" in ask(stream, prefix=LITTLE_MEMORY).error
    strict = ask(stream, "--strict", prefix=LITTLE_MEMORY)
    assert strict.status == 8
    assert "the stream is malformed: " in strict.error


def test_thousands_of_blocks_are_no_trouble():
    blocks = [block_start(n, type="text", text="x") + block_stop(n) for n in range(5000)]
    assert ask(ok(b"".join([message_start(), *blocks, message_delta(), MESSAGE_STOP]))) == (0, b"x" * 5000, "")


def test_a_long_prompt_meets_the_servers_refusal(server):
    server.responses = [(UNREAD, error_response(413, "request_too_large", "too large"))]
    ended = streamcli("--base-url", server.url, stdin=b"word " * 5_000_000)
    assert (ended.status, ended.out) == (3, b"")
    assert ended.error == "status 413 request_too_large: too large (request_id req_1)"


def test_a_long_prompt_arrives_whole(server):
    server.responses = [HELLO]
    prompt = "wörd\n" * 1_000_000
    assert streamcli("--base-url", server.url, stdin=prompt.encode()).status == 0
    assert server.requests[0].json["messages"] == [{"role": "user", "content": prompt}]


def test_a_terminal_without_a_prompt_is_a_usage_error(server):
    with Terminal("--base-url", server.url) as terminal:
        ended = terminal.end()
    assert ended.status == 2
    assert ended.out.startswith(b"streamcli: error: no prompt")


def test_a_slow_reader_is_waited_for_and_nothing_is_collected(server):
    count, sent = 800, []

    def answer(_):
        yield head() + opening()
        for _ in range(count):
            yield text_delta("x" * 65536)
            sent.append(65536)
        yield block_stop() + message_delta() + MESSAGE_STOP

    server.responses = [answer]
    with small_pipe() as (reads, writes):
        running = asking(server, "--idle-timeout", "0.3", stdout=writes, prefix=LITTLE_MEMORY)
        with running:
            writes.close()
            until_full(reads)
            with pytest.raises(AssertionError, match="still running"):
                running.end(within=0.8)  # longer than the idle timeout
            assert sum(sent) < 20 << 20
            assert len(read_all(reads)) == count * 65536
            assert running.end() == (0, b"", "")


# Tier 3: failures of the wrong kind


def test_a_refused_connect_is_status_6_and_tried_again():
    with closed_port() as port:
        argv = ["--base-url", f"http://127.0.0.1:{port}", "hello"]
        ended = streamcli("--retries", "0", *argv)
        assert (ended.status, ended.error) == (
            6,
            f"cannot connect to 127.0.0.1:{port}: connection refused; is the server running, and is that its port?",
        )
        with Running(*argv) as running:
            running.until_err("\n")
    assert re.match(r"streamcli: retrying in 0\.[45] s after: cannot connect to 127\.0\.0\.1", running.err)


@each(
    an_unknown_name=(ELSEWHERE, "elsewhere.invalid:443: "),
    an_unreachable_network=("https://255.255.255.255", "255.255.255.255:443: network is unreachable"),
    a_name_too_long=(f"https://{'a' * 64}.invalid", ".invalid:443: "),
)
def test_a_host_that_is_not_there_is_status_6_and_named(url, reason, /):
    ended = streamcli("--base-url", url, "--retries", "0", "hello", env=WITH_KEY)
    assert ended.status == 6
    assert ended.error.startswith("cannot connect to ")
    assert reason in ended.error


def speaking_tls(authority, *names, **options):
    """What a server needs to speak TLS with a certificate of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, **options).configure_cert(context)
    return context


_DAY = datetime.timedelta(1)
_PAST, _FUTURE = (datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (2001, 2999))


@each(
    expired=("127.0.0.1", {"not_before": _PAST, "not_after": _PAST + _DAY}, "has expired"),
    not_yet_valid=("127.0.0.1", {"not_before": _FUTURE, "not_after": _FUTURE + _DAY}, "not yet valid"),
    another_host=("127.0.0.2", {}, "IP address mismatch, certificate is not valid for '127.0.0.1'"),
)
def test_a_certificate_that_does_not_hold_is_status_6_and_said(name, options, reason, /, authority, ca_file):
    with Server(HELLO, tls=speaking_tls(authority, name, **options)) as server:
        ended = streamcli("--base-url", server.url, "--ca-file", ca_file, "hello", env=WITH_KEY)
    assert ended.status == 6
    assert ended.error.startswith(f"the TLS handshake with 127.0.0.1:{server.port} failed: certificate verify failed: ")
    assert reason in ended.error
    assert (server.connections, server.requests) == (1, [])


def test_an_unknown_authority_is_status_6_and_a_known_one_is_trusted(tls_server, ca_file):
    tls_server.responses = [HELLO]
    ended = streamcli("--base-url", tls_server.url, "hello", env=WITH_KEY)
    assert ended.status == 6
    assert "certificate verify failed: " in ended.error
    assert (tls_server.connections, tls_server.requests) == (1, [])
    assert ask(tls_server, "--ca-file", ca_file, env=WITH_KEY) == (0, b"Hello world", "")
    assert ask(tls_server, env=WITH_KEY | {"SSL_CERT_FILE": ca_file}) == (0, b"Hello world", "")


def test_plain_http_on_a_tls_port_and_the_reverse_are_said(server, tls_server):
    server.responses = tls_server.responses = [(UNREAD, HELLO)]
    ended = streamcli("--base-url", f"https://127.0.0.1:{server.port}", "hello", env=WITH_KEY)
    assert ended.status == 6
    assert ended.error.startswith(f"the TLS handshake with 127.0.0.1:{server.port} failed: ")
    ended = ask(tls_server, "--base-url", f"http://127.0.0.1:{tls_server.port}")
    assert ended.status in {3, 6}  # a TLS alert, or a close
    assert ended.error


@each(
    a_close=([], "before responding"),
    a_reset=([RESET], "before responding"),
    a_close_unread=([UNREAD], "before responding"),
    half_a_head=([b"HTTP/1.1 200 OK\r\ncontent-type: text/ev"], "in the middle of the response's head"),
)
def test_a_close_before_the_head_is_over_is_status_6_and_tried_again(steps, when, /):
    with Server(steps) as server:
        ended = ask(server)
        assert ended.status == 6
        assert f"broke off {when}: " in ended.error
        with Running("--base-url", server.url, "hello") as running:
            running.until_err("\n")
        assert re.match(r"streamcli: retrying in 0\.[45] s after: 127\.0\.0\.1:\d+ broke off", running.err)


@each(
    garbage=(b"\x00\x01\x02garbage\r\n\r\n", 3, "the response is not HTTP"),
    http_0_9=(b"<html>\nhello</html>\n\n", 3, "the response is not HTTP"),
)
def test_what_is_no_http_is_said_and_not_tried_again(answer, status, words, /):
    with Server(answer) as server:
        ended = streamcli("--base-url", server.url, "hello")
    assert (ended.status, ended.out) == (status, b"")
    assert words in ended.error
    assert server.connections == 1


def test_bytes_that_do_not_begin_like_http_are_never_tried_again():
    with Server(b"\x15\x03\x03\x00\x02\x02\x28") as server:  # a TLS alert
        ended = streamcli("--base-url", server.url, "hello")
    assert ended.status in {3, 6}
    assert ended.error
    assert server.connections == 1


@each(
    between_events=b"",
    inside_an_event=chunk(text_delta("lo")[:40]),
    inside_a_character=chunk(b'data: {"a": "\xe2\x82'),
    inside_a_chunk=b"ff\r\ndata: ",
    inside_the_head_of_a_chunk=b"f",
)
def test_a_cut_stream_is_status_8_and_keeps_its_text(part, /):
    for end in [], [RESET]:
        with Server([head(chunked=True) + chunk(opening("Hel")) + part, *end]) as server:
            ended = ask(server)
        assert (ended.status, ended.out) == (8, b"Hel")
        assert ended.error.startswith(f"127.0.0.1:{server.port} broke off in mid-stream")


def test_a_cut_stream_inside_tls_is_status_8_too(tls_server, ca_file):
    tls_server.responses = [head() + text_stream("Hello"), head() + opening("Hel"), [head() + opening("Hel"), RESET]]
    options = {"env": WITH_KEY | {"SSL_CERT_FILE": ca_file}}
    assert ask(tls_server, **options) == (0, b"Hello", "")
    for _ in range(2):
        ended = ask(tls_server, **options)
        assert (ended.status, ended.out) == (8, b"Hel")
        assert ended.error


def test_too_long_a_content_length_matters_only_without_message_stop():
    whole, part = text_stream("Hello"), opening("Hel")
    assert ask(head(length=len(whole) + 9) + whole) == (0, b"Hello", "")
    ended = ask(head(length=len(part) + 9) + part)
    assert (ended.status, ended.out) == (8, b"Hel")


@each(
    a_bad_chunk_size=(head(chunked=True) + chunk(opening("Hel")) + b"zz\r\n", 8, b"Hel"),
    two_lengths=(head(length=5).replace(b"\r\n\r\n", b"\r\ncontent-length: 6\r\n\r\n") + b"x" * 6, 3, b""),
    a_length_and_chunks=(head(length=5, chunked=True) + chunk(text_stream("Hello")) + LAST_CHUNK, 0, b"Hello"),
    a_length_that_is_none=(head(length="many") + text_stream("Hello"), 3, b""),
)
def test_framing_is_judged_as_http_says(answer, status, out, /):
    ended = ask(answer)
    assert (ended.status, ended.out) == (status, out)
    assert not status or ended.error


def test_interim_answers_are_passed_over():
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    assert ask(interim + HELLO) == (0, b"Hello world", "")


@each(
    no_content=(head(204), 8),
    an_empty_stream=(ok(), 8),
    an_empty_body=(head(length=0), 8),
    an_upgrade=(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", 3),
)
def test_an_answer_without_content_is_no_success(answer, status, /):
    ended = ask(answer)
    assert (ended.status, ended.out) == (status, b"")
    assert ended.error


@each(
    an_error=(json_response({"type": "error", "error": {"type": "not_found_error", "message": "no x"}}), 3, "no x"),
    a_key_error=(json_response({"type": "error", "error": {"type": "authentication_error", "message": "x"}}), 4, "x"),
    json=(json_response({"answer": "hi"}), 3, "not an event stream but application/json"),
    html=(head(type="text/html", length=13) + b"<h1>Login\n</h", 3, "but text/html: Login"),
    no_type=(head(type=None, length=2) + b"hi", 3, "data without a content type"),
)
def test_an_answer_that_is_no_event_stream_is_named_and_shown(answer, status, words, /):
    ended = ask(answer)
    assert (ended.status, ended.out) == (status, b"")
    assert words in ended.error


@each("TEXT/Event-Stream", "text/event-stream;charset=utf-8", "text/event-stream; charset=iso-8859-1")
def test_an_event_stream_is_utf8_however_its_type_is_spelt(kind, /):
    stream = text_stream("TEXT").replace(b"TEXT", "é".encode())
    assert ask(head(type=kind) + stream) == (0, "é".encode(), "")


@each(
    (400, "invalid_request_error", 3),
    (401, "authentication_error", 4),
    (403, "permission_error", 4),
    (404, "not_found_error", 3),
    (413, "request_too_large", 3),
)
def test_a_refusal_says_kind_message_and_request_id_and_is_final(code, kind, status, /):
    with Server(error_response(code, kind, "that is why")) as server:
        ended = streamcli("--base-url", server.url, "hello")
    assert (ended.status, ended.out) == (status, b"")
    assert ended.error.startswith(f"status {code} {kind}: that is why")
    assert "(request_id req_1)" in ended.error
    assert server.connections == 1


@each(408, 409, 429, 500, 503, 529)
def test_a_passing_refusal_is_tried_again_and_then_status_5(code, /):
    with Server(error_response(code, "api_error", "busy", retry_after_ms="1")) as server:
        ended = streamcli("--base-url", server.url, "hello")
    assert (ended.status, ended.out) == (5, b"")
    *retries, last = ended.err.splitlines()
    assert retries == [f"streamcli: retrying in 0.0 s after: status {code} api_error: busy (request_id req_1)"] * 2
    assert last == f"streamcli: error: status {code} api_error: busy (request_id req_1)"
    assert server.connections == 3


@each((500, "false", 1), (429, "false", 1), (400, "true", 3))
def test_the_servers_advice_on_trying_again_is_taken(code, advice, connections, /):
    with Server(error_response(code, x_should_retry=advice, retry_after_ms="1")) as server:
        assert streamcli("--base-url", server.url, "hello").status == (3 if code == 400 else 5)
    assert server.connections == connections


def test_retries_n_is_n_further_attempts():
    with Server(BUSY) as server:
        assert streamcli("--base-url", server.url, "--retries", "4", "hello").status == 5
    assert server.connections == 5


@each(
    html=(head(400, type="text/html", length=16) + b"<b>Bad\nGate</b>\n", "Bad Gate"),
    empty=(head(400, length=0), "the server gave no reason"),
    binary=(head(400, type="application/octet-stream", length=4) + b"\x00\x01\xff\xfe", "^@^A\ufffd\ufffd"),
    huge=(head(400, type="text/plain") + b"w" * 50_000_000, "wwwwwwww"),
    cut=([head(400, length=900) + b'{"type": "error", "err', RESET], '{"type": "error", "err'),
    stalled=([head(400, length=9) + b"half", HANG], "half", "--idle-timeout", "0.3"),
    dripping=([head(400) + b"half", *[b" ", 0.02] * 500], "half", "--timeout", "2"),
    a_list=(json_response([1], 400), "[1]"),
    an_error_of_no_use=(json_response({"error": None}, 400), "the server gave no reason"),
)
def test_the_status_wins_whatever_the_body_is(answer, words, /, *limits):
    ended = ask(answer, *limits, prefix=LITTLE_MEMORY)
    assert (ended.status, ended.out) == (3, b"")
    assert ended.error.startswith(f"status 400: {words}")
    assert len(ended.error) < 400


def test_large_heads_are_read_and_endless_ones_refused():
    many = {f"x-h{number}": "v" for number in range(1500)}
    assert ask(head(**many) + text_stream("Hello")) == (0, b"Hello", "")
    assert ask(head(x_long="v" * 200_000) + text_stream("Hello")).status == 3


def test_another_attempt_is_another_connection_so_no_idle_one_can_be_lost():
    with Server(BUSY, HELLO) as server:
        assert streamcli("--base-url", server.url, "hello").out == b"Hello world"
    assert server.connections == 2


def test_an_address_that_refuses_is_passed_over_for_the_next(server, tmp_path):
    (tmp_path / "hosts").write_text("::1 dual.localhost\n127.0.0.1 dual.localhost\n")
    prefix = bound({"/etc/hosts": tmp_path / "hosts"})
    server.responses = [HELLO]
    url = f"http://dual.localhost:{server.port}"
    assert ask(server, "--base-url", url, prefix=prefix) == (0, b"Hello world", "")


@each(
    ("ALL_PROXY", "socks4://127.0.0.1:1"),
    ("https_proxy", "ftp://127.0.0.1"),
    ("HTTPS_PROXY", "http://[::1"),
)
def test_a_useless_proxy_variable_is_status_2_and_named(name, value, /):
    ended = streamcli("--base-url", "https://elsewhere.invalid", "hello", env=WITH_KEY | {name: value})
    assert ended.status == 2
    assert ended.error.startswith(f"{name} ")


@each("[::1]", "::1,fe80::/10", "", "*", "example.com")
def test_no_proxy_of_the_environment_is_asked_for_loopback(value, /):
    nobody = "http://127.0.0.1:1"
    env = {"NO_PROXY": value, "HTTP_PROXY": nobody, "http_proxy": nobody, "ALL_PROXY": nobody}
    assert ask(HELLO, env=WITH_KEY | env) == (0, b"Hello world", "")


@each("http", "https")
def test_a_dead_or_refusing_proxy_is_status_6_and_called_the_proxy(scheme, /):
    rejection = b"HTTP/1.1 407 Who Are You\r\ncontent-length: 0\r\n\r\n"
    with closed_port() as dead, Server(HELLO) as server, Proxy(rejection) as proxy:
        argv = ["--base-url", f"{scheme}://127.0.0.1:{server.port}"]
        ended = ask(server, *argv, "--proxy", f"http://127.0.0.1:{dead}", env=WITH_KEY)
        assert ended.status == 6
        assert ended.error == f"cannot connect to the proxy 127.0.0.1:{dead}: connection refused"
        ended = ask(server, *argv, "--proxy", proxy.url.replace("://", "://user:SECRET@"), env=WITH_KEY)
        assert ended.status == 6
        assert ended.error.startswith(f"the proxy 127.0.0.1:{proxy.port} rejected the ")
        assert ended.error.endswith(f" to 127.0.0.1:{server.port}: 407 Who Are You")
        assert "SECRET" not in ended.err
    assert server.connections == 0


@each("SSL_CERT_FILE", "SSLKEYLOGFILE", "SSL_CERT_DIR")
def test_a_useless_tls_variable_is_status_2_and_named(name, /):
    ended = streamcli("--base-url", ELSEWHERE, "--retries", "0", "hello", env=WITH_KEY | {name: "/nowhere/x"})
    assert ended.status == 2
    assert ended.error.startswith(name)


@each(
    "127.0.0.1:80",
    "http://127.0.0.1\n",
    "http://[::1",
    "http://127.0.0.1:99999",
    "http://u:SECRET@127.0.0.1",
)
def test_a_base_url_that_is_none_is_status_2_and_its_source_named(url, /):
    ended = streamcli("--base-url", url, "hello")
    assert ended.status == 2
    assert ended.error.startswith("--base-url ")
    assert "SECRET" not in ended.err


def test_a_base_url_of_the_environment_that_is_none_is_named_by_its_variable():
    ended = streamcli("hello", env={"ANTHROPIC_BASE_URL": "localhost:8000"})
    assert ended.status == 2
    assert ended.error.startswith("ANTHROPIC_BASE_URL ")


@each(
    the_environment=([], {"ANTHROPIC_API_KEY": KEY}),
    a_token=([], {"ANTHROPIC_AUTH_TOKEN": KEY}),
    a_command=(["--api-key-cmd", f"echo {KEY}"], {}),
    a_header=(["-H", f"x-api-key: {KEY}"], {}),
    a_bearer_header=(["-H", f"Authorization: Bearer {KEY}"], {}),
    a_header_of_the_environment=([], {"ANTHROPIC_CUSTOM_HEADERS": f"X-Api-Key: {KEY}"}),
)
def test_a_key_goes_out_in_clear_to_loopback_only(argv, env, /):
    ended = streamcli("--base-url", "http://elsewhere.invalid", *argv, "hello", env=env)
    assert ended.status == 2
    assert ended.error.startswith("--base-url uses plain http to elsewhere.invalid, so the key could be read")


def test_a_key_goes_out_in_clear_where_that_is_allowed():
    argv = ["--base-url", "http://elsewhere.invalid", "--allow-http", "--retries", "0", "hello"]
    assert streamcli(*argv, env=WITH_KEY).status == 6


def test_a_key_goes_out_in_clear_through_no_proxy_of_another_machine():
    with Server(HELLO) as server:
        elsewhere = ["--proxy", "http://proxy.invalid:3128"]
        ended = ask(server, *elsewhere, env=WITH_KEY)
        assert ended.status == 2
        assert ended.error.startswith("--proxy uses plain http to proxy.invalid, where the key could be read")
        assert ask(server, *elsewhere).status == 6
        with Proxy() as proxy:
            assert ask(server, "--proxy", proxy.url, env=WITH_KEY) == (0, b"Hello world", "")


def test_the_unknown_is_passed_over_and_passed_on():
    events = [
        message_start(new_field=1, usage={"input_tokens": 1, "new_counter": 2}),
        b"event: new\ndata: no json\n\n",
        event("new", data=1.0),
        block_start(0, type="new_block", x=1),
        delta("new_delta", 0, y=2),
        block_stop(0),
        block_start(1),
        text_delta("Hello", 1),
        block_stop(1),
        message_delta("new_reason"),
        MESSAGE_STOP,
    ]
    with Server(ok(*events)) as server:
        assert ask(server) == (0, b"Hello", "")
        lines = ask(server, "--events").out.splitlines()
        assert json.loads(ask(server, "--message").out)["stop_reason"] == "new_reason"
    sent = [raw.partition(b"data: ")[2].rstrip(b"\n") for raw in events]
    assert lines == [b'{"type":"new","data":"no json"}' if data == b"no json" else data for data in sent]


# Tier 4: Unix manners


def test_a_reader_that_goes_away_ends_the_run_by_sigpipe_and_the_connection_with_it(server):
    server.responses = [[head() + opening("Hel"), go := threading.Event(), text_delta("lo"), HANG]]
    with asking(server) as running:
        running.until_out(b"Hel")
        running.process.stdout.close()
        go.set()
        assert running.process.wait(10) == -signal.SIGPIPE
        assert server.hung_up()
        assert running.process.stderr.read() == b""


def test_in_a_pipeline_a_reader_that_goes_away_is_141(server):
    server.responses = [[head() + opening("Hel\n"), *[text_delta("lo\n"), 0.01] * 999]]
    script = f"{' '.join(COMMAND)} --base-url {server.url} hello | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (141, b"Hel\n", b"")


class Stage(NamedTuple):
    """A point of a run: how to get there, how to know that the command did, and what it wrote until then.

    `closed` waits for the peer to see the connection closed, where there is one.
    """

    argv: list
    reached: object
    closed: object = lambda: True
    out: bytes = b""
    options: dict = {}  # noqa: RUF012 - a tuple's default, never changed


@contextlib.contextmanager
def reading_stdin():
    def reached(running):
        running.process.stdin.write(b"half a")
        until(running.has_taken)

    yield Stage(["-"], reached, options={"stdin": subprocess.PIPE})


@contextlib.contextmanager
def connecting():
    with full_backlog() as port:
        argv = ["--base-url", f"http://127.0.0.1:{port}", "hello"]
        yield Stage(argv, lambda _: until(lambda: is_connecting(port)))


@contextlib.contextmanager
def shaking_hands():
    with Mute() as mute:
        argv = ["--base-url", f"https://127.0.0.1:{mute.port}", "hello"]
        yield Stage(argv, lambda _: mute.heard.wait(10), lambda: mute.closed.wait(10), options={"env": WITH_KEY})


@contextlib.contextmanager
def waiting():
    with Server([HANG]) as server:
        yield Stage(["--base-url", server.url, "hello"], lambda _: server.request(), server.hung_up)


@contextlib.contextmanager
def reading():
    with Server([head() + opening("Hel"), HANG]) as server:
        argv = ["--base-url", server.url, "hello"]
        yield Stage(argv, lambda running: running.until_out(b"Hel"), server.hung_up, b"Hel")


@contextlib.contextmanager
def about_to_retry():
    with Server(error_response(500, retry_after="30")) as server:
        yield Stage(["--base-url", server.url, "hello"], lambda running: running.until_err("retrying in 30"))


@contextlib.contextmanager
def writing(*argv):
    with Server([head() + opening("Hel"), HANG]) as server, small_pipe() as (_, writes):
        writes.write(b"x" * 4096)
        argv = ["--base-url", server.url, *argv, "hello"]
        yield Stage(argv, Running.until_stuck, server.hung_up, options={"stdout": writes})


def writing_events():
    return writing("--events")


@contextlib.contextmanager
def complaining():
    with Server(error_response(400)) as server, small_pipe() as (_, writes):
        writes.write(b"x" * 4096)
        argv = ["--base-url", server.url, "hello"]
        yield Stage(argv, Running.until_stuck, options={"stderr": writes})


@contextlib.contextmanager
def complaining_of_usage():
    with small_pipe() as (_, writes):
        writes.write(b"x" * 4096)
        yield Stage(["-I"], Running.until_stuck, options={"stderr": writes})


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
STAGES = (
    reading_stdin,
    connecting,
    shaking_hands,
    waiting,
    reading,
    about_to_retry,
    writing,
    writing_events,
    complaining,
    complaining_of_usage,
)


@each(**{f"{number.name}_{stage.__name__}": (number, stage) for stage in STAGES for number in SIGNALS})
def test_a_signal_ends_the_run_at_once_by_the_signal_itself(number, stage, /):
    with stage() as at, Running("--idle-timeout", "60", *at.argv, **at.options) as running:
        at.reached(running)
        running.signal(number)
        ended = running.end(PROMPTLY)
        assert at.closed()
    assert ended.status == -number
    assert ended.out == at.out
    assert ended.err.count("\n") == (stage is about_to_retry)


def test_a_signal_ends_a_name_lookup_at_once(tmp_path):
    argv = ["--base-url", ELSEWHERE, "hello"]
    with silent_resolver(tmp_path) as (prefix, asked), Running(*argv, prefix=prefix, env=WITH_KEY) as running:
        assert asked.wait(10)
        running.signal(signal.SIGINT)
        assert running.end(PROMPTLY) == (-signal.SIGINT, b"", "")


def test_an_interrupt_from_the_keyboard_ends_the_line_and_says_nothing(server):
    server.responses = [[head() + opening("Hel"), HANG]]
    with Terminal("--base-url", server.url, "-I", "hello") as terminal:
        terminal.until_shown(b"Hel")
        terminal.type(b"\x03")
        ended = terminal.end(PROMPTLY)
    assert ended.status == -signal.SIGINT
    assert ended.out in {b"Hel^C\n", b"Hel\n"}


def test_an_ignored_hangup_stays_ignored(server):
    server.responses = [
        [head() + opening("Hel"), go := threading.Event(), block_stop() + message_delta() + MESSAGE_STOP]
    ]
    with asking(server, prefix=shell("trap '' HUP")) as running:
        running.until_out(b"Hel")
        running.signal(signal.SIGHUP)
        go.set()
        assert running.end() == (0, b"Hel", "")


@each(
    cut_meanwhile=([], 0, 8, "ended before message_stop"),
    ended_meanwhile=([text_delta("lo") + block_stop() + message_delta() + MESSAGE_STOP], 0, 0, ""),
    silent_meanwhile=([HANG], 0, 7, "within the idle timeout of 0.3 s"),
    ended_long_ago=([text_delta("lo") + block_stop() + message_delta() + MESSAGE_STOP], 1.2, 0, ""),
    silent_for_long=([HANG], 1.2, 7, "within the idle timeout of 0.3 s"),
)
def test_a_stopped_run_goes_on_as_if_nothing_but_time_had_passed(rest, pause, status, words, /):
    stopped, sent = threading.Event(), threading.Event()

    def answer(_):
        yield head() + opening("Hel")
        yield stopped
        yield from rest
        sent.set()

    with Server(answer) as server, asking(server, "--idle-timeout", "0.3") as running:
        running.until_out(b"Hel")
        running.signal(signal.SIGSTOP)
        running.until_stopped()
        stopped.set()
        assert rest == [HANG] or sent.wait(10)
        time.sleep(pause)  # which is what is tested: the timeout passes while nobody reads
        running.signal(signal.SIGCONT)
        ended = running.end()
    assert ended.status == status
    assert words in ended.err


def lost(how):
    """Options for a standard error that nobody gets."""
    if how == "closed":
        return {"prefix": shell("exec 2>&-")}
    if how == "full":
        return {"prefix": shell("exec 2>/dev/full")}
    reader, writer = os.pipe()
    os.close(reader)
    return {"stderr": open(writer, "wb", buffering=0)}


@each("closed", "full", "unread")
def test_a_lost_stderr_changes_neither_status_nor_stdout(how, /):
    options = lost(how)
    assert ask(HELLO, "-v", "-u", **options)[:2] == (0, b"Hello world")
    assert ask(ok(opening("Hel")), "-v", **options)[:2] == (8, b"Hel")
    with Server(BUSY, HELLO) as server:
        assert streamcli("--base-url", server.url, "hello", **options)[:2] == (0, b"Hello world")
    assert streamcli("--nonsense", **options).status == 2
    if "stderr" in options:
        options["stderr"].close()


@each(
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
    {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
)
def test_text_is_utf8_whatever_the_locale(env, /):
    with Server(ok(*text_events("é\u20ac\U0001f600")), error_response(400, message="é")) as server:
        argv = ["--base-url", server.url, "-s", "ü", "naïve ☕"]
        assert streamcli(*argv, stdin="ö".encode(), env=env) == (0, "é\u20ac\U0001f600".encode(), "")
        assert server.requests[0].json["messages"][0]["content"] == "ö\n\nnaïve ☕"
        assert server.requests[0].json["system"] == "ü"
        assert streamcli(*argv, env=env).error == "status 400 invalid_request_error: é (request_id req_1)"


@each(
    a_word=([b"na\xefve"], b"", "the prompt is not UTF-8: "),
    standard_input=([], b"ab\xe9", "standard input is not UTF-8: byte 3 is 0xe9"),
    standard_input_cut=([], b"ab\xe2\x82", "standard input is not UTF-8: byte 3 is 0xe2"),
    an_option=([b"-I", b"-s", b"\xe9", b"hello"], b"", "--system is not UTF-8: "),
)
def test_input_that_is_not_utf8_is_refused_with_its_place(argv, stdin, words, /):
    with Server(HELLO) as server:
        ended = streamcli("--base-url", server.url, *argv, stdin=stdin)
    assert (ended.status, server.connections) == (2, 0)
    assert ended.error.startswith(words)


@each(
    nul=(b"a\0b", "a\0b"),
    a_byte_order_mark=(b"\xef\xbb\xbfa", "a"),
    line_ends_of_another_system=(b"a\r\nb\r\n", "a\r\nb\r\n"),
)
def test_input_is_sent_as_it_is(stdin, content, /):
    with Server(HELLO) as server:
        assert streamcli("--base-url", server.url, stdin=stdin).status == 0
    assert server.requests[0].json["messages"] == [{"role": "user", "content": content}]


@each((b" \n\t\n", []), (b"\xef\xbb\xbf", []), (b"", ["-"]), (b"\n", [" ", ""]))
def test_nothing_to_ask_is_a_usage_error_before_anything_is_sent(stdin, argv, /):
    with Server(HELLO) as server:
        ended = streamcli("--base-url", server.url, *argv, stdin=stdin)
    assert (ended.status, server.connections) == (2, 0)
    assert ended.error.startswith("no prompt")


def test_every_delta_is_written_when_it_comes_and_no_line_end_is_added(server):
    texts = ["one", " two", " é", "\n three"]
    gates = [threading.Event() for _ in texts]
    server.responses = [[head(), message_start() + block_start(), *steps(texts, gates), block_stop() + MESSAGE_STOP]]
    with asking(server) as running:
        written = ""
        for text, gate in zip(texts, gates, strict=True):
            gate.set()
            written += text
            running.until_out(written.encode())
        assert running.end() == (0, written.encode(), "")


def steps(texts, gates):
    """Each text as a delta, behind its gate."""
    return [step for text, gate in zip(texts, gates, strict=True) for step in (gate, text_delta(text))]


def test_one_network_read_makes_one_write(server):
    """On a pipe in packet mode every write is a read of its own."""
    texts = [f"{number} " for number in range(20)]
    gates = [threading.Event() for _ in texts]
    burst = b"".join(map(text_delta, "abcdefghij"))
    last = [final := threading.Event(), burst + block_stop() + message_delta() + MESSAGE_STOP]
    server.responses = [[head() + message_start() + block_start(), *steps(texts, gates), *last]]
    with small_pipe(os.O_DIRECT) as (reads, writes), asking(server, stdout=writes) as running:
        writes.close()
        for text, gate in zip(texts, gates, strict=True):
            gate.set()
            assert os.read(reads.fileno(), 4096) == text.encode()
        final.set()
        assert os.read(reads.fileno(), 4096) == b"abcdefghij"
        assert running.end() == (0, b"", "")
        assert os.read(reads.fileno(), 4096) == b""


def test_the_kernel_sees_a_write_after_each_read_that_held_text(server, tmp_path):
    texts = [f"{number} " for number in range(20)]
    gates = [threading.Event() for _ in texts]
    server.responses = [[head() + message_start() + block_start(), *steps(texts, gates), block_stop() + MESSAGE_STOP]]
    trace = tmp_path / "trace"
    prefix = allowed(["strace", "-o", str(trace), "-e", "trace=recvfrom,read,write"])
    with asking(server, prefix=prefix) as running:
        for text, gate in zip(texts, gates, strict=True):
            gate.set()
            running.until_out(text.encode())
        assert running.end().status == 0
    calls = re.findall(r"^recvfrom|^write(?=\(1,)", trace.read_text(), re.MULTILINE)
    assert calls.count("write") == len(texts)
    assert all(before == "recvfrom" for before, call in itertools.pairwise(calls) if call == "write")


def test_a_window_that_is_closed_ends_the_run_by_the_hangup(server):
    server.responses = [[head() + opening("Hel"), HANG]]
    with Terminal("--base-url", server.url, "-I", "hello") as terminal:
        terminal.until_shown(b"Hel")
        terminal.hang_up()
        assert terminal.end(PROMPTLY).status == -signal.SIGHUP
        assert server.hung_up()


def test_a_terminal_that_is_gone_and_was_not_ours_is_status_10(server):
    server.responses = [[head() + opening("Hel"), go := threading.Event(), text_delta("lo"), HANG]]
    master, slave = pty.openpty()
    with asking(server, stdout=slave) as running:
        os.close(slave)
        assert os.read(master, 3) == b"Hel"
        os.close(master)
        go.set()
        ended = running.end()
    assert (ended.status, ended.error) == (10, "cannot write to standard output: input/output error")


def test_a_clock_that_is_wrong_and_jumps_changes_nothing(server):
    server.responses = [HELLO, [HANG], error_response(529, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"), HELLO]
    jump = "import itertools, runpy, time; time.time = itertools.cycle([0.0, 4e9]).__next__"
    command = [sys.executable, "-c", f"{jump}; runpy.run_module('streamcli', run_name='__main__', alter_sys=True)"]
    summary = ask(server, "--summary", "--timeout", "60", command=command)
    assert summary.status == 0
    assert 0 < float(re.search(rb"^duration: (.*)$", summary.out, re.MULTILINE)[1]) < 10
    ended = ask(server, "--idle-timeout", "0.3", command=command)
    assert ended.status == 7
    assert "within the idle timeout of 0.3 s" in ended.error
    # By one reading of this clock the date has passed, by the other it is too far off to wait for.
    assert ask(server, "--retries", "1", command=command).status in {0, 5}


# Beside the rows: standard input, the last line of --events, -o, errors as JSON, keys


def test_stdin_that_stays_silent_beside_a_prompt_ends_the_run_before_anything_is_sent(server):
    with Running("--base-url", server.url, "--stdin-timeout", "0.3", "hello", stdin=subprocess.PIPE) as running:
        ended = running.end()
    assert ended.status == 2
    assert ended.error == "nothing came on standard input for 0.3 s: use -I to ignore it"
    assert server.connections == 0


@each((["--stdin-timeout", "3.3"], b""), (["--stdin-timeout", "0"], b"late"), ([], b"late"))
def test_stdin_that_stays_silent_is_mentioned_after_3_s(argv, late, /):
    note = "streamcli: waiting for standard input; use -I to ignore it\n"
    with Server(HELLO) as server, Running("--base-url", server.url, *argv, "hello", stdin=subprocess.PIPE) as running:
        running.until_err(note)
        if not late:
            ended = running.end()
            assert (ended.status, server.connections) == (2, 0)
            assert (
                ended.err == f"{note}streamcli: error: nothing came on standard input for 3.3 s: use -I to ignore it\n"
            )
            return
        running.give(late)
        assert running.end() == (0, b"Hello world", note)
    assert server.requests[0].json["messages"][0]["content"] == "late\n\nhello"


def test_a_slow_producer_is_not_lost(server):
    server.responses = [HELLO]
    with Running("--base-url", server.url, "--stdin-timeout", "0.5", "hello", stdin=subprocess.PIPE) as running:
        running.process.stdin.write(b"one ")
        until(running.has_taken)
        with pytest.raises(AssertionError, match="still running"):
            running.end(within=0.7)  # longer than the limit for the first byte
        running.give(b"two")
        assert running.end() == (0, b"Hello world", "")
    assert server.requests[0].json["messages"][0]["content"] == "one two\n\nhello"


@each(
    ignored_by_option=(["-I"], {}, subprocess.PIPE, ()),
    ignored_by_environment=([], {"STREAMCLI_IGNORE_STDIN": "1"}, subprocess.PIPE, ()),
    null=([], {}, subprocess.DEVNULL, ()),
    closed=([], {}, None, shell("exec <&-")),
    closed_all_three=([], {}, None, shell("exec <&- 2>&-")),
)
def test_a_stdin_that_is_none_is_not_waited_for(argv, env, stdin, prefix, /):
    with Server(HELLO) as server:
        argv = ["--base-url", server.url, *argv, "hello"]
        with Running(*argv, env=env, stdin=stdin, prefix=prefix) as running:
            assert running.end() == (0, b"Hello world", "")
    assert server.requests[0].json["messages"] == [{"role": "user", "content": "hello"}]


def test_in_a_while_read_loop_every_line_is_asked(server):
    server.responses = [ok(*text_events("."))]
    loop = f'while read -r line; do {" ".join(COMMAND)} --base-url {server.url} -I "$line"; done'
    done = subprocess.run(["sh", "-c", loop], input=b"one\ntwo\nthree\n", capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"...", b"")
    assert [request.json["messages"][0]["content"] for request in server.requests] == ["one", "two", "three"]


ENDINGS = {
    "complete": (HELLO, None),
    "refusal": (error_response(400), "invalid_request_error"),
    "refusal_without_a_kind": (head(400, length=0), "streamcli.status_error"),
    "redirect": (head(302, length=0, location="http://x/"), "streamcli.status_error"),
    "no_event_stream": (json_response({}), "streamcli.unexpected_response"),
    "no_http": (b"\0\r\n\r\n", "streamcli.unexpected_response"),
    "close_before_the_head": ([], "streamcli.connection_error"),
    "empty": (ok(), "streamcli.incomplete_stream"),
    "cut": (ok(opening("Hel")), "streamcli.incomplete_stream"),
    "reset": ([head(chunked=True) + chunk(opening("Hel")), RESET], "streamcli.incomplete_stream"),
    "malformed": (ok(opening("Hel"), b"data: {no json\n\n"), "streamcli.protocol_error"),
    "error_event": (ok(opening("Hel"), error_event()), "overloaded_error"),
    "error_event_at_once": (ok(error_event()), "overloaded_error"),
    "idle": ([head() + opening("Hel"), HANG], "streamcli.timeout_error"),
}


@each(**ENDINGS)
def test_the_last_line_of_events_says_how_it_ended(answer, kind, /, tmp_path):
    with Server(answer) as server:
        file = tmp_path / str(server.port)
        ended = ask(server, "--events", "--events-to", str(file), "--idle-timeout", "0.3")
    assert (ended.status == 0) == (kind is None)
    assert file.read_bytes() == ended.out
    line = last_line(ended.out)
    assert (line["type"], line.get("error", {}).get("type")) == ("error" if kind else "message_stop", kind)


def test_the_last_line_of_events_beside_another_form_says_the_same(server, tmp_path):
    server.responses = [error_response(400), ok(opening("Hel"))]
    for kind in "invalid_request_error", "streamcli.incomplete_stream":
        assert ask(server, "--events-to", str(tmp_path / "events")).status
        assert last_line((tmp_path / "events").read_bytes())["error"]["type"] == kind


def test_the_last_line_of_events_says_that_nobody_answered():
    with closed_port() as port:
        ended = streamcli("--base-url", f"http://127.0.0.1:{port}", "--retries", "0", "--events", "hello")
    assert ended.status == 6
    error = last_line(ended.out)["error"]
    assert error["type"] == "streamcli.connection_error"
    assert ended.error.startswith(f"{error['message']}; ")  # what can be done about it is for people


@each(*SIGNALS)
def test_the_last_line_of_events_names_the_signal(number, /, tmp_path):
    file = tmp_path / number.name
    for stage in reading, waiting:
        with stage() as at, Running("--events", "--events-to", str(file), *at.argv, **at.options) as running:
            at.reached(running)
            running.signal(number)
            ended = running.end(PROMPTLY)
        assert ended.status == -number
        for out in ended.out, file.read_bytes():
            assert last_line(out)["error"] == {"type": "streamcli.interrupted", "message": number.name}


def test_the_last_line_beside_a_reader_that_goes_away_says_so(server, tmp_path):
    server.responses = [[head() + opening("Hel"), go := threading.Event(), text_delta("lo"), HANG]]
    with asking(server, "--events-to", str(tmp_path / "events")) as running:
        running.until_out(b"Hel")
        running.process.stdout.close()
        go.set()
        assert running.process.wait(10) == -signal.SIGPIPE
    assert last_line((tmp_path / "events").read_bytes())["error"]["message"] == "SIGPIPE"


def test_a_line_that_a_signal_broke_off_is_finished_before_the_last_one(server):
    server.responses = [[head() + opening("x" * 20_000), HANG]]
    with small_pipe() as (reads, writes), asking(server, "--events", stdout=writes) as running:
        writes.close()
        running.until_stuck()
        running.signal(signal.SIGTERM)
        lines = [json.loads(line) for line in read_all(reads).splitlines()]
        assert running.end(PROMPTLY).status == -signal.SIGTERM
    *_, line, last = lines
    assert line["delta"]["text"] == "x" * 20_000
    assert last["error"]["message"] == "SIGTERM"


def has_come(file, text):
    """Whether a file that will become `file` holds `text`."""
    return [path.read_text() for path in file.parent.glob(f"{file.name}.partial.*")] == [text]


def test_output_appears_only_when_it_is_whole(server, tmp_path):
    file = tmp_path / "answer"
    file.write_text("old")
    gate = threading.Event()
    server.responses = [
        [head() + opening("Hel"), gate, text_delta("lo") + block_stop() + message_delta() + MESSAGE_STOP]
    ]
    with asking(server, "-o", str(file)) as running:
        until(lambda: has_come(file, "Hel"))
        assert file.read_text() == "old"
        gate.set()
        assert running.end() == (0, b"", "")
    assert file.read_text() == "Hello"
    assert os.listdir(tmp_path) == ["answer"]


def test_two_runs_with_one_output_each_leave_a_whole_answer_there(server, tmp_path):
    file = tmp_path / "answer"
    gates = [threading.Event(), threading.Event()]
    ending = block_stop() + message_delta() + MESSAGE_STOP
    server.responses = [[head() + opening("one\n"), gates[0], text_delta("one\n") + ending]]
    server.responses += [[head() + opening("two\n"), gates[1], text_delta("two\n") + ending]]
    with asking(server, "-o", str(file)) as one:
        until(lambda: has_come(file, "one\n"))
        with asking(server, "-o", str(file)) as two:
            until(lambda: len(list(tmp_path.iterdir())) == 2)
            gates[0].set()
            assert one.end().status == 0
            assert file.read_text() == "one\none\n"
            gates[1].set()
            assert two.end().status == 0
    assert file.read_text() == "two\ntwo\n"
    assert os.listdir(tmp_path) == ["answer"]


@each(a_signal=[HANG], a_cut=[])
def test_a_run_that_fails_leaves_the_old_output_and_keeps_what_came(end, /, tmp_path):
    with Server([head() + opening("Hel"), *end]) as server:
        file, partial = (tmp_path / f"{server.port}{suffix}" for suffix in ("", ".partial"))
        file.write_text("old")
        with asking(server, "-o", str(file)) as running:
            if end:
                until(lambda: has_come(file, "Hel"))
                running.signal(signal.SIGTERM)
            assert running.end().status == (-signal.SIGTERM if end else 8)
    assert (file.read_text(), partial.read_text()) == ("old", "Hel")


def test_a_closed_stdout_does_not_matter_to_a_file(tmp_path):
    assert ask(HELLO, "-o", str(tmp_path / "answer"), prefix=shell("exec >&-")).status == 0
    assert (tmp_path / "answer").read_text() == "Hello world"


@each("--events-to", "--usage-to", "--record")
def test_a_full_device_beside_the_answer_is_status_10_and_one_line(option, /, tmp_path):
    ended = ask(HELLO, option, "/dev/full", "-o", str(tmp_path / option))
    assert (ended.status, ended.error) == (10, "cannot write to /dev/full: no space left on device")
    assert not (tmp_path / option).exists()


@each(
    complete=(HELLO, ["--fail-on", "end_turn"], 9),
    error_response=(error_response(400), [], 3),
    key=(error_response(401), [], 4),
    error_event=(ok(error_event()), [], 5),
    close=([], [], 6),
    silence=([head() + opening("Hel"), HANG], ["--idle-timeout", "0.3"], 7),
    cut=(ok(opening("Hel")), [], 8),
    error_event_after_text=(ok(opening("Hel"), error_event()), [], 8),
    usage=(HELLO, ["--set", "nonsense"], 2),
    usage_of_an_option=(HELLO, ["--max-tokens", "many"], 2),
)
def test_an_error_as_json_says_the_truth_in_one_line(answer, argv, status, /):
    ended = ask(answer, "--error-format", "json", *argv)
    said = json.loads(ended.err)
    assert ended.status == said["exit_code"] == status
    assert said["message"]
    assert ended.err.count("\n") == 1
    assert said["retryable"] == (status in {5, 6, 7, 8})


def test_an_error_as_json_is_json_whatever_the_server_says(server):
    server.responses = [error_response(400, "a\x9b", message := f"{HOSTILE}  two blanks \x85")]
    ended = ask(server, "--error-format", "json")
    assert not ACTIVE.search(ended.err)
    assert json.loads(ended.err)["message"] == message


def test_a_stop_reason_of_fail_on_is_status_9_with_the_whole_answer(server):
    server.responses = [ok(*text_events("Hello", stop_reason="refusal"))]
    ended = ask(server, "--fail-on", "max_tokens, refusal")
    assert (ended.status, ended.out) == (9, b"Hello")
    assert ended.error == "stop reason refusal is one of --fail-on: the model refused"
    assert ask(server, "--fail-on", "max_tokens").status == 0


ECHO = f"no such key: {KEY}"


@each(
    complete=HELLO,
    a_refusal=error_response(401, "authentication_error", ECHO, request_id=KEY),
    a_refusal_in_text=head(401, length=len(ECHO)) + ECHO.encode(),
    a_passing_refusal=error_response(500, "api_error", ECHO, retry_after_ms="1"),
    a_redirect=head(302, length=0, location=f"http://x/?key={KEY}"),
    an_error_event=ok(error_event("api_error", ECHO)),
    no_event_stream=head(type="text/plain", length=len(ECHO)) + ECHO.encode(),
    no_http=f"HTTP/1.1 {KEY}\r\n\r\n".encode(),
)
def test_a_key_is_nowhere_in_what_the_command_emits(answer, /, tmp_path):
    for number, (source, env) in enumerate(
        [
            (["--events"], WITH_KEY),
            (["-v", "-u", "--summary", "-H", f"authorization: Bearer {KEY}"], {}),
            (["--error-format", "json", "--api-key-cmd", f"echo {KEY}"], {}),
        ]
    ):
        with Server(answer) as server:
            tape = tmp_path / f"{server.port}-{number}"
            argv = ["--base-url", server.url, "--retries", "1", "--record", str(tape), *source, "hello"]
            ended = streamcli(*argv, env=env)
            assert KEY in str(server.requests[0].headers)
        assert KEY not in ended.err
        assert KEY.encode() not in ended.out
        assert KEY not in tape.read_text()


@each("--dry-run", "--as-curl")
def test_a_key_is_nowhere_in_what_would_be_sent(mode, /, tmp_path):
    (tmp_path / mode).write_text(KEY)
    for argv, env in [
        ([], WITH_KEY),
        ([], {"ANTHROPIC_AUTH_TOKEN": KEY}),
        (["--api-key-file", str(tmp_path / mode)], {}),
        (["-H", f"x-api-key: {KEY}", "-H", f"cookie: {KEY}"], {}),
        ([], {"ANTHROPIC_CUSTOM_HEADERS": f"Authorization: Bearer {KEY}"}),
    ]:
        ended = streamcli("--base-url", ELSEWHERE, mode, "-v", *argv, "hello", env=env)
        assert ended.status == 0
        assert KEY.encode() not in ended.out
        assert KEY not in ended.err


def test_a_key_is_neither_in_the_arguments_nor_in_the_environment(tmp_path):
    (tmp_path / "key").write_text(KEY)
    with waiting() as at, Running("--api-key-file", str(tmp_path / "key"), *at.argv, prefix=TRULY) as running:
        at.reached(running)
        for name in "cmdline", "environ":
            with open(f"/proc/{running.pid}/{name}", "rb") as file:
                assert KEY.encode() not in file.read()


# The rows

# Its tests, or a sentence that says why there can be none.
ROWS = {
    1: ["test_a_body_that_ends_cleanly_without_message_stop_is_incomplete"],
    2: [
        "test_a_body_in_a_coding_that_cannot_be_read_is_an_error",
        "test_a_compressed_body_is_read_and_is_incomplete_where_it_was_cut",
    ],
    3: [
        "test_a_full_device_is_status_10",
        "test_a_disk_that_fills_up_keeps_what_went_on_it_and_is_status_10",
        "test_a_file_size_limit_is_status_10_and_no_signal",
    ],
    4: ["test_a_full_non_blocking_pipe_loses_nothing"],
    5: ["test_a_closed_stdout_is_found_before_a_request_is_spent", "test_help_that_nobody_gets_is_status_10"],
    6: ["test_nothing_is_retried_once_output_began", "test_what_failed_before_any_output_is_retried_and_said"],
    7: ["test_a_redirect_is_never_followed"],
    8: [
        "test_a_key_that_no_header_can_carry_is_refused_and_never_shown",
        "test_a_key_is_nowhere_in_what_the_command_emits",
    ],
    9: ["test_an_error_event_after_text_is_incomplete_and_says_what_came"],
    10: ["test_an_error_event_without_a_name_is_one"],
    11: ["test_a_tool_input_cut_in_half_is_never_handed_out"],
    12: ["test_message_stop_without_its_blank_line_never_came"],
    13: ["test_bad_utf8_is_replaced_in_place", "test_a_body_that_ends_inside_a_character_is_incomplete"],
    14: ["test_any_honest_spelling_of_a_stream_is_read"],
    15: ["test_separators_of_other_standards_are_text"],
    16: [
        "test_control_sequences_pass_a_pipe_untouched",
        "test_control_sequences_are_shown_on_a_terminal_and_not_obeyed",
        "test_control_sequences_in_what_a_server_says_are_never_on_stderr",
    ],
    17: ["test_lone_surrogates_are_replaced"],
    18: ["test_big_integers_stay_exact", "test_an_input_that_no_parser_takes_is_none"],
    19: ["test_message_stop_is_the_end_whatever_comes_after"],
    20: [
        "test_silence_is_status_7_and_named_the_idle_timeout",
        "test_no_answer_to_a_connect_is_status_7_and_named_the_connect_timeout",
        "test_no_answer_to_a_handshake_is_status_7_and_named_the_connect_timeout",
        "test_no_answer_to_a_name_lookup_is_status_7_and_named_the_connect_timeout",
    ],
    21: ["test_a_slow_drip_ends_at_the_total_timeout", "test_pings_are_a_sign_of_life"],
    22: ["test_a_slow_drip_ends_at_the_total_timeout", "test_a_flood_of_interim_answers_ends_at_the_total_timeout"],
    23: ["test_a_compression_bomb_is_unpacked_no_further_than_an_event_may_be_large"],
    24: [
        "test_an_event_without_end_is_refused_at_64_mib_or_where_it_was_said",
        "test_comments_are_not_kept",
        "test_an_event_of_thousands_of_lines_is_one_event",
    ],
    25: [
        "test_a_wait_that_the_server_asks_for_is_kept_and_said",
        "test_too_long_a_wait_fails_at_once_and_is_said",
        "test_nonsense_and_the_past_are_no_wait",
        "test_a_wait_beyond_the_total_limit_fails_at_once",
    ],
    26: ["test_a_redirect_to_itself_is_one_request"],
    27: ["test_an_index_is_not_believed", "test_thousands_of_blocks_are_no_trouble"],
    28: ["test_a_long_prompt_meets_the_servers_refusal", "test_a_long_prompt_arrives_whole"],
    29: [
        "test_a_terminal_without_a_prompt_is_a_usage_error",
        "test_a_signal_ends_the_run_at_once_by_the_signal_itself",
    ],
    30: ["test_a_slow_reader_is_waited_for_and_nothing_is_collected"],
    31: ["test_a_refused_connect_is_status_6_and_tried_again", "test_a_host_that_is_not_there_is_status_6_and_named"],
    32: [
        "test_a_certificate_that_does_not_hold_is_status_6_and_said",
        "test_an_unknown_authority_is_status_6_and_a_known_one_is_trusted",
        "test_plain_http_on_a_tls_port_and_the_reverse_are_said",
    ],
    33: ["test_a_close_before_the_head_is_over_is_status_6_and_tried_again"],
    34: [
        "test_what_is_no_http_is_said_and_not_tried_again",
        "test_bytes_that_do_not_begin_like_http_are_never_tried_again",
    ],
    35: ["test_a_cut_stream_is_status_8_and_keeps_its_text", "test_a_cut_stream_inside_tls_is_status_8_too"],
    36: ["test_too_long_a_content_length_matters_only_without_message_stop"],
    37: ["test_framing_is_judged_as_http_says"],
    38: ["test_interim_answers_are_passed_over", "test_an_answer_without_content_is_no_success"],
    39: ["test_an_answer_that_is_no_event_stream_is_named_and_shown"],
    40: ["test_an_answer_that_is_no_event_stream_is_named_and_shown"],
    41: ["test_an_event_stream_is_utf8_however_its_type_is_spelt"],
    42: ["test_a_refusal_says_kind_message_and_request_id_and_is_final"],
    43: [
        "test_a_passing_refusal_is_tried_again_and_then_status_5",
        "test_the_servers_advice_on_trying_again_is_taken",
        "test_retries_n_is_n_further_attempts",
    ],
    44: ["test_the_status_wins_whatever_the_body_is"],
    45: ["test_large_heads_are_read_and_endless_ones_refused"],
    46: [
        "test_a_body_in_a_coding_that_cannot_be_read_is_an_error",
        "test_a_compressed_body_is_read_and_is_incomplete_where_it_was_cut",
    ],
    47: ["test_another_attempt_is_another_connection_so_no_idle_one_can_be_lost"],
    48: ["test_an_address_that_refuses_is_passed_over_for_the_next"],
    49: [
        "test_a_useless_proxy_variable_is_status_2_and_named",
        "test_no_proxy_of_the_environment_is_asked_for_loopback",
        "test_a_dead_or_refusing_proxy_is_status_6_and_called_the_proxy",
    ],
    50: ["test_a_useless_tls_variable_is_status_2_and_named"],
    51: [
        "test_a_key_that_no_header_can_carry_is_refused_and_never_shown",
        "test_blanks_around_a_key_are_no_part_of_it",
        "test_an_empty_key_is_no_key",
    ],
    52: [
        "test_a_base_url_that_is_none_is_status_2_and_its_source_named",
        "test_a_key_goes_out_in_clear_to_loopback_only",
        "test_a_key_goes_out_in_clear_through_no_proxy_of_another_machine",
    ],
    53: ["test_the_unknown_is_passed_over_and_passed_on"],
    54: [
        "test_a_reader_that_goes_away_ends_the_run_by_sigpipe_and_the_connection_with_it",
        "test_in_a_pipeline_a_reader_that_goes_away_is_141",
    ],
    55: [
        "test_a_signal_ends_the_run_at_once_by_the_signal_itself",
        "test_a_signal_ends_a_name_lookup_at_once",
        "test_an_interrupt_from_the_keyboard_ends_the_line_and_says_nothing",
    ],
    56: ["test_a_signal_ends_the_run_at_once_by_the_signal_itself", "test_an_ignored_hangup_stays_ignored"],
    57: ["test_a_stopped_run_goes_on_as_if_nothing_but_time_had_passed"],
    58: ["test_a_stdin_that_is_none_is_not_waited_for", "test_a_lost_stderr_changes_neither_status_nor_stdout"],
    59: ["test_text_is_utf8_whatever_the_locale"],
    60: ["test_input_that_is_not_utf8_is_refused_with_its_place"],
    61: ["test_input_is_sent_as_it_is"],
    62: ["test_nothing_to_ask_is_a_usage_error_before_anything_is_sent", "test_input_is_sent_as_it_is"],
    63: [
        "test_every_delta_is_written_when_it_comes_and_no_line_end_is_added",
        "test_one_network_read_makes_one_write",
        "test_the_kernel_sees_a_write_after_each_read_that_held_text",
    ],
    64: [
        "test_a_window_that_is_closed_ends_the_run_by_the_hangup",
        "test_a_terminal_that_is_gone_and_was_not_ours_is_status_10",
    ],
    65: ["test_a_clock_that_is_wrong_and_jumps_changes_nothing"],
    66: ["test_a_full_device_is_status_10"],
}


def test_every_row_has_its_tests_or_the_reason_why_not():
    assert list(ROWS) == list(range(1, 67))
    for row in ROWS.values():
        if isinstance(row, str):
            assert re.fullmatch(r"[A-Z].*\w.*\.", row)
        else:
            assert row
            assert all(callable(globals().get(name)) and name.startswith("test_") for name in row)
