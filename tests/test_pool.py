"""streamcli.batch.pool: many lines at once, through real sockets, each with one result, whatever befalls one.

Slow is what waits for real time to pass: silences, slow readers, and servers that ask to wait.
"""

import asyncio
import io
import json
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from server import HANG, PATIENCE, RESET, error_response, head, message_start, ok, opening, text_events

from streamcli import AsyncClient
from streamcli.batch import pool
from streamcli.batch.pool import Pool, Settings
from streamcli.batch.source import Source
from streamcli.batch.statistics import Statistics
from streamcli.errors import OutputError, UsageError

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
        self._settings = Settings(**{"jobs": 4} | settings)

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
            self.pool = Pool(client, self.write, self.statistics, self._settings)
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
        outcomes = [json.loads(result.line)["result"] for result in self.results]
        return [
            outcome["message"]["content"][0]["text"]
            if outcome["type"] == "succeeded"
            else outcome["error"]["error"]["type"]
            for outcome in outcomes
        ]


def run(server, prompts, **options):
    return Run(server, prompts, **options).to_its_end()


async def until(met):
    """Wait until `met()` is true, the loop running on."""
    late = time.monotonic() + PATIENCE
    while not met():
        assert time.monotonic() < late, "waited in vain"
        await asyncio.sleep(0.002)


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
    server.responses = [answering({"b": error_response(400), "c": error_response(401, "authentication_error")})]
    ran = run(server, "abcd")
    assert ran.said == ["a", "invalid_request_error", "authentication_error", "d"]
    assert [result.status for result in ran.results] == [0, 3, 4, 0]
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
    server.responses = [answer]
    assert [result.status for result in run(server, "a", retries=0).results] == [status]


FAULTS = {
    "cut": ok(opening("par")),
    "reset": (head(), message_start(), RESET),
    "malformed": ok(opening("par"), b"data: nonsense\n\n"),
    "silent": (head(), message_start(), HANG),
    "empty": head(204, length=0),
    "gone": (RESET,),
    "busy": error_response(503, "api_error", **SOON),
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
    ran = run(server, "abc", idle=0.2)
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
    server.responses = [answering({"b": [error_response(503, "api_error", retry_after_ms="10"), echo(_Asked("b"))]})]
    told = []
    run(server, "ab", on_retry=lambda line, error, wait: told.append((line.number, error.status_code, wait)))
    assert told == [(2, 503, 0.01)]


def test_a_stop_reason_that_is_not_wanted_gives_the_line_its_status(server):
    server.responses = [answering({"b": ok(*text_events("b", stop_reason="max_tokens"))})]
    ran = run(server, "ab", judge=lambda message: 9 * (message["stop_reason"] == "max_tokens"))
    assert ran.said == ["a", "b"]
    assert [result.status for result in ran.results] == [0, 9]


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


def test_a_server_that_throttles_for_ever_is_given_up(server):
    server.responses = [error_response(529, "overloaded_error", **SOON)]
    ran = run(server, "abcd", retries=1)
    assert ran.said == ["overloaded_error"] * 4
    assert {result.status for result in ran.results} == {5}
    # In the rounds of four, of two and of one as many as ran; then each is throttled alone, once more than --retries.
    assert 4 + 2 + 1 <= len(server.requests) <= 4 + 2 + 4 * 2


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


def test_a_wait_beyond_a_minute_is_the_line_s_result_and_said(server):
    server.responses = [answering({"b": error_response(429, "rate_limit_error", "too many", retry_after="3600")})]
    ran = run(server, "abc", jobs=1)
    assert ran.said == ["a", "rate_limit_error", "c"]
    assert ran.results[1].status == 5
    assert "too many; the server asks to wait 3600 s" in str(ran.results[1].line)


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
