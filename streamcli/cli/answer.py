"""A question in, its answer on the outputs out, and the status that tells how it went.

Contract: outputs are opened before anything is sent. An attempt is repeated only while nothing of it was written.
Where the model calls tools that can be run here, it is asked again with their results. Whatever ends the run, the
outputs are told and closed, and what is known of the answer is reported.
Source: streamcli(5), section "OUTPUT FORMATS".
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from typing import TYPE_CHECKING

from streamcli.errors import (
    APIError,
    APIStatusError,
    InternalServerError,
    OutputError,
    StreamcliError,
    StreamError,
    ToolError,
    status_before_output,
)
from streamcli.output.meter import Meter, summary, summary_lines
from streamcli.output.sources import citations, source_lines
from streamcli.protocol.jsontext import dumps

from . import io
from .outputs import Outputs
from .verdict import Complete, cut_short, shortcoming

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from streamcli.client.client import Client, MessageStream
    from streamcli.network.tape import Player

    from .args import Args
    from .question import Question

_VERBOSE_FIELDS = ("request_id", "time_to_first_token", "duration")


class SignalError(StreamcliError):
    """The run was ended by a signal; `message` is its name."""

    code = "interrupted"


class Answer:
    """One answer on its way to the outputs; `record` takes the lines of a tape."""

    def __init__(self, args: Args, diagnostics: io.Diagnostics) -> None:
        self._args = args
        self._diagnostics = diagnostics
        self._meter = Meter(prices=args.prices)
        self._outputs = Outputs(args, diagnostics, self._meter)
        self._stream: MessageStream | None = None
        # What earlier turns said since tools were run last: a turn that paused goes on with it.
        self._said = ""
        # What all earlier turns cited.
        self._cited: list[dict[str, Any]] = []
        self._reported = False
        self._ran_tools = False

    @property
    def record(self) -> Callable[[bytes], None]:
        """Writes a line of the tape, once the outputs are open."""
        return self._outputs.record

    def deliver(
        self, client: Client, question: Question, standard_output: io.Descriptor, *, reach: Callable[[Client], None]
    ) -> int:
        """Stream the answer to `question`, once `reach` has made the client's address one that responds; the status.

        Raises OutputError where an output cannot be opened, and io.Signalled.
        """
        self._outputs.open(standard_output)
        try:
            reach(client)
            while not self._take_turn(client, question):
                pass
            return self._complete(question)
        except StreamcliError as error:
            status = self._status(error, question.player)
            self._fail(error, status)
            self._fault(error, status)
            return status
        except io.Signalled as end:
            self._fail(SignalError(signal.Signals(end.number).name))
            raise

    def _fault(self, error: StreamcliError, status: int | None = None) -> None:
        if self._stream and error.request_id is None:
            error.request_id = self._stream.exchange.request_id
        self._diagnostics.fault(error, status)

    def _take_turn(self, client: Client, question: Question) -> bool:
        """One request and its answer; whether that was the last."""
        self._stream = self._answered(client, question)
        accumulator = self._stream.exchange.accumulator
        message: Mapping[str, Any] = accumulator.snapshot() or {}
        calls = question.loop.answered(message)
        if calls is None:
            return True
        if not accumulator.whole:
            raise ToolError("the model paused its turn after more text than is kept in memory: use --message")
        self._said = "" if calls else self._said + accumulator.text
        self._cited += citations(message)
        self._outputs.tell(lambda each: each.turn(tools=bool(calls)))
        if not (question.confirms and os.isatty(io.STDERR)):  # else the person who is asked sees them there
            self._show_calls(message)
        results = question.run_tools(calls) if question.run_tools and calls else []
        self._ran_tools = self._ran_tools or bool(results)
        question.loop.add(results)
        self._stream.close()
        self._meter.turn(accumulator.usage, message.get("model"))
        names = {call["id"]: call["name"] for call in calls}
        named = [{**result, "name": names.get(result["tool_use_id"])} for result in results]
        self._outputs.tell(lambda each: each.results(named))
        return False

    def _answered(self, client: Client, question: Question) -> MessageStream:
        """The stream of a complete answer, from the next model if one fails before any of its answer was written."""
        before = self._outputs.written
        while True:
            try:
                stream = self._asked(client, question)
            except APIStatusError as error:
                is_busy = status_before_output(error) == InternalServerError.exit_code and not error.is_hopeless
                if not (is_busy and self._falls_back(question, before, str(error))):
                    raise
                continue
            accumulator = stream.exchange.accumulator
            message: Mapping[str, Any] = accumulator.snapshot() or {}
            why = cut_short(Complete(message, accumulator.text))
            if accumulator.stop_reason != "refusal" or not self._falls_back(question, before, why):
                return stream
            self._meter.turn(accumulator.usage, message.get("model"))
            stream.close()

    def _falls_back(self, question: Question, before: int, why: str) -> bool:
        asked = question.loop.body.get("model")
        model = None if self._outputs.written > before else question.loop.fall_back()
        if model:
            self._diagnostics.note(f"asking {model} instead of {asked} after: {why}")
        return bool(model)

    def _asked(self, client: Client, question: Question) -> MessageStream:
        fields = {name: value for name, value in question.body.items() if name != "stream"}
        self._meter.asked = fields.get("model")
        # Not by `with`: when the run ends, the last stream is still asked how its answer came to be.
        stream = client.messages.stream(betas=self._args.beta, extra_body=fields).__enter__()
        self._stream = stream
        self._pump(stream, question.player)
        return stream

    def _pump(self, stream: MessageStream, player: Player | None) -> None:
        before = self._outputs.written
        while True:
            self._outputs.begin(stream.exchange)
            try:
                for data in stream.reads():
                    events = stream.exchange.receive(data)
                    if player and player.repeats:
                        deque(events, 0)  # of an attempt that failed nothing counts, in whatever format it is played
                    else:
                        self._outputs.pass_on(data, events)
            except APIError as error:
                is_risky = self._ran_tools and isinstance(error, StreamError)
                if self._outputs.written > before or is_risky:
                    raise
                self._outputs.repeat(error)
                stream.retry(error)
            else:
                return

    def _show_calls(self, message: Mapping[str, Any]) -> None:
        """Say what the text leaves out; the other formats hold it."""
        if self._args.output_format != "text":
            return
        for block in message.get("content", ()):
            if block["type"] == "tool_use":
                given = block.get("partial_json") or dumps(block.get("input")).decode()
                cut = ": its input is not complete" if "partial_json" in block else ""
                self._diagnostics.note(f"{block.get('name')}({given}){cut}")

    def _complete(self, question: Question) -> int:
        assert self._stream  # noqa: S101 - a turn was taken
        self._meter.stop()
        self._outputs.tell(lambda each: each.finish(), last=True)
        accumulator = self._stream.exchange.accumulator
        message: Mapping[str, Any] = accumulator.snapshot() or {}
        self._show_calls(message)
        text, limit = self._said + accumulator.text, question.loop.body.get("max_tokens")
        answer = Complete(message, text, accumulator.whole, limit)
        short = shortcoming(self._args, answer) or self._outputs.emptied()
        self._report()
        self._close(succeeded=not short)
        if short is None and (note := cut_short(answer)):
            self._diagnostics.note(note)
        self._remember(question, is_answered=short is None and answer.stop_reason != "refusal")
        if short:
            self._fault(short)
            return short.exit_code
        return 0

    def _remember(self, question: Question, *, is_answered: bool) -> None:
        """Add the turn to the conversation, unless it would harm it: after a refusal the model goes on refusing."""
        conversation = question.conversation
        if conversation is None:
            return
        if not (is_answered and conversation.append([*question.asked, *question.loop.added])):
            self._diagnostics.note(f"the turn is not added to {self._args.conversation}, which stays as it was")

    def _fail(self, error: StreamcliError, status: int | None = None) -> None:
        self._meter.stop()
        self._outputs.fail(error)
        with contextlib.suppress(OutputError, io.ReaderClosedPipe):
            self._report()
        self._close(succeeded=False, status=status)

    def _close(self, *, succeeded: bool, status: int | None = None) -> None:
        if self._stream:
            self._stream.close()  # this ends the attempt on the tape
        if status is not None:
            with contextlib.suppress(OutputError, io.ReaderClosedPipe):
                self.record(dumps({"exit_code": status}) + b"\n")
        self._outputs.close(succeeded=succeeded)

    def _status(self, error: StreamcliError, player: Player | None) -> int:
        """The exit status of an error: an error event after output is not one before.

        A tape tells which it was, in whatever format it is played: by the status, else as if it were text.
        """
        if not (isinstance(error, APIStatusError) and error.in_stream):
            return error.exit_code
        if player and player.exit_code is not None:
            return player.exit_code
        blocks = (error.partial or {}).get("content", ())
        has_output = any(block.get("text") for block in blocks) if player else self._outputs.written
        return StreamError.exit_code if has_output else status_before_output(error)

    def _report(self) -> None:
        if self._stream is None or self._reported:
            return
        self._reported = True
        exchange = self._stream.exchange
        known = summary(exchange, self._meter)
        self._outputs.write_usage(dumps(known) + b"\n")
        if self._args.show_sources:
            for line in source_lines([*self._cited, *citations(exchange.accumulator.snapshot() or {})]):
                self._diagnostics.line(line)
        if self._args.usage and exchange.accumulator.started:
            usage = self._meter.usage(exchange.accumulator.usage)
            counts = {**usage, "cost": known.get("cost"), "duration": known.get("duration")}
            self._diagnostics.line("usage: " + " ".join(f"{key}={text}" for key, text in summary_lines(counts)))
        if self._args.verbose:
            self._diagnostics.note(" ".join(f"{key}={known[key]}" for key in _VERBOSE_FIELDS if key in known))
            for name, value in self._stream.response.headers.items():
                if name.startswith("anthropic-ratelimit-"):
                    self._diagnostics.note(f"{name}: {value}")
            for line in exchange.deviation_lines():
                self._diagnostics.note(line)
