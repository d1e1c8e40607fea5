"""A resolved call in, an answer on its outlets out, and the status that tells how it went.

Contract: outputs are opened before anything is sent. An attempt is repeated only while no outlet was written to.
Whatever ends the run, every form says its last and every sink is finished. Source: design.md section 2.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from streamcli import local, output
from streamcli.client import Client
from streamcli.errors import (
    APIError,
    APIStatusError,
    InternalServerError,
    OutputError,
    StreamcliError,
    StreamError,
    UsageError,
)
from streamcli.jsontext import dumps, loads_exact
from streamcli.transport import Proxy, own_client

from . import io, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamcli.client import MessageStream
    from streamcli.exchange import Exchange, Received
    from streamcli.request import Endpoint, Request

    from .args import Args

# Endings that leave the answer short, though it is complete (protocol.md section 4.7).
_WORTH_SAYING = {
    "max_tokens": "the answer was cut at --max-tokens",
    "refusal": "the model refused",
    "pause_turn": "the model paused its turn",
    "model_context_window_exceeded": "the context window is full",
}
_SECRET_NAME = re.compile(r"key|auth|token|secret|cookie|password", re.IGNORECASE)


_KEEP_TEXT = frozenset({"message", "snapshots"})
_VERBOSE_FACTS = ("request_id", "time_to_first_token", "duration")
STOP_REASON_REFUSED = 9


class Signalled(BaseException):
    """A signal that ends the run."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class SignalError(StreamcliError):
    """The run was ended by a signal; `message` is its name."""

    code = "interrupted"


class Outlet(NamedTuple):
    """A form and where it goes."""

    form: output.Form
    sink: io.Descriptor

    def flush(self) -> None:
        """Write what the form has to say now: one write for one network read."""
        data = self.form.take()
        if data:
            self.sink.write(data)


def run(args: Args, world: io.World, voice: io.Voice) -> int:
    """Do what was asked; returns the exit status. Raises StreamcliError, Signalled or io.ReaderGone."""
    if args.local is not None and args.base_url:
        raise UsageError("--local and --base-url exclude each other")
    standard_output = world.standard_output()
    endpoint = resolve.endpoint(args) if args.local is None else None
    if endpoint and endpoint.credential:
        voice.secrets.add(endpoint.credential.secret)
    body = resolve.body(args, world, voice)
    with contextlib.ExitStack() as stack:
        if endpoint is None:
            endpoint = resolve.endpoint(args, stack.enter_context(local.serving(args.local or "", os.environ)))
        if args.dry_run or args.as_curl:
            request = endpoint.request("POST", "/v1/messages", body, betas=args.beta)
            standard_output.write(as_curl(request, endpoint) if args.as_curl else dry_run(request))
            standard_output.done()
            return 0
        answer = Answer(args, world, voice, standard_output)
        client = stack.enter_context(_client(args, endpoint, voice, keep_text=args.form in _KEEP_TEXT))
        return answer.deliver(client, body)


