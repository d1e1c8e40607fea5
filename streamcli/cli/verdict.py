"""A complete answer in, out whether it is what was asked for.

Contract: only an answer that came to message_stop is judged here, one on standard output as much as one of a batch.
No I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamcli.errors import SchemaError, StreamcliError, ToolError, reason
from streamcli.output.prose import last_fenced_block
from streamcli.protocol.jsontext import loads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .args import Args


# Stop reasons that leave the answer short, though it is complete (streamcli(7), section "Stop reasons").
_SHORT = {
    "max_tokens": "the answer was cut at --max-tokens",
    "refusal": "the model refused",
    "pause_turn": "the model paused its turn, and --max-turns is reached",
    "model_context_window_exceeded": "the context window is full",
}


class StopReasonError(StreamcliError):
    """The message is complete and its stop reason one of --fail-on."""

    exit_code = 9
    code = "stop_reason"


def cut_short(message: Mapping[str, Any], max_tokens: Any = None) -> str:
    """The stop reason and what it means, where a complete answer is short; "" where it is not.

    `max_tokens` is what the request said, if that is known: a server whose context is full stops before it.
    """
    stop_reason = message.get("stop_reason")
    why = _SHORT.get(stop_reason) if isinstance(stop_reason, str) else None
    if why is None:
        return ""
    usage = message.get("usage")
    tokens = usage.get("output_tokens") if isinstance(usage, dict) else None
    # A server that does not count says 0 or 1.
    if stop_reason == "max_tokens" and type(tokens) is type(max_tokens) is int and 1 < tokens < max_tokens:
        limit = "the server's context is full, or it has a lower limit of its own"
        why = f"the answer was cut after {tokens} tokens, before --max-tokens {max_tokens}: {limit}"
    return f"stop reason {stop_reason}: {why}"


def shortcoming(args: Args, message: Mapping[str, Any], text: str, max_tokens: Any = None) -> StreamcliError | None:
    """Why a complete answer is not what was asked for, or None where it is; `text` is all that it said.

    Whether JSON fits the schema is the server's promise. A call of a tool that was only declared is not an answer yet,
    but it must be one that somebody can run.
    """
    stop_reason = message.get("stop_reason")
    if isinstance(stop_reason, str) and stop_reason in args.fail_on:
        return StopReasonError(f"stop reason {stop_reason} is one of --fail-on")
    if stop_reason == "tool_use":
        cut = [_text(block, "name") for block in _blocks(message) if block.get("type") == "tool_use" and _is_cut(block)]
        return ToolError(f"the model calls {cut[0]} with an input that is not whole JSON") if cut else None
    short = cut_short(message, max_tokens)
    because = f"; {short}" if short else ""
    if args.extract and last_fenced_block(text) is None:
        return SchemaError(f"the answer ends without a whole fenced block{because}")
    if args.schema:
        try:
            loads(text.encode())
        except ValueError as fault:
            return SchemaError(f"the answer is not the JSON of --schema: {reason(fault)}{because}")
    return None


def judge(args: Args) -> Callable[[Mapping[str, Any]], int]:
    """The exit status that one complete message of many stands for."""

    def judged(message: Mapping[str, Any]) -> int:
        text = "".join(_text(block, "text") for block in _blocks(message) if block.get("type") == "text")
        short = shortcoming(args, message, text)
        return short.exit_code if short else 0

    return judged


def _blocks(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _text(block: Mapping[str, Any], key: str) -> str:
    text = block.get(key)
    return text if isinstance(text, str) else ""


def _is_cut(call: Mapping[str, Any]) -> bool:
    return "partial_json" in call
