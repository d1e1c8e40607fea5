"""Requests with everything on, checked against the shapes of the API field by field."""

import json
import os
import shutil
import subprocess

import pytest
from faults_command import alone, streamcli
from server import MESSAGE_STOP, block_start, block_stop, delta, message_delta, message_start, ok, text_stream
from shapes import StrictServer, faults

TOOL = """#!/bin/sh
if [ "$1" = --describe ]; then
  echo '{"name":"add","description":"a + b","input_schema":{"type":"object","properties":{"a":{"type":"number"}}}}'
else
  jq '.a + .b'
fi
"""
EVERYTHING = [
    "-m", "claude-opus-5-5", "-s", "Be brief.", "--max-tokens", "100", "--stop", "END", "--thinking", "2000",
    "--show-thinking", "--effort", "high", "--schema", '{"type":"object","additionalProperties":false}',
    "--tools", "tools.json", "-T", "./add", "--tool-choice", "any", "--set", "metadata.user_id=u1",
    "--set", "service_tier=auto", "--set", "cache_control.type=ephemeral", "--beta", "a-1", "--beta", "b-2",
    "-a", "picture", "-a", "paper.pdf", "-a", "notes.txt", "-a", "https://example.com/a.png", "-a", "file_01",
    "-c", "talk.jsonl", "-f", "notes.txt",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "add").write_text(TOOL)
    (tmp_path / "add").chmod(0o755)
    (tmp_path / "tools.json").write_text('[{"name":"look","input_schema":{"type":"object"},"strict":true}]')
    (tmp_path / "picture").write_bytes(b"\x89PNG\r\n\x1a\n1234")
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.7 1234")
    (tmp_path / "notes.txt").write_text("Some notes.\n")
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": [{"type": "text", "text": "Hi."}]}]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    return tmp_path


def run(folder, url, *words, stdin="From the pipe."):
    variables = alone(PATH=os.environ["PATH"], HOME=str(folder), ANTHROPIC_BASE_URL=url)
    ended = streamcli(*words, stdin=stdin.encode(), env=variables, cwd=folder)
    return subprocess.CompletedProcess(words, ended.status, ended.out, ended.err.encode())


def test_a_dry_run_with_everything_on_is_what_was_asked_field_by_field(folder):
    run_ = run(folder, "http://127.0.0.1:9", *EVERYTHING, "--dry-run", "The question.")
    assert (run_.returncode, run_.stderr) == (0, b"")
    shown = json.loads(run_.stdout)
    assert (shown["method"], shown["url"]) == ("POST", "http://127.0.0.1:9/v1/messages")
    assert shown["headers"]["anthropic-beta"] == "a-1,b-2"
    assert shown["headers"]["anthropic-version"] == "2026-10-21"
    body = shown["body"]
    assert faults(body) == []
    messages = body.pop("messages")
    assert body == {
        "model": "claude-opus-5-5",
        "max_tokens": 2100,
        "system": "Be brief.",
        "stop_sequences": ["END"],
        "thinking": {"type": "enabled", "budget_tokens": 2000, "display": "summarized"},
        "output_config": {
            "effort": "high",
            "format": {"type": "json_schema", "schema": {"type": "object", "additionalProperties": False}},
        },
        "tools": [
            {"name": "look", "input_schema": {"type": "object"}, "strict": True},
            {
                "name": "add",
                "description": "a + b",
                "input_schema": {"type": "object", "properties": {"a": {"type": "number"}}},
            },
        ],
        "tool_choice": {"type": "any"},
        "metadata": {"user_id": "u1"},
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
        "stream": True,
    }
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    blocks = messages[-1]["content"]
    assert [(block["type"], block.get("source", {}).get("type")) for block in blocks] == [
        ("image", "base64"),
        ("document", "base64"),
        ("text", None),
        ("image", "url"),
        ("document", "file"),
        ("text", None),
    ]
    assert blocks[1]["title"] == "paper.pdf"
    assert blocks[2]["text"].startswith("notes.txt:\n\n")
    assert blocks[-1]["text"] == "From the pipe.\n\nSome notes.\n\nThe question."


def thinking_and_two_calls():
    """The events of an answer that thinks and then calls a tool twice."""
    yield from (message_start(), block_start(0, type="thinking", thinking="", signature=""))
    yield from (delta("thinking_delta", 0, thinking="Adding."), delta("signature_delta", 0, signature="c2ln"))
    yield block_stop(0)
    for index in (1, 2):
        yield block_start(index, type="tool_use", id=f"toolu_{index}", name="add", input={})
        yield delta("input_json_delta", index, partial_json=json.dumps({"a": index, "b": 40}))
        yield block_stop(index)
    yield from (message_delta("tool_use"), MESSAGE_STOP)


@pytest.fixture
def whole_turn(folder):
    """How the command ended, and the bodies that a strict server took."""
    with StrictServer(ok(*thinking_and_two_calls()), ok(text_stream('{"sum": 42}'))) as server:
        ended = run(folder, server.url, *EVERYTHING, "The question.")
        return ended, [request.json for request in server.requests]


@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
def test_a_whole_turn_with_everything_on_is_taken_by_a_strict_server(folder, whole_turn):
    ended, bodies = whole_turn
    assert (ended.returncode, ended.stdout) == (0, b'{"sum": 42}')
    assert ended.stderr == b'Adding.\nstreamcli: add({"a":1,"b":40})\nstreamcli: add({"a":2,"b":40})\n'
    *_, answer, results = bodies[1]["messages"]
    assert answer["content"][0] == {"type": "thinking", "thinking": "Adding.", "signature": "c2ln"}
    assert [block["content"] for block in results["content"]] == ["41", "42"]
    assert bodies[1]["tool_choice"] == {"type": "auto"}
    lines = [json.loads(line) for line in (folder / "talk.jsonl").read_text().splitlines()]
    assert [line["role"] for line in lines] == ["user", "assistant"] * 3
    assert lines[:-1] == bodies[1]["messages"]


@pytest.mark.usefixtures("whole_turn")
def test_a_conversation_goes_on_with_a_file_that_holds_all_of_it(folder):
    with StrictServer() as server:
        ended = run(folder, server.url, "-I", "-c", "talk.jsonl", "And now?")
    assert (ended.returncode, ended.stdout) == (0, b"fine")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["modell"], "m"),
        (["max_tokens"], "5"),
        (["messages"], []),
        (["messages", 0, "content"], ""),
        (["messages", 0, "content"], [{"type": "image", "source": {"type": "base64", "data": "AA=="}}]),
        (["thinking"], {"type": "enabled", "budget_tokens": 5000}),
        (["tools"], [{"name": "a"}]),
        (["temperature"], 1),
    ],
)
def test_what_checks_the_shapes_finds_what_is_wrong(path, value):
    body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    assert faults(body) == []
    *parents, last = path
    inner = body
    for key in parents:
        inner = inner[key]
    inner[last] = value
    assert faults(body)
