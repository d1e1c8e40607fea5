"""streamcli.turns.tool_loop: what is asked next, when an answer is final, and what a turn adds up to."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcli.errors import ProtocolError, ToolError
from streamcli.turns.tool_loop import ToolLoop

QUESTION = {"role": "user", "content": "Do I need an umbrella?"}
TOOLS = [
    {"name": "weather", "input_schema": {"type": "object"}},
    {"name": "time", "input_schema": {"type": "object"}},
    {"name": "deploy", "input_schema": {"type": "object"}},
    {"type": "web_search_20260318", "name": "web_search"},
    {"type": "computer_toolset_20260801"},
    {"type": "mcp_toolset", "mcp_server_name": "docs"},
]
BODY = {"model": "m", "max_tokens": 10, "messages": [QUESTION], "tools": TOOLS}
RUNNABLE = {"weather", "time"}


def tool_loop(max_turns=10, runnable=RUNNABLE, **fields):
    return ToolLoop({**BODY, **fields}, runnable, max_turns=max_turns)


def call(name="weather", number=1, **fields):
    return {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": {"n": number}, **fields}


def text(words="Yes."):
    return {"type": "text", "text": words}


def answer(*content, stop_reason="tool_use", **fields):
    return {"role": "assistant", "content": list(content), "stop_reason": stop_reason, "usage": {}, **fields}


def result(number=1):
    return {"type": "tool_result", "tool_use_id": f"toolu_{number}", "content": "21 degrees"}


def said(*content):
    return {"role": "assistant", "content": list(content)}


def told(*content):
    return {"role": "user", "content": list(content)}


def test_the_first_request_is_the_one_that_was_asked_for():
    assert tool_loop().body == BODY
    assert tool_loop().taken == 0
    assert tool_loop().added == []


def test_a_plain_answer_is_final():
    loop = tool_loop()
    assert loop.answered(answer(text(), stop_reason="end_turn")) is None
    assert loop.added == [said(text())]
    assert loop.taken == 1


def test_calls_are_returned_and_their_results_go_back_in_one_message():
    loop = tool_loop()
    calls = [call("weather", 1), call("time", 2)]
    assert loop.answered(answer(text("Let me see."), *calls)) == calls
    loop.add([result(1), result(2)])
    added = [said(text("Let me see."), *calls), told(result(1), result(2))]
    assert loop.body == {**BODY, "messages": [QUESTION, *added]}
    assert loop.answered(answer(text(), stop_reason="end_turn")) is None
    assert loop.added == [*added, said(text())]
    assert loop.taken == 2


def test_blocks_go_back_as_they_came():
    blocks = [
        {"type": "thinking", "thinking": "", "signature": "s"},
        {"type": "redacted_thinking", "data": "d"},
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
        {"type": "future", "x": [1]},
        call(caller={"type": "direct"}),
    ]
    loop = tool_loop()
    assert loop.answered(answer(*copy.deepcopy(blocks))) == [blocks[-1]]
    loop.add([result()])
    assert loop.body["messages"][1]["content"] == blocks


@pytest.mark.parametrize(
    "stop_reason",
    ["end_turn", "max_tokens", "stop_sequence", "refusal", "model_context_window_exceeded", "compaction", "new", None],
)
def test_a_call_in_an_answer_that_stopped_for_another_reason_is_not_run(stop_reason):
    assert tool_loop().answered(answer(call(), stop_reason=stop_reason)) is None


def test_an_answer_that_stopped_for_a_call_and_has_none_is_final():
    assert tool_loop().answered(answer(text())) is None


@pytest.mark.parametrize("content", [[], [text("Wait.")], [call()]])
def test_a_pause_goes_on_by_itself(content):
    loop = tool_loop()
    assert loop.answered(answer(*content, stop_reason="pause_turn")) == []
    loop.add([])
    assert loop.body["messages"] == [QUESTION, said(*content)]
    assert loop.answered(answer(text(), stop_reason="end_turn")) is None
    assert loop.added == [said(*content), said(text())]


def test_a_pause_goes_on_where_there_are_no_tools_too():
    assert tool_loop(runnable=(), tools=None).answered(answer(stop_reason="pause_turn")) == []


class TestWhoseCallItIs:
    @pytest.mark.parametrize("calls", [[call("deploy")], [call("weather", 1), call("deploy", 2)]])
    def test_one_that_was_only_declared_makes_the_answer_final(self, calls):
        loop = tool_loop()
        assert loop.answered(answer(*calls)) is None
        assert loop.added == [said(*calls)]

    def test_one_that_nobody_knows_is_returned(self):
        assert tool_loop().answered(answer(call("wether"))) == [call("wether")]

    def test_where_nothing_can_be_run_every_call_makes_the_answer_final(self):
        for name in ("weather", "deploy", "wether"):
            assert tool_loop(runnable=()).answered(answer(call(name))) is None

    def test_the_member_of_a_declared_toolset_was_declared(self):
        assert tool_loop().answered(answer(call("click", toolset_name="computer"))) is None
        assert tool_loop(runnable={"click"}).answered(answer(call("click", toolset_name="computer"))) is not None
        assert tool_loop().answered(answer(call("open", toolset_name="browser"))) is not None

    @pytest.mark.parametrize("tools", [None, [], "x", [3, None, {}, {"name": 3}]])
    def test_whatever_the_declarations_it_is_decided(self, tools):
        assert tool_loop(tools=tools).answered(answer(call("deploy"))) == [call("deploy")]

    @pytest.mark.parametrize("broken", [{"id": None}, {"id": 3}, {"name": None}, {"name": ["weather"]}])
    def test_one_that_cannot_be_answered_is_a_breach(self, broken):
        with pytest.raises(ProtocolError, match="a tool_use block without id or name"):
            tool_loop().answered(answer({**call(), **broken}))


class TestLimit:
    def test_the_last_request_may_be_answered_by_a_text(self):
        loop = tool_loop(max_turns=2)
        loop.answered(answer(call()))
        loop.add([result()])
        assert loop.answered(answer(text(), stop_reason="end_turn")) is None

    def test_a_call_in_the_last_answer_is_an_error(self):
        loop = tool_loop(max_turns=2)
        loop.answered(answer(call()))
        loop.add([result()])
        with pytest.raises(ToolError) as caught:
            loop.answered(answer(call("time", 2), call("weather", 3), call("time", 4)))
        assert str(caught.value) == "the model still calls time, weather after --max-turns 2"
        assert caught.value.exit_code == 11
        assert loop.taken == 2

    def test_a_pause_in_the_last_answer_is_final(self):
        assert tool_loop(max_turns=1).answered(answer(text(), stop_reason="pause_turn")) is None

    def test_a_call_that_was_only_declared_is_final_there_too(self):
        assert tool_loop(max_turns=1).answered(answer(call("deploy"))) is None


class TestToolChoice:
    def go_on(self, choice):
        loop = tool_loop(tool_choice=choice)
        loop.answered(answer(call()))
        loop.add([result()])
        return loop.body["tool_choice"]

    def test_a_forced_call_is_forced_once(self):
        assert self.go_on({"type": "any"}) == {"type": "auto"}
        forced = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
        assert self.go_on(forced) == {"type": "auto", "disable_parallel_tool_use": True}

    @pytest.mark.parametrize(
        "choice", [{"type": "auto", "disable_parallel_tool_use": True}, {"type": "none"}, None, {"type": []}]
    )
    def test_any_other_choice_stays(self, choice):
        assert self.go_on(choice) == choice


class TestContainer:
    def go_on(self, container, asked=None):
        loop = tool_loop(container=asked)
        loop.answered(answer(call(), container=container))
        loop.add([result()])
        return loop.body.get("container")

    def test_what_ran_in_one_goes_on_in_it(self):
        assert self.go_on({"id": "container_1", "expires_at": "2026-11-22"}) == "container_1"

    def test_the_one_that_was_asked_for_stays(self):
        assert self.go_on({"id": "container_1"}, asked="container_0") == "container_0"

    def test_skills_that_were_asked_for_stay(self):
        asked = {"skills": [{"type": "custom", "skill_id": "s", "version": "latest"}]}
        assert self.go_on({"id": "container_1"}, asked) == {**asked, "id": "container_1"}

    @pytest.mark.parametrize("container", [None, {}, {"id": None}, "container_1", 3])
    def test_none_is_none(self, container):
        assert self.go_on(container) is None

    def test_it_is_kept_over_a_pause(self):
        loop = tool_loop()
        loop.answered(answer(stop_reason="pause_turn", container={"id": "container_1"}))
        assert loop.body["container"] == "container_1"


class TestNothingIsChanged:
    def test_neither_what_was_given_nor_what_was_returned(self):
        body = {**copy.deepcopy(BODY), "tool_choice": {"type": "any"}, "container": {"skills": []}}
        before = copy.deepcopy(body)
        loop = ToolLoop(body, RUNNABLE, max_turns=5)
        sent = []
        for number in range(3):
            sent.append((loop.body, copy.deepcopy(loop.body)))
            message = answer(call(number=number), usage={"input_tokens": 1}, container={"id": "c"})
            given_message = copy.deepcopy(message)
            loop.answered(message)
            loop.add([result(number)])
            assert message == given_message
        assert body == before
        assert all(was_sent == then for was_sent, then in sent)

    @given(st.lists(st.sampled_from(["call", "calls", "pause"]), max_size=6))
    def test_the_next_body_is_the_first_and_what_was_added(self, kinds):
        loop = tool_loop()
        for number, kind in enumerate(kinds):
            calls = [call(number=10 * number + n) for n in range({"call": 1, "calls": 3, "pause": 0}[kind])]
            given_calls = loop.answered(answer(*calls, stop_reason="tool_use" if calls else "pause_turn"))
            assert given_calls == calls
            loop.add([result(int(each["id"].removeprefix("toolu_"))) for each in given_calls])
        assert loop.body["messages"] == [QUESTION, *loop.added]
        assert loop.taken == len(kinds)
        json.dumps(loop.added)
