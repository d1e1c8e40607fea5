"""A file of prompts and requests in, complete requests out, one at a time.

Contract: everything that is wrong with the input is found before anything is sent. The lines that were checked are the
lines that are handed out, all of them, or InputChangedError is raised. About forty bytes are kept of each line, so that
memory is bounded.
Source: streamcli(5), section "Request lines".
"""

from __future__ import annotations

import hashlib
from array import array
from codecs import BOM_UTF8
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn

from streamcli.errors import StreamcliError, UsageError, reason
from streamcli.protocol.jsontext import dumps
from streamcli.protocol.userinput import decoded, json_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Mark = Callable[[dict[str, Any], Mapping[str, Any] | None], dict[str, Any]]

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


class Source:
    """The requests of an input file.

    `file` is binary and seekable, `name` what messages call it. `defaults` is a body without messages and stream, over
    which a line's `params` go key by key; `compose` makes the user message of a prompt. With `as_prompts` each line is
    a prompt as it stands; otherwise it is a JSON string, {"custom_id"?, "prompt"} or {"custom_id"?, "params"}. Blank
    lines do not count. A line without an id gets one made from its number and its whole request, so that another input,
    or the same one under other options, is not taken for this one. `mark` puts cache marks on a body, given also the
    `params` of its line, if it has any, and raises ValueError if there are too many.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        defaults: Mapping[str, Any],
        compose: Callable[[str], dict[str, Any]],
        as_prompts: bool,
        *,
        mark: Mark | None = None,
    ) -> None:
        self.name = name
        self.count = 0
        # The number of the last line that `check` saw; lines that are added to the file later are not looked at.
        self.last = 0
        self._file = file
        self._defaults = defaults
        self._compose = compose
        self._as_prompts = as_prompts
        self._mark = mark
        self._numbers = _Numbers()
        # By the number of its line, the hash of each request.
        self._digests = array("Q", [0])

    def check(self) -> int:
        """Read all of it once; returns how many requests there are.

        Raises UsageError, with the line's number, for what is not a request, and for an id that another line has.
        """
        for line in self._read():
            other = self._numbers.add(line.custom_id, line.number)
            if other:
                self._reject(line.number, f"repeats the custom_id {line.custom_id!r} of line {other}")
            self.count += 1
            self.last = line.number
            self._digests.extend([0] * (line.number - len(self._digests)))
            self._digests.append(int(line.digest, 16))
        return self.count

    def lines(self) -> Iterator[Line]:
        """The requests that `check` saw, one at a time; only one such iteration may be in progress.

        Raises InputChangedError at the first that is missing or is another one.
        """
        count = 0
        try:
            for line in self._read():
                if line.number > self.last:
                    break
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

    def _read(self) -> Iterator[Line]:
        try:
            self._file.seek(0)
            for number, raw in enumerate(self._file, 1):
                text = raw.removeprefix(BOM_UTF8) if number == 1 else raw
                if not text.isspace() and text:
                    yield self._line(number, text)
        except OSError as fault:
            raise UsageError(f"cannot read {self.name}: {reason(fault)}") from None

    def _line(self, number: int, text: bytes) -> Line:
        value = self._value(number, text)
        custom_id = value.get("custom_id")
        if "custom_id" in value and not (isinstance(custom_id, str) and custom_id):
            self._reject(number, "needs a custom_id that is a string and not empty")
        params = {**self._defaults, **self._params(number, value)}
        params.pop("stream", None)
        if self._mark:
            params = self._marked(self._mark, number, params, value.get("params"))
        digest = self._digest(number, params)
        return Line(number, custom_id or f"line-{number}-{digest}", params, digest)

    def _marked(self, mark: Mark, number: int, params: dict[str, Any], own: Mapping[str, Any] | None) -> dict[str, Any]:
        try:
            return mark(params, own)
        except ValueError as fault:
            self._reject(number, str(fault))

    def _digest(self, number: int, params: dict[str, Any]) -> str:
        try:
            return hashlib.blake2b(dumps(params), digest_size=8).hexdigest()
        except ValueError as fault:
            self._reject(number, f"cannot be written as JSON: {fault}")

    def _value(self, number: int, text: bytes) -> dict[str, Any]:
        where = self._where(number)
        if self._as_prompts:
            return {"prompt": decoded(text, where).removesuffix("\n").removesuffix("\r")}
        value = json_value(text, where, hint="; with --lines each line is a prompt as it stands")
        if isinstance(value, str):
            return {"prompt": value}
        if not isinstance(value, dict):
            self._reject(number, "is neither a string nor an object with prompt or params")
        unknown = value.keys() - _KEYS
        if unknown:
            self._reject(number, f"has an unknown key {min(unknown)!r}: fields of the request go into params")
        return value

    def _params(self, number: int, value: dict[str, Any]) -> dict[str, Any]:
        if "prompt" in value and "params" in value:
            self._reject(number, "has both prompt and params: leave one out")
        if "params" not in value:
            prompt = value.get("prompt", "")
            if not isinstance(prompt, str):
                self._reject(number, "has a prompt that is not a string")
            if not prompt.strip():
                self._reject(number, "has no prompt, or a blank one")
            return {"messages": [self._compose(prompt)]}
        params = value["params"]
        if not isinstance(params, dict):
            self._reject(number, "has params that are not an object")
        messages = params.get("messages", self._defaults.get("messages", []))
        if not isinstance(messages, list):
            self._reject(number, "has messages that are not a list")
        if not messages:
            self._reject(number, "has no prompt: its params have no messages")
        return params

    def _where(self, number: int) -> str:
        return f"{self.name}: line {number}"

    def _reject(self, number: int, why: str) -> NoReturn:
        raise UsageError(f"{self._where(number)} {why}")


class _Numbers:
    """Which line has which id: 64-bit hashes in a hash table with linear probing.

    It takes 18 to 36 bytes an id, where a dict takes 150. In one of forty million inputs of a million lines two ids
    have the same hash; the second is then rejected as a duplicate.
    """

    def __init__(self) -> None:
        self._count = 0
        self._make(1024)

    def _make(self, size: int) -> None:
        self._mask = size - 1
        self._hashes = array("Q", bytes(8 * size))
        self._lines = array("I", bytes(4 * size))  # 0: free

    def add(self, custom_id: str, number: int) -> int:
        """Note a line; returns the number of the line that has this id already, or 0."""
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
