"""The requests of a source in, their results in a file out, by way of the Message Batches API.

Contract: a source is divided into parts, each of which becomes a batch at the server. Before a part is submitted a line
of intent is on the disk, and its batch's id before anything else is done, so that the next run after one that ended
anywhere, kill -9 included, finds every batch and submits no line twice. Results are read as a stream; a line's result
is on the disk before its batch is forgotten. One part at a time is in memory. Nothing is cancelled except by `cancel`.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import time
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, Self, TypeGuard

import orjson

from streamcli.client.calls import samples, sampling_version
from streamcli.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    IncompleteStreamError,
    NotFoundError,
    ProtocolError,
    UnexpectedResponseError,
    UsageError,
)
from streamcli.protocol.jsontext import dumps, loads
from streamcli.turns.journal import Journal

from .results import accept, result
from .source import Line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from streamcli.client.client import Client

    from .results import Judge, Result, Results
    from .source import Source
    from .statistics import Statistics

# What one batch may hold. The bytes are far fewer than the server accepts, because they are held in memory.
MAX_REQUESTS = 100_000
MAX_BYTES = 32 << 20
# Seconds until the batches are looked at for the first time, and at most between two looks.
FIRST_WAIT = 1.0
LONGEST_WAIT = 60.0
_GROWTH = 1.5
# How many looks may fail in a row: a quarter of an hour; a batch takes up to a day.
MAX_FAULTS = 20
# Seconds before each look for the batch of a submission that broke off: the server may still be making it.
SETTLING = (0.0, 5.0, 10.0)
# Results are written in blocks of this many bytes, each safe on the disk before the next.
_BLOCK = 1 << 20
_PAGE = 100
_MODE = 0o600
# Statuses with which a server says that it has no such endpoint.
_ABSENT = frozenset({404, 405, 501})
_OVERLOADED = 529


class Counts(NamedTuple):
    """How far the batches are. All requests of a batch count as `processing` until it has ended."""

    batches: int
    ended: int
    requests: dict[str, int]


class Watch(Protocol):
    """What is told how the run goes."""

    def note(self, text: str) -> None:
        """Something happened."""

    def counts(self, counts: Counts) -> None:
        """The batches were looked at."""


@dataclass
class Part:
    """Some lines of the input that make one batch.

    `lines` are pairs of first and last line number, `digest` is that of their ids. `newest` was the newest batch at the
    server before this one, and `id` is its own, None while that is unknown. `adopted` says that the id did not come in
    the response to the submission but was found in the server's list.
    """

    number: int
    lines: list[tuple[int, int]] = field(default_factory=list)
    count: int = 0
    digest: str = ""
    newest: str | None = None
    id: str | None = None
    adopted: bool = False
    fetched: bool = False

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self.lines, number, key=lambda pair: pair[0])
        return place > 0 and number <= self.lines[place - 1][1]

    def add(self, number: int) -> None:
        """Add a line, which comes after the others."""
        self.count += 1
        if self.lines and self.lines[-1][1] == number - 1:
            self.lines[-1] = (self.lines[-1][0], number)
        else:
            self.lines.append((number, number))


class _Portion:
    """A part that is being put together; its requests are JSON, because parsed they take several times the memory."""

    def __init__(self) -> None:
        self.part = Part(0)
        self.requests: list[orjson.Fragment] = []
        self.sampled = False
        self._size = 0
        self._digest = _Digest()

    def takes(self, request: bytes) -> bool:
        return not self.requests or (len(self.requests) < MAX_REQUESTS and self._size + len(request) <= MAX_BYTES)

    def add(self, line: Line, request: bytes) -> None:
        self.part.add(line.number)
        # A copy, because what orjson returns keeps the whole buffer in which it was built.
        self.requests.append(orjson.Fragment(bytes(memoryview(request))))
        self.sampled = self.sampled or samples(line.params)
        self._size += len(request)
        self._digest.add(line)

    def whole(self) -> Part:
        self.part.digest = self._digest.text
        return self.part


class _Digest:
    """What shows whether lines are the ones that were submitted."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, line: Line) -> None:
        self._hash.update(f"{line.custom_id}\n".encode())

    @property
    def text(self) -> str:
        return self._hash.hexdigest()


