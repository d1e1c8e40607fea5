"""streamcli.protocol.history: what the API gives and does not take back is left out, and nothing else."""

from streamcli import sendable
from streamcli.protocol.history import continued

TEXT = {"type": "text", "text": "a", "citations": [{"cited_text": "b"}]}
BLANK = {"type": "text", "text": " \n"}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}
CALL = {"type": "tool_use", "id": "t1", "name": "n", "input": {}}
CUT = CALL | {"partial_json": '{"a":'}
SEARCH = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}}
FOUND = {"type": "web_search_tool_result", "tool_use_id": "s1", "content": []}


def test_what_may_go_back_goes_back_as_it_came():
    content = [THOUGHT, TEXT, SEARCH, FOUND, CALL]
    assert sendable(content) == content


def test_blank_text_is_left_out_and_so_is_what_came_of_an_input_that_is_not_whole():
    assert sendable([BLANK, TEXT, {"type": "text", "text": None}, CUT]) == [TEXT, CALL]
    assert continued([BLANK, CUT, THOUGHT]) == [CALL, THOUGHT]


def test_a_call_of_a_server_s_tool_needs_its_result():
    assert sendable([TEXT, SEARCH]) == [TEXT]
    assert sendable([TEXT, SEARCH], results={"s1"}) == [TEXT, SEARCH]
    assert continued([TEXT, SEARCH]) == [TEXT, SEARCH]


def test_an_answer_does_not_end_in_thinking():
    assert sendable([TEXT, THOUGHT, {"type": "redacted_thinking", "data": "x"}]) == [TEXT]
    assert sendable([THOUGHT]) == []


def test_what_was_given_stays_as_it_was():
    content = [BLANK, CUT, THOUGHT]
    sendable(content)
    assert content == [BLANK, CUT, THOUGHT]
