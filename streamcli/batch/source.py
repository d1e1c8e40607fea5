"""A file of prompts and requests in, complete requests out, one at a time.

Contract: everything that is wrong with the input is found before anything is sent. The lines that were checked are the
lines that are handed out, all of them, or InputChangedError is raised. Less than thirty bytes are kept of each line, so
that memory is bounded.
Source: streamcli(5), section "Request lines".
"""

from __future__ import annotations

import hashlib
from array import array
from codecs import BOM_UTF8
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn

from streamcli.errors import StreamcliError, UsageError, reason
from streamcli.protocol.jsontext import dumps, loads_strict
from streamcli.protocol.userinput import decoded, json_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    # What a Line holds: to check a million of them, none is made.
    _Fields = tuple[int, str, dict[str, Any], str]
    Mark = Callable[[dict[str, Any], Mapping[str, Any] | None], dict[str, Any]]

_PIECE = 1 << 16
_KEYS = frozenset({"custom_id", "prompt", "params"})


class InputChangedError(StreamcliError):
    """The input is not the one that was checked, and requests of it were sent already."""

    code = "input_changed"


class Line(NamedTuple):
    """One request: its line's number, counted from 1, its id, its body without `stream`, and a hash of that body."""

    number: int
    custom_id: str
    params: dict[str, Any]
    digest: str


# Of nothing so far: a copy of it is made sooner than another one.
_DIGEST = hashlib.blake2b(digest_size=8)


