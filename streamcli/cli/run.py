"""`Args` in, the exit status out: what was asked is put together and handed to who does it.

Contract: whatever is wrong with the asking is found before an output is opened or a byte is sent, so that every file
stays as it was. Source: design.md section 2.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from streamcli import local
from streamcli.client import Client
from streamcli.errors import UsageError
from streamcli.jsontext import dumps
from streamcli.request import Endpoint, is_secret
from streamcli.tape import Player, Recorder, TapeTurns
from streamcli.transport import own_client, proxy_for
from streamcli.turn import Turns

from . import io, resolve
from .answer import Answer, Question

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streamcli.conversation import Conversation
    from streamcli.request import Request
    from streamcli.tools import Program

    from .args import Args

    Record = Callable[[bytes], None]

# What -H sends may be shorter, but hidden wherever it stands in a message it would hide common words.
_SHORTEST_SECRET = 8
_KEEP_TEXT = frozenset({"message", "snapshots"})
# What a request is counted without (protocol.md section 8.2).
_UNCOUNTED = frozenset(
    {"max_tokens", "stream", "stop_sequences", "temperature", "top_p", "top_k", "metadata", "service_tier"}
    | {"container", "inference_geo", "diagnostics", "fallbacks", "fallback_credit_token", "thread"}
)


class Run(NamedTuple):
    """What everything here needs; `stack` closes what is open for as long as the command runs."""

    args: Args
    world: io.World
    voice: io.Voice
    standard_output: io.Descriptor
    stack: contextlib.ExitStack


def run(args: Args, world: io.World, voice: io.Voice) -> int:
    """Do what was asked; returns the exit status. Raises StreamcliError, io.Signalled or io.ReaderGone."""
    shows = args.dry_run or args.as_curl or args.count_tokens or args.models or args.show_config
    standard_output = world.standard_output(used=not args.output or shows)
    with contextlib.ExitStack() as stack:
        this = Run(args, world, voice, standard_output, stack)
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
    request = endpoint.request("POST", "/v1/messages", question.turns.body, betas=args.beta)
    this.voice.secrets |= _secrets(request)
    if args.dry_run or args.as_curl:
        from . import show  # noqa: PLC0415

        return _print(this, show.as_curl(request, endpoint) if args.as_curl else show.dry_run(request))
    del request
    return _answer(this, endpoint, question)


def _print(this: Run, data: bytes) -> int:
    this.standard_output.write(data)
    this.standard_output.done()
    return 0


def _asked(this: Run) -> tuple[Endpoint, Question]:
    """Where to ask and what. The cheap and the certain come first: a missing key is said before input is waited for."""
    if this.args.replay:
        lines = io.read_file(this.args.replay, "the tape").splitlines()
        turns = TapeTurns(Player(lines, speed=this.args.replay_speed))
        return Endpoint("http://localhost", None), Question(turns, run_tools=turns.results)
    if this.args.local is None:
        endpoint = _endpoint(this)
        return endpoint, _question(this)
    question = _question(this)
    return _endpoint(this), question


def _endpoint(this: Run, *, parallel: int = 1) -> Endpoint:
    if this.args.local is not None:
        served = local.serving(this.args.local, os.environ, parallel=parallel)
        return resolve.endpoint(this.args, this.stack.enter_context(served))
    endpoint = resolve.endpoint(this.args)
    if endpoint.credential:
        this.voice.secrets.add(endpoint.credential.secret)
    return endpoint


def _question(this: Run) -> Question:
    args = this.args
    compose = resolve.composer(args)
    asked = compose(resolve.text_of_stdin(args, this.world, this.voice))
    programs, run_tools = _programs(this)
    conversation = _conversation(this)
    earlier = conversation.messages if conversation else []
    if conversation and asked:
        asked = conversation.user_message(asked["content"])
    elif earlier and earlier[-1]["role"] == "assistant":
        raise UsageError(f"no prompt, and {args.conversation} ends with an answer: there is nothing to ask")
    body = resolve.body(args, asked, earlier=earlier, tools=[program.definition for program in programs])
    turns = Turns(body, [program.definition["name"] for program in programs], max_turns=args.max_turns)
    return Question(turns, asked, run_tools, conversation)


def _programs(this: Run) -> tuple[list[Program], Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]] | None]:
    """The tools that can be run, and a function that runs what is called."""
    args = this.args
    if not args.tool:
        return [], None
    from streamcli import tools  # noqa: PLC0415 - for who has some

    environment = tools.clean_environment(os.environ, this.voice.secrets)
    programs = tools.described(args.tool, environment=environment, timeout=args.tool_timeout or None)

    def run_tools(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return tools.results(calls, programs, environment=environment, timeout=args.tool_timeout or None)

    return programs, run_tools


def _conversation(this: Run) -> Conversation | None:
    path = this.args.conversation
    if path is None:
        return None
    from streamcli.conversation import Conversation  # noqa: PLC0415 - for who has one

    opened = Conversation(path, busy=lambda: this.voice.note(f"waiting for {path}: another run holds it"))
    conversation = this.stack.enter_context(opened)
    for note in conversation.notes:
        this.voice.note(note)
    return conversation


def _secrets(request: Request) -> set[str]:
    """What the headers hold that must not be shown."""
    values = " ".join(value for name, value in request.headers.items() if is_secret(name))
    return {word for word in values.split() if len(word) >= _SHORTEST_SECRET}


def _answer(this: Run, endpoint: Endpoint, question: Question) -> int:
    args, voice = this.args, this.voice
    turns = question.turns
    http = httpx.Client(transport=turns.player, trust_env=False) if isinstance(turns, TapeTurns) else None
    keeps = args.form in _KEEP_TEXT or bool(args.schema or question.conversation or turns.body.get("tools"))
    client = this.stack.enter_context(
        _client(args, endpoint, voice, lambda line: answer.record(line), keep_text=keeps, http=http)  # noqa: PLW0108 - there is none yet
    )
    answer = Answer(args, voice, this.standard_output)
    return answer.deliver(client, question)


def _client(
    args: Args,
    endpoint: Endpoint,
    voice: io.Voice,
    record: Record | None = None,
    *,
    keep_text: bool = True,
    http: httpx.Client | None = None,
) -> Client:
    return Client(
        endpoint=endpoint,
        http_client=http or _http(args, endpoint, record),
        timeout=httpx.Timeout(args.idle_timeout or None, connect=args.connect_timeout or None, pool=None),
        total_timeout=args.timeout or None,
        max_retries=args.retries,
        keep_text=keep_text,
        on_retry=lambda error, wait: voice.note(f"retrying in {wait:.1f} s after: {error}"),
    )


def _http(args: Args, endpoint: Endpoint, record: Record | None) -> httpx.Client:
    proxy = None if args.local is not None else proxy_for(endpoint, named=args.proxy, allow_http=args.allow_http)

    def around(transport: httpx.BaseTransport) -> httpx.BaseTransport:
        return Recorder(transport, record) if args.record and record else transport

    return own_client(proxy=proxy, ca_file=args.ca_file, around=around)


def _models(this: Run) -> int:
    args, endpoint = this.args, _endpoint(this)
    with _client(args, endpoint, this.voice) as client:
        for model in client.models.list(betas=args.beta):
            line = dumps(model) if args.form == "message" else str(model.get("id", "")).encode()
            this.standard_output.write(line + b"\n")
    this.standard_output.done()
    return 0


def _count(this: Run, endpoint: Endpoint, question: Question) -> int:
    args = this.args
    counted = {name: value for name, value in question.turns.body.items() if name not in _UNCOUNTED}
    with _client(args, endpoint, this.voice) as client:
        count = client.messages.count_tokens(betas=args.beta, **counted)
    shown = dumps(count) if args.form == "message" else str(count.get("input_tokens")).encode()
    return _print(this, shown + b"\n")


def _batch(this: Run) -> int:
    from . import many  # noqa: PLC0415 - asyncio

    args = this.args
    defaults = resolve.settle(args, resolve.fields(args))
    compose = resolve.composer(args)

    def message(prompt: str) -> dict[str, Any]:
        return compose(prompt) or {"role": "user", "content": prompt}

    endpoint = _endpoint(this, parallel=min(args.jobs, os.cpu_count() or 1))
    return many.run(args, this.world, this.voice, endpoint, defaults, message, this.standard_output)
