"""`Args` in, the exit status out: what was asked for is put together and handed to the module that does it.

Contract: whatever is wrong with what was asked for is found before an output is opened or a byte is sent, so that every
file stays as it was.
"""

from __future__ import annotations

import contextlib
import gc
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from streamcli.client import calls
from streamcli.errors import OutputError
from streamcli.network import head_start
from streamcli.output.terminal import one_line
from streamcli.protocol import cache
from streamcli.protocol.jsontext import dumps
from streamcli.protocol.secrets import secrets_of
from streamcli.protocol.userinput import nearest

from . import config, files, io, resolve
from .advice import advice
from .answer import Answer
from .question import Question, put_together, replayed
from .verdict import KNOWN_TO_FAIL_ON

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streamcli.batch.source import Mark
    from streamcli.client.async_client import AsyncClient
    from streamcli.client.client import Client
    from streamcli.protocol.request import Endpoint

    from .args import Args

_KEEP_TEXT = frozenset({"message", "snapshots"})


class Run(NamedTuple):
    """What everything here needs.

    `are_open`: which standard streams are. `stack` closes what is open for as long as the command runs; `reach` makes a
    client's address one that responds, which is the last thing before it asks.
    """

    args: Args
    are_open: Sequence[bool]
    diagnostics: io.Diagnostics
    standard_output: io.Descriptor
    stack: contextlib.ExitStack
    reach: Callable[[Client | AsyncClient], None] = lambda _client: None


def run(args: Args, are_open: Sequence[bool], diagnostics: io.Diagnostics) -> int:
    """Do what was asked for; returns the exit status. Raises StreamcliError or io.Signalled."""
    shows = args.dry_run or args.as_curl or args.show_config
    if not are_open[io.STDOUT] and (shows or not args.output):
        raise OutputError("cannot write to standard output: it is closed")
    standard_output = io.Descriptor(io.STDOUT, "standard output")
    with contextlib.ExitStack() as stack:
        this = Run(args, are_open, diagnostics, standard_output, stack)
        files.check(args)
        for word in sorted(args.fail_on - KNOWN_TO_FAIL_ON):
            near = nearest(word, KNOWN_TO_FAIL_ON)
            what = f"--fail-on {one_line(word)}: not a known stop reason"
            diagnostics.note(f"{what}{near or '; it counts all the same'}")
        if args.show_config:
            from . import show  # noqa: PLC0415 - rarely asked for

            return _print(standard_output, show.settings(args, os.environ))
        if args.local is not None and not shows:
            this = this._replace(reach=_loading(this))
        if args.batch:
            return _batch(this)
        if args.models:
            return _models(this)
        if args.replay:
            endpoint, question = replayed(args.replay, speed=args.replay_speed)
        else:  # a missing key is said before input is waited for
            endpoint, question = _endpoint(this), put_together(args, are_open, diagnostics, stack)
        return _count(this, endpoint, question) if args.count_tokens else _ask(this, endpoint, question)


def _ask(this: Run, endpoint: Endpoint, question: Question) -> int:
    args = this.args
    _advise(this, endpoint, question.loop.body.get("model"))
    request = endpoint.request("POST", "/v1/messages", question.body, betas=args.beta)
    if args.dry_run or args.as_curl:
        from . import show  # noqa: PLC0415 - rarely asked for

        shown = show.as_curl(request, endpoint, args) if args.as_curl else show.dry_run(request)
        return _print(this.standard_output, shown)
    del request
    return _answer(this, endpoint, question)


def _print(sink: io.Descriptor, data: bytes) -> int:
    sink.write(data)
    sink.done()
    return 0


def _endpoint(this: Run) -> Endpoint:
    endpoint = resolve.endpoint(this.args)
    # What goes out with every request is not shown, nor handed to tools.
    credential = [endpoint.credential.header] if endpoint.credential else []
    this.diagnostics.secrets.update(secrets_of([*credential, *endpoint.headers]))
    return endpoint


