"""`Args` and the environment in; what is asked out: the first request, who runs tools, the conversation's file.

Contract: standard input is read, programs describe themselves and the conversation is held here; nothing is sent.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from streamcli.errors import UsageError
from streamcli.protocol import cache
from streamcli.protocol.request import Credential, Endpoint, checked_base_url, is_loopback
from streamcli.turns.tool_loop import ToolLoop

from . import io, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import ExitStack

    from streamcli.network.tape import Player, TapeTurns
    from streamcli.turns.conversation import Conversation
    from streamcli.turns.tools import Program

    from .args import Args

    RunTools = Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]


_SCHEMES = {"x-api-key": "x-api-key", "authorization": "bearer"}


class Question(NamedTuple):
    """What is asked, and what follows from the answer: the loop of turns, who runs tools, the file that remembers."""

    loop: ToolLoop | TapeTurns
    asked: Sequence[dict[str, Any]] = ()
    run_tools: RunTools | None = None
    conversation: Conversation | None = None
    # Whether a person is shown each call that can be run, and asked.
    confirms: bool = False
    marks: cache.Marks | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The body of the next request."""
        return self.marks.on(self.loop.body) if self.marks else self.loop.body

    @property
    def player(self) -> Player | None:
        """What answers instead of a server."""
        return None if isinstance(self.loop, ToolLoop) else self.loop.player


def replayed(path: str, *, speed: float) -> tuple[Endpoint, Question]:
    """The question of a tape, and where it was asked. Raises UsageError for a file that is not one."""
    from streamcli.network.tape import Player, TapeTurns  # noqa: PLC0415 - httpx

    loop = TapeTurns(Player(io.read_file(path, "the tape").splitlines(), speed=speed))
    return _place(loop.player.request), Question(loop, run_tools=loop.results)


def _place(request: Mapping[str, Any]) -> Endpoint:
    """Where a request on a tape went, as far as messages speak of it; the key is not on the tape."""
    headers = request.get("headers")
    names = headers.keys() if isinstance(headers, dict) else ()
    scheme = next((scheme for name, scheme in _SCHEMES.items() if name in names), None)
    credential = Credential(scheme, "***") if scheme else None
    with contextlib.suppress(UsageError):
        url = checked_base_url(str(request.get("url")), source="the tape", has_credential=False, allow_http=True)
        if credential or is_loopback(url):
            return Endpoint(url, credential)
    return Endpoint("http://localhost", None)


def put_together(args: Args, are_open: Sequence[bool], diagnostics: io.Diagnostics, stack: ExitStack) -> Question:
    """The question that the options ask; `stack` closes its conversation. Raises UsageError or OutputError."""
    confirms = args.confirm and bool(args.tool)
    may_run = _asker(diagnostics, stack) if confirms else lambda *_: True
    compose = resolve.composer(args)
    text = resolve.text_of_stdin(args, are_open, diagnostics)
    prompt = compose(text)
    programs, run_tools = _programs(args, diagnostics, may_run)
    fields = resolve.fields(args, [program.definition for program in programs])
    given = fields.pop("messages", [])
    asked = [*given, *([prompt] if prompt else ())]
    conversation = _conversation(args, diagnostics, stack)
    if conversation:
        conversation.check(given, f"--body {args.body}")
        asked = _next_turn(conversation, asked)
    body = resolve.body(args, fields, [*(conversation.messages if conversation else ()), *asked])
    if args.show_sources and args.attach and not resolve.documents(asked):
        diagnostics.note("no attachment can be cited: only documents can, and text is one only for Anthropic's API")
    runnable = [program.definition["name"] for program in programs]
    loop = ToolLoop(body, runnable, max_turns=args.max_turns, fallbacks=_fallbacks(args, body))
    question = 0 if prompt and not resolve.has_question(args, text) else 1
    return Question(loop, asked, run_tools, conversation, confirms, _marks(args, body, question))


def _marks(args: Args, body: Mapping[str, Any], question: int) -> cache.Marks | None:
    """What --cache marks in the requests that begin with `body`, which ends with so many blocks of a question."""
    if not args.cache:
        return None
    marks = cache.Marks(args.cache, cache.front(body, question=question), bool(args.conversation or args.tool))
    try:
        cache.checked(marks.on(body))
    except ValueError as fault:
        raise UsageError(f"--cache: the request {fault}") from None
    return marks


def _fallbacks(args: Args, body: Mapping[str, Any]) -> Sequence[str]:
    asked = [body.get("model"), *args.fallback_model]
    twice = next((name for name in args.fallback_model if asked.count(name) > 1), None)
    if twice:
        raise UsageError(f"--fallback-model {twice} would be asked twice: name another model")
    return args.fallback_model


def _next_turn(conversation: Conversation, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is asked, as it goes on with the conversation: calls that were left open are answered first."""
    if not asked:
        if conversation.messages and conversation.messages[-1]["role"] == "assistant":
            raise UsageError(f"no prompt, and {conversation.path} ends with an answer: say what to ask")
        return []
    first, *others = asked
    content = first.get("content")
    answers = isinstance(content, list) and any(block.get("type") == "tool_result" for block in content)
    return asked if answers or first.get("role") != "user" else [conversation.user_message(content or ""), *others]


def _asker(diagnostics: io.Diagnostics, stack: ExitStack) -> Callable[[str, bytes], bool]:
    from . import confirm  # noqa: PLC0415 - rarely asked for

    return confirm.asker(diagnostics, stack)


def _programs(
    args: Args, diagnostics: io.Diagnostics, may_run: Callable[[str, bytes], bool]
) -> tuple[list[Program], RunTools | None]:
    """The tools that can be run, and a function that runs what is called."""
    if not args.tool:
        return [], None
    from streamcli.turns import tools  # noqa: PLC0415 - rarely asked for

    environment = tools.clean_environment(os.environ, diagnostics.secrets)
    programs = tools.described(args.tool, environment=environment, timeout=args.tool_timeout or None)
    return programs, functools.partial(
        tools.results, programs=programs, environment=environment, timeout=args.tool_timeout or None, may_run=may_run
    )


def _conversation(args: Args, diagnostics: io.Diagnostics, stack: ExitStack) -> Conversation | None:
    path = args.conversation
    if path is None:
        return None
    if any(re.match(r"messages\b", setting) for setting in args.set):
        raise UsageError("--set messages and --conversation cannot be used together")
    from streamcli.turns.conversation import Conversation  # noqa: PLC0415 - rarely asked for

    opened = Conversation(path, busy=lambda: diagnostics.note(f"waiting for {path}: another run is using it"))
    conversation = stack.enter_context(opened)
    for note in conversation.notes:
        diagnostics.note(note)
    return conversation