class State:
    """What was submitted: a journal at `path`, held until `close`, so that no other run submits anything.

    `url` is where the batches are. Raises UsageError for a file that another run holds, or that holds batches of
    another server or anything else; OutputError if it cannot be written.
    """

    def __init__(self, path: str, url: str) -> None:
        self.path = path
        self._url = url
        self._parts: dict[int, Part] = {}
        self._last = 0
        self._journal = Journal(path, mode=_MODE, busy=self._busy)
        try:
            for place, text in enumerate(self._journal.lines(), 1):
                if text.strip():
                    self._take_up(place, text)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def waiting(self) -> list[Part]:
        """The parts whose results have not been fetched."""
        return [part for part in self._parts.values() if not part.fetched]

    def intend(self, part: Part) -> None:
        """The part is about to be submitted; it gets its number."""
        part.number = self._last + 1
        fields = {"url": self._url, "lines": part.lines, "count": part.count, "digest": part.digest}
        self._write(part, fields | {"newest": part.newest})
        self._parts[part.number] = part
        self._last = part.number

    def submitted(self, part: Part, batch_id: str, *, adopted: bool = False) -> None:
        """The part's batch has this id."""
        self._write(part, {"id": batch_id} | ({"adopted": True} if adopted else {}))
        part.id, part.adopted = batch_id, adopted

    def not_submitted(self, part: Part) -> None:
        """The part has no batch: its lines are as before."""
        self._write(part, {"id": None})
        del self._parts[part.number]

    def fetched(self, part: Part) -> None:
        """The part's results are on the disk."""
        self._write(part, {"fetched": True})
        part.fetched = True

    def remove(self) -> None:
        """Remove the file: no batch is left."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.realpath(self.path))

    def close(self) -> None:
        """Release the file; one that was made here and is empty is removed."""
        self._journal.close()

    def line_to_add(self, part: Part, batch_id: str | None) -> str:
        """What a person has to add to tell the next run which batch the part has, or with None that it has none."""
        return f"the line {dumps({'part': part.number, 'id': batch_id}).decode()} to {self.path}"

    def _write(self, part: Part, fields: Mapping[str, Any]) -> None:
        self._journal.append(dumps({"part": part.number, **fields}) + b"\n")

    def _take_up(self, place: int, text: bytes) -> None:
        try:
            fields = loads(text)
            number = fields["part"]
            if "lines" in fields:
                lines = [(first, last) for first, last in fields["lines"]]
                self._parts[number] = Part(number, lines, fields["count"], fields["digest"], fields["newest"])
                self._last = max(self._last, number)
                url = fields["url"]
            else:
                url = self._url
                self._change(self._parts[number], fields)
        except (ValueError, TypeError, KeyError):
            raise UsageError(f"{self.path}: line {place} says nothing about a batch") from None
        if url != self._url:
            raise UsageError(f"{self.path}: line {place} is of a batch at {url}, and this is {self._url}")

    def _change(self, part: Part, fields: Mapping[str, Any]) -> None:
        if "fetched" in fields:
            part.fetched = True
        elif fields["id"] is None:
            del self._parts[part.number]
        else:
            part.id, part.adopted = str(fields["id"]), bool(fields.get("adopted"))

    def _busy(self) -> NoReturn:
        raise UsageError(f"{self.path} is held by another run")


class Offload:
    """The lines of `source` without a result in `results`, asked in batches of `client`; `statistics` count them.

    `betas` go out as `anthropic-beta`; `judge` judges every complete message. A submission of which it is not known
    whether it arrived is repeated up to `retries` times, each time after looking for its batch.
    """

    def __init__(
        self,
        client: Client,
        source: Source,
        results: Results,
        *,
        statistics: Statistics,
        state: State,
        watch: Watch,
        betas: Sequence[str] = (),
        judge: Judge = accept,
        retries: int = 2,
    ) -> None:
        self._api = client.messages.batches
        self._endpoint = client.endpoint
        self._source = source
        self._results = results
        self._statistics = statistics
        self._state = state
        self._watch = watch
        self._betas = tuple(betas)
        self._judge = judge
        self._retries = retries

    def run(self) -> None:
        """Submit what has no batch yet, wait for all of them, fetch their results and put them in order.

        Raises APIError, UsageError or OutputError; the next run goes on from what was done by then.
        """
        self._find_unknown()
        self._check_input()
        self._submit()
        self._collect()
        self._results.finish(ordered=True)
        self._state.remove()

    def cancel(self) -> None:
        """Cancel the batches that have not ended; their results remain to be fetched."""
        self._find_unknown()
        for part in self._state.waiting:
            if self._batch(part)["processing_status"] == "ended":
                self._watch.note(f"batch {part.id} has ended already: --resume fetches its results")
            else:
                self._api.cancel(str(part.id), betas=self._betas)
                self._watch.note(f"batch {part.id} is being cancelled: --resume fetches what was done")
        if not self._state.waiting:
            self._watch.note(f"there is no batch to cancel for {self._results.path}")

    # Submitting

    def _submit(self) -> None:
        submitted = self._state.waiting
        portion = _Portion()
        for line in self._source.lines():
            if self._results.done(line.number) or any(line.number in part for part in submitted):
                continue
            request = dumps({"custom_id": line.custom_id, "params": line.params})
            if not portion.takes(request):
                self._create(portion)
                portion = _Portion()
                gc.collect()  # a response refers to itself and to its request: the part that was just submitted
            portion.add(line, request)
        if portion.requests:
            self._create(portion)

    def _create(self, portion: _Portion) -> None:
        part = portion.whole()
        part.newest = next((batch["id"] for batch in self._listed(limit=1)), None)
        self._state.intend(part)
        attempts = self._retries + 1
        while part.id is None:
            attempts -= 1
            try:
                batch = self._api.create(
                    requests=portion.requests,
                    betas=self._betas,
                    extra_headers=sampling_version(self._endpoint) if portion.sampled else None,
                )
            except APIError as error:
                if _left_nothing(error):
                    self._state.not_submitted(part)
                    self._check_present(error)
                    raise
                if not self._adopt(part) and not attempts:
                    self._state.not_submitted(part)
                    raise
            else:
                self._take(part, batch)

    def _take(self, part: Part, batch: Mapping[str, Any]) -> None:
        if not _is_batch(batch):
            self._state.not_submitted(part)
            raise self._absent("its response is not a batch")
        self._state.submitted(part, batch["id"])
        self._watch.note(f"batch {part.id} was made of {part.count} requests")

    def _find_unknown(self) -> None:
        """Find out whether submissions that broke off made a batch."""
        for part in self._state.waiting:
            if part.id is None and not self._adopt(part):
                self._state.not_submitted(part)

    def _adopt(self, part: Part) -> bool:
        """Whether a batch was found that must be this part's; if so, it is from now on."""
        for wait in SETTLING:
            if wait:
                self._watch.note(f"no batch is part {part.number} yet, whose submission broke off: waiting {wait:g} s")
            time.sleep(wait)
            found = [batch["id"] for batch in self._newer(part) if _total(batch) == part.count]
            if len(found) > 1:
                raise UsageError(
                    f"batches {' and '.join(found)} may each be part {part.number}, whose submission broke off: "
                    f"add {self._state.line_to_add(part, 'ID')}, with the ID of the one that is or null for none"
                )
            if found:
                self._state.submitted(part, found[0], adopted=True)
                self._watch.note(f"batch {part.id} is taken for part {part.number}, whose submission broke off")
                return True
        return False

    def _newer(self, part: Part) -> Iterator[Mapping[str, Any]]:
        """The batches that were made after the part's intent was written."""
        for batch in self._listed(limit=_PAGE):
            if batch["id"] == part.newest:
                return
            yield batch
        if part.newest is not None:
            raise UsageError(
                f"whether part {part.number} was submitted cannot be told, because batch {part.newest} is not listed "
                f"any more: add {self._state.line_to_add(part, 'ID')}, with the ID of its batch or null for none"
            )

    def _listed(self, *, limit: int) -> Iterator[Mapping[str, Any]]:
        """The batches at the server, newest first."""
        try:
            for batch in self._api.list(limit=limit, betas=self._betas):
                yield _listed_batch(batch)
        except APIStatusError as error:
            self._check_present(error)
            raise
        except UnexpectedResponseError as error:
            raise self._absent(str(error)) from error

    def _check_present(self, error: APIError) -> None:
        """Raise UnexpectedResponseError if `error` says that the server has no batches."""
        if isinstance(error, APIStatusError) and error.status_code in _ABSENT:
            raise self._absent(str(error)) from error

    def _absent(self, why: str) -> UnexpectedResponseError:
        where = f"{self._endpoint.base_url} has no Message Batches API"
        return UnexpectedResponseError(f"{where} ({why}): leave out --offload to ask line by line")

    # Waiting and fetching

    def _check_input(self) -> None:
        """Raise UsageError if the lines of a batch are not the ones that were submitted."""
        digests = {part.number: _Digest() for part in self._state.waiting}
        for line in self._source.lines() if digests else ():
            for part in self._state.waiting:
                if line.number in part:
                    digests[part.number].add(line)
        for part in self._state.waiting:
            if digests[part.number].text != part.digest:
                raise UsageError(
                    f"{self._source.name} is not what batch {part.id} was made of, or the options differ: go on with "
                    f"what it was made of, or add {self._state.line_to_add(part, None)} to do without its results"
                )

    def _collect(self) -> None:
        ended: dict[int, Mapping[str, Any]] = {}
        mine = self._state.waiting
        wait, faults = FIRST_WAIT, 0
        self._watch.counts(_counts(mine, ended))
        while self._state.waiting:
            time.sleep(wait)
            wait = min(wait * _GROWTH, LONGEST_WAIT)
            recorded = self._results.recorded
            try:
                for part in self._state.waiting:
                    batch = self._batch(part)
                    if batch["processing_status"] == "ended":
                        self._fetch(part)
                        ended[part.number] = batch["request_counts"]
                faults = 0
            except APIError as error:
                faults = 1 if self._results.recorded > recorded else faults + 1
                if not _may_pass(error) or faults > MAX_FAULTS:
                    raise
                self._watch.note(f"going on after: {error}")
            self._watch.counts(_counts(mine, ended))

    def _batch(self, part: Part) -> Mapping[str, Any]:
        try:
            batch = self._api.retrieve(str(part.id), betas=self._betas)
        except NotFoundError as error:
            error.message += f"; add {self._state.line_to_add(part, None)} to submit the lines of batch {part.id} anew"
            raise
        if not _is_batch(batch):
            raise ProtocolError(f"the response to a request for batch {part.id} is not a batch")
        return batch

    def _fetch(self, part: Part) -> None:
        if part.adopted:  # look at every result first, because it may be another's batch
            for _ in self._results_of(part):
                pass
        block: dict[int, Result] = {}
        size = 0
        try:
            for line, outcome in self._results_of(part):
                if line.number in block or self._results.done(line.number):
                    continue
                block[line.number] = got = result(line, outcome, self._judge)
                self._statistics.add(outcome, got.status)
                size += len(got.line)
                if size >= _BLOCK:
                    self._keep(block)
                    size = 0
        except APIError:
            self._keep(block)
            raise
        self._keep(block)
        missing = sum(not self._results.done(number) for first, last in part.lines for number in range(first, last + 1))
        if missing:
            raise ProtocolError(
                f"batch {part.id} has no result for {missing} of its requests: "
                f"add {self._state.line_to_add(part, None)} to submit them anew"
            )
        self._state.fetched(part)

    def _keep(self, block: dict[int, Result]) -> None:
        self._results.write(list(block.values()))
        block.clear()

    def _results_of(self, part: Part) -> Iterator[tuple[Line, dict[str, Any]]]:
        with self._api.results(str(part.id), betas=self._betas) as results:
            for record in results:
                custom_id, outcome = record.get("custom_id"), record.get("result")
                if not _is_outcome(outcome):
                    raise ProtocolError(f"batch {part.id} has a malformed result for {custom_id!r}")
                number = self._source.number(str(custom_id))
                if number not in part:
                    raise ProtocolError(self._foreign(part, custom_id))
                yield Line(number, str(custom_id), {}), outcome

    def _foreign(self, part: Part, custom_id: Any) -> str:
        text = f"batch {part.id} has a result for {custom_id!r}, which is not a line of part {part.number}"
        if not part.adopted:
            return text
        cure = f"add {self._state.line_to_add(part, None)} to submit the part anew"
        return f"{text}: it was taken for that part because the submission broke off, and is not; {cure}"


