"""The outputs of a run, each a format and the descriptor it goes to: opened before anything is sent, then finished.

Contract: what one network read brought is written before the next one is read, thoughts before text. Whatever ends the
run, every format writes its end and every descriptor is closed.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from streamcli.errors import OutputError, StreamcliError
from streamcli.output import formats
from streamcli.output.terminal import Shown

from . import io

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from streamcli.output.meter import Meter
    from streamcli.protocol.exchange import Exchange, Received

    from .args import Args
    from .progress import Progress

# Where --pace is given without --buffer.
_USUAL_PIECE = 80


class EmptyOutputError(StreamcliError):
    """The answer is complete, but nothing of it can be written to a file that holds something."""

    exit_code = 9
    code = "empty_output"


class Output(NamedTuple):
    """A format and where it goes; between two pieces of it, `pace` seconds are waited.

    Without `shown` its bytes go out as they are.
    """

    format: formats.Format
    descriptor: io.Descriptor
    shown: Shown | None = None
    pace: float = 0

    @property
    def is_seen(self) -> bool:
        """Whether a terminal shows something of it."""
        return bool(self.shown and self.shown.ends_line and self.descriptor.written)

    def begin(self, exchange: Exchange) -> None:
        """An answer begins, perhaps after one that failed before anything was written."""
        self.format.begin(exchange)
        if self.shown:
            self.shown.begin()

    def flush(self, *, last: bool = False) -> None:
        """Write what the format has to say now: one write for one network read, or one piece after the other."""
        while data := self.format.take():
            self.descriptor.write(self.shown.feed(data) if self.shown else data)
            if self.pace:
                time.sleep(self.pace)
        if last and self.shown:
            self.descriptor.write(self.shown.end())

    def fail(self, error: StreamcliError, diagnostics: io.Diagnostics) -> None:
        """Write what the format says of `error`."""
        self.format.fail(error)
        data = b"".join(iter(self.format.take, b""))
        shown = self.shown.feed(data) + self.shown.end() if self.shown else data
        if shown:  # else what a signal broke off is left as it is
            self.descriptor.write(diagnostics.without_secrets(shown))


class Outputs:
    """All outputs of one run, and the progress line that makes way for them."""

    def __init__(self, args: Args, diagnostics: io.Diagnostics, meter: Meter) -> None:
        self._args = args
        self._diagnostics = diagnostics
        self._meter = meter
        # In the order in which they write what one read brought; the thoughts are on standard error.
        self._thoughts: list[Output] = []
        self._answers: list[Output] = []
        self._usage: io.Descriptor | None = None
        self._tape: io.Descriptor | None = None
        self._progress: Progress | None = None
        self._takers: list[Callable[[Received], None]] = []

    def open(self, standard_output: io.Descriptor) -> None:
        """Open all that were asked for. Raises OutputError, and leaves none open, if one cannot be opened."""
        args = self._args

        def note(descriptor: io.Descriptor) -> None:
            self._answers.append(_output(args, _format(args, self._meter), descriptor, args.pace or 0))

        with contextlib.ExitStack() as on_failure:  # the opening of a pipe waits, and a signal may end that
            on_failure.callback(self.close, succeeded=False)
            if args.output:
                io.opened(args.output, atomic=True, note=note)
            else:
                note(standard_output)
            if args.events_to:
                self._answers.append(_output(args, formats.Events(), io.opened(args.events_to, atomic=False)))
            if args.show_thinking:
                standard_error = io.StandardError(os.dup(io.STDERR), "standard error")
                self._thoughts.append(_output(args, formats.Thinking(), standard_error))
            if args.usage_to:
                self._usage = io.opened(args.usage_to, atomic=False)
            if args.record:
                self._tape = io.opened(args.record, atomic=False)
            on_failure.pop_all()
        self._takers = [output.format.add for output in self._all()]
        if args.progress and os.isatty(io.STDERR) and not (args.quiet or args.show_thinking):
            from .progress import Progress  # noqa: PLC0415 - rarely asked for

            self._progress = Progress(self._meter)
            self._diagnostics.live, self._diagnostics.tick = self._progress.line, self._progress.draw
            self._takers.append(self._progress.add)

    def _all(self) -> list[Output]:
        return [*self._thoughts, *self._answers]

    @property
    def written(self) -> int:
        """How many bytes of the answer went out."""
        return sum(output.descriptor.written for output in self._answers)

    def emptied(self) -> EmptyOutputError | None:
        """The error of replacing a file by nothing."""
        for output in self._answers:
            if isinstance(output.descriptor, io.ReplacedFile) and output.descriptor.would_empty:
                return EmptyOutputError(f"there is nothing to write: {output.descriptor.name} stays as it was")
        return None

    def pass_on(self, data: bytes, events: Iterable[Received]) -> None:
        """One network read and its events: what came before a fault in them is written before the fault is raised."""
        for output in self._all():
            output.format.read(data)
        takers, meter = self._takers, self._meter
        try:
            for received in events:
                for take in takers:
                    take(received)
                if meter.first_token is None:
                    meter.seen(received)
        finally:
            self._flush()
            if self._progress:
                self._progress.draw()

    def _flush(self, *, last: bool = False) -> None:
        with self._diagnostics.live:
            for output in self._all():
                output.flush(last=last)
        if self._progress and any(output.is_seen for output in self._answers):
            self._progress.line.close()
            self._progress = None

    def begin(self, exchange: Exchange) -> None:
        """An answer begins."""
        for output in self._all():
            output.begin(exchange)

    def tell(self, event: Callable[[formats.Format], None], *, last: bool = False) -> None:
        """Tell every format of `event`, one of its methods, and write what it says to that; what is `last` ends it."""
        for output in self._all():
            event(output.format)
        self._flush(last=last)

    def repeat(self, error: StreamcliError) -> None:
        """The attempt failed, and another one follows: what was thought so far ends its line."""
        for output in self._thoughts:
            output.fail(error, self._diagnostics)

    def fail(self, error: StreamcliError) -> None:
        """The run ends with `error`, whether that can be written or not."""
        for output in self._all():
            with contextlib.suppress(OutputError, io.ReaderClosedPipe):
                output.fail(error, self._diagnostics)

    def record(self, line: bytes) -> None:
        """Write a line of the tape."""
        if self._tape:
            self._tape.write(self._diagnostics.without_secrets(line))

    def write_usage(self, line: bytes) -> None:
        """Write what --usage-to is for."""
        if self._usage:
            self._usage.write(line)

    def close(self, *, succeeded: bool) -> None:
        """Close all. Raises OutputError where that fails and the run `succeeded`."""
        if self._progress:
            self._progress.line.close()
        for descriptor in (*(output.descriptor for output in self._all()), self._usage, self._tape):
            if descriptor:
                descriptor.done() if succeeded else descriptor.failed()


def _output(args: Args, output_format: formats.Format, descriptor: io.Descriptor, pace: float = 0) -> Output:
    on_terminal = os.isatty(descriptor.fd)
    # In a pipe, JSON is for programs, and what would make it visible to a person would be no JSON.
    visible = {"auto": on_terminal, "always": on_terminal or output_format.is_text, "never": False}[args.sanitize]
    shown = Shown(visible=visible, ends_line=on_terminal) if on_terminal or visible else None
    return Output(output_format, descriptor, shown, pace)


def _format(args: Args, meter: Meter) -> formats.Format:
    if args.extract:
        return formats.Extract()
    if args.output_format == "text" and (args.buffer or args.pace):
        return formats.SmoothText(args.buffer or _USUAL_PIECE)
    makers: dict[str, Callable[[], formats.Format]] = {
        "text": formats.Text,
        "events": formats.Events,
        "message": formats.FinalMessage,
        "summary": lambda: formats.Summary(meter),
        "snapshots": formats.Snapshots,
        "sse": formats.RawStream,
    }
    return makers[args.output_format]()
