"""What became of each request in, a file of results out that a broken-off run goes on with.

Contract: results are kept in the form of the Message Batches API, each with a hash of the request it answers, so that
at every moment the file holds whole lines of this input and nothing else. Of a line of the input a byte is kept. Who
asks is not known here: a loop in this process or the Message Batches API.
Source: streamcli(5), section "Result lines".
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self

from streamcli.errors import (
    APIError,
    InternalServerError,
    OutputError,
    ProtocolError,
    SchemaError,
    StreamcliError,
    UsageError,
    status_error,
    type_of_status,
)
from streamcli.protocol.jsontext import dumps, loads
from streamcli.protocol.userinput import BYTE_ORDER_MARK
from streamcli.turns.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .source import Line, Source

    # The exit status that a complete message stands for: 0, unless it is not what was asked for.
    Judge = Callable[[Mapping[str, Any]], int]

_MODE = 0o666


class Result(NamedTuple):
    """What became of the line `number`: a line of output, with its end, and the exit status it stands for."""

    number: int
    line: bytes
    status: int


def taken(message: Mapping[str, Any]) -> int:  # noqa: ARG001 - as a Judge is
    """The judgement that every complete message will do."""
    return 0


def result(
    line: Line, outcome: Mapping[str, Any], judge: Judge = taken, *, error: APIError | None = None
) -> tuple[Result, Mapping[str, Any]]:
    """The result of `line`, and the outcome that it holds: `outcome`, an object as the batches' results have it.

    Where that cannot be written as JSON, it is an error that says so. The status is that of `error`, where the outcome
    was made of one, else that of `status`.
    """
    record = {"custom_id": line.custom_id, "result": outcome, "digest": line.digest}
    try:
        text = dumps(record)
    except ValueError as fault:
        error = ProtocolError(f"the answer cannot be written as JSON: {fault}")
        return result(line, errored(error), judge, error=error)
    grave = status(outcome, judge) if error is None else _status_of(error)
    return Result(line.number, text + b"\n", grave), outcome


def errored(error: StreamcliError) -> dict[str, Any]:
    """The outcome that `error` is."""
    kind = getattr(error, "type", None) or type_of_status(getattr(error, "status_code", 0)) or f"streamcli.{error.code}"
    said: dict[str, Any] = {"type": kind, "message": error.message}
    details = getattr(error, "details", None)
    if details:
        said["details"] = details
    outcome: dict[str, Any] = {"type": "error", "error": said}
    request_id = getattr(error, "request_id", None)
    if request_id:
        outcome["request_id"] = request_id
    return {"type": "errored", "error": outcome}


def status(outcome: Mapping[str, Any], judge: Judge = taken) -> int:
    """The exit status that an outcome stands for; `judge` is asked of a complete message."""
    kind = outcome.get("type")
    if kind == "succeeded":
        message = outcome.get("message")
        return judge(message) if isinstance(message, dict) else 0
    if kind != "errored":
        return _OTHER_OUTCOMES.get(str(kind), StreamcliError.exit_code)
    name = error_type(outcome)
    if name in _STATUSES:
        return _STATUSES[name]
    return _status_of(status_error(None, {"error": {"type": name}}))


def _status_of(error: APIError) -> int:
    # An error event of a type that nobody knows came with status 200.
    return InternalServerError.exit_code if getattr(error, "status_code", None) == 200 else error.exit_code


def error_type(outcome: Mapping[str, Any]) -> str:
    """The type of an errored outcome's error, else the outcome's own."""
    error = outcome.get("error")
    inner = error.get("error") if isinstance(error, dict) else None
    kind = inner.get("type") if isinstance(inner, dict) else None
    return kind if isinstance(kind, str) else str(outcome.get("type"))


def _statuses(cls: type[StreamcliError]) -> dict[str, int]:
    """The exit status for each type of error that begins `streamcli.`."""
    own = {f"streamcli.{cls.code}": cls.exit_code} if "code" in cls.__dict__ else {}
    return own | {kind: code for sub in cls.__subclasses__() for kind, code in _statuses(sub).items()}


_STATUSES = _statuses(StreamcliError)
# What a Judge says of a complete message: a stop reason of --fail-on, or no JSON of --schema.
_JUDGED = (9, SchemaError.exit_code)
# What the Message Batches API did not come to: in its 24 hours, or before it was told to stop.
_OTHER_OUTCOMES = {"expired": InternalServerError.exit_code, "canceled": InternalServerError.exit_code}


class _Record(NamedTuple):
    """A line of the file: its place there, the line of the input it answers, what it says, and the text."""

    place: int
    number: int
    outcome: dict[str, Any]
    digest: str
    text: bytes


class Results:
    """The output file at `path`, held against other runs until `close`.

    With `resume` it may hold results of this input already: those that succeeded stay, and the others do too unless
    `retry_errors`. Raises UsageError, and leaves the file as it was, where it exists and `resume` is not given, another
    run writes it, a line is not a result, or one that would stay answers another request; OutputError where it cannot
    be written. A result without a hash, as the Message Batches API itself gives it, is taken at its id's word.
    """

    def __init__(self, path: str, source: Source, *, resume: bool, retry_errors: bool, judge: Judge = taken) -> None:
        self.path = path
        # How many lines of the input have a result.
        self.recorded = 0
        self._source = source
        # For each line of the input: 0 where it has none, else one more than the status of its result.
        self._outcomes = bytearray(source.last + 1)
        self._furthest = 0
        self._in_order = True
        self._journal = Journal(path, mode=_MODE, busy=self._busy)
        try:
            self._check_file(resume=resume)
            self._take_up(retry_errors=retry_errors, judge=judge)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def done(self, number: int) -> bool:
        """Whether the line of that number has its result."""
        return bool(self._outcomes[number])

    @property
    def complete(self) -> bool:
        """Whether every line of the input has its result."""
        return self.recorded == self._source.count

    @property
    def failed(self) -> int:
        """How many results in the file did not come to 0."""
        return self.recorded - self._outcomes.count(1)

    @property
    def to_ask_again(self) -> int:
        """How many of them hold no message: those that are complete, and were not what was wanted, stay."""
        return self.failed - sum(self._outcomes.count(status + 1) for status in _JUDGED)

    @property
    def status(self) -> int:
        """The gravest status of all results in the file."""
        return (max(self._outcomes) or 1) - 1

    def write(self, results: Sequence[Result]) -> None:
        """Add results of lines that have none, all of them or none, safe on the disk. Raises OutputError."""
        self._journal.append(b"".join([result.line for result in results]), together=False)
        for number, _, grave in results:
            self._note(number, grave)

    def finish(self, *, ordered: bool) -> None:
        """Bring the file into the input's order, where that is wanted, every line is done and it is not so already.

        Raises OutputError and leaves it as it was where that fails.
        """
        self._journal.end_line()
        if not ordered or not self.complete or self._in_order:
            return
        if self._journal.torn:
            self._journal.replace(text + b"\n" for text in self._journal.lines())
        self._journal.replace(self._sorted())
        self._in_order = True

    def close(self) -> None:
        """Let go of the file; one that was made here and holds nothing is removed."""
        self._journal.close()

    def _busy(self) -> NoReturn:
        raise UsageError(f"{self.path} is being written by another run")

    def _check_file(self, *, resume: bool) -> None:
        with open(self.path, "rb") as file:
            head = file.read(len(_HEAD))
        if head and not resume:
            raise UsageError(f"{self.path} exists already: go on with it by --resume, or write to another file")
        # A tail without its first byte is what a run that was killed leaves; anything else is somebody's file.
        if self._journal.empty and head.strip(b"\0") and not _HEAD.startswith(_HEAD[:1] + head[1:]):
            raise UsageError(f"{self.path}: line 1 is no result")

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
        """Raise UsageError where what was asked under this id is not what the input asks."""
        if record.digest and record.digest != self._source.digest(record.number):
            raise UsageError(
                f"{self.path}: line {record.place} answers another request than line {record.number} of "
                f"{self._source.name}, which was edited since or asked with other options: remove it to ask again, or "
                "write to another file"
            )

    def _recorded(self) -> Iterator[_Record]:
        """Each line of the file."""
        for place, text in enumerate(self._journal.lines(), 1):
            if not text.strip():
                continue
            found = _parsed(text)
            if found is None:
                raise UsageError(f"{self.path}: line {place} is no result")
            custom_id, outcome, digest = found
            number = self._source.number(custom_id)
            if not number:
                why = f"{self._source.name} has no line {custom_id!r}, or it was asked with other options"
                raise UsageError(f"{self.path}: line {place} belongs to another input: {why}")
            yield _Record(place, number, outcome, digest, text)

    def _kept(self, judge: Judge) -> Iterator[bytes]:
        """Of each input's line the first result that has the status it was noted with."""
        written = bytearray(len(self._outcomes))
        for record in self._recorded():
            number = record.number
            if not written[number] and self._outcomes[number] == status(record.outcome, judge) + 1:
                written[number] = 1
                yield record.text + b"\n"

    def _note(self, number: int, grave: int) -> None:
        self.recorded += not self._outcomes[number]
        self._outcomes[number] = grave + 1
        self._in_order = self._in_order and number > self._furthest
        self._furthest = max(self._furthest, number)

    def _sorted(self) -> Iterator[bytes]:
        offsets = array("q", [-1]) * len(self._outcomes)
        with open(self.path, "rb") as file:
            offset = 0
            for text in file:
                found = _parsed(text.removeprefix(BYTE_ORDER_MARK))
                if found:
                    offsets[self._source.number(found[0])] = offset
                offset += len(text)
            if len(offsets) - offsets.count(-1) != self.recorded:
                raise OutputError(f"cannot bring {self.path} into order: another program changed it")
            for offset in offsets:
                if offset >= 0:
                    file.seek(offset)
                    yield file.readline().removeprefix(BYTE_ORDER_MARK).rstrip(b"\r\n") + b"\n"


_HEAD = b'{"custom_id":'


def _parsed(text: bytes) -> tuple[str, dict[str, Any], str] | None:
    """The id, the outcome and the hash, which may be empty, of a result, or None where it is not one."""
    try:
        value = loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    custom_id, outcome, digest = value.get("custom_id"), value.get("result"), value.get("digest") or ""
    if not isinstance(custom_id, str) or not isinstance(outcome, dict) or not isinstance(outcome.get("type"), str):
        return None
    return (custom_id, outcome, digest) if isinstance(digest, str) else None
