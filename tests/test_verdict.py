"""streamcli.cli.verdict: whether a complete answer is what was asked for, whatever it holds."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd import deep, oddities

from streamcli.cli.args import parse
from streamcli.cli.verdict import judge
from streamcli.protocol.jsontext import loads

MESSAGE = {
    "id": "m",
    "content": [{"type": "text", "text": "[1]"}, {"type": "tool_use", "name": "f", "partial_json": "{"}],
    "stop_reason": "tool_use",
    "usage": {"output_tokens": 1},
}


def judged(message, *words):
    return judge(parse([*words, "--batch", "-"]))(message)


@pytest.mark.parametrize(
    ("changes", "words", "status"),
    [
        ({}, [], 11),
        ({"stop_reason": "end_turn"}, [], 0),
        ({"stop_reason": "end_turn"}, ["--schema", "{}"], 0),
        ({"stop_reason": "end_turn", "content": [{"type": "text", "text": "no"}]}, ["--schema", "{}"], 11),
        ({"stop_reason": "max_tokens"}, ["--fail-on", "refusal,max_tokens"], 9),
        ({"stop_reason": "max_tokens"}, ["--fail-on", "refusal"], 0),
    ],
)
def test_a_message_has_the_status_of_what_it_is(changes, words, status):
    assert judged(MESSAGE | changes, *words) == status


@pytest.mark.parametrize(
    "changes",
    [{"content": 5}, {"content": None}, {"content": "text"}, {"content": {"type": "text"}}, {"content": [deep(1000)]}],
)
def test_odd_content_is_none(changes):
    assert judged(MESSAGE | changes) == 0


@given(st.data(), st.sampled_from([[], ["--schema", "{}"], ["--fail-on", "tool_use"]]))
def test_any_json_at_any_place_of_a_message_has_a_status(data, words):
    with contextlib.suppress(ValueError):  # nested too deeply to be read
        message = loads(data.draw(oddities(MESSAGE)))
        assert not isinstance(message, dict) or judged(message, *words) in {0, 9, 11}
