"""The requests of a source in, a file of their results out, through the Message Batches API.

Contract: a source is divided into parts, each of which becomes a batch at the server. A run that ended anywhere, kill
-9 included, can be continued so that every batch is found and no line is submitted twice; a batch counts as a part's
only if its results show the part's mark. Results are read as a stream; a line's result is on the disk before its batch
is forgotten, and what is odd about it is the error of that line. One part at a time is in memory. Nothing is cancelled
except by `cancel`.
Source: streamcli(7), section "Message Batches".
"""

from __future__ import annotations

import gc
import re
import secrets
import time
from collections import Counter
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from streamcli.client.calls import samples, sampling_version
from streamcli.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    NotFoundError,
    ProtocolError,
    StreamError,
    UnexpectedResponseError,
    UsageError,
)
from streamcli.protocol.jsontext import dumps

from .results import Result, Results, accept, result
from .source import Line, Source
from .state import Digest, Part, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from streamcli.client.client import Client

    from .results import Judge
    from .statistics import Statistics

# What one batch may hold. The bytes are far fewer than the server accepts, because they are held in memory.
MAX_REQUESTS = 100_000
MAX_BYTES = 32 << 20
# Seconds until the batches are looked at for the first time, and at most between two looks.
FIRST_WAIT = 1.0
LONGEST_WAIT = 60.0
_GROWTH = 1.5
# How many looks at a batch may fail in a row: a quarter of an hour; a batch takes up to a day.
MAX_FAULTS = 20
# Seconds before each look for the batch of a submission that broke off: the server may still be making it.
SETTLING = (0.0, 5.0, 10.0)
# Results are written in blocks of this many bytes, each safe on the disk before the next.
_BLOCK = 1 << 20
_PAGE = 100
# Statuses with which a server says that it has no such endpoint.
_ABSENT = frozenset({404, 405, 501})
_OVERLOADED = 529
# Where the API says which request a batch is refused for.
_PLACE = re.compile(r"\brequests[.\[](\d+)")


class Counts(NamedTuple):
    """How far the batches are. All requests of a batch count as `processing` until it has ended."""

    batches: int
    ended: int
    requests: dict[str, int]


class _Portion:
    """A part that is being put together; its requests are JSON, because parsed they take several times the memory."""

    def __init__(self) -> None:
        self.part = Part(0, mark=secrets.token_hex(4))
        self.requests: list[orjson.Fragment] = []
        self.sampled = False
        self._is_marked = False
        self._size = 0
        self._digest = Digest()

    def add(self, line: Line) -> bool:
        """Take the line, unless there is no room for it beside the others."""
        custom_id = self.part.marked(line.custom_id)
        request = dumps({"custom_id": custom_id, "params": line.params})
        self._size += len(request)
        if self.requests and (len(self.requests) >= MAX_REQUESTS or self._size > MAX_BYTES):
            return False
        self.part.add(line.number)
        self._is_marked = self._is_marked or self.part.marks(custom_id)
        # A copy, because what orjson returns keeps the whole buffer in which it was built.
        self.requests.append(orjson.Fragment(bytes(memoryview(request))))
        self.sampled = self.sampled or samples(line.params)
        self._digest.add(line)
        return True

    def whole(self) -> Part:
        self.part.digest = self._digest.text
        if not self._is_marked:
            self.part.mark = ""
        return self.part


