"""streamcli.batch.pool: many lines at once, through real sockets, each with one result, whatever befalls one.

Slow is what waits for real time to pass: silences, slow readers, and servers that ask to wait.
"""

import asyncio
import contextlib
import io
import json
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import httpx
import pytest
from faults_command import full_backlog
from hypothesis import given
from hypothesis import strategies as st
from odd import oddities
from server import (
    HANG,
    PATIENCE,
    RESET,
    Server,
    error_response,
    head,
    json_response,
    message_start,
    ok,
    opening,
    read_request,
    text_events,
)

from streamcli import AsyncClient
from streamcli.batch import limiter, pool
from streamcli.batch.pool import Pool
from streamcli.batch.source import Source
from streamcli.batch.statistics import Statistics
from streamcli.errors import (
    APIStatusError,
    APITimeoutError,
    OutputError,
    OverloadedError,
    RateLimitError,
    UsageError,
)
from streamcli.protocol import retry
from streamcli.protocol.jsontext import loads

SOON = {"retry_after_ms": "5"}


def prompt(request):
    """What a request asks."""
    return request.json["messages"][-1]["content"]


def echo(request):
    return ok(*text_events(prompt(request)))


def answering(answers):
    """A server's answers, by what is asked: an answer, or several that are used up one a request; else the echo."""
    left = {asked: answer if isinstance(answer, list) else [answer] for asked, answer in answers.items()}

    def answer(request):
        mine = left.get(prompt(request))
        return echo(request) if mine is None else mine.pop(0) if len(mine) > 1 else mine[0]

    return answer


class Run:
    """A run over some prompts; `results` are what was written, in that order."""

    def __init__(self, server, prompts, *, write=None, drawn=None, idle=None, total=None, **settings):
        self.results = []
        self.pool = None
        self.statistics = None
        self._server = server
        self._source = Source(
            io.BytesIO("".join(f"{text}\n" for text in prompts).encode()),
            "in",
            {"model": "m", "max_tokens": 9},
            lambda text: {"role": "user", "content": text},
            True,
        )
        self._limits = {"timeout": idle, "total_timeout": total}
        self._write = write or (lambda results: None)
        self._drawn = drawn or (lambda line: None)
        self._settings = {"jobs": 4} | settings

    def write(self, results):
        self._write(results)
        self.results += results

    def lines(self):
        for line in self._source.lines():
            self._drawn(line)
            yield line

    async def ask(self, beside=None, done=lambda number: False):
        self.statistics = Statistics(self._source.check())
        async with AsyncClient(base_url=self._server.url, api_key="k", max_retries=0, **self._limits) as client:
            self.pool = Pool(client, self.write, self.statistics, **self._settings)
            asking = asyncio.create_task(self.pool.run(self.lines(), done))
            if beside:
                await beside(self)
            await asking
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def to_its_end(self, **options):
        asyncio.run(self.ask(**options))
        return self

    @property
    def said(self):
        """Of each result the text, or the type of its error."""
        outcomes = [loads(result.line)["result"] for result in self.results]
        return [_said(outcome) for outcome in outcomes]


def _said(outcome):
    if outcome["type"] != "succeeded":
        return outcome["error"]["error"]["type"]
    with contextlib.suppress(TypeError, LookupError):
        return outcome["message"]["content"][0]["text"]


def run(server, prompts, **options):
    return Run(server, prompts, **options).to_its_end()


async def until(met):
    """Wait until `met()` is true, the loop running on."""
    late = time.monotonic() + PATIENCE
    while not met():
        assert time.monotonic() < late, "waited in vain"
        await asyncio.sleep(0.002)


# Limits of tokens


def test_a_line_that_waits_for_room_is_left_when_the_tokens_are_used_and_holds_up_no_other(server):
    throttled, written = threading.Event(), threading.Event()

    def answer(request):
        whole = echo(request)
        first = error_response(529, "overloaded_error", **SOON)
        return {"a": first, "b": (throttled, whole), "c": (written, whole)}[prompt(request)]

    server.responses = [answer]
    told = {"on_retry": lambda *_: throttled.set(), "write": lambda results: written.set()}
    ended = run(server, "abcd", jobs=3, max_total_tokens=10, **told)
    assert ended.said == ["b", "c"]
    assert (ended.statistics.tokens, ended.statistics.capped) == (20, True)
    assert sorted(map(prompt, server.requests)) == ["a", "b", "c"]