@dataclass(eq=False)
class Source:
    """The requests of an input file.

    `file` is binary and seekable, `name` what messages call it. `defaults` is a body without messages and stream, over
    which a line's `params` go key by key; `compose` makes the user message of a prompt. With `as_prompts` each line is
    a prompt as it stands; otherwise it is a JSON string, {"custom_id"?, "prompt"} or {"custom_id"?, "params"}. Blank
    lines do not count. A line without an id gets one made from its number and its whole request, so that another input,
    or the same one under other options, is not taken for this one. `mark` puts cache marks on a body, given also the
    `params` of its line, if it has any, and raises ValueError if there are too many.
    """

    file: BinaryIO
    name: str
    defaults: Mapping[str, Any]
    compose: Callable[[str], dict[str, Any]]
    as_prompts: bool
    mark: Mark | None = None

    def __post_init__(self) -> None:
        self.count = 0
        # The number of the last line that `check` saw; lines that are added to the file later are not looked at.
        self.last = 0
        self._numbers = _Numbers(0)
        # By the number of its line, the hash of each request.
        self._digests = array("Q", [0])

    def check(self) -> int:
        """Read all of it once; returns how many requests there are.

        Raises UsageError, with the line's number, for what is not a request, and for an id that another line has.
        """
        most = self._line_count()
        self._numbers = _Numbers(most)
        self._digests = array("Q", [0]) * (most + 1)
        count = number = 0
        for number, custom_id, _, digest in self._read(most):
            other = self._numbers.add(custom_id, number)
            if other:
                self._reject(number, f"repeats the custom_id {custom_id!r} of line {other}")
            self._digests[number] = int(digest, 16)
            count += 1
        self.count, self.last = count, number
        return count

    def _line_count(self) -> int:
        """How many lines there are, blank ones too: counting them first costs little, and room is made only once."""
        try:
            self.file.seek(0)
            return 1 + sum(piece.count(b"\n") for piece in iter(partial(self.file.read, _PIECE), b""))
        except OSError as fault:
            raise UsageError(f"cannot read {self.name}: {reason(fault)}") from None

    def lines(self) -> Iterator[Line]:
        """The requests that `check` saw, one at a time; only one such iteration may be in progress.

        Raises InputChangedError at the first that is missing or is another one.
        """
        count = 0
        try:
            for line in map(Line._make, self._read(self.last)):
                if self.number(line.custom_id) != line.number or self.digest(line.number) != line.digest:
                    raise self._changed(f"line {line.number} is not the one that was checked")
                count += 1
                yield line
        except UsageError as fault:
            raise self._changed(str(fault).removeprefix(f"{self.name}: ")) from None
        if count < self.count:
            raise self._changed(f"{self.count - count} of its {self.count} requests are missing")

    def number(self, custom_id: str) -> int:
        """The number of the line with that id, or 0."""
        return self._numbers.get(custom_id)

    def digest(self, number: int) -> str:
        """The hash of the request that line `number` is."""
        return f"{self._digests[number]:016x}"

    def _changed(self, how: str) -> InputChangedError:
        return InputChangedError(f"{self.name} changed after it was checked: {how}")

    def _read(self, most: int) -> Iterator[_Fields]:
        try:
            self.file.seek(0)
            for number, raw in zip(range(1, most + 1), self.file, strict=False):
                text = raw.removeprefix(BOM_UTF8) if number == 1 else raw
                if not text.isspace() and text:
                    yield self._line(number, text)
        except OSError as fault:
            raise UsageError(f"cannot read {self.name}: {reason(fault)}") from None

    def _line(self, number: int, text: bytes) -> _Fields:
        value = self._value(number, text)
        custom_id = value.get("custom_id")
        if "custom_id" in value and not (isinstance(custom_id, str) and custom_id):
            self._reject(number, "needs a custom_id that is a non-empty string")
        params = self._params(number, value)
        try:
            if self.mark:
                params = self.mark(params, value.get("params"))
        except ValueError as fault:
            self._reject(number, str(fault))
        try:
            body = dumps(params)
        except ValueError as fault:
            self._reject(number, f"cannot be written as JSON: {fault}")
        hashed = _DIGEST.copy()
        hashed.update(body)
        digest = hashed.hexdigest()
        return number, custom_id or f"line-{number}-{digest}", params, digest

    def _value(self, number: int, text: bytes) -> dict[str, Any]:
        if self.as_prompts:
            return {"prompt": decoded(text, self._where(number)).removesuffix("\n").removesuffix("\r")}
        try:
            value = loads_strict(text)
        except ValueError:  # which can be read all the same, or is described
            value = json_value(text, self._where(number), hint="; with --lines each line is a prompt as it stands")
        if isinstance(value, str):
            return {"prompt": value}
        if not isinstance(value, dict):
            self._reject(number, "is neither a string nor an object with prompt or params")
        if not value.keys() <= _KEYS:
            unknown = min(value.keys() - _KEYS)
            self._reject(number, f"has an unknown key {unknown!r}: fields of the request go into params")
        return value

    def _params(self, number: int, value: dict[str, Any]) -> dict[str, Any]:
        if "params" not in value:
            prompt = value.get("prompt", "")
            if not isinstance(prompt, str):
                self._reject(number, "has a prompt that is not a string")
            if not prompt.strip():
                self._reject(number, "has no prompt, or a blank one")
            return dict(self.defaults, messages=[self.compose(prompt)])
        if "prompt" in value:
            self._reject(number, "has both prompt and params: leave one out")
        params = value["params"]
        if not isinstance(params, dict):
            self._reject(number, "has params that are not an object")
        messages = params.get("messages", self.defaults.get("messages", []))
        if not isinstance(messages, list):
            self._reject(number, "has messages that are not a list")
        if not messages:
            self._reject(number, "has no prompt: its params have no messages")
        params = dict(self.defaults, **params)
        params.pop("stream", None)
        return params

    def _where(self, number: int) -> str:
        return f"{self.name}: line {number}"

    def _reject(self, number: int, why: str) -> NoReturn:
        raise UsageError(f"{self._where(number)} {why}")


class _Numbers:
    """Which line has which id, for lines up to number `most`: a hash table with linear probing, of 64-bit hashes.

    It takes 14 to 20 bytes a line, where a dict takes 150. In one of forty million inputs of a million lines two ids
    have the same hash; the second is then rejected as a duplicate.
    """

    def __init__(self, most: int) -> None:
        size = 1 << (most * 3 // 2).bit_length()
        self._mask = size - 1
        self._lines = array("I", [0]) * size  # 0: free
        # By the number of its line, the hash of each id.
        self._hashes = array("q", [0]) * (most + 1)

    def add(self, custom_id: str, number: int) -> int:
        """Note a line; returns the number of the line that has this id already, or 0."""
        key = hash(custom_id)
        place = self._place(key)
        other = self._lines[place]
        if not other:
            self._lines[place] = number
            self._hashes[number] = key
        return other

    def get(self, custom_id: str) -> int:
        return self._lines[self._place(hash(custom_id))]

    def _place(self, key: int) -> int:
        lines, hashes, mask = self._lines, self._hashes, self._mask
        place = key & mask
        while (number := lines[place]) and hashes[number] != key:
            place = (place + 1) & mask
        return place