@dataclass(eq=False)
class Offload:
    """The lines of `source` without a result in `results`, asked in batches of `client`; `statistics` count them.

    `note` is told what happens, `show` how far the batches are after each look at them. `betas` go out as
    `anthropic-beta`; `judge` judges every complete message. A submission of which it is not known whether it arrived is
    repeated up to `retries` times, each time after looking for its batch.
    """

    client: Client
    source: Source
    results: Results
    _: KW_ONLY
    statistics: Statistics
    state: State
    note: Callable[[str], None]
    show: Callable[[Counts], None]
    betas: Sequence[str] = ()
    judge: Judge = accept
    retries: int = 2

    def __post_init__(self) -> None:
        self._api = self.client.messages.batches
        # Batches that are surely not ours; parts of which it was said that a batch may be theirs; how many batches were
        # fetched, and the counts of their requests.
        self._foreign: set[str] = set()
        self._open: set[int] = set()
        self._fetched = 0
        self._requests: Counter[str] = Counter()

    def run(self) -> None:
        """Submit what has no batch yet, wait for all of them, fetch their results and put them in order.

        Raises APIError, UsageError or OutputError; the next run goes on from what was done by then.
        """
        self._find_unknown()
        self._check_input()
        while True:
            self._submit()
            self._collect()
            if self.results.complete:  # else a part turned out to have no batch
                break
        self.results.finish(ordered=True)
        self.state.remove()

    def cancel(self) -> None:
        """Cancel the batches that have not ended; their results remain to be fetched.

        Raises UsageError at the end if a batch may be ours or somebody else's, which is left alone.
        """
        self._find_unknown()
        for part in self.state.waiting:
            if part.id is None:
                continue
            if self._found(part)["processing_status"] == "ended":
                self.note(f"batch {part.id} has already ended: fetch its results with --resume")
            else:
                self._api.cancel(part.id, betas=self.betas)
                self.note(f"batch {part.id} is being cancelled: fetch the results it has with --resume")
        if not self.state.waiting:
            self.note(f"there is no batch to cancel for {self.results.path}")
        for part in self.state.waiting:
            if part.id is None:
                raise UsageError(
                    f"a batch that may be part {part.number} was not cancelled, because only its results can show "
                    f"whose it is; if it is yours, add {self.state.line_to_add(part, 'ID')} with its ID"
                )

    def _found(self, part: Part) -> Mapping[str, Any]:
        """The batch of a part, which a server may not know yet when it was just made."""
        for wait in SETTLING:
            time.sleep(wait)
            try:
                return self._retrieved(str(part.id))
            except NotFoundError as error:
                part.fault = error
        raise self._explained(part)

    # Submitting

    def _submit(self) -> None:
        submitted = self.state.waiting
        portion = _Portion()
        for line in self.source.lines():
            if self.results.done(line.number) or any(line.number in part for part in submitted):
                continue
            if not portion.add(line):
                self._create(portion)
                portion = _Portion()
                gc.collect()  # a response refers to itself and to its request: the part that was just submitted
                portion.add(line)
        if portion.requests:
            self._create(portion)

    def _create(self, portion: _Portion) -> None:
        part = portion.whole()
        part.newest = next((batch["id"] for batch in self._listed(limit=1)), None)
        for attempts_left in range(self.retries, -1, -1):
            self.state.intend(part)
            fault = self._created(part, portion)
            if fault is None or self._settle(part):
                return
            if not attempts_left or isinstance(fault, UnexpectedResponseError):
                raise fault

    def _created(self, part: Part, portion: _Portion) -> APIError | None:
        """Submit a part once; returns the error after which nobody knows whether it has a batch, raises any other."""
        try:
            batch = self._api.create(
                requests=portion.requests,
                betas=self.betas,
                extra_headers=sampling_version(self.client.endpoint) if portion.sampled else None,
            )
        except APIError as error:
            if not _left_nothing(error):
                return error
            self.state.not_submitted(part)
            self._check_present(error)
            self._name_line(part, error)
            raise
        if not _is_batch(batch):
            return self._absent("its response is not a batch")
        self.state.submitted(part, batch["id"])
        self.note(f"submitted {part.count} requests as batch {part.id}")
        return None

    def _name_line(self, part: Part, error: APIError) -> None:
        """Add to an error response which line of the input it is about, if it says which request."""
        place = _PLACE.search(error.message)
        number = next(islice(part.numbers, int(place[1]), None), None) if place else None
        if place and number:
            error.message += f" ({place[0].replace('[', '.')} is line {number} of {self.source.name})"

    def _find_unknown(self) -> None:
        """Find out whether submissions that broke off made a batch, as far as that can be known now."""
        for part in self.state.waiting:
            if part.id is None:
                self._settle(part)

    def _settle(self, part: Part) -> bool:
        """Whether a part whose submission broke off may have a batch; if not, it is as if it had not been submitted.

        Else it has the batch's id from now on, if that is known to be its own; if not, it stays open.
        """
        for wait in SETTLING:
            if wait:
                self.note(f"waiting {wait:g} s for the batch of part {part.number}, whose submission broke off")
            time.sleep(wait)
            if self._may_have_batch(part):
                return True
        self.state.not_submitted(part)
        return False

    def _may_have_batch(self, part: Part) -> bool:
        """Whether one of the server's batches is the part's, or may be; it is told once which may."""
        may_be = []
        for batch in self._newer(part):
            batch_id = batch["id"]
            if batch_id in self._foreign | self.state.ids or _total(batch) not in {None, part.count}:
                continue
            is_own = self._is_own(part, batch_id)
            if is_own:
                self.state.submitted(part, batch_id, adopted=True)
                self.note(f"found the batch of part {part.number}, whose submission broke off: {batch_id}")
                return True
            if is_own is None:
                may_be.append(batch_id)
            else:
                self._foreign.add(batch_id)
        if may_be and part.number not in self._open:
            self._open.add(part.number)
            self.note(
                f"batch {' or '.join(may_be)} may be part {part.number}, whose submission broke off: its results will "
                f"tell; to submit the part now, end this run and add {self.state.line_to_add(part, None)}"
            )
        return bool(may_be)

    def _is_own(self, part: Part, batch_id: str) -> bool | None:
        """Whether a batch is the part's, which the ids of its results show; None while not all of them are there."""
        if self._retrieved(batch_id)["processing_status"] != "ended":
            return None
        if not part.mark:
            raise UsageError(
                f"batch {batch_id} may be part {part.number}, whose submission broke off, and the ids are too long to "
                f"show it: add {self.state.line_to_add(part, 'ID')}, with the ID of its batch or null for none"
            )
        ids = [record.get("custom_id") for record in self._records(batch_id)]
        if any(map(part.marks, ids)):
            return True
        return False if sum(isinstance(each, str) for each in ids) >= part.count else None

    def _newer(self, part: Part) -> Iterator[Mapping[str, Any]]:
        """The batches that were made after the part's intent was written."""
        for batch in self._listed(limit=_PAGE):
            if batch["id"] == part.newest:
                return
            yield batch
        if part.newest is not None:
            raise UsageError(
                f"it is unknown whether part {part.number} was submitted, because batch {part.newest} is no longer "
                f"listed: add {self.state.line_to_add(part, 'ID')}, with the ID of its batch, or null if it has none"
            )

    def _listed(self, *, limit: int) -> Iterator[Mapping[str, Any]]:
        """The batches at the server, newest first."""
        found = odd = False
        try:
            for value in self._api.list(limit=limit, betas=self.betas):
                if _is_batch(value):
                    found = True
                    yield value
                else:
                    odd = True
        except APIError as error:
            self._check_present(error)
            raise
        if odd and not found:
            raise self._absent("it lists no batches")

    def _check_present(self, error: APIError) -> None:
        """Raise UnexpectedResponseError if `error` says that the server has no batches."""
        is_absent = isinstance(error, APIStatusError) and error.status_code in _ABSENT
        if is_absent or isinstance(error, UnexpectedResponseError):
            raise self._absent(str(error)) from error

    def _absent(self, why: str) -> UnexpectedResponseError:
        where = f"{self.client.endpoint.base_url} has no Message Batches API"
        return UnexpectedResponseError(f"{where} ({why}): leave out --offload to ask line by line")

    # Waiting and fetching

    def _check_input(self) -> None:
        """Raise UsageError if the lines of a batch are not the ones that were submitted."""
        waiting = self.state.waiting
        digests = {part.number: Digest() for part in waiting}
        for line in self.source.lines() if waiting else ():
            for part in waiting:
                if line.number in part:
                    digests[part.number].add(line)
        for part in waiting:
            if digests[part.number].text != part.digest:
                what = f"batch {part.id}" if part.id else f"part {part.number}"
                raise UsageError(
                    f"{self.source.name} or the options changed after {what} was submitted: change them back, or add "
                    f"{self.state.line_to_add(part, None)} to do without its results"
                )

    def _collect(self) -> None:
        wait = FIRST_WAIT
        self._tell_counts()
        while parts := [part for part in self.state.waiting if part.faults <= MAX_FAULTS]:
            time.sleep(wait)
            wait = min(wait * _GROWTH, LONGEST_WAIT)
            faults = dict.fromkeys(str(part.fault) for part in parts if not self._looked_at(part))
            for fault in faults:
                self.note(f"trying again after: {fault}")
            self._tell_counts()
        for part in self.state.waiting:
            raise self._explained(part)

    def _looked_at(self, part: Part) -> bool:
        """Whether looking at the part's batch worked; if not, `part.fault` says why. Raises what is final."""
        recorded = self.results.recorded
        try:
            self._look_at(part)
        except APIError as error:
            if not _may_pass(error):
                raise
            part.fault = error
            part.faults = 1 if self.results.recorded > recorded else part.faults + 1
            return False
        part.faults = 0
        return True

    def _look_at(self, part: Part) -> None:
        if part.id is None:
            if not self._may_have_batch(part):
                self.state.not_submitted(part)
            return
        batch = self._retrieved(part.id)
        if batch["processing_status"] == "ended":
            part.ended = True
            self._fetch(part)
            self._fetched += 1
            self._requests.update(_whole_counts(batch))

    def _retrieved(self, batch_id: str) -> Mapping[str, Any]:
        batch = self._api.retrieve(batch_id, betas=self.betas)
        if not _is_batch(batch):
            raise ProtocolError(f"the response to a request for batch {batch_id} is not a batch")
        return batch

    def _explained(self, part: Part) -> APIError:
        """The fault of a batch that could not be looked at, with what a person can do. Its requests are paid for."""
        error = part.fault
        assert error is not None  # noqa: S101 - it was looked at
        if part.id and isinstance(error, NotFoundError | UnexpectedResponseError | ProtocolError):
            error.message += (
                f"; batch {part.id} was made here and is paid for: look for it with the key and the workspace that it "
                f"was made with; only if it is gone for good, add {self.state.line_to_add(part, None)} to ask, and "
                "pay for, its lines again"
            )
        return error

    def _fetch(self, part: Part) -> None:
        block: dict[int, Result] = {}
        size = count = foreign = 0
        try:
            for record in self._records(str(part.id)):
                count += 1
                line = self._line(part, record.get("custom_id"))
                if line is None:
                    foreign += 1
                elif not (line.number in block or self.results.done(line.number)):
                    block[line.number] = got = self._ended(line, _outcome(part, record.get("result")))
                    size += len(got.line)
                if size >= _BLOCK:
                    self._keep(block)
                    size = 0
        except APIError:
            self._keep(block)
            raise
        self._keep(block)
        missing = sum(not self.results.done(number) for number in part.numbers)
        if missing and count < part.count:  # more may come
            raise ProtocolError(f"batch {part.id} has no result for {missing} of its requests")
        if foreign:
            self.note(f"batch {part.id} has {foreign} results that part {part.number} did not ask for: left out")
        if missing:
            self._give_up(part)
        self.state.fetched(part)

    def _give_up(self, part: Part) -> None:
        """Record that lines of a part have no result at the server, and will not have one."""
        lines = (line for line in self.source.lines() if line.number in part and not self.results.done(line.number))
        fault = ProtocolError(f"batch {part.id} has no result for this line")
        self.results.write([self._ended(line, fault) for line in lines])

    def _ended(self, line: Line, outcome: Mapping[str, Any] | APIError) -> Result:
        got, said = result(line, outcome, self.judge)
        self.statistics.add(said, got.status)
        return got

    def _keep(self, block: dict[int, Result]) -> None:
        self.results.write(list(block.values()))
        block.clear()

    def _records(self, batch_id: str) -> Iterator[Mapping[str, Any]]:
        """The results of a batch that has ended; a line that is not one is skipped, unless it is the last and cut."""
        with self._api.results(batch_id, betas=self.betas) as results:
            fault: ProtocolError | None = None
            while True:
                try:
                    for record in results:
                        fault = None
                        yield record
                    break
                except ProtocolError as error:
                    fault = error
                    yield {}
            if fault:
                raise fault

    def _line(self, part: Part, custom_id: Any) -> Line | None:
        """The line that a result's id stands for, without its request, or None if it is not one of the part's."""
        own = custom_id.removesuffix(f"-{part.mark}") if part.marks(custom_id) else str(custom_id)
        number = self.source.number(own)
        return Line(number, own, {}, self.source.digest(number)) if number in part else None

    def _tell_counts(self) -> None:
        waiting = self.state.waiting
        requests = Counter(processing=sum(part.count for part in waiting))
        requests.update(self._requests)
        self.show(Counts(len(waiting) + self._fetched, self._fetched, requests))


