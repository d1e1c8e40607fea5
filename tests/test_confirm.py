"""streamcli.cli.confirm: a person on a real terminal is asked before a tool runs. The rest is in cli/tools.txt."""

import os
import shlex
import signal
import sys
import termios
import threading

import pexpect
import pytest
from server import (
    MESSAGE_STOP,
    block_start,
    block_stop,
    delta,
    head,
    message_delta,
    message_start,
    ok,
    opening,
    text_stream,
)

QUESTION = "streamcli: run look({})? [y/N] "
DECLINED = {"content": "the user declined this call: it was not run", "is_error": True}


def calls(*inputs, first=0):
    """Events that call the tool with each of the inputs, in blocks from the `first` index on."""
    blocks = [
        block_start(n, type="tool_use", id=f"t{n}", name="look", input={})
        + delta("input_json_delta", n, partial_json=given)
        + block_stop(n)
        for n, given in enumerate(inputs, first)
    ]
    return [*blocks, message_delta("tool_use"), MESSAGE_STOP]


def calling(*inputs):
    return ok(message_start(), *calls(*inputs))


DONE = ok(text_stream("Done."))


@pytest.fixture
def look(tmp_path):
    """A tool that notes each of its runs in `ran`."""
    path = tmp_path / "look"
    path.write_text("""#!/bin/sh
if [ "$1" = --describe ]; then echo '{"name":"look","input_schema":{"type":"object"}}'
else echo >> "$0.ran"; cat; fi
""")
    path.chmod(0o755)
    return path


def runs(look):
    ran = look.with_suffix(".ran")
    return len(ran.read_text().splitlines()) if ran.exists() else 0


@pytest.fixture
def person(server, look):
    """Starts a script on a terminal, in which `streamcli` is the command that has the tool and asks about it."""
    children = []

    def started(script, *words):
        command = f"streamcli() {{ {shlex.quote(sys.executable)} -m streamcli --confirm -T {shlex.quote(str(look))} "
        script = f'{command} "$@"; }}; {script}'
        env = {"PATH": os.environ["PATH"], "ANTHROPIC_BASE_URL": server.url}
        words = ["-c", script, "sh", *words]
        child = pexpect.spawn("sh", words, env=env, encoding="utf-8", timeout=30, dimensions=(24, 200))
        children.append(child)
        return child

    yield started
    for child in children:
        child.close(force=True)


def results(server):
    """What the last request said of the calls, without their ids."""
    blocks = server.requests[-1].json["messages"][-1]["content"]
    return [{key: block[key] for key in block.keys() & {"content", "is_error"}} for block in blocks]


def ended(child):
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus if child.signalstatus is None else -child.signalstatus


def test_each_call_is_asked_about_before_any_of_them_runs(server, person, look):
    server.responses = [calling('{"a":1}', '{"a":2}', '{"a":3}'), DONE]
    child = person("streamcli -I hi")
    for number, answer in enumerate(["y", "n", " YES "], 1):
        child.expect_exact(f'streamcli: run look({{"a":{number}}})? [y/N] ')
        assert runs(look) == 0
        child.sendline(answer)
    assert ended(child) == 0
    assert "look(" not in child.before  # it is not noted a second time
    assert results(server) == [{"content": '{"a":1}'}, DECLINED, {"content": '{"a":3}'}]
    assert runs(look) == 2


@pytest.mark.parametrize("answer", ["n", "", "yess", "ja", pytest.param("\x04", id="end of file")])
def test_whatever_is_not_yes_is_no(server, person, look, answer):
    server.responses = [calling("{}"), DONE]
    child = person("streamcli -I hi")
    child.expect_exact(QUESTION)
    child.send(answer + "\n" * (answer != "\x04"))
    assert ended(child) == 0
    assert child.before.endswith("\r\nDone.\r\n")
    assert results(server) == [DECLINED]
    assert runs(look) == 0


def test_standard_streams_may_be_pipes_and_files(server, person, tmp_path):
    server.responses = [calling("{}"), DONE]
    child = person('cd "$1"; echo code | streamcli hi 2> err | cat > out; cat out', str(tmp_path))
    child.expect_exact(QUESTION)
    child.sendline("y")
    assert ended(child) == 0
    assert server.requests[0].json["messages"][0]["content"] == "code\n\nhi"
    assert child.before == "y\r\nDone."
    assert (tmp_path / "err").read_text() == "streamcli: look({})\n"


def test_the_input_is_shown_as_it_is_and_obeyed_by_no_terminal(server, person):
    server.responses = [calling('{ "a": "x  y\\u001b[2J\x7f\u202e\\n" }'), DONE]
    child = person("streamcli -I hi")
    child.expect_exact(r'streamcli: run look({"a":"x  y\u001b[2J^?\u202e\n"})? [y/N] ')
    child.sendline("n")
    assert ended(child) == 0


def test_what_was_typed_before_the_question_is_no_answer(server, person, look):
    asked = threading.Event()
    server.responses = [[head(), opening("Let me look."), asked, block_stop(), *calls("{}", first=1)], DONE]
    child = person("streamcli -I hi")
    child.expect_exact("Let me look.")
    child.sendline("y")
    child.expect_exact("y\r\n")
    asked.set()
    child.expect_exact(QUESTION)
    child.sendline("n")
    assert ended(child) == 0
    assert runs(look) == 0


def test_ctrl_c_at_the_question_ends_the_run_and_leaves_the_terminal_as_it_was(server, person, look):
    server.responses = [calling("{}"), DONE]
    child = person('exec "$@"', sys.executable, "-m", "streamcli", "--confirm", "-T", str(look), "-I", "hi")
    before = termios.tcgetattr(child.child_fd)
    child.expect_exact(QUESTION)
    assert termios.tcgetattr(child.child_fd) == before
    child.sendintr()
    assert ended(child) == -signal.SIGINT
    assert len(server.requests) == 1
    assert runs(look) == 0


def test_after_ctrl_z_the_question_is_there_again_however_long_that_took(server, person):
    server.responses = [calling("{}"), DONE]
    child = person('set -m; streamcli --idle-timeout 0.05 -I hi; echo stopped; fg; echo "status $?"')
    child.expect_exact(QUESTION)
    child.sendcontrol("z")
    child.expect_exact("stopped")
    child.expect_exact(QUESTION)
    child.sendline("y")
    child.expect_exact("status 0")
    assert ended(child) == 0
    assert results(server) == [{"content": "{}"}]