@given(st.integers(1, 6), st.integers(1, 80), st.integers(0, 8))
def test_no_more_is_used_than_the_limit_and_what_was_in_progress(jobs, most, count):
    with Server(echo) as server:
        ended = run(server, "abcdefgh"[:count] or "a", jobs=jobs, max_total_tokens=most)
    statistics = ended.statistics
    assert statistics.tokens == 10 * len(ended.results) < most + 10 * jobs
    assert ended.said == list("abcdefgh")[: len(ended.results)]
    assert statistics.capped == (len(ended.results) < statistics.total)
    assert statistics.tokens >= most or not statistics.capped


# Order and number


def test_results_come_in_the_order_of_the_lines_whatever_ends_first(server):
    last = threading.Event()
    server.responses = [lambda request: (last, echo(request)) if prompt(request) == "a" else echo(request)]

    async def beside(running):
        await until(lambda: running.statistics.succeeded == 3)
        assert running.results == []
        last.set()

    ran = Run(server, "abcd").to_its_end(beside=beside)
    assert ran.said == ["a", "b", "c", "d"]
    assert [result.number for result in ran.results] == [1, 2, 3, 4]


def test_results_come_as_they_end_where_no_order_is_wanted(server):
    last = threading.Event()
    server.responses = [lambda request: (last, echo(request)) if prompt(request) == "a" else echo(request)]

    async def beside(running):
        await until(lambda: len(running.results) == 3)
        last.set()

    ran = Run(server, "abcd", ordered=False).to_its_end(beside=beside)
    assert sorted(ran.said[:3]) == ["b", "c", "d"]
    assert ran.said[3] == "a"


def test_as_many_run_at_once_as_asked_for_and_no_more(server):
    together = threading.Barrier(3)
    running = []

    def answer(request):
        running.append(request)
        assert len(running) <= 3
        together.wait(PATIENCE)
        running.remove(request)
        return echo(request)

    server.responses = [answer]
    assert run(server, "abcdef", jobs=3).said == list("abcdef")


def test_each_request_carries_its_line_and_what_goes_with_all_of_them(server):
    server.responses = [echo]
    run(server, "ab", jobs=1, betas=["one", "two"])
    assert [request.json for request in server.requests] == [
        {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": text}], "stream": True}
        for text in "ab"
    ]
    assert server.requests[0].headers["anthropic-beta"] == "one,two"


def test_lines_that_are_done_are_not_asked(server):
    server.responses = [echo]
    ran = Run(server, [str(number) for number in range(1, 601)])
    ran.to_its_end(done=lambda number: number not in {7, 300, 600})
    assert ran.said == ["7", "300", "600"]
    assert len(server.requests) == 3


@pytest.mark.parametrize("ordered", [True, False])
def test_a_slow_reader_holds_up_the_drawing_of_lines(server, ordered):
    server.responses = [echo]
    drawn, read = [], threading.Event()

    async def beside(running):
        await until(lambda: len(drawn) == 8)
        await asyncio.sleep(0.05)
        assert len(drawn) == 8  # four times what may run
        read.set()

    ran = Run(
        server, map(str, range(40)), jobs=2, ordered=ordered, write=lambda _: read.wait(PATIENCE), drawn=drawn.append
    )
    ran.to_its_end(beside=beside)
    assert len(drawn) == 40
    assert sorted(map(int, ran.said)) == list(range(40))


def test_a_slow_reader_makes_no_silence_in_the_streams(server):
    pings = [b"7\r\n: ping\n\r\n", 0.05] * 15
    server.responses = [lambda request: [head(chunked=True), *pings, echo(request).partition(b"\r\n\r\n")[2]]]
    ran = run(server, "abcdef", jobs=3, idle=0.6, write=lambda _: time.sleep(0.8))
    assert ran.said == list("abcdef")
    assert ran.statistics.retries == 0


# Lines that fail


def test_a_line_that_fails_never_stops_the_others(server):
    server.responses = [answering({"b": error_response(400), "c": error_response(413, "request_too_large")})]
    ran = run(server, "abcd")
    assert ran.said == ["a", "invalid_request_error", "request_too_large", "d"]
    assert [result.status for result in ran.results] == [0, 3, 3, 0]
    assert len(server.requests) == 4
    assert json.loads(ran.results[1].line)["result"]["error"] == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "no"},
        "request_id": "req_1",
    }


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (error_response(400, "a_type_of_its_own"), 3),
        (head(401, length=0), 4),
        (head(500, length=4) + b"oops", 5),
        (ok(opening("par"), b'event: error\ndata: {"type":"error","error":{"type":"new"}}\n\n'), 5),
        (head(type="text/html", length=2) + b"<p", 3),
    ],
    ids=["unknown type", "no type", "no JSON", "unknown event", "a page"],
)
def test_a_line_s_status_is_that_of_its_error_whatever_type_the_server_gives(server, answer, status):
    server.responses = [answering({"b": answer})]
    assert [result.status for result in run(server, "ab", jobs=1, retries=0).results] == [0, status]


