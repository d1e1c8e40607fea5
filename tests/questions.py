"""What real servers are asked, and what the scripted model behind them means: the same questions for each of them.

What a server makes of an answer is told in the words of `Outcome`, so that a table can say it on a line.
"""

import json
from typing import NamedTuple

from streamcli import APIError, Client

TOOL = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
_TOOLS = {"tools": [TOOL]}
# For all the servers; one of them takes no short one.
KEY = f"sk-{'a-key-of-the-tests-' * 2}"


class Outcome(NamedTuple):
    """The content, a line for each block, and how it ended: the stop reason, or the exit status of an error."""

    content: tuple
    end: str | int
    deviations: dict = {}  # noqa: RUF012 - never changed


class Question(NamedTuple):
    """What is asked with which fields, and what is meant."""

    prompt: str
    fields: dict
    meant: Outcome


def _question(prompt, *content, end="end_turn", **fields):
    return Question(f"ask:{prompt}", fields, Outcome(content, end))


QUESTIONS = {
    "text": _question("text", "text: Hello, world."),
    "an emoji first": _question("emoji", "text: \U0001f600 smiles"),
    "a character in pieces": _question("character-in-pieces", "text: 你好"),
    "a character whole": _question("character-whole", "text: 你好吗?"),
    "half a character first": _question("half-a-character-first", "text: \ufffdthen"),
    "half a character": _question("half-a-character"),
    "nothing": _question("nothing"),
    "a limit": _question("endless", "text: one two threeone", end="max_tokens", max_tokens=4),
    "thinking": _question("thinking", "thinking: hm so", "text: The answer"),
    "thinking that is cut": _question("thinking", "thinking: hm", end="max_tokens", max_tokens=2),
    "a tool": _question("tool", 'get_weather {"city":"Paris"}', end="tool_use", **_TOOLS),
    "a tool that is cut": _question(
        "tool", 'get_weather cut at {"city": "Par', end="max_tokens", max_tokens=3, **_TOOLS
    ),
    "two tools": _question(
        "two-tools", 'get_weather {"city":"Oslo"}', 'get_weather {"city":"Bern"}', end="tool_use", **_TOOLS
    ),
    "everything": _question(
        "everything",
        *("thinking: well", "text: Let me see.", 'get_weather {"city":"Rome"}'),
        end="tool_use",
        **_TOOLS,
    ),
    # The server itself stumbles over it.
    "an unknown tool": _question("unknown-tool", end=5, **_TOOLS),
}

# What is made of thinking where nobody looks for it.
UNPARSED_THINKING = {
    "thinking": Outcome(("text: <think>\nhm so\n</think>\n\nThe answer",), "end_turn"),
    "thinking that is cut": Outcome(("text: <think>\nhm",), "max_tokens"),
    "everything": Outcome(("text: <think>\nwell\n</think>\n\nLet me see.", 'get_weather {"city":"Rome"}'), "tool_use"),
}


def body(question, **fields):
    """The request for a question."""
    whole = {"model": "m", "max_tokens": 60, "messages": [{"role": "user", "content": question.prompt}]}
    return whole | question.fields | fields


def ask(url, question, *, strict=False, retries=0, **fields):
    """The outcome of a question that is asked through the library."""
    with Client(base_url=url, api_key=KEY, max_retries=retries, strict=strict) as client:
        return outcome(client, body(question, **fields))


def outcome(client, fields):
    """What a client got for a request."""
    stream = None
    try:
        with client.messages.stream(**fields) as stream:
            stream.until_done()
            message = stream.get_final_message()
    except APIError as error:
        # With status 200 it is an event that says it, of a kind that nobody knows.
        status = 5 if getattr(error, "status_code", None) == 200 else error.exit_code
        return Outcome(lines(error.partial or {}), status, stream.deviations if stream else {})
    return Outcome(lines(message), message["stop_reason"], stream.deviations)


def lines(message):
    """A line for each content block."""
    return tuple(_line(block) for block in message.get("content", ()))


def _line(block):
    kind = block["type"]
    if kind != "tool_use":
        return f"{kind}: {block[kind].strip()}"
    if "partial_json" in block:
        return f"{block['name']} cut at {block['partial_json']}"
    return f"{block['name']} {json.dumps(block['input'], separators=(',', ':'))}"


def texts_of(outcome):
    """The text blocks of an outcome."""
    return [line.removeprefix("text: ") for line in outcome.content if line.startswith("text: ")]
