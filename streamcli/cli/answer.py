"""A resolved call in, an answer on its outlets out, and the status that tells how it went.

Contract: outputs are opened before anything is sent. An attempt is repeated only while nothing of it was written.
Where the model calls tools that can be run here, it is asked again with their results. Whatever ends the run, every
form says its last and every sink is finished. Source: streamcli(5), section "OUTPUT FORMATS".
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from streamcli.errors import (
    APIError,
    APIStatusError,
    InternalServerError,
    OutputError,
    SchemaError,
    StreamcliError,
    StreamError,
    ToolError,
    reason,
)
from streamcli.output import formats
from streamcli.output.meter import Meter, summary, summary_lines
from streamcli.output.prose import last_fenced_block
from streamcli.protocol.jsontext import dumps, loads

from . import io

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streamcli.client.client import Client, MessageStream
    from streamcli.network.tape import TapeTurns
    from streamcli.protocol.exchange import Exchange, Received
    from streamcli.turns.conversation import Conversation
    from streamcli.turns.turn import Turns

    from .args import Args
    from .progress import Progress

    Results = Sequence[Mapping[str, Any]]

# Endings that leave the answer short, though it is complete (streamcli(7), section "Stop reasons").
_WORTH_SAYING = {
    "max_tokens": "the answer was cut at --max-tokens",
    "refusal": "the model refused",
    "pause_turn": "the model paused its turn, and --max-turns are taken",
    "model_context_window_exceeded": "the context window is full",
}
_VERBOSE_FIELDS = ("request_id", "time_to_first_token", "duration")
# Where --pace is given without --buffer.
_USUAL_PIECE = 80


class SignalError(StreamcliError):
    """The run was ended by a signal; `message` is its name."""

    code = "interrupted"


class StopReasonError(StreamcliError):
    """The message is complete and its stop reason one of --fail-on."""

    exit_code = 9
    code = "stop_reason"


class Output(NamedTuple):
    """A form and where it goes."""

    format: formats.Format
    sink: io.Descriptor
    pace: float = 0

    @property
    def on_terminal(self) -> bool:
        """Whether a person sees it as it is written."""
        return isinstance(self.format, formats.OnTerminal)

    def flush(self) -> None:
        """Write what the form has to say now: one write for one network read, or one piece after the other."""
        while data := self.format.take():
            self.sink.write(data)
            if self.pace:
                time.sleep(self.pace)

    def fail(self, error: StreamcliError, diagnostics: io.Diagnostics) -> None:
        """Write what the form says of `error`."""
        self.format.fail(error)
        while data := self.format.take():
            self.sink.write(diagnostics.without_secrets(data))


class Question(NamedTuple):
    """What is asked, and what follows from the answer: the turns, who runs tools, the file that remembers."""

    turns: Turns | TapeTurns
    asked: Sequence[dict[str, Any]] = ()
    run_tools: Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]] | None = None
    conversation: Conversation | None = None


class Answer:
    """One answer on its way to its outlets."""

    def __init__(self, args: Args, diagnostics: io.Diagnostics, standard_output: io.Descriptor) -> None:
        self._args = args
        self._diagnostics = diagnostics
        self._progress: Progress | None = None
        self._meter = Meter()
        self._stream: MessageStream | None = None
        self._outputs: list[Output] = []
        self._beside: list[Output] = []
        # What earlier messages said since tools were run last: a turn that paused goes on with it.
        self._said = ""
        self._usage_sink: io.Descriptor | None = None
        self._tape: io.Descriptor | None = None
        try:
            sink = io.opened(args.output, atomic=True) if args.output else standard_output
            self._outputs.append(_output(_format(args, self._meter), sink, args.pace or 0))
            if args.events_to:
                self._outputs.append(_output(formats.Events(), io.opened(args.events_to, atomic=False)))
            if args.progress and os.isatty(io.STDERR) and not (args.quiet or args.show_thinking):
                self._progress = _progress(diagnostics)
            if args.show_thinking:
                self._beside.append(_output(formats.Thoughts(), io.StandardError(os.dup(io.STDERR), "standard error")))
            if args.usage_to:
                self._usage_sink = io.opened(args.usage_to, atomic=False)
            if args.record:
                self._tape = io.opened(args.record, atomic=False)
        except BaseException:  # the opening of a pipe waits, and a signal may end that
            self._close(succeeded=False)
            raise

    def record(self, line: bytes) -> None:
        """Write a line of the tape."""
        if self._tape:
            self._tape.write(self._diagnostics.without_secrets(line))

    def deliver(self, client: Client, question: Question) -> int:
        """Stream the answer to `question`; returns the exit status. Raises io.Signalled and io.ReaderGone."""
        try:
            while not self._take_turn(client, question):
                pass
            return self._complete(question)
        except StreamcliError as error:
            status = self._status(error)
            self._fail(error)
            self._diagnostics.fault(error, status)
            return status
        except io.Signalled as end:
            self._fail(SignalError(signal.Signals(end.number).name))
            raise
        except io.ReaderClosedPipe:
            self._fail(SignalError("SIGPIPE"))
            raise
        finally:
            if self._stream:
                self._stream.close()

    def _take_turn(self, client: Client, question: Question) -> bool:
        """One request and its answer; whether that was the last."""
        turns = question.turns
        fields = {name: value for name, value in turns.body.items() if name != "stream"}
        self._stream = client.messages.stream(betas=self._args.beta, extra_body=fields).__enter__()
        self._pump(self._stream)
        message: Mapping[str, Any] = self._stream.exchange.snapshot() or {}
        calls = turns.answered(message)
        if calls is None:
            return True
        if not self._stream.exchange.accumulator.whole:
            raise ToolError("the model paused its turn after more text than is kept: ask with --message")
        self._said = "" if calls else self._said + self._stream.exchange.accumulator.text
        for output in self._all():
            output.format.turn(tools=bool(calls))
        self._flush()
        self._show_calls(message)
        results = question.run_tools(calls) if question.run_tools and calls else []
        turns.add(results)
        self._stream.close()
        self._meter.turn(self._stream.exchange.accumulator.usage)
        names = {call["id"]: call["name"] for call in calls}
        for output in self._all():
            output.format.results([{**result, "name": names.get(result["tool_use_id"])} for result in results])
        self._flush()
        return False

    def _show_calls(self, message: Mapping[str, Any]) -> None:
        """What text leaves out and the other forms hold."""
        if self._args.output_format != "text":
            return
        for block in message.get("content", ()):
            if block["type"] == "tool_use":
                self._diagnostics.note(f"{block.get('name')}({dumps(block.get('input')).decode()})")

    def _all(self) -> list[Output]:
        return [*self._beside, *self._outputs]  # thoughts come first, also in one read

    def _pump(self, stream: MessageStream) -> None:
        before = self._written()
        while True:
            for output in self._all():
                output.format.begin(stream.exchange)
            try:
                for data in stream.reads():
                    self._pass_on(data, stream.exchange)
            except APIError as error:
                if self._written() > before:
                    raise
                for output in self._beside:
                    output.fail(error, self._diagnostics)
                stream.retry(error)
            else:
                return

    def _written(self) -> int:
        return sum(output.sink.written for output in self._outputs)

    def _pass_on(self, data: bytes, exchange: Exchange) -> None:
        outputs = self._all()
        takers: list[Callable[[Received], None]] = [output.format.add for output in outputs]
        if self._progress:
            takers.append(self._progress.add)
        for output in outputs:
            output.format.read(data)
        try:
            for received in exchange.receive(data):
                for take in takers:
                    take(received)
                if self._meter.first_token is None:
                    self._meter.seen(received)
        finally:  # what came before a fault is shown before the fault
            self._flush()
            if self._progress:
                self._progress.draw()

    def _flush(self) -> None:
        with self._diagnostics.live:
            for output in self._all():
                output.flush()
        if self._progress and any(output.on_terminal and output.sink.written for output in self._outputs):
            self._progress.close()
            self._progress = None

    def _complete(self, question: Question) -> int:
        assert self._stream  # noqa: S101 - a turn was taken
        self._meter.stop()
        for output in self._all():
            output.format.finish()
        self._flush()
        exchange = self._stream.exchange
        self._show_calls(exchange.snapshot() or {})
        stop_reason = exchange.accumulator.stop_reason
        short = shortcoming(self._args, stop_reason, self._said + exchange.accumulator.text)
        self._report()
        if not short:
            self._remember(question)
        self._close(succeeded=not short)
        if short:
            self._diagnostics.fault(short)
            return short.exit_code
        if stop_reason in _WORTH_SAYING:
            self._diagnostics.note(f"stop reason {stop_reason}: {_WORTH_SAYING[stop_reason]}")
        return 0

    def _remember(self, question: Question) -> None:
        if question.conversation is None:
            return
        if not question.conversation.append([*question.asked, *question.turns.added]):
            self._diagnostics.note(f"the answer is empty: {self._args.conversation} stays as it was")

    def _fail(self, error: StreamcliError) -> None:
        self._meter.stop()
        for output in self._all():
            with contextlib.suppress(OutputError, io.ReaderClosedPipe):
                output.fail(error, self._diagnostics)
        with contextlib.suppress(OutputError, io.ReaderClosedPipe):
            self._report()
        self._close(succeeded=False)

    def _close(self, *, succeeded: bool) -> None:
        if self._stream:
            self._stream.close()  # the tape's last line is written by this
        if self._progress:
            self._progress.close()
        for sink in (*(output.sink for output in self._all()), self._usage_sink, self._tape):
            if sink:
                sink.done() if succeeded else sink.failed()

    def _status(self, error: StreamcliError) -> int:
        if isinstance(error, APIStatusError) and error.in_stream:
            if self._written():
                return StreamError.exit_code
            return error.exit_code if error.status_code != 200 else InternalServerError.exit_code
        return error.exit_code

    def _report(self) -> None:
        if self._stream is None:
            return
        exchange = self._stream.exchange
        known = summary(exchange, self._meter)
        if self._usage_sink:
            self._usage_sink.write(dumps(known) + b"\n")
        if self._args.usage and exchange.accumulator.started:
            counts = {**self._meter.usage(exchange.accumulator.usage), "duration": known.get("duration")}
            self._diagnostics.line("usage: " + " ".join(f"{key}={text}" for key, text in summary_lines(counts)))
        if self._args.verbose:
            self._diagnostics.note(" ".join(f"{key}={known[key]}" for key in _VERBOSE_FIELDS if key in known))
            for name, value in self._stream.response.headers.items():
                if name.startswith("anthropic-ratelimit-"):
                    self._diagnostics.note(f"{name}: {value}")


def _progress(diagnostics: io.Diagnostics) -> Progress:
    from .progress import Line, Progress  # noqa: PLC0415 - for who watches

    line = Line()
    progress = Progress(line)
    diagnostics.live, diagnostics.tick = line, progress.draw
    return progress


def _output(form: formats.Format, sink: io.Descriptor, pace: float = 0) -> Output:
    return Output(formats.OnTerminal(form) if os.isatty(sink.fd) else form, sink, pace)


def _format(args: Args, meter: Meter) -> formats.Format:
    if args.extract:
        return formats.Extract()
    makers: dict[str, Callable[[], formats.Format]] = {
        "text": formats.Text,
        "events": formats.Events,
        "message": formats.FinalMessage,
        "summary": lambda: formats.Summary(meter),
        "snapshots": formats.Snapshots,
        "sse": formats.RawStream,
    }
    if args.output_format == "text" and (args.buffer or args.pace):
        return formats.SmoothText(args.buffer or _USUAL_PIECE)
    return makers[args.output_format]()


def shortcoming(args: Args, stop_reason: Any, text: str) -> StreamcliError | None:
    """Why a complete answer is not what was asked for, or None where it is.

    Whether JSON fits the schema is the server's promise. A call of a tool that was only declared is no answer yet.
    """
    if stop_reason in args.fail_on:
        return StopReasonError(f"stop reason {stop_reason} is one of --fail-on")
    if stop_reason == "tool_use":
        return None
    if args.extract and last_fenced_block(text) is None:
        return SchemaError("the answer ends without a whole fenced block")
    try:
        loads(text.encode() if args.schema else b"0")
    except ValueError as fault:
        return SchemaError(f"the answer is not the JSON of --schema: {reason(fault)}")
    return None


def judge(args: Args) -> Callable[[Mapping[str, Any]], int]:
    """The exit status that one complete message of many stands for."""

    def judged(message: Mapping[str, Any]) -> int:
        blocks = [block for block in message.get("content") or () if isinstance(block, dict)]
        text = "".join(str(block.get("text")) for block in blocks if block.get("type") == "text")
        short = shortcoming(args, message.get("stop_reason"), text)
        return short.exit_code if short else 0

    return judged
