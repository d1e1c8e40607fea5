"""Complete answers in, the next request's body out, until an answer is final.

Contract: nothing is sent, run or written here, and nothing that was given is changed. Only `tool_use` with calls for
us and `pause_turn` go on; any other stop reason is final, above all one that is not known, and no tool is run. Blocks
go back as they came, but for what the API rejects, and the results of one answer go back in one message.
Source: streamcli(7), section "Tool use".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from streamcli.errors import ToolError, malformed
from streamcli.protocol.history import continued

_FORCED = ("any", "tool")  # no set: what is looked for may be any JSON value


class ToolLoop:
    """The turns that one prompt takes until the model needs no more tools.

    `body` is that of the first request, `runnable` the names of the tools that can be run here, `max_turns` the most
    requests that may be sent, `fallbacks` the models to ask where the one before fails. Attributes: `body`, that of the
    next request; `added`, the messages since the first request, the last answer included; `taken`, how many requests
    were answered.
    """

    def __init__(
        self, body: Mapping[str, Any], runnable: Collection[str], *, max_turns: int, fallbacks: Iterable[str] = ()
    ) -> None:
        self.body: dict[str, Any] = {**body, "messages": list(body["messages"])}
        self.added: list[dict[str, Any]] = []
        self.taken = 0
        self._runnable = frozenset(runnable)
        self._max_turns = max_turns
        self._fallbacks = list(fallbacks)

    def fall_back(self) -> str | None:
        """Ask the next of `fallbacks` from now on; its name, or None where none is left."""
        if not self._fallbacks:
            return None
        self.body = {**self.body, "model": self._fallbacks.pop(0)}
        return str(self.body["model"])

    def answered(self, message: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """Take a complete answer. Returns the `tool_use` blocks to run, [] after a pause, or None if it is final.

        It is also final if it calls a tool that was declared and cannot be run here. A call of a tool that was not
        declared is returned like any other, so that the model is told. Raises ToolError if --max-turns leaves a call
        without a result, ProtocolError for a call that no result can refer to.
        """
        self.taken += 1
        answer = {"role": "assistant", "content": message["content"]}
        self.added.append(answer)
        calls = self._calls(message)
        if calls is None:
            return None
        if self.taken >= self._max_turns:
            if not calls:
                return None
            names = ", ".join(dict.fromkeys(call["name"] for call in calls))
            raise ToolError(f"the model still calls {names} after --max-turns {self._max_turns}")
        self._say({**answer, "content": continued(message["content"])})
        self._keep_container(message.get("container"))
        return calls

    def add(self, results: Iterable[Mapping[str, Any]]) -> None:
        """Take the `tool_result` blocks of the calls that `answered` returned, in their order; [] after a pause."""
        content = list(results)
        if not content:
            return
        message = {"role": "user", "content": content}
        self.added.append(message)
        self._say(message)
        choice = self.body.get("tool_choice")
        if isinstance(choice, Mapping) and choice.get("type") in _FORCED:
            # If a call were forced again after every result, the model could never answer.
            kept = {key: value for key, value in choice.items() if key != "name"}
            self.body["tool_choice"] = {**kept, "type": "auto"}

    def _calls(self, message: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        if message.get("stop_reason") == "pause_turn":
            return []
        if message.get("stop_reason") != "tool_use" or not self._runnable:
            return None
        calls = [block for block in message["content"] if block.get("type") == "tool_use"]
        if not all(isinstance(call.get(key), str) for call in calls for key in ("id", "name")):
            raise malformed("a tool_use block without id or name")
        return None if not calls or any(map(self._is_for_others, calls)) else calls

    def _is_for_others(self, call: Mapping[str, Any]) -> bool:
        name, toolset = call["name"], call.get("toolset_name")
        if name in self._runnable:
            return False
        tools = [tool for tool in self.body.get("tools") or () if isinstance(tool, Mapping)]
        return any(
            tool.get("name") == name
            or (toolset is not None and str(tool.get("type")).startswith(f"{toolset}_toolset_"))
            for tool in tools
        )

    def _say(self, message: dict[str, Any]) -> None:
        # A new body each time: one that was sent stays as it was sent, for those who still hold it.
        self.body = {**self.body, "messages": [*self.body["messages"], message]}

    def _keep_container(self, container: Any) -> None:
        """Let what ran in a container go on in it; skills that were asked for stay asked for."""
        number = container.get("id") if isinstance(container, Mapping) else None
        asked = self.body.get("container")
        if number and (asked is None or isinstance(asked, Mapping)):
            self.body["container"] = number if asked is None else {**asked, "id": number}
