"""What was submitted to the Message Batches API in, a file that remembers it out.

Contract: what is about to be submitted is on the disk before it is, and so is every batch's id before anything else is
done, so that the next run knows of every batch that this one may have made. The ids of a part's requests carry a mark
of its own. Who submits and fetches is not known here.
Source: streamcli(5), section "State file".
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from streamcli.errors import APIError, UsageError
from streamcli.protocol.jsontext import dumps, loads
from streamcli.turns.journal import Journal, Keeper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .source import Line

# The longest id that the API accepts.
MAX_ID = 64
_MODE = 0o600


@dataclass
class Part:
    """Some lines of the input that make one batch.

    `lines` are pairs of first and last line number, `digest` is that of their ids and requests. `mark` is what the ids
    that are sent end with, or "" if all of them are too long for it. `newest` was the newest batch at the server before
    this one, and `id` is its own, None while that is unknown. `ended`, and `faults`, how many looks in a row failed,
    the last with `fault`, are of this run.
    """

    number: int
    lines: list[tuple[int, int]] = field(default_factory=list)
    count: int = 0
    digest: str = ""
    mark: str = ""
    newest: str | None = None
    id: str | None = None
    fetched: bool = False
    ended: bool = False
    faults: int = 0
    fault: APIError | None = None

    @property
    def numbers(self) -> Iterator[int]:
        """The numbers of its lines, in order."""
        for first, last in self.lines:
            yield from range(first, last + 1)

    def marked(self, custom_id: str) -> str:
        """The id that a request goes out under."""
        marked = f"{custom_id}-{self.mark}"
        return marked if len(marked) <= MAX_ID else custom_id

    def marks(self, custom_id: Any) -> bool:
        """Whether the id is one that only a request of this part can have."""
        return bool(self.mark) and isinstance(custom_id, str) and custom_id.endswith(f"-{self.mark}")

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


class Digest:
    """What shows whether lines are the ones that were submitted."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, line: Line) -> None:
        """Take the next line."""
        self._hash.update(f"{line.digest} {line.custom_id}\n".encode())

    @property
    def text(self) -> str:
        """The hash of all lines so far."""
        return self._hash.hexdigest()


class State(Keeper):
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
        with self._journal.closed_on_failure():
            for place, text in self._journal.numbered():
                self._take_up(place, text)

    @property
    def waiting(self) -> list[Part]:
        """The parts whose results have not been fetched."""
        return [part for part in self._parts.values() if not part.fetched]

    @property
    def ids(self) -> set[str]:
        """The batches that are known to be some part's."""
        return {part.id for part in self._parts.values() if part.id is not None}

    def intend(self, part: Part) -> None:
        """The part is about to be submitted; it gets its number."""
        part.number = self._last + 1
        fields = {"url": self._url, "lines": part.lines, "count": part.count, "digest": part.digest}
        self._write(part, fields | {"mark": part.mark, "newest": part.newest})
        self._parts[part.number] = part
        self._last = part.number

    def submitted(self, part: Part, batch_id: str, *, adopted: bool = False) -> None:
        """The part's batch has this id; it is `adopted` where no response said so, but the server's list did."""
        self._write(part, {"id": batch_id} | ({"adopted": True} if adopted else {}))
        part.id = batch_id

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

    def line_to_add(self, part: Part, batch_id: str | None) -> str:
        """What a person has to add to tell the next run which batch the part has; with None, that it has no batch."""
        return f"the line {dumps({'part': part.number, 'id': batch_id}).decode()} to {self.path}"

    def _write(self, part: Part, fields: Mapping[str, Any]) -> None:
        self._journal.append(dumps({"part": part.number, **fields}) + b"\n")

    def _take_up(self, place: int, text: bytes) -> None:
        url = self._url
        try:
            fields = loads(text)
            number = fields["part"]
            if "lines" in fields:
                lines = [(first, last) for first, last in fields["lines"]]
                made_of = [fields[name] for name in ("count", "digest", "mark", "newest")]
                self._parts[number] = Part(number, lines, *made_of)
                self._last = max(self._last, number)
                url = fields["url"]
            elif "fetched" in fields:
                self._parts[number].fetched = True
            elif fields["id"] is None:
                del self._parts[number]
            else:
                self._parts[number].id = str(fields["id"])
        except (ValueError, TypeError, KeyError):
            raise UsageError(f"{self.path}: line {place} is not a line of a state file") from None
        if url != self._url:
            raise UsageError(
                f"{self.path}: line {place} is about a batch at {url}, not at {self._url}: change --base-url back"
            )

    def _busy(self) -> NoReturn:
        raise UsageError(f"{self.path} is being used by another run: wait for it to end")
