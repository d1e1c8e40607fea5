"""streamcli.network.tape: what was recorded plays again, to the same output and status, and holds no secret."""

import contextlib
import json
import re
import signal
import subprocess
import sys

import faults_command
import httpx
import pytest
import server as answers
from faults_command import Running, alone
from hypothesis import given
from hypothesis import strategies as st
from odd import oddities

from streamcli.errors import APIConnectionError, APIError, APITimeoutError, IncompleteStreamError, UsageError
from streamcli.network.tape import Player, Recorder, TapeTurns

KEY = "sk-test-3f9a"
WHOLE = answers.head() + answers.text_stream("Hello", ", wörld")
FAULTS = {
    "whole": WHOLE,
    "cut in mid-stream": WHOLE[:-60],
    "no event stream": answers.head(type="text/html") + b"<html>hotel wifi</html>",
    "refused": answers.head(404, type="application/json")
    + b'{"type":"error","error":{"type":"not_found_error","message":"no such model"}}',
    "error event": answers.head()
    + answers.message_start()
    + answers.event("error", error={"type": "overloaded_error", "message": "busy"}),
    "error event after text": answers.head()
    + answers.message_start()
    + answers.block_start()
    + answers.text_delta("par")
    + answers.event("error", error={"type": "api_error", "message": "oh"}),
    "a header beyond ASCII": answers.head(x_note="café") + answers.text_stream("a"),
    "bytes that are no text": answers.head() + b"event: x\ndata: \xff\xfe\n\n" + answers.text_stream("a"),
    "reset": (WHOLE[:-60], answers.RESET),
    "reset before the head": (answers.RESET,),
    "silence": (WHOLE[:-60], answers.HANG),
}


def streamcli(*words, **environment):
    words = ["-I", "--retries", "0", *words]
    ended = faults_command.streamcli(*words, env=alone(PATH="/usr/bin:/bin", **environment))
    return subprocess.CompletedProcess(words, ended.status, ended.out, ended.err.encode())


@pytest.mark.parametrize("form", [[], ["--events"], ["--message"]], ids=["text", "events", "message"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_tape_replays_to_the_same_output_and_status(server, tmp_path, fault, form):
    server.responses = [FAULTS[fault]]
    tape = tmp_path / "tape"
    patience = ["--idle-timeout", "0.5"] if fault == "silence" else []
    live = streamcli("--base-url", server.url, "--record", str(tape), *patience, *form, "hi", ANTHROPIC_API_KEY=KEY)
    again = streamcli("--replay", str(tape), *form)
    assert (again.stdout, again.returncode) == (live.stdout, live.returncode)
    # What to do about an error response depends on where it came from, which a tape does not tell.
    said = again.stderr.replace(b"http://localhost/", f"{server.url}/".encode())
    assert live.stderr.startswith(said.rstrip(b"\n"))
    assert KEY.encode() not in tape.read_bytes()


def test_a_retry_is_on_the_tape_and_plays_again(server, tmp_path):
    error_response = answers.head(529, type="application/json", length=2, retry_after_ms="1") + b"{}"
    server.responses = [error_response, WHOLE]
    tape = tmp_path / "tape"
    live = streamcli("--base-url", server.url, "--retries", "1", "--record", str(tape), "hi")
    again = streamcli("--replay", str(tape), "--retries", "1")
    assert (again.stdout, again.stderr, again.returncode) == (live.stdout, live.stderr, live.returncode)
    assert live.returncode == 0
    assert b"retrying" in live.stderr


ERROR = answers.event("error", error={"type": "overloaded_error", "message": "busy"})
QUICK = answers.event("error", error={"type": "rate_limit_error", "message": "slower"})
# What each attempt brings; the last line of a stream that fails is an error event.
CALLS = {
    "an error event after text": [answers.head() + answers.opening("par") + ERROR],
    "an error event before text": [answers.head() + answers.opening() + ERROR],
    "one of a type nobody knows": [answers.head() + answers.event("error", error={"type": "x", "message": "y"})],
    "a cut after text, then an answer": [answers.head() + answers.opening("par"), WHOLE],
    "error events, then an answer": [*[answers.head() + answers.opening("par") + QUICK] * 2, WHOLE],
    "a refusal, an error event, a refusal": [
        answers.error_response(529, "overloaded_error", retry_after_ms="1"),
        answers.head() + answers.message_start() + ERROR,
        answers.error_response(529, "overloaded_error", retry_after_ms="1"),
    ],
    "a final refusal": [answers.error_response(404, "not_found_error", "no such model")],
}
FORMS = [[], ["--events"], ["--message"], ["-x"]]


@pytest.mark.parametrize("recorded_as", [[], ["--message"]], ids=["text", "message"])
@pytest.mark.parametrize("call", CALLS)
def test_whatever_format_it_is_played_in_it_ends_with_the_status_of_the_call(server, tmp_path, call, recorded_as):
    server.responses = CALLS[call]
    tape = tmp_path / "tape"
    retries = ["--retries", str(len(CALLS[call]) - 1)]
    live = streamcli("--base-url", server.url, *retries, "--record", str(tape), *recorded_as, "hi")
    assert len(server.requests) == len(tape.read_text().split('{"request"')) - 1
    for form in FORMS:
        again = streamcli("--replay", str(tape), *form)
        status = 11 if form == ["-x"] and live.returncode == 0 else live.returncode
        assert again.returncode == status, form
        if form == recorded_as:
            assert (again.stdout, without_waits(again.stderr)) == (live.stdout, without_waits(live.stderr))


def without_waits(text):
    return re.sub(rb"in \d+\.\d s", b"", text)


def test_an_attempt_that_the_tape_repeats_is_played_without_a_word_of_it():
    attempt = [{"request": {"body": "{}"}}, ANSWER, {"t": 0, "end": "closed"}]
    player = Player([json.dumps(line).encode() for line in [*attempt, *attempt, {"exit_code": 5}]])
    assert (player.repeats, player.exit_code, player.following()) == (False, 5, [])
    with httpx.Client(transport=player) as client:
        for repeats in (True, False):
            with client.stream("GET", "http://localhost/"):
                assert player.repeats is repeats
    assert player.following() is None


RESULTS = {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "7"}]}]}