FAULTS = {
    "cut": ok(opening("par")),
    "reset": (head(), message_start(), RESET),
    "malformed": ok(opening("par"), b"data: nonsense\n\n"),
    "silent": (head(), message_start(), HANG),
    "empty": head(204, length=0),
    "gone": (RESET,),
    "broken": error_response(502, "api_error", **SOON),
    "timed out": error_response(408, "timeout_error", **SOON),
    "error event": ok(opening("par"), b'event: error\ndata: {"type":"error","error":{"type":"api_error"}}\n\n'),
}


@pytest.fixture
def at_once(monkeypatch):
    """Waits between attempts, which are then not waited for."""
    waits = []
    asked = pool.delay

    def delay(*args, **options):
        wait = asked(*args, **options)
        waits.append(wait)
        return wait and 0.001

    monkeypatch.setattr(pool, "delay", delay)
    return waits


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_of_a_line_was_passed_on_so_that_every_fault_that_may_pass_is_tried_again(server, at_once, fault):
    server.responses = [answering({"b": [FAULTS[fault], FAULTS[fault], echo(_Asked("b"))]})]
    ran = run(server, "abc", idle=0.2 if fault == "silent" else None)
    assert ran.said == ["a", "b", "c"]
    assert ran.statistics.retries == 2
    assert len(at_once) == 2
    assert all(wait > 0 for wait in at_once)


class _Asked:
    def __init__(self, text):
        self.json = {"messages": [{"content": text}]}


def test_a_fault_that_stays_is_the_line_s_result_once_its_attempts_are_spent(server, at_once):
    server.responses = [answering({"b": FAULTS["cut"]})]
    ran = run(server, "ab", retries=3)
    assert ran.said == ["a", "streamcli.incomplete_stream"]
    assert ran.results[1].status == 8
    assert len(server.requests) == 1 + 4


def test_the_total_limit_is_final(server):
    server.responses = [answering({"b": FAULTS["silent"]})]
    ran = run(server, "ab", total=0.2)
    assert ran.said == ["a", "streamcli.timeout_error"]
    assert ran.results[1].status == 7
    assert "the total timeout of 0.2 s passed" in str(ran.results[1].line)
    assert ran.statistics.retries == 0


def test_a_retry_is_said_with_its_line(server):
    server.responses = [answering({"b": [error_response(500, "api_error", retry_after_ms="10"), echo(_Asked("b"))]})]
    told = []
    run(server, "ab", on_retry=lambda line, error, wait: told.append((line.number, error.status_code, wait)))
    assert told == [(2, 500, 0.01)]


def test_a_stop_reason_that_is_not_wanted_gives_the_line_its_status(server):
    server.responses = [answering({"b": ok(*text_events("b", stop_reason="max_tokens"))})]
    ran = run(server, "ab", judge=lambda message: 9 * (message["stop_reason"] == "max_tokens"))
    assert ran.said == ["a", "b"]
    assert [result.status for result in ran.results] == [0, 9]


