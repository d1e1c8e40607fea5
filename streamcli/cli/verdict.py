"""A complete answer in; whether it is what was asked for, out.

Contract: only an answer that came to message_stop is judged here, one on standard output as much as one of a batch.
No I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

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
# The word of --fail-on for an answer that holds nothing.
EMPTY = "empty"
KNOWN_TO_FAIL_ON = _SHORT.keys() | {"end_turn", "stop_sequence", "tool_use", "compaction", EMPTY}
_NOT_SAID = frozenset({"thinking", "redacted_thinking"})


class StopReasonError(StreamcliError):
    """The message is complete, but --fail-on lists its stop reason, or it is empty and --fail-on lists that."""

    exit_code = 9
    code = "stop_reason"
    stop_details: Any = None


class Complete(NamedTuple):
    """A complete answer: the last message, and the text of all turns since tools were run last.

    `is_kept` is false where the text was too long to be kept. `max_tokens` is what the request said, if that is known:
    a server whose context is full stops before it.
    """

    message: Mapping[str, Any]
    text: str
    is_kept: bool = True
    max_tokens: Any = None

    @property
    def stop_reason(self) -> str:
        """Why the model stopped, "" where that is not known."""
        return _text(self.message, "stop_reason")

    @property
    def is_empty(self) -> bool:
        """Whether it holds neither text nor anything else but thinking; 0 tokens were asked for to have none."""
        others = (block for block in _blocks(self.message) if block.get("type") not in {"text", *_NOT_SAID})
        return self.is_kept and not self.text.strip() and self.max_tokens != 0 and not any(others)


def cut_short(answer: Complete) -> str:
    """What a complete answer lacks and why; "" where it lacks nothing."""
    why = _why_short(answer)
    if why:
        return f"stop reason {answer.stop_reason}: {why}"
    return f"the answer is empty: stop reason {answer.stop_reason or 'unknown'} and no text" if answer.is_empty else ""


def _why_short(answer: Complete) -> str:
    why = _SHORT.get(answer.stop_reason, "")
    if answer.stop_reason == "refusal":
        return why + _refused_for(answer.message.get("stop_details"))
    if answer.stop_reason != "max_tokens":
        return why
    usage, asked = answer.message.get("usage"), answer.max_tokens
    tokens = usage.get("output_tokens") if isinstance(usage, dict) else None
    # A server that does not count says 0 or 1.
    if type(tokens) is type(asked) is int and 1 < tokens < asked:
        limit = "the server's context is full, or the server has a lower limit"
        return f"the answer was cut after {tokens} tokens, before --max-tokens {asked}: {limit}"
    if answer.is_empty and any(block.get("type") in _NOT_SAID for block in _blocks(answer.message)):
        return "thinking used up --max-tokens, so there is no text"
    return why


def _refused_for(details: Any) -> str:
    """The category and the explanation of a refusal, as far as they are given."""
    if not isinstance(details, dict):
        return ""
    category, explanation = _text(details, "category"), " ".join(_text(details, "explanation").split())
    return (f" ({category})" if category else "") + (f": {explanation}" if explanation else "")


def shortcoming(args: Args, answer: Complete) -> StreamcliError | None:
    """Why a complete answer is not what was asked for, or None where it is.

    Whether JSON fits the schema is the server's promise. A call of a tool that was only declared is not an answer yet,
    but it must be one that somebody can run.
    """
    if answer.stop_reason in args.fail_on or (EMPTY in args.fail_on and answer.is_empty):
        return _failed_on(args, answer)
    if answer.stop_reason == "tool_use":
        calls = [block for block in _blocks(answer.message) if block.get("type") == "tool_use"]
        cut = [_text(call, "name") for call in calls if "partial_json" in call]
        return ToolError(f"the model calls the tool {cut[0]} with an input that is not complete JSON") if cut else None
    short = cut_short(answer)
    because = f"; {short}" if short else ""
    if args.extract and last_fenced_block(answer.text) is None:
        return SchemaError(f"the answer has no complete fenced code block for --extract{because}")
    if args.schema:
        try:
            loads(answer.text.encode())
        except ValueError as fault:
            return SchemaError(f"the answer is not JSON, which --schema asks for: {reason(fault)}{because}")
    return None


def _failed_on(args: Args, answer: Complete) -> StopReasonError:
    if answer.stop_reason in args.fail_on:
        why = _why_short(answer)
        error = StopReasonError(f"stop reason {answer.stop_reason} is one of --fail-on{why and f': {why}'}")
    else:
        error = StopReasonError(f"{cut_short(answer)}; {EMPTY} is one of --fail-on")
    error.stop_details = answer.message.get("stop_details")
    return error


def judge(args: Args) -> Callable[[Mapping[str, Any]], int]:
    """The exit status that one complete message of many stands for."""

    def judged(message: Mapping[str, Any]) -> int:
        text = "".join(_text(block, "text") for block in _blocks(message) if block.get("type") == "text")
        short = shortcoming(args, Complete(message, text))
        return short.exit_code if short else 0

    return judged


def _blocks(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _text(block: Mapping[str, Any], key: str) -> str:
    text = block.get(key)
    return text if isinstance(text, str) else ""