def _loading(this: Run) -> Callable[[Client | AsyncClient], None]:
    """As `Run.reach`, for the model of --local, which begins to load now."""
    from streamcli.network import local  # noqa: PLC0415 - rarely asked for

    parallel = local.places(this.args.jobs) if this.args.batch else 1
    url = this.stack.enter_context(local.serving(str(this.args.local), os.environ, parallel=parallel))

    def reach(client: Client | AsyncClient) -> None:
        client.endpoint = client.endpoint._replace(base_url=url())

    return reach


def _advise(this: Run, endpoint: Endpoint, model: Any = None) -> None:
    this.diagnostics.advise = lambda error: advice(error, endpoint, model)


def _client(this: Run, endpoint: Endpoint, **options: Any) -> Client:
    """What asks, as everything is checked: TLS may begin, while that is imported."""
    head_start.proceed()
    from . import clients  # noqa: PLC0415 - httpx and all that stands on it

    _end_start()
    return clients.client(this.args, endpoint, this.diagnostics, **options)


def _end_start() -> None:
    gc.freeze()  # see __main__
    gc.enable()


def _answer(this: Run, endpoint: Endpoint, question: Question) -> int:
    args = this.args
    answer = Answer(args, this.diagnostics)
    needed_by = (question.conversation, question.run_tools, args.schema, args.extract)
    client = _client(
        this,
        endpoint,
        keep_text=any(needed_by) or args.output_format in _KEEP_TEXT,
        player=question.player,
        record=answer.record if args.record else None,
    )
    return answer.deliver(client, question, this.standard_output, reach=this.reach)


def _models(this: Run) -> int:
    client, sink = _caller(this, _endpoint(this))
    wanted = [model for model in client.models.list(betas=this.args.beta) if model.get("id")]
    names = b"".join(one_line(str(model["id"])).encode() + b"\n" for model in wanted)
    _keep_for_completions(names)
    full = b"".join(dumps(model) + b"\n" for model in wanted)
    return _print(sink, full if this.args.output_format == "message" else names)


def _keep_for_completions(names: bytes) -> None:
    """Keep the names of models where the shells' completions look for them; if that fails, they offer none."""
    path = config.models_path(os.environ)
    with contextlib.suppress(OutputError, OSError):
        if path:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            file = io.opened(path, atomic=True)
            file.write(names)
            file.done()


def _count(this: Run, endpoint: Endpoint, question: Question) -> int:
    client, sink = _caller(this, endpoint, question.loop.body.get("model"))
    count = client.messages.count_tokens(betas=this.args.beta, extra_body=calls.to_count(question.body))
    tokens = calls.counted(count)
    shown = dumps(count) if this.args.output_format == "message" else str(tokens).encode()
    return _print(sink, shown + b"\n")


def _caller(this: Run, endpoint: Endpoint, model: Any = None) -> tuple[Client, io.Descriptor]:
    """What makes one call of an address that responds, and where what it returns goes, opened before that."""
    _advise(this, endpoint, model)
    client, sink = _client(this, endpoint), this.standard_output
    if this.args.output:
        sink = io.opened(this.args.output, atomic=True, note=lambda made: this.stack.callback(made.failed))
    this.reach(client)
    return client, sink


def _marking(args: Args) -> Mark | None:
    """A function that puts the mark of --cache on each request of a batch, after what it shares with the others."""
    lifetime = args.cache
    if not lifetime:
        return None

    def marked(params: dict[str, Any], own: Mapping[str, Any] | None) -> dict[str, Any]:
        place = cache.front(params, question=own is None, own=own or ())
        return cache.checked(cache.Marks(lifetime, place).on(params))

    return marked


def _batch(this: Run) -> int:
    from . import batch  # noqa: PLC0415 - asyncio

    _end_start()
    args = this.args
    defaults = resolve.settle(args, resolve.fields(args))
    compose = resolve.composer(args)

    def message(prompt: str) -> dict[str, Any]:
        return compose(prompt) or {"role": "user", "content": prompt}

    endpoint = _endpoint(this)
    _advise(this, endpoint, defaults.get("model"))
    return batch.run(
        args,
        this.are_open,
        this.diagnostics,
        this.standard_output,
        endpoint=endpoint,
        defaults=defaults,
        compose=message,
        mark=_marking(args),
        reach=this.reach,
    )