@given(data=st.data())
def test_whatever_json_an_answer_holds_it_is_an_answer_or_an_error_of_its_line_and_of_no_other(data):
    parts = text_events("b")
    place = data.draw(st.integers(0, len(parts) - 1))
    name, _, told = parts[place].partition(b"\ndata: ")
    parts[place] = name + b"\ndata: " + data.draw(oddities(json.loads(told))) + b"\n\n"
    with Server(answering({"b": ok(*parts)})) as server:
        ran = run(server, "abc", retries=0)
    assert [ran.said[0], ran.said[2]] == ["a", "c"]
    assert len(ran.results) == 3


@given(data=st.data(), status=st.sampled_from([400, 429, 500]))
def test_so_it_is_with_an_error_response(data, status):
    error = {"type": "error", "error": {"type": "rate_limit_error", "message": "no", "details": {"error_code": "x"}}}
    body = data.draw(oddities(error))
    refused = head(status, type="application/json", length=len(body), x_should_retry="false") + body
    with Server(answering({"b": refused})) as server:
        ran = run(server, "abc", retries=0)
    assert [ran.said[0], ran.said[2]] == ["a", "c"]
    assert ran.results[1].status in {3, 4, 5}


# A server without room


class Room:
    """Answers a number of requests at once and throttles the others; notes when each came."""

    def __init__(self, size, *, takes=0.01, status=429, **headers):
        self.throttled = 0
        self._free = threading.Semaphore(size)
        self._was_full = threading.Event()
        self._takes = takes
        self._throttling = error_response(
            status, "rate_limit_error" if status == 429 else "overloaded_error", **headers
        )

    def __call__(self, request):
        if not self._free.acquire(blocking=False):
            self.throttled += 1
            self._was_full.set()
            return self._throttling

        def steps():
            try:
                yield self._was_full  # however slowly the others come
                yield self._takes
                yield echo(request)
            finally:
                self._free.release()

        return steps()


@pytest.mark.parametrize("status", [429, 529])
def test_a_server_with_little_room_serves_many_jobs_without_one_failure(server, status):
    room = Room(3, status=status, **SOON)
    server.responses = [room]
    prompts = [str(number) for number in range(80)]
    ran = run(server, prompts, jobs=40, retries=0)
    assert ran.said == prompts
    assert 0 < room.throttled == ran.statistics.rate_limited + ran.statistics.overloaded
    assert room.throttled < len(prompts)


class Limit:
    """Admits a request whenever `admits(now)` says so, and answers the others with an error response."""

    def __init__(self, admits, response):
        self._admits = admits
        self._response = response
        self._lock = threading.Lock()

    def __call__(self, request):
        with self._lock:
            return echo(request) if self._admits(time.monotonic()) else self._response


def leaky(every):
    """One request in each so many seconds, as nginx's limit_req."""
    last = -every

    def admits(now):
        nonlocal last
        if now - last < every:
            return False
        last = now
        return True

    return admits


def windowed(count, seconds):
    """So many requests in each window of so many seconds, as LiteLLM's rpm."""
    begin, seen = -seconds, 0

    def admits(now):
        nonlocal begin, seen
        if now - begin >= seconds:
            begin, seen = now, 0
        seen += 1
        return seen <= count

    return admits


PAGE = head(503, type="text/html", length=6) + b"<html>"


@pytest.mark.parametrize(
    "response", [error_response(429, "rate_limit_error"), error_response(529, "overloaded_error"), PAGE]
)
@pytest.mark.parametrize("admits", [lambda: leaky(0.05), lambda: windowed(4, 0.4)], ids=["leaky", "windowed"])
def test_no_line_is_lost_to_a_limit_as_long_as_others_are_answered(server, monkeypatch, admits, response):
    monkeypatch.setattr(retry, "_FIRST_WAIT", 0.02)
    monkeypatch.setattr(retry, "_LONGEST_WAIT", 0.1)
    server.responses = [Limit(admits(), response)]
    prompts = [str(number) for number in range(40)]
    assert run(server, prompts, jobs=8).said == prompts


