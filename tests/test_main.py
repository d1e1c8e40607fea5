"""streamcli.cli.main: what the process is given, whatever the one that starts it left behind."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest
from faults_command import Running, Terminal, allowed, streamcli, until
from server import MESSAGE_STOP, block_start, block_stop, message_delta, message_start, ok, text_events

CALL = ok(
    message_start(),
    block_start(type="tool_use", id="t1", name="t", input={}),
    block_stop(),
    message_delta("tool_use"),
    MESSAGE_STOP,
)
TOOL = """#!/bin/sh
if [ "$1" = --describe ]; then echo '{"name":"t","description":"d","input_schema":{"type":"object"}}'; exit; fi
echo half of it; exit 3
"""


@pytest.fixture(params=["default", "ignore"])
def prefix(request):
    """What becomes the command where SIGCHLD is ignored from outside, and where it is not."""
    return allowed(["env", f"--{request.param}-signal=CHLD"])


def test_a_key_command_that_fails_gives_no_key(server, prefix):
    ended = streamcli("--base-url", server.url, "--api-key-cmd", "echo sk-half; exit 3", "hi", prefix=prefix)
    assert (ended.status, ended.error) == (2, "the command of --api-key-cmd failed with status 3")
    assert server.requests == []


def test_a_tool_that_fails_is_said_to(server, tmp_path, prefix):
    (tmp_path / "t").write_text(TOOL)
    (tmp_path / "t").chmod(0o755)
    server.responses = [CALL, ok(*text_events("So."))]
    assert streamcli("--base-url", server.url, "-T", str(tmp_path / "t"), "-q", "hi", prefix=prefix).status == 0
    (result,) = json.loads(server.request(1).body)["messages"][-1]["content"]
    assert (result["content"], result["is_error"]) == ("half of it", True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("command", ["sleep 60; echo k", "sleep 60 & echo $! > pid; wait", "sh -c 'sleep 60; :'; :"])
def test_a_signal_ends_the_key_command_with_its_children(command, number, tmp_path):
    mark = f"_{os.urandom(8).hex()}"
    env = {"MARK": mark}
    with Running("--api-key-cmd", command, "--base-url", "https://h.invalid", "hi", env=env, cwd=tmp_path) as running:
        until(lambda: any(words.startswith(b"sleep\0") for words in marked(mark).values()))
        running.signal(number)
        assert running.end().status == -number
    until(lambda: not marked(mark))


def test_signals_that_come_together_with_a_tick_are_one_that_leaves_time_to_end_the_key_command():
    mark = f"_{os.urandom(8).hex()}"
    argv = ["--api-key-cmd", "sleep 60; :", "--base-url", "https://h.invalid", "hi"]
    with Running(*argv, env={"MARK": mark}) as running:
        until(lambda: any(words.startswith(b"sleep\0") for words in marked(mark).values()))
        for number in (signal.SIGSTOP, signal.SIGALRM, signal.SIGHUP, signal.SIGTERM, signal.SIGCONT):
            running.signal(number)
        ended = running.end()
    assert (ended.status, ended.err) == (-signal.SIGHUP, "")
    until(lambda: not marked(mark))


def marked(mark):
    """The words of each process that has the mark in its environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"MARK={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[folder.name] = (folder / "cmdline").read_bytes()
    return found


def test_a_key_command_has_our_terminal_and_standard_error_and_no_standard_input():
    command = 'echo asked >&2; test -t 2 && test -z "$(cat)" && echo sk-123456'
    with Terminal("--api-key-cmd", command, "--base-url", "https://h.test", "-I", "--dry-run", "hi") as terminal:
        ended = terminal.end()
    assert ended.status == 0
    assert ended.out.startswith(b"asked\n{")
