"""`Args` in, the exit status out: what was asked is put together and handed to who does it.

Contract: whatever is wrong with the asking is found before an output is opened or a byte is sent, so that every file
stays as it was.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from streamcli.errors import UnexpectedResponseError
from streamcli.network import local
from streamcli.network.tape import TapeTurns
from streamcli.output.terminal import one_line
from streamcli.protocol.jsontext import dumps
from streamcli.protocol.request import Endpoint
from streamcli.protocol.secrets import secrets_of
from streamcli.turns.signals import signals_held

from . import clients, files, io, resolve
from .advice import advice
from .answer import Answer
from .question import Question, put_together, replayed

if TYPE_CHECKING:
    from .args import Args

_KEEP_TEXT = frozenset({"message", "snapshots"})
# What a request is counted without (streamcli(7), section "Token counts").
_UNCOUNTED = frozenset(
    {"max_tokens", "stream", "stop_sequences", "temperature", "top_p", "top_k", "metadata", "service_tier"}
    | {"container", "inference_geo", "diagnostics", "fallbacks", "fallback_credit_token", "thread"}
)


class Run(NamedTuple):
    """What everything here needs; `stack` closes what is open for as long as the command runs."""

    args: Args
    streams: io.StandardStreams
    diagnostics: io.Diagnostics
    standard_output: io.Descriptor
    stack: contextlib.ExitStack


def run(args: Args, streams: io.StandardStreams, diagnostics: io.Diagnostics) -> int:
    """Do what was asked; returns the exit status. Raises StreamcliError, io.Signalled or io.ReaderGone."""
    shows = args.dry_run or args.as_curl or args.show_config
    standard_output = streams.standard_output(used=not args.output or shows)
    with contextlib.ExitStack() as stack:
        this = Run(args, streams, diagnostics, standard_output, stack)
        files.check(args)
        if args.show_config:
            from . import show  # noqa: PLC0415 - for who wants to see

            return _print(this, show.settings(args, os.environ))
        if args.batch:
            return _batch(this)
        if args.models:
            return _models(this)
        endpoint, question = _asked(this)
        return _count(this, endpoint, question) if args.count_tokens else _ask(this, endpoint, question)


def _ask(this: Run, endpoint: Endpoint, question: Question) -> int:
    args = this.args
    _advise(this, endpoint, question.loop.body.get("model"))
    request = endpoint.request("POST", "/v1/messages", question.loop.body, betas=args.beta)
    if args.dry_run or args.as_curl:
        from . import show  # noqa: PLC0415

        return _print(this, show.as_curl(request, endpoint, args) if args.as_curl else show.dry_run(request))
    del request
    return _answer(this, endpoint, question)


def _print(this: Run, data: bytes, path: str | None = None) -> int:
    sink = this.standard_output
    if path:
        sink = io.opened(path, atomic=True, note=lambda made: this.stack.callback(made.failed))
    sink.write(data)
    sink.done()
    return 0


def _asked(this: Run) -> tuple[Endpoint, Question]:
    """Where to ask and what.

    The cheap and the certain come first: a missing key is said before input is waited for, a model is loaded last.
    """
    args = this.args
    if args.replay:
        return Endpoint("http://localhost", None), replayed(args.replay, speed=args.replay_speed)
    endpoint = _endpoint(this) if args.local is None else None
    question = put_together(args, this.streams, this.diagnostics, this.stack)
    return endpoint or _endpoint(this), question


def _endpoint(this: Run, *, parallel: int = 1) -> Endpoint:
    url = None
    if this.args.local is not None:
        with signals_held():  # the model's threads take none; its loading heeds none anyway
            url = this.stack.enter_context(local.serving(this.args.local, os.environ, parallel=parallel))
    endpoint = resolve.endpoint(this.args, url)
    # What goes out with every request is not shown, nor handed to tools.
    credential = [endpoint.credential.header] if endpoint.credential else []
    this.diagnostics.secrets.update(secrets_of([*credential, *endpoint.headers]))
    return endpoint


def _advise(this: Run, endpoint: Endpoint, model: Any = None) -> None:
    this.diagnostics.advise = lambda error: advice(error, endpoint, model)


def _answer(this: Run, endpoint: Endpoint, question: Question) -> int:
    args, diagnostics = this.args, this.diagnostics
    answer = Answer(args, diagnostics)
    client = clients.client(
        args,
        endpoint,
        diagnostics,
        keep_text=question.needs_text or bool(args.schema or args.extract) or args.output_format in _KEEP_TEXT,
        player=question.loop.player if isinstance(question.loop, TapeTurns) else None,
        record=answer.record if args.record else None,
    )
    return answer.deliver(client, question, this.standard_output)


def _models(this: Run) -> int:
    args, endpoint = this.args, _endpoint(this)
    _advise(this, endpoint)
    models = list(clients.client(args, endpoint, this.diagnostics).models.list(betas=args.beta))
    wanted = [model for model in models if model.get("id")]
    lines = [
        dumps(model) if args.output_format == "message" else one_line(str(model["id"])).encode() for model in wanted
    ]
    return _print(this, b"".join(line + b"\n" for line in lines), args.output)


def _count(this: Run, endpoint: Endpoint, question: Question) -> int:
    args = this.args
    _advise(this, endpoint, question.loop.body.get("model"))
    counted = {name: value for name, value in question.loop.body.items() if name not in _UNCOUNTED}
    count = clients.client(args, endpoint, this.diagnostics).messages.count_tokens(betas=args.beta, **counted)
    if not isinstance(count.get("input_tokens"), int):
        raise UnexpectedResponseError("the answer holds no count of input_tokens")
    shown = dumps(count) if args.output_format == "message" else str(count["input_tokens"]).encode()
    return _print(this, shown + b"\n", args.output)


def _batch(this: Run) -> int:
    from . import batch  # noqa: PLC0415 - asyncio

    args = this.args
    defaults = resolve.settle(args, resolve.fields(args))
    compose = resolve.composer(args)

    def message(prompt: str) -> dict[str, Any]:
        return compose(prompt) or {"role": "user", "content": prompt}

    endpoint = _endpoint(this, parallel=min(args.jobs, os.cpu_count() or 1))
    _advise(this, endpoint, defaults.get("model"))
    return batch.run(args, this.streams, this.diagnostics, endpoint, defaults, message, this.standard_output)