@given(oddities(RESULTS), st.sampled_from(["t1", [], {}, None]))
def test_any_json_at_any_place_of_the_results_on_a_tape_is_read(body, call):
    turns = TapeTurns(Player([json.dumps({"request": {"body": body.decode()}}).encode()]))
    assert len(turns.answered({"content": [{"type": "tool_use", "id": call}]})) <= 1


def test_a_tape_without_a_status_ends_as_its_text_would(tmp_path):
    for text, status in (("", 5), ("par", 8)):
        data = (answers.opening(*[text] * bool(text)) + ERROR).decode()
        lines = [{"request": {}}, {**ANSWER, "headers": {"content-type": "text/event-stream"}}, {"t": 0, "data": data}]
        (tmp_path / "tape").write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"t": 0, "end": "closed"}]))
        for form in ([], ["--message"], ["--events"]):
            assert streamcli("--replay", str(tmp_path / "tape"), *form).returncode == status


def test_a_token_of_another_server_is_not_on_the_tape(server, tmp_path):
    server.responses = [WHOLE]
    servers = [{"type": "url", "name": "n", "url": "https://h", "authorization_token": 'se"cret-word'}]
    said = 'a \\ "authorization_token": "is a key"'
    words = ["--set", f"mcp_servers={json.dumps(servers)}", "--record", str(tmp_path / "tape"), said]
    assert streamcli("--base-url", server.url, *words).returncode == 0
    sent = json.loads(server.request().body)
    assert sent["mcp_servers"] == servers
    body = json.loads(json.loads((tmp_path / "tape").read_text().splitlines()[0])["request"]["body"])
    assert body["mcp_servers"][0].pop("authorization_token") == "***"
    assert sent["mcp_servers"][0].pop("authorization_token")
    assert body == sent


def test_a_signal_before_the_head_ends_the_attempt_on_the_tape(server, tmp_path):
    server.responses = [(answers.HANG,)]
    tape = tmp_path / "tape"
    with Running("-I", "--base-url", server.url, "--record", str(tape), "hi") as running:
        server.request()
        running.signal(signal.SIGTERM)
        assert running.end().status == -signal.SIGTERM
    assert json.loads(tape.read_text().splitlines()[-1])["end"] == "closed"


def test_a_replayed_error_speaks_of_the_server_that_was_asked(server, tmp_path):
    server.responses = [answers.error_response(401, message="who?")]
    tape = tmp_path / "tape"
    for scheme in ("x-api-key", "bearer"):
        words = ["--auth", scheme, "--record", str(tape), "hi"]
        live = streamcli("--base-url", server.url, *words, ANTHROPIC_API_KEY=KEY)
        assert streamcli("--replay", str(tape)).stderr == live.stderr


def test_a_tape_has_the_request_each_read_and_the_end(server, tmp_path):
    server.responses = [WHOLE]
    tape = tmp_path / "tape"
    streamcli("--base-url", server.url, "--record", str(tape), "hi", ANTHROPIC_API_KEY=KEY)
    head, answer, *reads, end = map(json.loads, tape.read_text().splitlines())
    assert json.loads(head["request"]["body"])["messages"] == [{"role": "user", "content": "hi"}]
    assert head["request"]["headers"]["x-api-key"] == "***"
    assert (answer["status"], end["end"]) == (200, "closed")
    assert "".join(read["data"] for read in reads).encode() == WHOLE.partition(b"\r\n\r\n")[2]


