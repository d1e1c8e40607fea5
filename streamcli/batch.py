"""Many prompts in a file in, their requests out; results out, in a file that a broken-off run goes on with.

Contract: `Source` reads JSON Lines of three forms and finds everything that is wrong with them before anything is
sent. `Results` keeps what came back, in the form of the Message Batches API (protocol.md section 8.1), so that at every
moment the file holds whole lines of this input and nothing else. Both are bounded in memory: of a line that is not in
work they keep some thirty bytes. Neither knows who asks: a loop in this process or the Message Batches API.
Source: design.md section 4.
"""

from __future__ import annotations

import hashlib
import random
import time
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self

from .errors import (
    APIError,
    InternalServerError,
    OutputError,
    SchemaError,
    StreamcliError,
    UsageError,
    status_error,
    type_of_status,
)
from .journal import Journal
from .jsontext import dumps, loads, loads_exact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import BinaryIO

    # The exit status that a complete message stands for: 0, unless it is not what was asked for.
    Judge = Callable[[Mapping[str, Any]], int]

_BOM = b"\xef\xbb\xbf"
_KEYS = frozenset({"custom_id", "prompt", "params"})
_MODE = 0o666


class Line(NamedTuple):
    """One request: the number of its line in the input, from 1, its id, and its body without `stream`."""

    number: int
    custom_id: str
    params: dict[str, Any]