def _is_batch(value: Any) -> bool:
    """Whether it has what is needed of a batch."""
    return (
        isinstance(value, dict)
        and bool(value.get("id"))
        and all(isinstance(value.get(key), str) for key in ("id", "processing_status"))
        and isinstance(value.get("request_counts"), dict)
    )


def _is_outcome(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether it can be a result: it has a type, and a message if it succeeded."""
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        return False
    return value["type"] != "succeeded" or isinstance(value.get("message"), dict)


def _listed_batch(value: Any) -> Any:
    if not _is_batch(value):
        raise UnexpectedResponseError("its list holds something that is not a batch")
    return value


def _total(batch: Mapping[str, Any]) -> int:
    return sum(count for count in batch["request_counts"].values() if isinstance(count, int))


def _left_nothing(error: APIError) -> bool:
    """Whether a submission that failed with `error` has certainly not made a batch."""
    if isinstance(error, APIStatusError):
        return error.status_code < 500 or error.status_code == _OVERLOADED
    return isinstance(error, UsageError)


def _may_pass(error: APIError) -> bool:
    """Whether a later look may succeed."""
    return isinstance(error, APIConnectionError | IncompleteStreamError) or error.exit_code == 5


def _counts(parts: Sequence[Part], ended: Mapping[int, Mapping[str, Any]]) -> Counts:
    requests: dict[str, int] = {"processing": 0}
    for part in parts:
        for kind, count in ended.get(part.number, {"processing": part.count}).items():
            requests[kind] = requests.get(kind, 0) + count
    return Counts(len(parts), len(ended), requests)
