"""The content of an answer in; the part of it that the API takes back in a later request out.

Contract: the API gives what it does not take back: blank text, a call of a server's tool that has no result yet, an
answer that ends in thinking, and what this package adds to a call whose input is not whole. Everything else goes back
as it came, in its order, and nothing that was given is changed. No I/O. Source: streamcli(7), section "Tool use".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

# No sets: what is looked for in them is any JSON value.
_SERVER_CALLS = ("server_tool_use", "mcp_tool_use")
_THINKING = ("thinking", "redacted_thinking")
_OURS = frozenset({"partial_json"})


def sendable(
    content: Iterable[Mapping[str, Any]], *, results: Collection[Any] | None = None, is_last: bool = True
) -> list[dict[str, Any]]:
    """The blocks of an assistant's answer that may be sent back as its turn; [] where nothing is left.

    `results` are the ids of the calls of a server's tools whose results are known, by default those whose results
    `content` holds itself. With `is_last` false another answer of the same turn follows, and the last thoughts stay.
    An answer that waits for results of the caller's, or that paused, goes through `continued` instead.
    """
    blocks = continued(content)
    known = [block.get("tool_use_id") for block in blocks] if results is None else results
    blocks = [block for block in blocks if block.get("type") not in _SERVER_CALLS or block.get("id") in known]
    while is_last and blocks and blocks[-1].get("type") in _THINKING:
        blocks.pop()
    return blocks


def continued(content: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As `sendable`, of an answer that goes on: a server's calls and the last thoughts stay."""
    return [
        {key: value for key, value in block.items() if key not in _OURS} for block in content if not is_blank(block)
    ]


def is_blank(block: Mapping[str, Any]) -> bool:
    """Whether a block is text and holds nothing but blanks, which the API does not take."""
    return block.get("type") == "text" and not str(block.get("text") or "").strip()