class Source:
    """The requests of an input file.

    `file` is binary and seekable, `name` what messages call it. `defaults` is a body without messages and stream, over
    which a line's `params` go key by key; `compose` makes the user message of a prompt. With `as_prompts` each line is
    a prompt as it stands; else it is a JSON string, {"custom_id"?, "prompt"} or {"custom_id"?, "params"}. Blank lines
    are none. A line without an id gets one from its number and its whole request, so that another input, or the same
    one under other options, is not taken for this one.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        defaults: Mapping[str, Any],
        compose: Callable[[str], dict[str, Any]],
        as_prompts: bool,
    ) -> None:
        self.name = name
        self.count = 0
        # The number of the last line that `check` saw; what a file grows by afterwards is not looked at.
        self.last = 0
        self._file = file
        self._defaults = defaults
        self._compose = compose
        self._as_prompts = as_prompts
        self._numbers = _Numbers()

    def check(self) -> int:
        """Read all of it once; how many requests there are.

        Raises UsageError with the line's number for what is no request, and for an id that another line has.
        """
        for line in self._read():
            other = self._numbers.add(line.custom_id, line.number)
            if other:
                self._refuse(line.number, f"has the custom_id {line.custom_id!r} of line {other}")
            self.count += 1
            self.last = line.number
        return self.count

    def lines(self) -> Iterator[Line]:
        """The requests that `check` saw, one at a time; only one such iteration may be under way."""
        for line in self._read():
            if line.number > self.last:
                return
            yield line

    def number(self, custom_id: str) -> int:
        """The number of the line with that id, 0 where there is none."""
        return self._numbers.get(custom_id)

    def _read(self) -> Iterator[Line]:
        self._file.seek(0)
        for number, raw in enumerate(self._file, 1):
            text = raw.removeprefix(_BOM) if number == 1 else raw
            if not text.isspace() and text:
                yield self._line(number, text)

    def _line(self, number: int, text: bytes) -> Line:
        value = self._value(number, text)
        custom_id = value.get("custom_id")
        if "custom_id" in value and not (isinstance(custom_id, str) and custom_id):
            self._refuse(number, "has a custom_id that is no text")
        params = {**self._defaults, **self._params(number, value)}
        params.pop("stream", None)
        return Line(number, custom_id or _made_id(number, params), params)

    def _value(self, number: int, text: bytes) -> dict[str, Any]:
        try:
            plain = text.decode()
        except UnicodeDecodeError as fault:
            self._refuse(number, f"is not UTF-8: byte {fault.start + 1} is {text[fault.start]:#04x}")
        if self._as_prompts:
            return {"prompt": plain.removesuffix("\n").removesuffix("\r")}
        try:
            value = loads_exact(text)
        except ValueError as fault:
            reason = str(fault).partition(": line 1 column")[0]  # the parser's line, not the file's
            self._refuse(number, f"is no JSON: {reason}; with --lines each line is a prompt as it stands")
        if isinstance(value, str):
            return {"prompt": value}
        if not isinstance(value, dict):
            self._refuse(number, "is neither a string nor an object with prompt or params")
        unknown = value.keys() - _KEYS
        if unknown:
            self._refuse(number, f"has an unknown key {min(unknown)!r}: fields of the request go into params")
        return value

    def _params(self, number: int, value: dict[str, Any]) -> dict[str, Any]:
        if "prompt" in value and "params" in value:
            self._refuse(number, "has both prompt and params")
        if "params" not in value:
            prompt = value.get("prompt", "")
            if not isinstance(prompt, str):
                self._refuse(number, "has a prompt that is no text")
            if not prompt.strip():
                self._refuse(number, "has no prompt")
            return {"messages": [self._compose(prompt)]}
        params = value["params"]
        if not isinstance(params, dict):
            self._refuse(number, "has params that are no object")
        messages = params.get("messages", self._defaults.get("messages", []))
        if not isinstance(messages, list):
            self._refuse(number, "has messages that are no list")
        if not messages:
            self._refuse(number, "has no prompt: its params have no messages")
        return params

    def _refuse(self, number: int, why: str) -> NoReturn:
        raise UsageError(f"{self.name}: line {number} {why}")


def _made_id(number: int, params: dict[str, Any]) -> str:
    return f"line-{number}-{hashlib.blake2b(dumps(params), digest_size=8).hexdigest()}"


class _Numbers:
    """Which line has which id: 64-bit hashes in an open-addressed table, 18 to 36 bytes an id; a dict needs 150.

    Two of a million ids share a hash once in forty million inputs; they are then taken for a duplicate and refused.
    """

    def __init__(self) -> None:
        self._count = 0
        self._make(1024)

    def _make(self, size: int) -> None:
        self._mask = size - 1
        self._hashes = array("Q", bytes(8 * size))
        self._lines = array("I", bytes(4 * size))  # 0: free

    def add(self, custom_id: str, number: int) -> int:
        """Note a line; the number of the one that has this id already, else 0."""
        key = hash(custom_id) & 0xFFFFFFFFFFFFFFFF
        place = self._place(key)
        if self._lines[place]:
            return self._lines[place]
        self._hashes[place], self._lines[place] = key, number
        self._count += 1
        if 3 * self._count > 2 * self._mask:
            self._grow()
        return 0

    def get(self, custom_id: str) -> int:
        return self._lines[self._place(hash(custom_id) & 0xFFFFFFFFFFFFFFFF)]

    def _place(self, key: int) -> int:
        place = key & self._mask
        while self._lines[place] and self._hashes[place] != key:
            place = (place + 1) & self._mask
        return place

    def _grow(self) -> None:
        hashes, lines = self._hashes, self._lines
        self._make(2 * len(lines))
        for key, number in zip(hashes, lines, strict=True):
            if number:
                place = self._place(key)
                self._hashes[place], self._lines[place] = key, number


class Result(NamedTuple):
    """What became of the line `number`: a line of output, with its end, and the exit status it stands for."""

    number: int
    line: bytes
    status: int


def taken(message: Mapping[str, Any]) -> int:  # noqa: ARG001 - as a Judge is
    """The judgement that every complete message will do."""
    return 0


def result(line: Line, outcome: Mapping[str, Any], judge: Judge = taken, *, error: APIError | None = None) -> Result:
    """The result of `line`; `outcome` is an object as the batches' results have it (protocol.md section 8.1).

    Its status is that of `error`, where the outcome was made of one, else that of `status`.
    """
    grave = status(outcome, judge) if error is None else _status_of(error)
    return Result(line.number, dumps({"custom_id": line.custom_id, "result": outcome}) + b"\n", grave)


def errored(error: StreamcliError) -> dict[str, Any]:
    """The outcome that `error` is."""
    kind = getattr(error, "type", None) or type_of_status(getattr(error, "status_code", 0)) or f"streamcli.{error.code}"
    outcome: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": error.message}}
    request_id = getattr(error, "request_id", None)
    if request_id:
        outcome["request_id"] = request_id
    return {"type": "errored", "error": outcome}


def status(outcome: Mapping[str, Any], judge: Judge = taken) -> int:
    """The exit status that an outcome stands for (design.md section 2); `judge` is asked of a complete message."""
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


class Results:
    """The output file at `path`, held against other runs until `close`.

    With `resume` it may hold results of this input already: those that succeeded stay, and the others do too unless
    `retry_errors`. Raises UsageError, and leaves the file as it was, where it exists and `resume` is not given, another
    run writes it, a line is no result, or one belongs to another input; OutputError where it cannot be written.
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
        for number, outcome, _ in self._recorded():
            lines += 1
            succeeded = outcome["type"] == "succeeded"
            if succeeded or not (retry_errors or self.done(number)):
                self._note(number, status(outcome, judge))
        if lines > self.recorded:
            self._journal.replace(self._kept(judge))

    def _recorded(self) -> Iterator[tuple[int, dict[str, Any], bytes]]:
        """The number of the input's line, the outcome, the text, of each line of the file."""
        for place, text in enumerate(self._journal.lines(), 1):
            if not text.strip():
                continue
            found = _parsed(text)
            if found is None:
                raise UsageError(f"{self.path}: line {place} is no result")
            custom_id, outcome = found
            number = self._source.number(custom_id)
            if not number:
                why = f"{self._source.name} has no line {custom_id!r}, or it was asked with other options"
                raise UsageError(f"{self.path}: line {place} belongs to another input: {why}")
            yield number, outcome, text

    def _kept(self, judge: Judge) -> Iterator[bytes]:
        """Of each input's line the first result that has the status it was noted with."""
        written = bytearray(len(self._outcomes))
        for number, outcome, text in self._recorded():
            if not written[number] and self._outcomes[number] == status(outcome, judge) + 1:
                written[number] = 1
                yield text + b"\n"

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
                found = _parsed(text.removeprefix(_BOM))
                if found:
                    offsets[self._source.number(found[0])] = offset
                offset += len(text)
            if len(offsets) - offsets.count(-1) != self.recorded:
                raise OutputError(f"cannot bring {self.path} into order: another program changed it")
            for offset in offsets:
                if offset >= 0:
                    file.seek(offset)
                    yield file.readline().removeprefix(_BOM).rstrip(b"\r\n") + b"\n"