def _is_batch(value: Any) -> bool:
    """Whether it has what is needed of a batch."""
    return bool(value.get("id")) and all(isinstance(value.get(key), str) for key in ("id", "processing_status"))


def _outcome(part: Part, value: Any) -> Mapping[str, Any] | APIError:
    """A result as it was sent, if it can be one: it has a type, and a message if it succeeded; else an error."""
    outcome: dict[str, Any] = value if isinstance(value, dict) else {}
    kind = outcome.get("type")
    if isinstance(kind, str) and (kind != "succeeded" or isinstance(outcome.get("message"), dict)):
        return outcome
    return ProtocolError(f"batch {part.id} has a malformed result for this line")


def _whole_counts(batch: Mapping[str, Any]) -> dict[str, int]:
    """The request counts of a batch, as far as they are numbers."""
    counts = batch.get("request_counts")
    return {kind: count for kind, count in counts.items() if type(count) is int} if isinstance(counts, dict) else {}


def _total(batch: Mapping[str, Any]) -> int | None:
    """How many requests a batch has, or None if it does not say."""
    return sum(_whole_counts(batch).values()) or None


def _left_nothing(error: APIError) -> bool:
    """Whether a submission that failed with `error` has certainly not made a batch."""
    if isinstance(error, APIStatusError):
        return error.status_code < 500 or error.status_code == _OVERLOADED
    return isinstance(error, UsageError)


def _may_pass(error: APIError) -> bool:
    """Whether a later look at a batch that was made may succeed; the API may not know a new one at once."""
    passing = APIConnectionError | StreamError | NotFoundError | UnexpectedResponseError
    return isinstance(error, passing) or error.exit_code == 5
