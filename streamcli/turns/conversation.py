"""A conversation in a file: one message a line, exactly as the API takes it.

Contract: the file is held for the whole run, so that runs on one file wait for each other. What is there is read as it
is, or rejected with the line's number. What is written is one prompt with all that answers it, in one step and on the
disk, or nothing. Nothing is written that the API would reject, because it would reject every later request with it.
Lines are compact JSON in UTF-8 that jq reads and a person may edit.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from streamcli.errors import OutputError, UsageError, reason
from streamcli.protocol.history import continued, sendable
from streamcli.protocol.jsontext import dumps
from streamcli.protocol.userinput import json_value

from .journal import Journal, Keeper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_ROLES = ("user", "assistant", "system")
_NO_RESULT = "no result: the call was not carried out, or was interrupted"


class Conversation(Keeper):
    """The conversation in the file at `path`, which is made with mode 0600 if it is not there, held until `close`.

    `busy` is called once if another process holds the file, before waiting for it. `messages` are the lines as dicts,
    in order; `notes` say what is worth knowing about how they were found, one line each. Raises UsageError for a line
    that is not a message, OutputError if the file cannot be opened for writing.
    """

    def __init__(self, path: str, *, busy: Callable[[], None]) -> None:
        self.path = path
        self.notes: list[str] = []
        self._cut = ""
        self._journal = Journal(path, mode=0o600, busy=busy)
        with self._journal.closed_on_failure():
            self.messages = self._read()

    def user_message(self, content: str | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The user message that goes on with the conversation: `content`, text or blocks, and what must precede it.

        The API rejects a request in which a tool call has no result, so a call that was left open gets one that says
        so. The message is not part of the conversation until it is appended with its answer.
        """
        results = [
            {"type": "tool_result", "tool_use_id": call, "is_error": True, "content": _NO_RESULT}
            for call in _open_calls(self.messages)
        ]
        if not results:
            return {"role": "user", "content": content}
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        return {"role": "user", "content": [*results, *blocks]}

    def check(self, messages: Iterable[Any], where: str) -> None:
        """Raise UsageError, which begins with `where`, for one that no conversation can hold."""
        for number, message in enumerate(messages, 1):
            fault = _fault_of(message)
            if fault:
                raise UsageError(f"{where}: message {number} cannot be kept in {self.path}: {fault}")

    def append(self, messages: Iterable[Mapping[str, Any]]) -> bool:
        """Add messages, from the user's to the assistant's last: the `role` and the `content` of each.

        Blocks that the API sends but does not accept are left out. Returns False, and adds nothing, if nothing is left
        of the last answer. Raises OutputError, and adds nothing, if the file cannot be written.
        """
        turn = _sendable([{"role": message["role"], "content": message["content"]} for message in messages])
        if not turn:
            return False
        self._keep_what_is_cut()
        self._journal.append(b"".join([self._line(message) for message in turn]))
        self.messages += turn
        return True

    def _read(self) -> list[dict[str, Any]]:
        lines = [(number, _message(line, f"{self.path}: line {number}")) for number, line in self._journal.numbered()]
        messages = [message for _, message in lines]
        if not self._journal.torn:
            return messages
        if self._journal.tail().startswith(b"\0"):  # an append of ours broke off, which began with whole messages
            self.notes.append(f"a turn in {self.path} was only partly written and is left out")
            return messages
        whole = _up_to_whole_turns(messages)
        if whole < len(messages):
            self._journal.keep(lines[whole][0] - 1)
        self._cut = f"{self.path}.torn"
        self.notes.append(f"the last turn in {self.path} is incomplete and left out; it will be kept in {self._cut}")
        return messages[:whole]

    def _keep_what_is_cut(self) -> None:
        """Write to a file of its own what the next append removes: a person may have written it."""
        if not self._cut:
            return
        try:
            with open(self._cut, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(self._journal.tail() + b"\n")
        except OSError as fault:
            raise OutputError(f"cannot write to {self._cut}: {reason(fault)}") from None
        self._cut = ""

    def _line(self, message: Mapping[str, Any]) -> bytes:
        try:
            line = dumps(message)
            _message(line, self.path)  # a parser's limit on nesting is not a writer's
        except (ValueError, UsageError):
            raise OutputError(f"cannot write to {self.path}: the turn could not be read again") from None
        return line + b"\n"


def _message(line: bytes, where: str) -> dict[str, Any]:
    """The message on a line. Raises UsageError, which begins with `where`, for anything else."""
    message: dict[str, Any] = json_value(line, where)
    fault = _fault_of(message)
    if fault:
        raise UsageError(f"{where} is not a message: {fault}")
    return message


def _fault_of(message: Any) -> str:
    if not isinstance(message, dict):
        return "it is not an object"
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        return f"its role is not one of {', '.join(_ROLES)}"
    if not isinstance(content, str) and not (isinstance(content, list) and all(isinstance(b, dict) for b in content)):
        return "its content is neither text nor a list of blocks"
    return "" if content else "its content is empty"


def _blocks(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message["content"]
    return [] if isinstance(content, str) else list(content)


def _calls(message: Mapping[str, Any]) -> list[Any]:
    """The ids of the tool calls in an assistant's message, whatever kind of value they are."""
    return [block.get("id") for block in _blocks(message) if block.get("type") == "tool_use"]


def _open_calls(messages: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The ids of the calls in the last assistant message that no later message has a result for."""
    calls: list[Any] = []
    for message in messages:
        if message["role"] == "assistant":
            calls = _calls(message)
        else:
            results = [block.get("tool_use_id") for block in _blocks(message) if block.get("type") == "tool_result"]
            calls = [call for call in calls if call not in results]
    return calls


def _up_to_whole_turns(messages: Sequence[Mapping[str, Any]]) -> int:
    """How many messages there are up to the last final answer, system messages after it included."""
    ends = (n for n, message in enumerate(messages, 1) if message["role"] == "assistant" and not _calls(message))
    count = max(ends, default=0)
    while count < len(messages) and messages[count]["role"] == "system":
        count += 1
    return count


def _sendable(turn: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`turn` as the API accepts it in a later request; [] if nothing is left of the last answer.

    It rejects blank text blocks, calls of the server's tools without a result, as a paused answer leaves them, and
    answers that end in thinking, as one that ran out of tokens does.
    """
    answers = [message for message in turn if message["role"] == "assistant"]
    if not answers:
        return []
    last = answers[-1]
    results = [block.get("tool_use_id") for message in answers for block in _blocks(message)]
    waits = bool(_calls(last))  # the server's results come once it has those of the caller's tools
    for message in answers:
        if isinstance(message["content"], str):
            message["content"] = message["content"] if message["content"].strip() else ""
        elif waits:
            message["content"] = continued(_blocks(message))
        else:
            message["content"] = sendable(_blocks(message), results=results, is_last=message is last)
    return [message for message in turn if message["content"]] if last["content"] else []
