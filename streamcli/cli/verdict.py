"""A complete answer in, out whether it is what was asked for.

Contract: only an answer that came to message_stop is judged here, one on standard output as much as one of a batch.
No I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamcli.errors import SchemaError, StreamcliError, reason
from streamcli.output.prose import last_fenced_block
from streamcli.protocol.jsontext import loads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .args import Args


class StopReasonError(StreamcliError):
    """The message is complete and its stop reason one of --fail-on."""

    exit_code = 9
    code = "stop_reason"


def shortcoming(args: Args, stop_reason: Any, text: str) -> StreamcliError | None:
    """Why a complete answer is not what was asked for, or None if it is.

    Whether JSON fits the schema is the server's promise. A call of a tool that was only declared is not an answer yet.
    """
    if stop_reason in args.fail_on:
        return StopReasonError(f"stop reason {stop_reason} is one of --fail-on")
    if stop_reason == "tool_use":
        return None
    if args.extract and last_fenced_block(text) is None:
        return SchemaError("the answer ends without a whole fenced block")
    if args.schema:
        try:
            loads(text.encode())
        except ValueError as fault:
            return SchemaError(f"the answer is not the JSON of --schema: {reason(fault)}")
    return None


def judge(args: Args) -> Callable[[Mapping[str, Any]], int]:
    """The exit status that one complete message of many stands for."""

    def judged(message: Mapping[str, Any]) -> int:
        blocks = [block for block in message.get("content") or () if isinstance(block, dict)]
        text = "".join(str(block.get("text")) for block in blocks if block.get("type") == "text")
        short = shortcoming(args, message.get("stop_reason"), text)
        return short.exit_code if short else 0

    return judged