@pytest.fixture
def hasty(monkeypatch):
    """A limiter that loses patience after a fifth of a second, and holds nothing for longer than some milliseconds."""
    monkeypatch.setattr(pool, "PATIENCE", 0.2)
    monkeypatch.setattr(retry, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(retry, "_LONGEST_WAIT", 0.05)


def test_a_server_that_answers_nobody_ends_the_run(server, hasty):
    server.responses = [error_response(529, "overloaded_error")]
    ran = Run(server, map(str, range(99)), jobs=4)
    with pytest.raises(OverloadedError, match=r"line \d: no; no line was answered for 0.2 s"):
        ran.to_its_end()
    assert ran.results == []
    assert 4 <= len(server.requests) < 99


def test_so_does_one_that_stops_answering_after_as_many_lines_as_may_run_are_given_up(server, hasty):
    server.responses = [lambda request: echo(request) if prompt(request) in "ab" else error_response(429)]
    ran = Run(server, "abcdefghi", jobs=3)
    with pytest.raises(RateLimitError, match="line 6: no; no line was answered"):
        ran.to_its_end()
    assert ran.said == ["a", "b", *["invalid_request_error"] * 3]


def test_a_line_that_alone_is_refused_for_ever_is_given_up_when_the_others_are_done(server, hasty):
    server.responses = [answering({"b": error_response(429, "rate_limit_error", "too large for the limit")})]
    prompts = list("abcdefghijklmnopqrstuvwxyz")
    ran = run(server, prompts, jobs=2)
    assert ran.said == ["a", "rate_limit_error", *prompts[2:]]
    assert ran.results[1].status == 5


def test_that_nobody_is_answered_is_told_once(server, hasty, monkeypatch):
    monkeypatch.setattr(pool, "_LONG_SILENCE", 0.05)
    monkeypatch.setattr(pool, "PATIENCE", PATIENCE)
    told = []

    def tell(line, error, patience):
        told.append((error.status_code, patience))

    server.responses = [lambda request: echo(request) if len(server.requests) > 20 else error_response(429)]
    assert run(server, "abcd", jobs=2, on_silence=tell).said == list("abcd")
    assert told == [(429, PATIENCE)]


@pytest.mark.parametrize(
    "response",
    [
        error_response(401, "authentication_error"),
        error_response(402, "billing_error"),
        error_response(403, "permission_error"),
        head(403, type="text/html", length=6) + b"<html>",
        json_response({"error": {"message": "no", "details": {"error_code": "enforced_spend_limit_reached"}}}, 429),
    ],
    ids=["401", "402", "403", "a page", "a spending limit"],
)
class TestACredentialThatIsNotAccepted:
    def test_ends_the_run_at_once(self, server, response):
        server.responses = [response]
        ran = Run(server, map(str, range(50)), jobs=3)
        with pytest.raises(APIStatusError, match=r"line [123]: "):
            ran.to_its_end()
        assert ran.results == []
        assert len(server.requests) == 3

    def test_is_the_error_of_a_line_where_others_are_answered(self, server, response):
        server.responses = [lambda request: response if prompt(request) in "adf" else (0.1, echo(request))]
        ran = run(server, "abcdef", jobs=3)
        assert "".join(" x"[result.status > 0] for result in ran.results) == "x  x x"

    def test_but_not_of_more_in_a_row_than_may_run(self, server, response):
        server.responses = [lambda request: echo(request) if prompt(request) == "a" else response]
        ran = Run(server, "abcdefghi", jobs=2)
        with pytest.raises(APIStatusError, match=r"line [345]: "):
            ran.to_its_end()
        assert "".join(" x"[result.status > 0] for result in ran.results) == " xx"
        assert len(server.requests) <= 5


@pytest.mark.parametrize("has_head", [False, True])
def test_a_server_with_few_places_gets_every_line_though_those_that_wait_hear_nothing(
    server, hasty, monkeypatch, has_head
):
    monkeypatch.setattr(pool, "PATIENCE", 5)
    places = threading.Semaphore(1)  # who hung up meanwhile is answered too

    def answer(request):
        if has_head:
            yield head(chunked=True)
        with places:
            yield 0.1
        yield echo(request).partition(b"\r\n\r\n")[2] if has_head else echo(request)

    server.responses = [answer]
    prompts = list("abcdefgh")
    ran = run(server, prompts, jobs=8, retries=0, idle=0.25)
    assert ran.said == prompts
    assert ran.statistics.retries > 0


def test_one_that_lets_nobody_in_while_it_answers_does_too(server, hasty, monkeypatch):
    monkeypatch.setattr(pool, "PATIENCE", 5)
    limits = httpx.Timeout(None, connect=0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        request = read_request(connection)
                        time.sleep(0.05)
                        connection.sendall(echo(request))

        thread = threading.Thread(target=serve)
        thread.start()
        slow = SimpleNamespace(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        try:
            assert run(slow, "abcdefgh", jobs=8, retries=0, idle=limits).said == list("abcdefgh")
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)


def test_a_server_that_never_says_a_byte_is_given_up(server, hasty):
    server.responses = [[HANG]]
    ran = Run(server, "abc", jobs=2, idle=0.05)
    with pytest.raises(APITimeoutError, match=r"line \d: nothing came .*; no line was answered for 0.2 s"):
        ran.to_its_end()


def test_nor_is_it_asked_again_for_each_line_that_waits(server, hasty, monkeypatch):
    too_late, answer = [], Pool._answer

    def asked(self, *args):
        too_late.append(self._gate.silence > self._limiter.patience)
        return answer(self, *args)

    monkeypatch.setattr(Pool, "_answer", asked)
    monkeypatch.setattr(pool, "PATIENCE", 0.6)  # or all of them may be under way when it is over
    server.responses = [[HANG]]
    with pytest.raises(APITimeoutError, match="no line was answered"):
        Run(server, "abcd", jobs=4, idle=0.05).to_its_end()
    assert too_late and not any(too_late)


def test_a_host_that_cannot_be_reached_is_no_server_without_room(hasty, at_once):
    with full_backlog() as port:
        gone = SimpleNamespace(url=f"http://127.0.0.1:{port}")
        ran = run(gone, "a", retries=1, idle=httpx.Timeout(None, connect=0.05))
    assert ran.said == ["streamcli.timeout_error"]
    assert len(at_once) == 2


def test_a_wait_of_some_minutes_is_waited_for(server, monkeypatch):
    held = []
    throttled = limiter.Limiter.throttled

    def noted(self, permit, now, *, wait, chance):
        held.append(wait)
        return throttled(self, permit, now, wait=0.01, chance=chance)

    monkeypatch.setattr(limiter.Limiter, "throttled", noted)
    server.responses = [error_response(429, "rate_limit_error", retry_after="299"), echo]
    assert run(server, "a").said == ["a"]
    assert held == [299]


def test_a_throttled_response_holds_back_every_request_for_as_long_as_the_server_asks(server):
    came, answers = (
        [],
        answering({"a": [error_response(429, "rate_limit_error", retry_after="0.4"), echo(_Asked("a"))]}),
    )

    def answer(request):
        came.append(time.monotonic())
        return answers(request)

    server.responses = [answer]
    ran = run(server, ["a", *map(str, range(20))], jobs=1)
    assert len(ran.said) == 21
    assert came[1] - came[0] >= 0.39


def test_an_error_event_that_says_overloaded_does_so_too(server):
    overloaded = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n'
    server.responses = [answering({"a": [ok(opening("par"), overloaded), echo(_Asked("a"))]})]
    ran = run(server, "a", jobs=2, retries=0)
    assert ran.said == ["a"]
    assert ran.statistics.overloaded == 1


def test_a_wait_beyond_all_patience_is_the_line_s_result_and_said(server):
    server.responses = [answering({"b": error_response(429, "rate_limit_error", "too many", retry_after="3600")})]
    ran = run(server, "abc", jobs=1)
    assert ran.said == ["a", "rate_limit_error", "c"]
    assert ran.results[1].status == 5
    assert "too many; the server says to wait 3600 s" in str(ran.results[1].line)


def test_a_spending_limit_is_final_and_holds_nobody_back(server):
    body = {"type": "rate_limit_error", "message": "no", "details": {"error_code": "enforced_spend_limit_reached"}}
    spent = json.dumps({"type": "error", "error": body}).encode()
    top = head(429, type="application/json", length=len(spent), retry_after="30")
    server.responses = [answering({"b": top + spent})]
    begin = time.monotonic()
    ran = run(server, "abc", jobs=1)
    assert ran.said == ["a", "rate_limit_error", "c"]
    assert time.monotonic() - begin < 10


def test_a_throttled_response_that_is_not_to_be_retried_still_slows_the_others(server):
    came, advice = [], {"x_should_retry": "false", "retry_after": "0.4"}
    answers = answering({"a": error_response(429, "rate_limit_error", **advice)})

    def answer(request):
        came.append((request.json["messages"][-1]["content"], time.monotonic()))
        return answers(request)

    server.responses = [answer]
    ran = run(server, "abc", jobs=1)
    assert ran.said == ["rate_limit_error", "b", "c"]
    assert came[1][1] - came[0][1] >= 0.4


def test_nothing_is_sent_before_a_limit_is_renewed_that_an_answer_says_is_used_up(server):
    came = []

    def answer(request):
        came.append(datetime.now(UTC))
        reset = came[0] + timedelta(seconds=0.4)
        spent = {"anthropic_ratelimit_requests_remaining": 0, "anthropic_ratelimit_requests_reset": reset.isoformat()}
        body = b"".join(text_events(prompt(request)))
        return head(length=len(body), **spent) + body

    server.responses = [answer]
    assert run(server, "ab", jobs=1).said == ["a", "b"]
    assert came[1] - came[0] >= timedelta(seconds=0.39)


# The end before its time


def test_a_run_that_is_stopped_drops_what_runs_and_writes_what_is_complete(server):
    server.responses = [lambda request: [HANG] if prompt(request) in "ac" else echo(request)]

    async def beside(running):
        await until(lambda: running.statistics.succeeded == 10)
        assert running.results == []
        running.pool.stop()

    ran = Run(server, "abcdefghijklmnop", jobs=3).to_its_end(beside=beside)
    assert ran.said == list("bdefghijkl")  # four times what may run, but for those that still do
    assert all(server.hung_up(number) for number, request in enumerate(server.requests) if prompt(request) in "ac")


def test_a_run_that_is_stopped_does_not_wait_for_ever_for_its_reader(server, monkeypatch):
    monkeypatch.setattr(pool, "_LAST_WRITE", 0.1)
    server.responses = [echo]
    writing, read = threading.Event(), threading.Event()

    async def beside(running):
        await until(writing.is_set)
        running.pool.stop()

    ran = Run(server, "abc", write=lambda _: (writing.set(), read.wait(PATIENCE)))
    ran.to_its_end(beside=beside)
    assert ran.results == []
    read.set()


class _Gone(BaseException):
    """As a reader is."""


@pytest.mark.parametrize("fault", [OutputError("disk full"), _Gone()])
def test_what_writing_raises_ends_the_run(server, fault):
    server.responses = [lambda request: echo(request) if prompt(request) == "a" else [HANG]]

    def write(_results):
        raise fault

    with pytest.raises(type(fault)):
        run(server, "abcdefgh", write=write)


def test_what_drawing_a_line_raises_ends_the_run_after_what_was_asked_is_written(server):
    server.responses = [echo]

    def draw(line):
        if line.number == 3:
            raise UsageError("the input changed")

    ran = Run(server, "abc", jobs=1, drawn=draw)
    with pytest.raises(UsageError, match="the input changed"):
        ran.to_its_end()
    assert ran.said == ["a", "b"]


def test_a_fault_of_ours_ends_the_run_and_is_not_taken_for_a_line_s(server, monkeypatch):
    server.responses = [echo]
    monkeypatch.setattr(pool, "Meter", None)
    with pytest.raises(TypeError):
        run(server, "abc")


def test_statistics_tell_when_tokens_came_and_how_many(server):
    server.responses = [lambda request: [head(), opening(), 0.1, b"".join(text_events("x"))[len(opening()) :]]]
    fields = run(server, "abc").statistics.fields()
    assert fields["usage"] == {"input_tokens": 9, "output_tokens": 21}
    assert fields["succeeded"] == 3
    assert 0.1 <= fields["time_to_first_token"]["p50"] <= fields["time_to_last_token"]["p50"] < PATIENCE


def test_no_lines_are_no_requests(server):
    assert run(server, []).results == []
    assert server.connections == 0
