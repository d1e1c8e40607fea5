"""Many requests at once on one event loop: lines in, results out, in the lines' order or as they come.

Contract: lines are drawn one at a time, at most `jobs` are in progress, and no more than a few times `jobs` wait to be
written, so that memory is bounded however long the input and however slow the reader is. A line that fails gives an
errored result and never stops the others. Nothing of a line is passed on before it is complete, so any fault that may
be temporary is worth another attempt here. Whatever ends a run early, what is complete is still written.
Source: streamcli(7), section "Throttling".
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from streamcli.client import calls
from streamcli.errors import APIConnectionError, APIError, APIStatusError, APITimeoutError
from streamcli.output.meter import Meter
from streamcli.protocol.retry import MAX_RETRIES, delay

from .limiter import PATIENCE, Limiter, Permit
from .results import Result, accept, result
from .source import Line
from .statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from streamcli.client.async_client import AsyncClient

    from .results import Judge

# How many times `jobs` lines may be drawn and not yet written.
_WINDOW = 4
# How many seconds a stopped run has to write its last results.
_LAST_WRITE = 2.0
# How long more results are waited for where they come several at a time: to hand them to a thread costs as much as to
# read an answer.
_GATHERING = 0.005
# How many lines that are done already are skipped before the event loop gets its turn.
_STRIDE = 256
# Statuses that mean load, of which 503 is what nginx says, and those that mean the credential or what it may spend.
_THROTTLED = frozenset({429, 503, 529})
_NOT_ALLOWED = frozenset({401, 402, 403})
# After how many seconds without an answer to anybody that is said; limits by the minute are as usual as they are short.
_LONG_SILENCE = 60.0
# How much earlier than it should a timer may fire.
_TICK = 0.01


@dataclass(eq=False)
class Pool:
    """One run over some lines.

    `client` must not retry by itself. `write` is called in another thread, one call at a time, with the next results;
    whatever it raises ends the run. `statistics` are updated as lines end.

    `jobs` lines are asked at once, each with up to `retries` further attempts, not counting those that are throttled.
    `ordered` writes the results in the lines' order. With `counting` the tokens of each request are counted instead.
    Once `max_total_tokens` are used, nothing more is sent. `judge` judges every complete message. `on_retry` is given
    the line, the error and the seconds to wait before the next attempt; `on_silence` the same line and error, once,
    when no line was answered for some seconds, and for how many that may go on.
    """

    client: AsyncClient
    write: Callable[[Sequence[Result]], None]
    statistics: Statistics
    _: KW_ONLY
    jobs: int
    retries: int = MAX_RETRIES
    ordered: bool = True
    counting: bool = False
    max_total_tokens: int | None = None
    betas: Sequence[str] = ()
    judge: Judge = accept
    on_retry: Callable[[Line, APIError, float], None] = lambda *_: None
    on_silence: Callable[[Line, APIError, float], None] = lambda *_: None

    def __post_init__(self) -> None:
        # A request that the idle timeout ended may take as long as another one may be silent.
        patience = max(PATIENCE, (self.retries + 1) * (self.client.timeout.read or 0))
        self._limiter = Limiter(self.jobs, patience=patience)
        self._gate = _Gate(self._limiter)
        # Errors that every line would meet: whether there was an answer at all, the lines that wait to know that, and
        # how many came in a row since.
        self._answered = asyncio.Event()
        self._suspects: list[tuple[Line, APIError]] = []
        self._common_in_row = 0
        self._silence_told = False
        self._outbox = _Outbox(self.write, self.jobs, ordered=self.ordered)
        self._slots = asyncio.Semaphore(self.jobs)
        self._running: set[asyncio.Task[None]] = set()
        # Done as soon as the run has to end early: by `stop`, or by a fault of ours.
        self._ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def stop(self) -> None:
        """End the run: what is in progress is dropped, what is complete is written."""
        if not self._ending.done():
            self._ending.set_result(None)

    async def run(self, lines: Iterator[Line], done: Callable[[int], bool] = lambda _: False) -> None:
        """Ask all `lines` except those whose number is `done`, until all are written or `stop` is called.

        Raises whatever drawing a line or writing a result raises, and an error that every line would meet: the
        credential is not accepted, or nobody is answered any more. Once others were answered, it is the error of the
        lines that meet it, until more meet it in a row than may run at once.
        """
        asking = asyncio.create_task(self._ask_all(lines, done))
        writing = asyncio.create_task(self._outbox.deliver())
        await _first({asking, writing, self._ending})
        if asking.done() and not asking.exception():
            self._outbox.close()
            await _first({writing, self._ending})
        await _cancel({asking, *self._running})
        self._outbox.close(in_part=True)
        await asyncio.wait({writing}, timeout=_LAST_WRITE)
        await _cancel({writing})
        ends = [part for part in (writing, asking, self._ending) if part.done() and not part.cancelled()]
        for fault in filter(None, [part.exception() for part in ends]):
            raise fault

    async def _ask_all(self, lines: Iterator[Line], done: Callable[[int], bool]) -> None:
        place = skipped = 0
        try:
            for line in lines:
                if done(line.number):
                    skipped += 1
                    if skipped % _STRIDE == 0:
                        await asyncio.sleep(0)
                    continue
                await self._slots.acquire()
                if self._is_spent():
                    return
                task = asyncio.create_task(self._ask(place, line))
                self._running.add(task)
                task.add_done_callback(self._ended)
                place += 1
                # In each turn the loop runs every task one step further. If many lines began in one turn, none would be
                # sent before the last one is made, and their answers would come in bursts for the whole run.
                await asyncio.sleep(0)
                await self._outbox.room.acquire()
        finally:  # even if the input is not what it was: what was asked of it is paid for
            while self._running:
                await asyncio.wait(self._running)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._slots.release()
        self._check_suspects()
        fault = None if task.cancelled() else task.exception()
        if fault and not self._ending.done():
            self._ending.set_exception(fault)

    def _check_suspects(self) -> None:
        """End the run if all lines in progress met an error that every line would meet, and none was answered yet."""
        if self._suspects and len(self._suspects) >= len(self._running) and not self._answered.is_set():
            line, error = self._suspects[0]
            if not self._ending.done():
                self._ending.set_exception(_named(line, error))

    async def _given_up(self, line: Line, error: APIError, *, is_throttled: bool) -> APIError:
        """The error that a line ends with.

        One that every other line would meet too is the line's once others are answered. Raises it if they are no more.
        """
        if _is_not_allowed(error) or (is_throttled and not _is_final(error)):
            if not self._answered.is_set():
                self._suspects.append((line, error))
                self._check_suspects()
                await self._answered.wait()
            self._common_in_row += 1
            if self._common_in_row > self.jobs:
                raise _named(line, error)
        elif isinstance(error, APIStatusError):
            self._note_answer()
        return error

    def _note_answer(self) -> None:
        self._answered.set()
        self._common_in_row = 0

    def _is_spent(self) -> bool:
        """Whether a line must not be asked, because the others have used up the tokens."""
        most, statistics = self.max_total_tokens, self.statistics
        statistics.capped = statistics.capped or (most is not None and statistics.tokens >= most)
        return statistics.capped

    async def _ask(self, place: int, line: Line) -> None:
        ended = None
        outcome = await self._outcome(line)
        if outcome is not None:
            ended, said = result(line, outcome, self.judge)
            self.statistics.add(said, ended.status, line.params.get("model"))
        self._outbox.put(place, ended)

    async def _outcome(self, line: Line) -> Mapping[str, Any] | APIError | None:
        """How the line ended; None if it was not asked."""
        counting = self.counting
        throttled: APIError | None = None
        attempt = 0  # not counting those that were throttled
        while True:
            permit = await self._gate.enter()
            if self._is_spent():
                self._gate.ended(permit)
                return None
            if throttled and self._gate.silence > self._limiter.patience:  # it need not be silent to each in turn
                self._gate.ended(permit)
                self._name_silence(throttled)
                return await self._given_up(line, throttled, is_throttled=True)
            meter = Meter()
            try:
                fields = await (self._count(line, meter) if counting else self._answer(line, permit, meter))
            except APIError as error:
                meter.stop()
                if isinstance(error, APIStatusError):
                    self._gate.note_limits(error.headers)
                is_throttled = self._is_throttled(error, permit, meter)
                throttled = error if is_throttled else None
                if is_throttled:
                    wait = self._after_throttling(error, permit)
                else:
                    wait = self._delay(error, permit, attempt, meter)
                    attempt += 1
                if wait is None:
                    return await self._given_up(line, error, is_throttled=is_throttled)
                self.on_retry(line, error, wait)
                self._tell_silence(line, error)
            else:
                self._gate.succeeded(permit)
                self.statistics.answered(meter.first_token, meter.end or 0)
                self._note_answer()
                return {"type": "succeeded", **fields}
            self.statistics.retries += 1
            await asyncio.sleep(wait)

    async def _count(self, line: Line, meter: Meter) -> dict[str, Any]:
        count = await self.client.messages.count_tokens(betas=self.betas, extra_body=calls.to_count(line.params))
        meter.stop()
        return {"input_tokens": calls.counted(count)}

    async def _answer(self, line: Line, permit: Permit, meter: Meter) -> dict[str, Any]:
        manager = self.client.messages.stream(betas=self.betas, extra_body=line.params)
        async with manager as stream:
            self._gate.note_limits(stream.response.headers)
            exchange = stream.exchange
            async for data in stream.reads():
                self._limiter.begun(permit)
                for received in exchange.receive(data):
                    if meter.first_token is None:
                        meter.seen(received)
            meter.stop()
        self.statistics.deviations.update(exchange.deviations)
        return {"message": exchange.accumulator.snapshot() or {}}

    def _is_throttled(self, error: APIError, permit: Permit, meter: Meter) -> bool:
        """Whether an attempt ended because the server has no room for it; a silent one keeps requests waiting."""
        if isinstance(error, APIStatusError):
            return error.status_code in _THROTTLED and not error.is_hopeless
        if not isinstance(error, APITimeoutError) or permit.begun or self._is_late(meter):
            return False
        return not error.retryable or self.statistics.succeeded > 0  # one that accepts nobody may be the wrong one

    def _is_late(self, meter: Meter) -> bool:
        """Whether the total timeout has passed."""
        total = self.client.total_timeout
        return total is not None and meter.end is not None and meter.end >= total - _TICK

    def _delay(self, error: APIError, permit: Permit, attempt: int, meter: Meter) -> float | None:
        """The seconds to wait before the next attempt, after one that ended with `error`, or None if there is none."""
        self._gate.ended(permit)
        # Nothing of the answer was passed on, so one that fell silent can be retried like one that broke off.
        was_silent = isinstance(error, APITimeoutError) and permit.begun and not self._is_late(meter)
        again = APIConnectionError(error.message) if was_silent else error
        chance, now = random.random(), time.time()  # noqa: S311 - it spreads waits
        return delay(again, attempt, max_retries=self.retries, chance=chance, now=now)

    def _after_throttling(self, error: APIError, permit: Permit) -> float | None:
        """As `_delay`, of a throttled attempt: 0, because the gate opens when the server has room."""
        asked = 0.0
        if isinstance(error, APIStatusError):
            self.statistics.rate_limited += error.status_code == 429
            self.statistics.overloaded += error.status_code != 429
            asked = error.retry_after or 0.0
        too_long = asked > self._limiter.patience
        if too_long:
            self.statistics.longest_wait = max(self.statistics.longest_wait, asked)
        if self._gate.throttled(permit, None if too_long else asked or None):  # 0 leaves it to us
            self._name_silence(error)
            return None
        return None if too_long or _is_final(error) else 0

    def _name_silence(self, error: APIError) -> None:
        error.message += f"; no line was answered for {self._limiter.patience:g} s"

    def _tell_silence(self, line: Line, error: APIError) -> None:
        if not self._silence_told and self._gate.silence > _LONG_SILENCE:
            self._silence_told = True
            self.on_silence(line, error, self._limiter.patience)


def _named(line: Line, error: APIError) -> APIError:
    error.message = f"line {line.number}: {error.message}"
    return error


def _is_final(error: APIError) -> bool:
    """Whether the server says that the same request will not be answered later either."""
    return isinstance(error, APIStatusError) and not error.retryable


def _is_not_allowed(error: APIError) -> bool:
    return isinstance(error, APIStatusError) and (error.status_code in _NOT_ALLOWED or error.is_hopeless)


class _Gate:
    """The limiter and the requests that wait for it, first come, first served."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._loop = asyncio.get_running_loop()
        self._door = asyncio.Lock()
        self._given_back = asyncio.Event()

    async def enter(self) -> Permit:
        """Wait for the permit of one request, which is given back to one of the methods below."""
        async with self._door:
            while (permit := self._limiter.start(now := self._loop.time())) is None:
                self._given_back.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._limiter.held(now) or None):
                        await self._given_back.wait()
            return permit

    @property
    def silence(self) -> float:
        """The seconds for which no line was answered."""
        return self._limiter.silence(self._loop.time())

    def succeeded(self, permit: Permit) -> None:
        self._limiter.succeeded(permit, self._loop.time())
        self._given_back.set()

    def ended(self, permit: Permit) -> None:
        self._limiter.ended(permit, self._loop.time())
        self._given_back.set()

    def throttled(self, permit: Permit, wait: float | None) -> bool:
        self._given_back.set()
        return self._limiter.throttled(permit, self._loop.time(), wait=wait, chance=random.random())  # noqa: S311

    def note_limits(self, headers: Mapping[str, str]) -> None:
        self._limiter.note_limits(headers, self._loop.time(), time.time())


