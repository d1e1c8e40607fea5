"""The command as a process: what it loads, what a terminal sees, when each byte comes. The rest is in cli/*.txt."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from faults_command import COMMAND, Running, Terminal, environment
from server import HANG, MESSAGE_STOP, block_stop, head, message_delta, ok, opening, text_delta, text_stream

NO_PROMPT = (
    b"streamcli: error: no prompt: give one as an argument, in a file with -f, or on standard input; see streamcli -h\n"
)
CLOSING = block_stop() + message_delta() + MESSAGE_STOP


# What it loads


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["--nonsense"]], ids=" ".join)
def test_what_needs_no_server_loads_nothing_for_one(argv):
    timed = [sys.executable, "-X", "importtime", *COMMAND[1:]]
    ended = subprocess.run([*timed, *argv], env=environment(), capture_output=True, text=True, check=False)
    loaded = set(re.findall(r"^import time:.*\| *([\w.]+)$", ended.stderr, re.MULTILINE))
    assert "streamcli.cli.args" in loaded
    assert not loaded & {"httpx", "httpcore", "ssl", "asyncio", "orjson", "socket", "json"}


def test_a_run_loads_no_asyncio(server):
    server.responses = [ok(text_stream("Hello."))]
    timed = [sys.executable, "-X", "importtime", *COMMAND[1:], "--base-url", server.url, "hi"]
    ended = subprocess.run(timed, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert ended.stdout == b"Hello."
    assert b"| streamcli.network.connection\n" in ended.stderr.replace(b" ", b"").replace(b"|", b"| ")
    assert not re.search(rb"\| *asyncio\n", ended.stderr)


def test_the_script_and_the_module_are_the_same_command():
    script = Path(sys.executable).parent / "streamcli"
    if not script.exists():
        pytest.skip("the package is not installed")
    said = [subprocess.run([*way, "--help"], capture_output=True, check=True).stdout for way in (COMMAND, [script])]
    assert said[0] == said[1] != b""


# When each byte comes


OUTPUT_FORMATS = [[], ["--events"], ["--snapshots"], ["--sse"], ["--events-to", "/dev/fd/1", "-o", "/dev/null"]]


@pytest.mark.parametrize("form", OUTPUT_FORMATS, ids=lambda form: " ".join(form) or "text")
def test_a_delta_is_out_before_the_next_one_is_sent(server, form):
    read = threading.Event()
    server.responses = [[head(), opening("first"), read, text_delta("second"), CLOSING]]
    with Running("--base-url", server.url, *form, "hi") as running:
        running.until_out(b"first")
        assert b"second" not in running.out
        read.set()
        assert running.end().status == 0
        assert b"second" in running.out


def test_events_beside_the_text_are_out_before_the_next_one_is_sent(server):
    read = threading.Event()
    server.responses = [[head(), opening("first"), read, text_delta("second"), CLOSING]]
    with Running("--base-url", server.url, "--events-to", "/dev/fd/2", "hi") as running:
        running.until_out(b"first")
        running.until_err('"text": "first"')
        assert "second" not in running.err
        read.set()
        assert running.end()[:2] == (0, b"firstsecond")


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ([], [b"one two", b" three", b" four"]),
        (["--sse"], [opening("one", " two"), text_delta(" three"), text_delta(" four") + CLOSING]),
    ],
    ids=["text", "--sse"],
)
def test_what_one_read_brings_goes_out_in_one_write(server, form, expected):
    """Standard output is a socket that keeps the bounds of each write."""
    first, second = threading.Event(), threading.Event()
    rest = text_delta(" four") + CLOSING
    server.responses = [[head() + opening("one", " two"), first, text_delta(" three"), second, rest]]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, Running("--base-url", server.url, *form, "hi", stdout=theirs):
        theirs.close()
        writes = [ours.recv(1 << 20)]
        first.set()
        writes.append(ours.recv(1 << 20))
        second.set()
        writes += iter(lambda: ours.recv(1 << 20), b"")
    assert writes == expected


def test_reading_ends_at_message_stop_though_the_connection_stays_open(server):
    server.responses = [[head(), text_stream("Hello."), HANG]]
    with Running("--base-url", server.url, "hi") as running:
        assert running.end()[:2] == (0, b"Hello.")
    assert server.hung_up()


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["--version"], ["--dry-run", "hi"], ["hi"], ["--summary", "hi"], ["-o", "-", "hi"]],
    ids=" ".join,
)
def test_a_reader_that_is_gone_ends_it_by_sigpipe_and_without_a_word(server, argv):
    server.responses = [ok(text_stream("Hello."))]
    reader, writer = os.pipe()
    os.close(reader)
    with Running(*argv, env={"ANTHROPIC_BASE_URL": server.url}, stdout=writer) as running:
        os.close(writer)
        assert running.end() == (-signal.SIGPIPE, b"", "")


# UTF-8 whatever the locale


LOCALES = {
    "C": {"LC_ALL": "C"},
    "POSIX, nothing coerced": {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "another encoding": {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
    "unbuffered": {"PYTHONUNBUFFERED": "1"},
}


@pytest.mark.parametrize("locale", LOCALES.values(), ids=LOCALES)
def test_words_files_and_answers_are_utf_8(server, tmp_path, locale):
    server.responses = [ok(text_stream("été ✓", "🌍"))]
    (tmp_path / "naïve").write_text("à")
    env = {"ANTHROPIC_BASE_URL": server.url, "STREAMCLI_SYSTEM": "ça", **locale}
    with Running("-f", "naïve", "ÉTÉ ✓", "🌍", env=env, cwd=tmp_path) as running:
        assert running.end() == (0, "été ✓🌍".encode(), "")
    assert server.request().json["messages"] == [{"role": "user", "content": "à\n\nÉTÉ ✓ 🌍"}]
    assert server.request().json["system"] == "ça"


@pytest.mark.parametrize("locale", LOCALES.values(), ids=LOCALES)
def test_errors_are_utf_8(tmp_path, locale):
    with Running("-f", "à ✓", env=locale, cwd=tmp_path) as running:
        assert running.end().err == "streamcli: error: cannot read the prompt file à ✓: no such file or directory\n"


# What a terminal sees


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        (["Hello."], b"Hello.\n"),
        (["Hello.\n"], b"Hello.\n"),
        (["one\r", "\ntwo\r\n"], b"one\ntwo\n"),
        (["a\x1b", "[31mb\x07", "\x9b2J\x7f", "\tc\u202e"], b"a^[[31mb^G\\x9b2J^?\tc\\u202e\n"),
        (["\x1b]52;c;aGk=", "\x07"], b"^[]52;c;aGk=^G\n"),
        ([], b"streamcli: the answer is empty: stop reason end_turn and no text\n"),
    ],
)
def test_a_terminal_shows_controls_and_gets_its_line_end(server, texts, shown):
    server.responses = [ok(text_stream(*texts))]
    with Terminal("--base-url", server.url, "hi") as terminal:
        ended = terminal.end()
    assert ended[:2] == (0, shown)


def test_a_terminal_obeys_controls_only_where_that_is_asked_for(server):
    text = "a\x1b[31mb\x7f\r\nc\u202e"
    server.responses = [ok(text_stream(text))]
    with Terminal("--base-url", server.url, "--sanitize", "never", "hi") as terminal:
        assert terminal.end()[:2] == (0, text.encode() + b"\n")  # the terminal makes CRLF of LF, the test LF of CRLF
    with Terminal("--base-url", server.url, "--sanitize", "never", "--events", "hi") as terminal:
        assert json.loads(terminal.end().out.splitlines()[2])["delta"]["text"] == text


def test_a_terminal_shows_a_delta_before_the_next_one_is_sent(server):
    read = threading.Event()
    server.responses = [[head(), opening("first"), read, text_delta("second"), CLOSING]]
    with Terminal("--base-url", server.url, "hi") as terminal:
        terminal.until_shown(b"first")
        assert b"second" not in terminal.shown
        read.set()
        assert terminal.end()[:2] == (0, b"firstsecond\n")


def test_an_error_begins_a_line_of_its_own_on_a_terminal(server):
    server.responses = [[head(), opening("Hel")]]
    with Terminal("--base-url", server.url, "hi") as terminal:
        ended = terminal.end()
    assert ended.status == 8
    assert ended.out == b"Hel\nstreamcli: error: the stream ended before message_stop (request_id req_1)\n"


def test_a_file_gets_the_bytes_as_they_are_also_from_a_terminal(server, tmp_path):
    server.responses = [ok(text_stream("a\x1b[31m"))]
    with Terminal("--base-url", server.url, "-o", tmp_path / "out", "hi") as terminal:
        assert terminal.end()[:2] == (0, b"")
    assert (tmp_path / "out").read_bytes() == b"a\x1b[31m"


def test_a_pipe_beside_a_terminal_gets_the_bytes_as_they_are(server):
    server.responses = [ok(text_stream("a\x1b[31m"))]
    with Terminal("--base-url", server.url, "hi", stdout=subprocess.PIPE) as terminal:
        assert terminal.end()[:2] == (0, b"a\x1b[31m")


def test_words_on_a_terminal_wait_for_no_input(server):
    server.responses = [ok(text_stream("Hello."))]
    with Terminal("--base-url", server.url, "hi") as terminal:
        terminal.end()
    assert server.request().json["messages"] == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("argv", [[], [""], ["-m", "m"], ["-f", os.devnull], ["--body", os.devnull]], ids=" ".join)
def test_no_prompt_on_a_terminal_is_a_usage_error_at_once(server, argv):
    with Terminal("--base-url", server.url, *argv) as terminal:
        ended = terminal.end()
    assert ended.status == 2
    assert ended.out == NO_PROMPT or b"is not JSON" in ended.out
    assert server.requests == []


@pytest.mark.parametrize(("argv", "prompt"), [(["-"], "typed\n"), (["-", "hi"], "typed\n\nhi")], ids=" ".join)
def test_a_dash_reads_the_terminal(server, argv, prompt):
    server.responses = [ok(text_stream("Hello."))]
    with Terminal("--base-url", server.url, *argv) as terminal:
        terminal.type(b"typed\n\x04")
        assert terminal.end().status == 0
    assert server.request().json["messages"] == [{"role": "user", "content": prompt}]


# What it prints can be used


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize("variable", ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"])
def test_what_as_curl_prints_sends_the_same_request(server, variable):
    server.responses = [ok(text_stream("Hello."))]
    env = {"ANTHROPIC_BASE_URL": server.url, variable: "sk-$1 '2'"}
    words = ["-H", "X-Note: it's $HOME `date`", "--temperature", "1", "--", "it's\n", 'a "test"\\\nJSON\n', "é"]
    with Running(*words, env=env) as running:
        assert running.end().status == 0
    with Running("--as-curl", *words, env=env) as running:
        script = running.end().out
    assert b"sk-$1" not in script
    shell = subprocess.run(["sh", "-c", script], env=environment(**env), capture_output=True, check=False)
    assert (shell.returncode, shell.stdout, shell.stderr) == (0, text_stream("Hello."), b"")
    ours, curls = server.requests
    assert curls.json == ours.json
    unlike = {"connection", "content-length"}
    assert {name: value for name, value in curls.headers.items() if name not in unlike} == {
        name: value for name, value in ours.headers.items() if name not in unlike
    }


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_what_as_curl_prints_goes_through_the_same_proxy_with_the_same_credentials(server, proxy):
    server.responses = [ok(text_stream("Hello."))]
    address = proxy.url.replace("//", "//me:p%40ss@")
    words = ["--base-url", server.url, "--proxy", address, "-H", "Authorization: Basic dXNlcjpwYXNzd29yZA==", "hi"]
    with Running(*words) as running:
        assert running.end().status == 0
    with Running("--as-curl", *words) as running:
        script = running.end().out
    assert b"p%40ss" not in script
    assert b"dXNl" not in script

    def run(**secrets):
        env = environment(**secrets)
        return subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True, check=False)

    refused = run(PROXY_USER="me:p@ss")
    assert (refused.returncode, refused.stdout) != (0, text_stream("Hello.").decode())
    assert "AUTHORIZATION: set it to the secret of this header" in refused.stderr
    told = run(PROXY_USER="me:p@ss", AUTHORIZATION="dXNlcjpwYXNzd29yZA==")
    assert (told.returncode, told.stdout, told.stderr) == (0, text_stream("Hello.").decode(), "")
    for one, other in (server.requests, proxy.requests):
        for name in ("authorization", "proxy-authorization"):
            assert one.headers.get(name) == other.headers.get(name)
