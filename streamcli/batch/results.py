"""The outcome of each request in, a file of results out that the next run can go on with.

Contract: results are written as the Message Batches API has them, whether they come from there or from a loop in this
process, each with a hash of the request that it answers. At every moment the file holds whole results of this input and
nothing else. One byte is kept of each line.
Source: streamcli(5), section "Result lines".
"""

from __future__ import annotations

from array import array
from codecs import BOM_UTF8
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from streamcli.errors import (
    APIError,
    InternalServerError,
    OutputError,
    ProtocolError,
    SchemaError,
    StreamcliError,
    UsageError,
    reason,
    status_before_output,
    status_error,
    type_of_status,
)
from streamcli.protocol.jsontext import dumps, loads, object_in
from streamcli.turns.journal import Journal, Keeper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .source import Line, Source

    # Gives the exit status of a complete message: 0, unless it is not what was asked for.
    Judge = Callable[[Mapping[str, Any]], int]

_MODE = 0o666
_FOREIGN = "is not a result of --batch: continue an earlier output, or write to another file"
# JSON that is nested no deeper than this can be read.
_SURELY_READ = 1000


class Result(NamedTuple):
    """The result of the line `number`: a line of output, with its line end, and its exit status."""

    number: int
    line: bytes
    status: int


def accept(message: Mapping[str, Any]) -> int:  # noqa: ARG001 - a Judge is given the message
    """A judge that accepts every complete message."""
    return 0


def result(
    line: Line, outcome: Mapping[str, Any] | APIError, judge: Judge = accept
) -> tuple[Result, Mapping[str, Any]]:
    """The result of `line`, and the outcome in it: what the API calls the `result` of a request, or an error's.

    One that could not be read again is replaced by that of an error that says so.
    """
    said = errored(outcome) if isinstance(outcome, APIError) else outcome
    try:
        text = dumps({"custom_id": line.custom_id, "result": said, "digest": line.digest})
        if text.count(b"[") + text.count(b"{") > _SURELY_READ:
            loads(text)
    except ValueError as fault:
        return result(line, ProtocolError(f"the answer cannot be kept as JSON: {reason(fault)}"))
    exit_status = status_before_output(outcome) if isinstance(outcome, APIError) else status(outcome, judge)
    return Result(line.number, text + b"\n", exit_status), said


def errored(error: StreamcliError) -> dict[str, Any]:
    """The outcome of a request that failed with `error`."""
    kind = error.type or type_of_status(getattr(error, "status_code", 0)) or f"streamcli.{error.code}"
    said: dict[str, Any] = {"type": kind, "message": error.message}
    details = getattr(error, "details", None)
    if details:
        said["details"] = details
    outcome: dict[str, Any] = {"type": "error", "error": said}
    if error.request_id:
        outcome["request_id"] = error.request_id
    return {"type": "errored", "error": outcome}


def status(outcome: Mapping[str, Any], judge: Judge = accept) -> int:
    """The exit status of an outcome; a complete message is judged by `judge`."""
    kind = outcome.get("type")
    if kind == "succeeded":
        message = outcome.get("message")
        return judge(message) if isinstance(message, dict) else 0
    if kind != "errored":
        return _OTHER_OUTCOMES.get(str(kind), ProtocolError.exit_code)
    name = error_type(outcome)
    if name in _STATUSES:
        return _STATUSES[name]
    return status_before_output(status_error(None, {"error": {"type": name}}))


def error_type(outcome: Mapping[str, Any]) -> str:
    """The type of the error in an errored outcome, otherwise the outcome's own."""
    error = outcome.get("error")
    inner = error.get("error") if isinstance(error, dict) else None
    kind = inner.get("type") if isinstance(inner, dict) else None
    return kind if isinstance(kind, str) else str(outcome.get("type"))


def _statuses(cls: type[StreamcliError]) -> dict[str, int]:
    """The exit status of each error type that begins with `streamcli.`."""
    own = {f"streamcli.{cls.code}": cls.exit_code} if "code" in cls.__dict__ else {}
    return own | {kind: code for sub in cls.__subclasses__() for kind, code in _statuses(sub).items()}


_STATUSES = _statuses(StreamcliError)
# Statuses of complete messages: the stop reason is one of --fail-on, or the text is not the JSON of --schema.
_JUDGED = (9, SchemaError.exit_code)
# What the Message Batches API did not get to within 24 hours, or before it was cancelled.
_OTHER_OUTCOMES = {"expired": InternalServerError.exit_code, "canceled": InternalServerError.exit_code}


class _Record(NamedTuple):
    """A line of the file: its place there, the line of the input it answers, what it says, and the text."""

    place: int
    number: int
    outcome: dict[str, Any]
    digest: str
    text: bytes


