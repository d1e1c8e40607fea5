"""`Args` in, the exit status out: what was asked is put together and handed to who does it.

Contract: whatever is wrong with the asking is found before an output is opened or a byte is sent, so that every file
stays as it was. Source: design.md section 2.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from streamcli.client.client import Client
from streamcli.errors import UnexpectedResponseError, UsageError
from streamcli.network import local
from streamcli.network.proxy import proxy_for
from streamcli.network.tape import Player, Recorder, TapeTurns
from streamcli.network.transport import own_client
from streamcli.output.terminal import one_line
from streamcli.protocol.jsontext import dumps
from streamcli.protocol.request import Endpoint, is_secret
from streamcli.turns.turn import Turns

from . import io, resolve
from .answer import Answer, Question

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streamcli.turns.conversation import Conversation
    from streamcli.turns.tools import Program

    from .args import Args

    Record = Callable[[bytes], None]

# What is shorter is no secret but a word, as for a server that wants any key, and hidden wherever it stands it would
# spoil messages and tapes.
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
        _check_files(args)
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
    if args.dry_run or args.as_curl:
        from . import show  # noqa: PLC0415

        return _print(this, show.as_curl(request, endpoint, args) if args.as_curl else show.dry_run(request))
    del request
    return _answer(this, endpoint, question)


def _check_files(args: Args) -> None:
    """Raise UsageError where a file would be written by two, or written while it is read."""
    written = {"--output": args.output, "--usage-to": args.usage_to, "--events-to": args.events_to}
    written |= {"--record": args.record, "--conversation": args.conversation}
    kept = {"--replay": args.replay, "--config": args.config, "--batch": args.batch}
    seen: dict[str, str] = {}
    for name, path in (written | kept).items():
        if path is None or path == "-" or (os.path.exists(path) and not os.path.isfile(path)):
            continue
        other = seen.setdefault(os.path.realpath(path), name)
        if other != name and not {name, other} <= kept.keys():
            raise UsageError(f"{other} and {name} both name {path}")


def _print(this: Run, data: bytes, path: str | None = None) -> int:
    sink = io.opened(path, atomic=True) if path else this.standard_output
    try:
        sink.write(data)
        sink.done()
    except BaseException:
        sink.failed()
        raise
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
    this.diagnostics.secrets |= _secrets(endpoint)
    return endpoint


def _question(this: Run) -> Question:
    args = this.args
    compose = resolve.composer(args)
    prompt = compose(resolve.text_of_stdin(args, this.streams, this.diagnostics))
    programs, run_tools = _programs(this)
    fields = resolve.fields(args, [program.definition for program in programs])
    asked = [*fields.pop("messages", ()), *([prompt] if prompt else ())]
    conversation = _conversation(this)
    if conversation:
        asked = _next_turn(conversation, asked)
    body = resolve.body(args, fields, [*(conversation.messages if conversation else ()), *asked])
    turns = Turns(body, [program.definition["name"] for program in programs], max_turns=args.max_turns)
    return Question(turns, asked, run_tools, conversation)


def _next_turn(conversation: Conversation, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is asked, as it goes on with the conversation: calls that were left open are answered first."""
    if not asked:
        if conversation.messages and conversation.messages[-1]["role"] == "assistant":
            raise UsageError(f"no prompt, and {conversation.path} ends with an answer: there is nothing to ask")
        return []
    first, *others = asked
    content = first.get("content")
    answers = isinstance(content, list) and any(
        isinstance(block, dict) and block.get("type") == "tool_result" for block in content
    )
    return asked if answers or first.get("role") != "user" else [conversation.user_message(content or ""), *others]


def _programs(this: Run) -> tuple[list[Program], Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]] | None]:
    """The tools that can be run, and a function that runs what is called."""
    args = this.args
    if not args.tool:
        return [], None
    from streamcli.turns import tools  # noqa: PLC0415 - for who has some

    environment = tools.clean_environment(os.environ, this.diagnostics.secrets)
    programs = tools.described(args.tool, environment=environment, timeout=args.tool_timeout or None)

    def run_tools(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return tools.results(calls, programs, environment=environment, timeout=args.tool_timeout or None)

    return programs, run_tools


def _conversation(this: Run) -> Conversation | None:
    path = this.args.conversation
    if path is None:
        return None
    if any(re.match(r"messages\b", setting) for setting in this.args.set):
        raise UsageError("--set messages and --conversation exclude each other")
    from streamcli.turns.conversation import Conversation  # noqa: PLC0415 - for who has one

    opened = Conversation(path, busy=lambda: this.diagnostics.note(f"waiting for {path}: another run holds it"))
    conversation = this.stack.enter_context(opened)
    for note in conversation.notes:
        this.diagnostics.note(note)
    return conversation


def _secrets(endpoint: Endpoint) -> set[str]:
    """What goes out with every request and must not be shown, nor be handed to tools."""
    values = [value for name, value in endpoint.headers if is_secret(name)]
    keys = [endpoint.credential.secret] if endpoint.credential else []
    return {word for word in (*keys, *" ".join(values).split()) if len(word) >= _SHORTEST_SECRET}


def _answer(this: Run, endpoint: Endpoint, question: Question) -> int:
    args, diagnostics = this.args, this.diagnostics
    turns = question.turns
    http = httpx.Client(transport=turns.player, trust_env=False) if isinstance(turns, TapeTurns) else None
    keeps = args.output_format in _KEEP_TEXT or bool(
        args.schema or args.extract or question.conversation or question.run_tools
    )
    client = this.stack.enter_context(
        _client(args, endpoint, diagnostics, lambda line: answer.record(line), keep_text=keeps, http=http)  # noqa: PLW0108 - there is none yet
    )
    answer = Answer(args, diagnostics, this.standard_output)
    return answer.deliver(client, question)


def _client(
    args: Args,
    endpoint: Endpoint,
    diagnostics: io.Diagnostics,
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
        on_retry=lambda error, wait: diagnostics.note(f"retrying in {wait:.1f} s after: {error}"),
    )


def _http(args: Args, endpoint: Endpoint, record: Record | None) -> httpx.Client:
    proxy = None if args.local is not None else proxy_for(endpoint, named=args.proxy, allow_http=args.allow_http)

    def around(transport: httpx.BaseTransport) -> httpx.BaseTransport:
        return Recorder(transport, record) if args.record and record else transport

    return own_client(proxy=proxy, ca_file=args.ca_file, around=around)


def _models(this: Run) -> int:
    args, endpoint = this.args, _endpoint(this)
    with _client(args, endpoint, this.diagnostics) as client:
        models = list(client.models.list(betas=args.beta))
    wanted = [model for model in models if model.get("id")]
    lines = [
        dumps(model) if args.output_format == "message" else one_line(str(model["id"])).encode() for model in wanted
    ]
    return _print(this, b"".join(line + b"\n" for line in lines), args.output)


def _count(this: Run, endpoint: Endpoint, question: Question) -> int:
    args = this.args
    counted = {name: value for name, value in question.turns.body.items() if name not in _UNCOUNTED}
    with _client(args, endpoint, this.diagnostics) as client:
        count = client.messages.count_tokens(betas=args.beta, **counted)
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
    return batch.run(args, this.streams, this.diagnostics, endpoint, defaults, message, this.standard_output)
