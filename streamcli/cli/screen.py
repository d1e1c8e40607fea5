"""The statistics of a batch run in; what a terminal shows out: a line during the run, a table at its end.

Contract: nothing is written where it is not shown. The line makes way for results that go to the same terminal, and is
gone in the end.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

from . import io, progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streamcli.batch.results import Result
    from streamcli.batch.statistics import Statistics

# Seconds between two drawings of the line, and the width of its bar.
_INTERVAL = 0.2
_BAR = 20


class Screen:
    """What a terminal shows of a run while it lasts and afterwards; nothing unless `shown`. The line says `text`."""

    def __init__(self, statistics: Statistics, *, shown: bool) -> None:
        self.line = progress.Line()
        self.shown = shown
        self.text: Callable[[], str] = self._how_far
        self._statistics = statistics
        # Held while results go to the same terminal, in another thread.
        self._lock = threading.Lock()

    def keep_drawing(self, diagnostics: io.Diagnostics) -> None:
        """Draw the line now, and again from time to time until it is closed."""
        if self.shown:
            diagnostics.tick = self._draw
            signal.setitimer(signal.ITIMER_REAL, _INTERVAL, _INTERVAL)
            self._draw()

    def _draw(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                self.line.draw(self.text)
            finally:
                self._lock.release()

    def making_way(self, write: Callable[[Sequence[Result]], None]) -> Callable[[Sequence[Result]], None]:
        """A function that has the line make way for `write`."""

        def written(results: Sequence[Result]) -> None:
            with self._lock, self.line:
                write(results)

        return written

    def _how_far(self) -> str:
        statistics = self._statistics
        share = statistics.done / statistics.total
        rate = (statistics.done - statistics.before) / statistics.elapsed if statistics.elapsed else 0
        left = (statistics.total - statistics.done) / rate if rate else None
        parts = [
            f"[{'#' * int(share * _BAR):.<{_BAR}}]",
            f"{statistics.done}/{statistics.total}",
            f"{statistics.failed} failed" if statistics.failed else "",
            f"{rate:.1f}/s",
            f"{_short(statistics.usage['input_tokens'])} in",
            f"{_short(statistics.usage['output_tokens'])} out",
            f"ETA {clock(left)}" if left is not None else "",
        ]
        return "  ".join(part for part in parts if part)

    def show_table(self) -> None:
        """Show the statistics of the whole run."""
        if self.shown:
            io.StandardError(io.STDERR, "standard error").write("".join(f"{row}\n" for row in self._table()).encode())

    def _table(self) -> Iterator[str]:
        statistics = self._statistics
        fields = statistics.fields()
        kinds = ", ".join(f"{count} {kind}" for kind, count in statistics.faults.most_common())
        before = f", {statistics.before} done earlier" if statistics.before else ""
        yield f"lines   {statistics.succeeded} succeeded, {statistics.failed} failed{kinds and f' ({kinds})'}{before}"
        limits = f"{statistics.rate_limited} rate limited, {statistics.overloaded} overloaded"
        yield f"time    {clock(statistics.elapsed)}, {statistics.retries} retries, {limits}"
        rate = fields["output_tokens_per_second"] or 0
        read, written = statistics.usage["input_tokens"], statistics.usage["output_tokens"]
        yield f"tokens  {read} in, {written} out, {rate:.1f} a second"
        kept, new = statistics.usage["cache_read_input_tokens"], statistics.usage["cache_creation_input_tokens"]
        if kept or new:
            yield f"cache   {kept} tokens read, {new} written"
        if statistics.cost is not None:
            yield f"cost    {statistics.cost:.6g}"
        if statistics.deviations:
            yield "deviations  " + ", ".join(f"{count} {kind}" for kind, count in statistics.deviations.most_common())
        for name, key in (("first token", "time_to_first_token"), ("whole answer", "time_to_last_token")):
            if fields[key]:
                yield f"{name:12}  " + "  ".join(f"{share} {seconds:.2f} s" for share, seconds in fields[key].items())


def _short(count: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def clock(seconds: float) -> str:
    """A time as M:SS or H:MM:SS."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
