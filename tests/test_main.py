"""streamcli.cli.main: what the process is given, whatever the one that starts it left behind."""

import json

import pytest
from faults_command import allowed, streamcli
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
    assert (ended.status, ended.error) == (2, "--api-key-cmd ended with status 3")
    assert server.requests == []


def test_a_tool_that_fails_is_said_to(server, tmp_path, prefix):
    (tmp_path / "t").write_text(TOOL)
    (tmp_path / "t").chmod(0o755)
    server.responses = [CALL, ok(*text_events("So."))]
    assert streamcli("--base-url", server.url, "-T", str(tmp_path / "t"), "-q", "hi", prefix=prefix).status == 0
    (result,) = json.loads(server.request(1).body)["messages"][-1]["content"]
    assert (result["content"], result["is_error"]) == ("half of it", True)
