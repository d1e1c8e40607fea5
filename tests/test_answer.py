"""streamcli.cli.answer where it shows only to a person or over time: terminals, signals, pace, what is written when."""

import os
import signal
import sys
import threading
from pathlib import Path

import pexpect
import pytest
from faults_command import Running, until
from server import (
    HANG,
    MESSAGE_STOP,
    Server,
    block_start,
    block_stop,
    chunk,
    delta,
    head,
    message_delta,
    message_start,
    ok,
    opening,
    text_delta,
    text_events,
    text_stream,
)

TOOL = """#!/bin/sh
if [ "$1" = --describe ]; then echo '{"name":"look","description":"d","input_schema":{"type":"object"}}'
else %s; fi
"""


def calling(text="Let me look"):
    """An answer that thinks, says something and calls the tool."""
    return ok(
        message_start(),
        block_start(0, type="thinking", thinking="", signature=""),
        delta("thinking_delta", 0, thinking="I should look."),
        block_stop(0),
        block_start(1),
        text_delta(text, 1),
        block_stop(1),
        block_start(2, type="tool_use", id="t1", name="look", input={}),
        block_stop(2),
        message_delta("tool_use"),
        MESSAGE_STOP,
    )


@pytest.fixture
def tool(tmp_path):
    def made(program):
        path = tmp_path / "look"
        path.write_text(TOOL % program)
        path.chmod(0o755)
        return str(path)

    return made


def on_terminal(server, *words):
    environment = {"PATH": os.environ["PATH"], "ANTHROPIC_BASE_URL": server.url}
    argv = ["-m", "streamcli", "-I", *words, "hi"]
    return pexpect.spawn(sys.executable, argv, env=environment, encoding="utf-8", timeout=20)


def test_on_a_terminal_thoughts_text_and_calls_have_lines_of_their_own(server, tool):
    server.responses = [calling(), ok(text_stream("It is there."))]
    child = on_terminal(server, "-T", tool("echo 7"), "--thinking", "adaptive", "--show-thinking")
    child.expect(pexpect.EOF)
    assert child.before.split("\r\n") == [
        "I should look.", "Let me look", "streamcli: look({})", "It is there.", ""
    ]  # fmt: skip


def test_a_declared_call_follows_the_text_on_a_line_of_its_own(server, tmp_path):
    (tmp_path / "tools.json").write_text('[{"name":"look","input_schema":{"type":"object"}}]')
    server.responses = [calling()]
    child = on_terminal(server, "--tools", str(tmp_path / "tools.json"))
    child.expect(pexpect.EOF)
    assert child.before.split("\r\n") == ["Let me look", "streamcli: look({})", ""]


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_the_tool_with_its_children_and_then_the_command(number, server, tool, tmp_path):
    pids = tmp_path / "pids"
    server.responses = [calling()]
    program = tool(f"sleep 60 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; wait")
    with Running("-I", "-T", program, "hi", env={"ANTHROPIC_BASE_URL": server.url}) as running:
        until(pids.exists)
        running.process.send_signal(number)
        status, out, _ = running.end()
    assert (status, out) == (-number, b"Let me look\n")
    until(lambda: not any(map(alive, pids.read_text().split())))  # whom the signal found busy takes its time


def test_a_turn_that_broke_off_before_anything_of_it_was_written_is_repeated(server, tool):
    """What an earlier turn wrote does not count: nothing of this one would be there twice."""
    refused = head(529, type="application/json", length=2) + b"{}"
    server.responses = [calling(), refused, ok(text_stream("It is there."))]
    with Running("-I", "-q", "-T", tool("echo 7"), "hi", env={"ANTHROPIC_BASE_URL": server.url}) as running:
        assert running.end() == (0, b"Let me look\nIt is there.", "")
    assert len(server.requests) == 3


def test_an_error_event_in_a_later_turn_comes_after_output(server, tool):
    server.responses = [calling(), ok(opening("It"), b'event: error\ndata: {"type":"error","error":{"type":"x"}}\n\n')]
    with Running("-I", "-q", "-T", tool("echo 7"), "hi", env={"ANTHROPIC_BASE_URL": server.url}) as running:
        status, out, _ = running.end()
    assert (status, out) == (8, b"Let me look\nIt")


def test_text_with_a_pace_comes_in_pieces(server):
    server.responses = [ok(*text_events("One. Two. Three."))]
    argv = ["-I", "--pace", "0.2", "hi"]
    with Running(*argv, env={"ANTHROPIC_BASE_URL": server.url}) as running:
        pieces = [os.read(running.process.stdout.fileno(), 100) for _ in range(3)]
        assert running.end()[0] == 0
    assert pieces == [b"One. ", b"Two. ", b"Three."]


def test_a_signal_releases_the_text_that_was_held(server):
    held = [head(chunked=True), chunk(opening("One. Tw")), HANG]
    server.responses = [held]
    with Running("-I", "--buffer", "80", "hi", env={"ANTHROPIC_BASE_URL": server.url}) as running:
        assert os.read(running.process.stdout.fileno(), 100) == b"One. "
        running.process.send_signal(signal.SIGTERM)
        assert running.end() == (-signal.SIGTERM, b"Tw", "")


def test_two_runs_on_one_conversation_take_turns(tmp_path):
    path = tmp_path / "talk.jsonl"
    goes_on = threading.Event()
    waits = [head(chunked=True), chunk(opening("a")), goes_on, chunk(block_stop() + message_delta() + MESSAGE_STOP)]
    with Server(waits) as server:
        env = {"ANTHROPIC_BASE_URL": server.url}
        with Running("-I", "-c", path, "one", env=env) as first:
            assert os.read(first.process.stdout.fileno(), 1) == b"a"
            with Running("-I", "-c", path, "two", env=env) as second:
                said = f"streamcli: waiting for {path}: another run is using it\n".encode()
                assert os.read(second.process.stderr.fileno(), 1000) == said
                goes_on.set()
                assert (first.end().status, second.end().status) == (0, 0)
        assert [message["content"] for message in server.requests[1].json["messages"]][::2] == ["one", "two"]
    assert len(path.read_text().splitlines()) == 4


def test_a_turn_whose_output_failed_at_its_end_is_not_kept(tmp_path):
    answer, talk = tmp_path / "answer", tmp_path / "talk.jsonl"
    talk.write_text('{"role":"user","content":"a"}\n{"role":"assistant","content":"b"}\n')
    before = talk.read_bytes()
    gate = threading.Event()
    rest = text_delta("b") + block_stop() + message_delta() + MESSAGE_STOP
    with Server([head(chunked=True), chunk(opening("a")), gate, chunk(rest)]) as server:
        words = ["-I", "-u", "-c", str(talk), "-o", str(answer), "c"]
        with Running(*words, env={"ANTHROPIC_BASE_URL": server.url}) as running:
            server.request()
            answer.mkdir()
            (answer / "in the way").touch()
            gate.set()
            ended = running.end()
    assert ended.status == 10
    usage, error = ended.err.splitlines()
    assert usage.startswith("usage: ")
    assert error.startswith(f"streamcli: error: cannot write to {answer}: ")
    assert talk.read_bytes() == before
    assert (tmp_path / "answer.partial").read_text() == "ab"