class _Outbox:
    """Results on their way out, which give back the `room` that each line takes once they are written.

    Writing has a thread of its own, so that a slow reader delays neither the answers nor their timeouts.
    """

    def __init__(self, write: Callable[[Sequence[Result]], None], jobs: int, *, ordered: bool) -> None:
        self.room = asyncio.Semaphore(_WINDOW * jobs - 1)  # a line is drawn before it takes its room
        self._write = write
        self._ordered = ordered
        self._next = 0
        self._ready: dict[int, Result | None] = {}
        self._closed = False
        self._changed = asyncio.Event()

    def put(self, place: int, ended: Result | None) -> None:
        """Take the result of the line that was drawn as number `place`, counted from 0; None if it has none."""
        self._ready[place] = ended
        self._changed.set()

    def close(self, *, in_part: bool = False) -> None:
        """No more results come; with `in_part` those that wait for an earlier one no longer do."""
        self._closed = True
        self._ordered = self._ordered and not in_part
        self._changed.set()

    async def deliver(self) -> None:
        """Write results until `close` was called and all are written. Raises whatever writing raises."""
        loop = asyncio.get_running_loop()
        thread = ThreadPoolExecutor(max_workers=1)
        try:
            while True:
                self._changed.clear()
                taken = self._take()
                if taken:
                    results = [each for each in taken if each is not None]
                    if results:
                        await loop.run_in_executor(thread, self._write, results)
                    for _ in taken:
                        self.room.release()
                    if len(taken) > 1:
                        await asyncio.sleep(_GATHERING)
                elif self._closed:
                    return
                else:
                    await self._changed.wait()
        finally:
            thread.shutdown(wait=False)

    def _take(self) -> list[Result | None]:
        """The results that may be written now, and None for lines without one."""
        if not self._ordered:
            return [self._ready.pop(place) for place in sorted(self._ready)]
        results = []
        while self._next in self._ready:
            results.append(self._ready.pop(self._next))
            self._next += 1
        return results


async def _first(parts: set[asyncio.Future[None]]) -> None:
    await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