class Results(Keeper):
    """The output file at `path`, held until `close`, so that no other run writes it.

    With `resume` it may hold results of this input already: those that succeeded stay, and so do the others unless
    `retry_errors`. Raises UsageError, and leaves the file as it was, if it exists and `resume` is not given, if another
    run writes it, if a line is not a result or belongs to another input, or if a result that would stay answers another
    request; OutputError if it cannot be written. A result without a hash, as the Message Batches API sends it, counts
    as the answer to the line with its id. `holds` is the key of what a result that succeeded holds.
    """

    def __init__(
        self,
        path: str,
        source: Source,
        *,
        resume: bool,
        retry_errors: bool,
        judge: Judge = accept,
        holds: str = "message",
    ) -> None:
        self.path = path
        self._holds = holds
        # How many lines of the input have a result.
        self.recorded = 0
        self._source = source
        # For each line of the input: 0 if it has no result, otherwise one more than the status of its result.
        self._outcomes = bytearray(source.last + 1)
        self._furthest = 0
        self._in_order = True
        self._journal = Journal(path, mode=_MODE, busy=self._busy)
        with self._journal.closed_on_failure():
            self._check_file(resume=resume)
            self._take_up(retry_errors=retry_errors, judge=judge)

    def done(self, number: int) -> bool:
        """Whether the line of that number has its result."""
        return bool(self._outcomes[number])

    @property
    def complete(self) -> bool:
        """Whether every line of the input has its result."""
        return self.recorded == self._source.count

    @property
    def failed(self) -> int:
        """How many results in the file have a status other than 0."""
        return self.recorded - self._outcomes.count(1)

    @property
    def to_ask_again(self) -> int:
        """How many of them the next run asks again: not those that hold a complete message, whatever its status."""
        return self.failed - sum(self._outcomes.count(status + 1) for status in _JUDGED)

    @property
    def status(self) -> int:
        """The highest status of all results in the file."""
        return (max(self._outcomes) or 1) - 1

    def write(self, results: Sequence[Result]) -> None:
        """Add results of lines that have none; they are on the disk when this returns. Raises OutputError."""
        self._journal.append(b"".join([result.line for result in results]), together=False)
        for number, _, exit_status in results:
            self._note(number, exit_status)

    def finish(self, *, ordered: bool) -> None:
        """Bring the file into the input's order, if it is to be `ordered`, is not yet, and every line is done.

        Raises OutputError, and leaves the file as it was, if that fails.
        """
        self._journal.end_line()
        if not ordered or not self.complete or self._in_order:
            return
        if self._journal.torn:
            self._journal.replace(text + b"\n" for text in self._journal.lines())
        self._journal.replace(self._sorted())
        self._in_order = True

    def _busy(self) -> NoReturn:
        raise UsageError(f"{self.path} is being written by another run: wait for it to end, or write to another file")

    def _check_file(self, *, resume: bool) -> None:
        with open(self.path, "rb") as file:
            head = file.read(len(_HEAD))
        if head and not resume:
            raise UsageError(f"{self.path} already exists: continue it with --resume, or write to another file")
        # A run that was killed may leave a torn tail, without its first byte; anything else is somebody's file.
        if self._journal.empty and head.strip(b"\0") and not _HEAD.startswith(_HEAD[:1] + head[1:]):
            raise UsageError(f"{self.path}: line 1 {_FOREIGN}")

    def _take_up(self, *, retry_errors: bool, judge: Judge) -> None:
        lines = 0
        for record in self._recorded():
            lines += 1
            succeeded = record.outcome["type"] == "succeeded"
            if succeeded or not (retry_errors or self.done(record.number)):
                self._check_answered(record)
                self._note(record.number, status(record.outcome, judge))
        if lines > self.recorded:
            self._journal.replace(self._kept(judge))

    def _check_answered(self, record: _Record) -> None:
        """Raise UsageError if what was asked under this id is not what the input asks."""
        if record.digest and record.digest != self._source.digest(record.number):
            raise UsageError(
                f"{self.path}: line {record.place} does not answer line {record.number} of {self._source.name}, which "
                "was edited since or asked with other options: remove the result to ask again, or write to another file"
            )

    def _recorded(self) -> Iterator[_Record]:
        """Each line of the file."""
        for place, text in self._journal.numbered():
            found = _parsed(text)
            if found is None or (found[1]["type"] == "succeeded" and self._holds not in found[1]):
                raise UsageError(f"{self.path}: line {place} {_FOREIGN}")
            custom_id, outcome, digest = found
            number = self._source.number(custom_id)
            if not number:
                why = f"{self._source.name} has no line {custom_id!r}, or it was asked with other options"
                raise UsageError(f"{self.path}: line {place} belongs to another input: {why}; write to another file")
            yield _Record(place, number, outcome, digest, text)

    def _kept(self, judge: Judge) -> Iterator[bytes]:
        """For each line of the input the first result that has the status noted for it."""
        written = bytearray(len(self._outcomes))
        for record in self._recorded():
            number = record.number
            if not written[number] and self._outcomes[number] == status(record.outcome, judge) + 1:
                written[number] = 1
                yield record.text + b"\n"

    def _note(self, number: int, exit_status: int) -> None:
        self.recorded += not self._outcomes[number]
        self._outcomes[number] = exit_status + 1
        self._in_order = self._in_order and number > self._furthest
        self._furthest = max(self._furthest, number)

    def _sorted(self) -> Iterator[bytes]:
        offsets = array("q", [-1]) * len(self._outcomes)
        with open(self.path, "rb") as file:
            offset = 0
            for text in file:
                found = _parsed(text.removeprefix(BOM_UTF8))
                if found:
                    offsets[self._source.number(found[0])] = offset
                offset += len(text)
            if len(offsets) - offsets.count(-1) != self.recorded:
                raise OutputError(f"cannot sort {self.path}: another program changed it")
            for offset in offsets:
                if offset >= 0:
                    file.seek(offset)
                    yield file.readline().removeprefix(BOM_UTF8).rstrip(b"\r\n") + b"\n"


_HEAD = b'{"custom_id":'


def _parsed(text: bytes) -> tuple[str, dict[str, Any], str] | None:
    """The id, the outcome and the hash of a result, which may be empty, or None for anything else."""
    try:
        text.decode()  # `object_in` would mend it, and the file stay as it is
    except UnicodeDecodeError:
        return None
    value = object_in(text) or {}
    custom_id, outcome, digest = value.get("custom_id"), value.get("result"), value.get("digest") or ""
    if not isinstance(custom_id, str) or not isinstance(outcome, dict) or not isinstance(outcome.get("type"), str):
        return None
    return (custom_id, outcome, digest) if isinstance(digest, str) else None