def test_a_replay_needs_neither_httpcore_nor_tls_nor_asyncio(server, tmp_path):
    server.responses = [WHOLE]
    tape = tmp_path / "tape"
    streamcli("--base-url", server.url, "--record", str(tape), "hi")
    program = f"""
import os, sys
sys.argv = ["streamcli", "--replay", {str(tape)!r}]
needless = {{"httpcore", "h11", "asyncio", "certifi"}}
os._exit = lambda status: print(sorted(needless & set(sys.modules)), file=sys.stderr)
from streamcli.cli.main import main
main()
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("Hello, wörld", "[]\n")


def play(*lines, speed=0.0):
    return play_lines([json.dumps(line).encode() for line in lines], speed=speed)


def play_lines(lines, speed=0.0):
    client = httpx.Client(transport=Player(lines, speed=speed))
    with client.stream("GET", "http://localhost/") as response:
        return b"".join(response.iter_raw())


REQUEST = {"request": {}}
ANSWER = {"t": 0, "status": 200, "headers": {}}


@pytest.mark.parametrize("lines", [[], [{}], [{"t": 1}]], ids=["nothing", "an object", "no request"])
def test_what_is_no_tape_is_said_before_anything_else(lines):
    with pytest.raises(UsageError, match="does not begin with a request"):
        play(*lines)


def test_a_line_that_is_no_json_is_named():
    with pytest.raises(UsageError, match="line 2 of the tape"):
        Player([b'{"request":{}}', b"{torn"])


def test_a_tape_that_was_torn_off_is_an_incomplete_stream():
    with pytest.raises(IncompleteStreamError):
        play(REQUEST, ANSWER, {"t": 0, "data": "a"})


def test_an_error_plays_as_its_own_class():
    end = {"t": 0, "end": {"error": "APITimeoutError", "message": "late", "retryable": True}}
    with pytest.raises(APITimeoutError, match="late") as caught:
        play(REQUEST, end)
    assert caught.value.retryable


@pytest.mark.parametrize("name", ["SystemExit", "status_error", "__name__", "APIStatusError", None])
def test_a_tape_cannot_name_any_other_class(name):
    with pytest.raises(APIConnectionError, match="m"):
        play(REQUEST, {"t": 0, "end": {"error": name, "message": "m"}})


def test_the_speed_divides_the_time_between_reads(monkeypatch):
    waits = []
    monkeypatch.setattr("streamcli.network.tape.time.sleep", waits.append)
    monkeypatch.setattr("streamcli.network.tape.time.monotonic", lambda: 100.0)
    assert (
        play(REQUEST, ANSWER, {"t": 1, "data": "a"}, {"t": 4, "data": "b"}, {"t": 4, "end": "whole"}, speed=2) == b"ab"
    )
    assert waits == [0, 0.5, 2, 2]


def test_the_recorder_passes_everything_on():
    lines = []
    inner = httpx.MockTransport(lambda request: httpx.Response(200, stream=httpx.ByteStream(request.content)))
    with (
        httpx.Client(transport=Recorder(inner, lines.append)) as client,
        client.stream("POST", "http://x/", content=b"\xff") as response,
    ):
        assert b"".join(response.iter_raw()) == b"\xff"
    assert [sorted(json.loads(line)) for line in lines] == [
        ["request"],
        ["headers", "status", "t"],
        ["data64", "t"],
        ["end", "t"],
    ]


READS = st.lists(st.binary(min_size=1, max_size=20), max_size=6)


@given(READS)
def test_what_is_recorded_is_what_is_played(reads):
    lines = []
    inner = httpx.MockTransport(lambda request: httpx.Response(200, stream=Reads(reads)))
    with httpx.Client(transport=Recorder(inner, lines.append)) as client, client.stream("GET", "http://x/") as response:
        assert list(response.iter_raw()) == reads
    with httpx.Client(transport=Player(lines)) as client, client.stream("GET", "http://x/") as response:
        assert list(response.iter_raw()) == reads


class Reads(httpx.SyncByteStream):
    def __init__(self, reads):
        self._reads = reads

    def __iter__(self):
        return iter(self._reads)


KEYS = st.sampled_from(["t", "status", "headers", "data", "data64", "end", "request", "x"])
VALUES = st.none() | st.integers(0, 700) | st.text(max_size=5) | st.dictionaries(st.text(max_size=5), st.integers())
LINES = st.lists(st.dictionaries(KEYS, VALUES, max_size=4).map(lambda line: json.dumps(line).encode()) | st.binary())


@given(LINES)
def test_a_tape_that_nobody_recorded_raises_nothing_but_ours(lines):
    try:
        play_lines([b'{"request":{}}', b'{"t":0,"status":200,"headers":{}}', *lines])
    except APIError:
        return
    assert any(b"whole" in line for line in lines)


@given(LINES)
def test_nor_does_one_that_is_rubbish_from_the_start(lines):
    with contextlib.suppress(APIError):
        play_lines(lines)
