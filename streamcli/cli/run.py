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
from urllib.parse import urlsplit

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
from streamcli.request import Endpoint, holds_credential, is_loopback, is_secret, without_secrets
from streamcli.tape import Player, Recorder
from streamcli.transport import Proxy, environment_proxy, own_client

from . import io, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamcli.client import MessageStream
    from streamcli.exchange import Exchange, Received
    from streamcli.request import Request

    from .args import Args

# Endings that leave the answer short, though it is complete (protocol.md section 4.7).
_WORTH_SAYING = {
    "max_tokens": "the answer was cut at --max-tokens",
    "refusal": "the model refused",
    "pause_turn": "the model paused its turn",
    "model_context_window_exceeded": "the context window is full",
}


# What -H sends may be shorter, but hidden wherever it stands in a message it would hide common words.
_SHORTEST_SECRET = 8
_KEEP_TEXT = frozenset({"message", "snapshots"})
_VERBOSE_FACTS = ("request_id", "time_to_first_token", "duration")


class Signalled(BaseException):
    """A signal that ends the run."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class SignalError(StreamcliError):
    """The run was ended by a signal; `message` is its name."""

    code = "interrupted"


class StopReasonError(StreamcliError):
    """The message is complete and its stop reason one of --fail-on."""

    exit_code = 9
    code = "stop_reason"


class Outlet(NamedTuple):
    """A form and where it goes."""

    form: output.Form
    sink: io.Descriptor

    def flush(self) -> None:
        """Write what the form has to say now: one write for one network read."""
        self.sink.write(self.form.take())

    def fail(self, error: StreamcliError, voice: io.Voice) -> None:
        """Write what the form says of `error`."""
        self.form.fail(error)
        self.sink.write(voice.without_secrets(self.form.take()))


def run(args: Args, world: io.World, voice: io.Voice) -> int:
    """Do what was asked; returns the exit status. Raises StreamcliError, Signalled or io.ReaderGone."""
    standard_output = world.standard_output(used=not args.output or args.dry_run or args.as_curl)
    with contextlib.ExitStack() as stack:
        endpoint, body = _question(args, world, voice, stack)
        # Whatever is wrong with the asking is found before an output is opened, so that every file stays as it was.
        request = endpoint.request("POST", "/v1/messages", body, betas=args.beta)
        voice.secrets |= _secrets(request)
        if args.dry_run or args.as_curl:
            standard_output.write(as_curl(request, endpoint) if args.as_curl else dry_run(request))
            standard_output.done()
            return 0
        del request
        client = stack.enter_context(_client(args, endpoint, voice, lambda line: answer.record(line)))  # noqa: PLW0108 - there is none yet
        answer = Answer(args, voice, standard_output)
        return answer.deliver(client, body)


def _question(
    args: Args, world: io.World, voice: io.Voice, stack: contextlib.ExitStack
) -> tuple[Endpoint, dict[str, Any]]:
    """Where to ask and what. The cheap and the certain come first: a missing key is said before input is waited for."""
    if args.replay:
        return Endpoint("http://localhost", None), {}
    if args.local is None:
        endpoint = resolve.endpoint(args)
        if endpoint.credential:
            voice.secrets.add(endpoint.credential.secret)
        return endpoint, resolve.body(args, world, voice)
    body = resolve.body(args, world, voice)
    return resolve.endpoint(args, stack.enter_context(local.serving(args.local, os.environ))), body


def _secrets(request: Request) -> set[str]:
    """What the headers hold that must not be shown."""
    values = " ".join(value for name, value in request.headers.items() if is_secret(name))
    return {word for word in values.split() if len(word) >= _SHORTEST_SECRET}


class Answer:
    """One answer on its way to its outlets."""

    def __init__(self, args: Args, voice: io.Voice, standard_output: io.Descriptor) -> None:
        self._args = args
        self._voice = voice
        self._timing = output.Timing()
        self._stream: MessageStream | None = None
        self._outlets: list[Outlet] = []
        self._usage_sink: io.Descriptor | None = None
        self._tape: io.Descriptor | None = None
        form = _form(args.form, self._timing)
        try:
            self._let_out(form, io.opened(args.output, atomic=True) if args.output else standard_output)
            if args.events_to:
                self._let_out(output.Events(), io.opened(args.events_to, atomic=False))
            if args.usage_to:
                self._usage_sink = io.opened(args.usage_to, atomic=False)
            if args.record:
                self._tape = io.opened(args.record, atomic=False)
        except OutputError:
            self._close(succeeded=False)
            raise

    def _let_out(self, form: output.Form, sink: io.Descriptor) -> None:
        self._outlets.append(Outlet(output.OnTerminal(form) if os.isatty(sink.fd) else form, sink))

    def record(self, line: bytes) -> None:
        """Write a line of the tape."""
        if self._tape:
            self._tape.write(self._voice.without_secrets(line))

    def deliver(self, client: Client, body: dict[str, Any]) -> int:
        """Stream the answer to `body`; returns the exit status. Raises Signalled and io.ReaderGone."""
        try:
            self._open(client, body)
            self._pump()
            return self._complete()
        except StreamcliError as error:
            status = self._status(error)
            self._fail(error)
            self._voice.fault(error, status)
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
            self._voice.fault(StopReasonError(f"stop reason {reason} is one of --fail-on"))
        elif reason in _WORTH_SAYING:
            self._voice.note(f"stop reason {reason}: {_WORTH_SAYING[reason]}")
        return StopReasonError.exit_code if refused else 0

    def _fail(self, error: StreamcliError) -> None:
        self._timing.stop()
        for outlet in self._outlets:
            with contextlib.suppress(OutputError, io.ReaderGone):
                outlet.fail(error, self._voice)
        with contextlib.suppress(OutputError, io.ReaderGone):
            self._report()
        self._close(succeeded=False)

    def _close(self, *, succeeded: bool) -> None:
        if self._stream:
            self._stream.close()  # the tape's last line is written by this
        for sink in (*(outlet.sink for outlet in self._outlets), self._usage_sink, self._tape):
            if sink:
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


def _form(name: str, timing: output.Timing) -> output.Form:
    makers: dict[str, Callable[[], output.Form]] = {
        "text": output.Text,
        "events": output.Events,
        "message": output.Final,
        "summary": lambda: output.Summary(timing),
        "snapshots": output.Snapshots,
        "sse": output.Raw,
    }
    return makers[name]()


def _client(args: Args, endpoint: Endpoint, voice: io.Voice, record: Callable[[bytes], None]) -> Client:
    return Client(
        endpoint=endpoint,
        http_client=_http(args, endpoint, record),
        timeout=httpx.Timeout(args.idle_timeout or None, connect=args.connect_timeout or None, pool=None),
        total_timeout=args.timeout or None,
        max_retries=args.retries,
        keep_text=args.form in _KEEP_TEXT,
        on_retry=lambda error, wait: voice.note(f"retrying in {wait:.1f} s after: {error}"),
    )


def _http(args: Args, endpoint: Endpoint, record: Callable[[bytes], None]) -> httpx.Client:
    if args.replay:
        lines = io.read_file(args.replay, "the tape").splitlines()
        return httpx.Client(transport=Player(lines, speed=args.replay_speed), trust_env=False)
    direct = args.local is not None
    proxy = None if direct else _proxy(args, endpoint)

    def around(transport: httpx.BaseTransport) -> httpx.BaseTransport:
        return Recorder(transport, record) if args.record else transport

    return own_client(endpoint.base_url, proxy=proxy, ca_file=args.ca_file, direct=direct, around=around)


def _proxy(args: Args, endpoint: Endpoint) -> Proxy | None:
    """The proxy to go through. Raises UsageError for one on another machine that would be handed a key in clear."""
    url = endpoint.base_url
    proxy = Proxy(args.proxy, "--proxy").checked() if args.proxy else environment_proxy(url, os.environ)
    in_clear = urlsplit(url).scheme == "http" and (endpoint.credential or holds_credential(endpoint.headers))
    if proxy and in_clear and not args.allow_http and not is_loopback(proxy.url):
        host = urlsplit(proxy.url).hostname
        raise UsageError(f"{proxy.source} takes plain http to {host}: the key would be readable there; see NO_PROXY")
    return proxy


def dry_run(request: Request) -> bytes:
    """The request as one JSON object, every secret hidden."""
    headers = without_secrets(request.headers.items())
    shown = {"method": request.method, "url": request.url, "headers": headers, "body": loads_exact(request.body)}
    return dumps(shown) + b"\n"


def as_curl(request: Request, endpoint: Endpoint) -> bytes:
    """The request as a shell command that runs as it is, the key taken from the environment."""
    lines = [f"curl -sSN -X {request.method} {shlex.quote(request.url)}"]
    for name, value in request.headers.items():
        if is_secret(name):
            prefix = "Bearer " if value.startswith("Bearer ") else ""
            lines.append(f'-H "{name}: {prefix}${_variable(name, endpoint)}"')
        else:
            lines.append(f"-H {shlex.quote(f'{name}: {value}')}")
    lines.append("--data-binary @- <<'JSON'")
    return " \\\n  ".join(lines).encode() + b"\n" + request.body + b"\nJSON\n"


def _variable(name: str, endpoint: Endpoint) -> str:
    """The environment variable that stands for the secret in a header: the one it came from, if that is known."""
    variables = {"x-api-key": "ANTHROPIC_API_KEY", "authorization": "ANTHROPIC_AUTH_TOKEN"}
    if endpoint.credential and name == endpoint.credential.header[0]:
        for variable in variables.values():
            if os.environ.get(variable, "").strip() == endpoint.credential.secret:
                return variable
    return variables.get(name) or re.sub(r"\W", "_", name).upper()
