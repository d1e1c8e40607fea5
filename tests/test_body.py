"""streamcli.protocol.body: what a body is, however it is labelled, and the events of a message that came whole."""

import json

import pytest

from streamcli.protocol.body import events_of, kind_of, message_in
from streamcli.protocol.message import Accumulator

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "Hello.", "citations": [{"type": "char_location"}]},
        {"type": "tool_use", "id": "t", "name": "n", "input": {"a": 2**70}},
        {"type": "novelty", "of": ["any", "kind"]},
    ],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 7},
    "extra": 1,
}


@pytest.mark.parametrize("message", [MESSAGE, MESSAGE | {"content": []}, {"type": "message", "content": []}])
def test_the_events_of_a_message_build_it_again(message):
    accumulator = Accumulator()
    for event in events_of(message):
        assert accumulator.receive("message", json.dumps(event).encode())
    assert accumulator.complete
    assert accumulator.snapshot() == message


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"event: x\n", "events"),
        (b"\xef\xbb\xbfdata: {}\n\n", "events"),
        (b"\r\n\r\n: keep-alive", "events"),
        (b"retry:1", "events"),
        (b"data\n", "events"),
        (b'\n {"a": 1}', "object"),
        (b"<html>", "other"),
        (b"database error", "other"),
        (b"[1]", "other"),
        (b"", ""),
        (b"\xef\xbb", ""),
        (b"even", ""),
        (b"dat", ""),
    ],
)
def test_what_a_body_is_shows_in_its_first_line(body, kind):
    assert kind_of(body) == kind


@pytest.mark.parametrize("body", [b"event: message_start\ndata: {}\n\n", b'{"type": "message"}', b"<html></html>"])
def test_what_it_is_never_changes_once_it_is_known(body):
    known = [kind for cut in range(len(body) + 1) if (kind := kind_of(body[:cut]))]
    assert len(set(known)) == 1


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"type":"error"}', b'{"type":"message"}', b'{"content":[]}'])
def test_what_is_not_a_whole_message_is_none(body):
    assert message_in(body) is None


def test_a_whole_message_is_read_also_over_many_lines():
    assert message_in(b"\xef\xbb\xbf" + json.dumps(MESSAGE, indent=2).encode()) == MESSAGE