_HEAD = b'{"custom_id":'


def _parsed(text: bytes) -> tuple[str, dict[str, Any]] | None:
    """The id and the outcome of a result, or None where it is none."""
    try:
        value = loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    custom_id, outcome = value.get("custom_id"), value.get("result")
    if not isinstance(custom_id, str) or not isinstance(outcome, dict) or not isinstance(outcome.get("type"), str):
        return None
    return custom_id, outcome


class Sample:
    """The distribution of any number of figures, told from `most` of them that were drawn evenly."""

    def __init__(self, most: int = 1 << 16) -> None:
        self._most = most
        self._seen = 0
        self._kept = array("f")

    def add(self, figure: float) -> None:
        """Take one figure."""
        self._seen += 1
        if len(self._kept) < self._most:
            self._kept.append(figure)
            return
        place = random.randrange(self._seen)  # noqa: S311 - it draws a sample, it guards nothing
        if place < self._most:
            self._kept[place] = figure

    def percentiles(self) -> dict[str, float]:
        """What half, nine tenths and all but a hundredth of the figures do not pass; empty where there are none."""
        ordered = sorted(self._kept)
        if not ordered:
            return {}
        return {f"p{share}": round(ordered[-(-share * len(ordered) // 100) - 1], 3) for share in (50, 90, 99)}


class Figures:
    """What is worth knowing of a run over `total` lines, of which `before` were done already."""

    def __init__(self, total: int, before: int = 0) -> None:
        self.total = total
        self.before = before
        self.succeeded = 0
        self.failed = 0
        # Why lines did not come to 0: types of errors, and the stop reasons that are none of the caller's liking.
        self.faults: Counter[str] = Counter()
        # Requests sent again, and those that the server had no room for.
        self.retries = 0
        self.refusals = 0
        # The longest wait, in seconds, that the server asked for and nobody waits.
        self.longest_wait = 0.0
        self.usage: Counter[str] = Counter()
        self.time_to_first_token = Sample()
        self.time_to_last_token = Sample()
        self._begin = time.monotonic()
        self._end: float | None = None

    def add(self, outcome: Mapping[str, Any], grave: int) -> None:
        """One line is over; `grave` is its status."""
        succeeded = outcome["type"] == "succeeded"
        self.succeeded += succeeded
        self.failed += not succeeded
        if not succeeded:
            self.faults[error_type(outcome)] += 1
            return
        message = outcome["message"]
        if grave:
            is_schema = grave == SchemaError.exit_code
            self.faults["no JSON of --schema" if is_schema else f"stop reason {message.get('stop_reason')}"] += 1
        usage = message.get("usage")
        if isinstance(usage, dict):
            self.usage.update({name: count for name, count in usage.items() if type(count) is int})

    def answered(self, first_token: float | None, last_token: float) -> None:
        """An answer is whole; when its first token and its last came, in seconds after it was asked for."""
        if first_token is not None:
            self.time_to_first_token.add(first_token)
        self.time_to_last_token.add(last_token)

    @property
    def done(self) -> int:
        """How many lines are over, those before this run included."""
        return self.before + self.succeeded + self.failed

    @property
    def elapsed(self) -> float:
        """Seconds since the run began, or that it took."""
        return (time.monotonic() if self._end is None else self._end) - self._begin

    def stop(self) -> None:
        """The run is over."""
        self._end = time.monotonic()

    def facts(self) -> dict[str, Any]:
        """All of it as JSON values; times in seconds, counters of usage by the API's names."""
        elapsed = self.elapsed
        return {
            "lines": self.total,
            "done_before": self.before,
            "succeeded": self.succeeded,
            "errored": self.failed,
            "faults": dict(self.faults.most_common()),
            "retries": self.retries,
            "refusals": self.refusals,
            "usage": dict(self.usage),
            "duration": round(elapsed, 3),
            "output_tokens_per_second": round(self.usage["output_tokens"] / elapsed, 3) if elapsed else None,
            "time_to_first_token": self.time_to_first_token.percentiles(),
            "time_to_last_token": self.time_to_last_token.percentiles(),
        }