class Answer:
    """One answer on its way to its outlets."""

    def __init__(self, args: Args, world: io.World, voice: io.Voice, standard_output: io.Descriptor) -> None:
        self._args = args
        self._voice = voice
        self._timing = output.Timing()
        self._stream: MessageStream | None = None
        self._outlets: list[Outlet] = []
        self._usage_sink: io.Descriptor | None = None
        form = _form(args.form, self._timing, on_terminal=world.terminal[io.STDOUT] and not args.output)
        try:
            self._outlets.append(Outlet(form, io.opened(args.output, atomic=True) if args.output else standard_output))
            if args.events_to:
                self._outlets.append(Outlet(output.Events(), io.opened(args.events_to, atomic=False)))
            if args.usage_to:
                self._usage_sink = io.opened(args.usage_to, atomic=False)
        except OutputError:
            self._close(succeeded=False)
            raise

    def deliver(self, client: Client, body: dict[str, Any]) -> int:
        """Stream the answer to `body`; returns the exit status. Raises Signalled and io.ReaderGone."""
        try:
            self._open(client, body)
            self._pump()
            return self._complete()
        except StreamcliError as error:
            status = self._status(error)
            self._fail(error)
            self._voice.fault(error)
            return status
        except Signalled as end:
            self._fail(SignalError(signal.Signals(end.number).name))
            raise
        except io.ReaderGone:
            self._fail(SignalError("SIGPIPE"))
            raise
        finally:
            if self._stream:
                self._stream.close()

    def _open(self, client: Client, body: dict[str, Any]) -> None:
        fields = {name: value for name, value in body.items() if name != "stream"}
        self._stream = client.messages.stream(betas=self._args.beta, extra_body=fields).__enter__()

    def _pump(self) -> None:
        assert self._stream  # noqa: S101 - opened before
        while True:
            for outlet in self._outlets:
                outlet.form.begin(self._stream.exchange)
            try:
                for data in self._stream.reads():
                    self._pass_on(data, self._stream.exchange)
            except APIError as error:
                if any(outlet.sink.wrote for outlet in self._outlets):
                    raise
                self._stream.retry(error)
            else:
                return

    def _pass_on(self, data: bytes, exchange: Exchange) -> None:
        takers: list[Callable[[Received], None]] = [outlet.form.add for outlet in self._outlets]
        for outlet in self._outlets:
            outlet.form.read(data)
        try:
            for received in exchange.receive(data):
                for take in takers:
                    take(received)
                if self._timing.first_token is None:
                    self._timing.seen(received)
        finally:  # what came before a fault is shown before the fault
            for outlet in self._outlets:
                outlet.flush()

    def _complete(self) -> int:
        assert self._stream  # noqa: S101 - opened before
        self._timing.stop()
        for outlet in self._outlets:
            outlet.form.finish()
            outlet.flush()
        reason = self._stream.exchange.accumulator.stop_reason
        refused = reason in self._args.fail_on
        self._report()
        self._close(succeeded=not refused)
        if refused:
            self._voice.error(f"stop reason {reason} is one of --fail-on")
        elif reason in _WORTH_SAYING:
            self._voice.note(f"stop reason {reason}: {_WORTH_SAYING[reason]}")
        return STOP_REASON_REFUSED if refused else 0

    def _fail(self, error: StreamcliError) -> None:
        self._timing.stop()
        for outlet in self._outlets:
            outlet.form.fail(error)
            with contextlib.suppress(OutputError, io.ReaderGone):
                outlet.flush()
        with contextlib.suppress(OutputError, io.ReaderGone):
            self._report()
        self._close(succeeded=False)

    def _close(self, *, succeeded: bool) -> None:
        sinks = [outlet.sink for outlet in self._outlets] + ([self._usage_sink] if self._usage_sink else [])
        for sink in sinks:
            sink.done() if succeeded else sink.failed()

    def _status(self, error: StreamcliError) -> int:
        if isinstance(error, APIStatusError) and error.in_stream:
            if any(outlet.sink.wrote for outlet in self._outlets):
                return StreamError.exit_code
            return error.exit_code if error.status_code != 200 else InternalServerError.exit_code
        return error.exit_code

    def _report(self) -> None:
        if self._stream is None:
            return
        exchange = self._stream.exchange
        known = output.facts(exchange, self._timing)
        if self._usage_sink:
            self._usage_sink.write(dumps(known) + b"\n")
        if self._args.usage and exchange.accumulator.started:
            counts = {**exchange.accumulator.usage, "duration": known.get("duration")}
            self._voice.line("usage: " + " ".join(f"{key}={text}" for key, text in output.fact_lines(counts)))
        if self._args.verbose:
            self._voice.note(" ".join(f"{key}={known[key]}" for key in _VERBOSE_FACTS if key in known))
            for name, value in self._stream.response.headers.items():
                if name.startswith("anthropic-ratelimit-"):
                    self._voice.note(f"{name}: {value}")


def _form(name: str, timing: output.Timing, *, on_terminal: bool) -> output.Form:
    makers: dict[str, Callable[[], output.Form]] = {
        "text": output.TerminalText if on_terminal else output.Text,
        "events": output.Events,
        "message": output.Final,
        "summary": lambda: output.Summary(timing),
        "snapshots": output.Snapshots,
        "sse": output.Raw,
    }
    return makers[name]()


def _client(args: Args, endpoint: Endpoint, voice: io.Voice, *, keep_text: bool) -> Client:
    proxy = Proxy(args.proxy, "--proxy").checked() if args.proxy else None
    return Client(
        endpoint=endpoint,
        http_client=own_client(endpoint.base_url, proxy=proxy, ca_file=args.ca_file, direct=args.local is not None),
        timeout=httpx.Timeout(args.idle_timeout or None, connect=args.connect_timeout or None, pool=None),
        total_timeout=args.timeout,
        max_retries=args.retries,
        keep_text=keep_text,
        on_retry=lambda error, wait: voice.note(f"retrying in {wait:.1f} s after: {error}"),
    )


def dry_run(request: Request) -> bytes:
    """The request as one JSON object, every secret hidden."""
    headers = {name: "***" if _SECRET_NAME.search(name) else value for name, value in request.headers.items()}
    shown = {"method": request.method, "url": request.url, "headers": headers, "body": loads_exact(request.body)}
    return dumps(shown) + b"\n"


def as_curl(request: Request, endpoint: Endpoint) -> bytes:
    """The request as a shell command that runs as it is, the key taken from the environment."""
    lines = [f"curl -sSN -X {request.method} {shlex.quote(request.url)}"]
    variable = "ANTHROPIC_AUTH_TOKEN" if _is_bearer(endpoint) else "ANTHROPIC_API_KEY"
    for name, value in request.headers.items():
        if _SECRET_NAME.search(name):
            prefix = "Bearer " if value.startswith("Bearer ") else ""
            lines.append(f'-H "{name}: {prefix}${variable}"')
        else:
            lines.append(f"-H {shlex.quote(f'{name}: {value}')}")
    lines.append("--data-binary @- <<'JSON'")
    return " \\\n  ".join(lines).encode() + b"\n" + request.body + b"\nJSON\n"


def _is_bearer(endpoint: Endpoint) -> bool:
    return endpoint.credential is not None and endpoint.credential.scheme == "bearer"
