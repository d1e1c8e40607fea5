"""streamcli.protocol.cache: where marks stand, whatever the request. What they are good for is in cli/cache.txt."""

import copy
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server import _in_order, _unmarkable

from streamcli.batch.source import Source
from streamcli.cli.args import parse
from streamcli.cli.run import _marking
from streamcli.errors import UsageError
from streamcli.protocol import cache

MARK = st.sampled_from([{}, {}, {"cache_control": None}, {"cache_control": {"type": "ephemeral"}}])
TEXT = st.sampled_from(["", " ", "a", "b", "ab\n"])
BLOCK = st.builds(lambda text, mark: {"type": "text", "text": text, **mark}, TEXT, MARK) | st.sampled_from(
    [{"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "image", "source": {"type": "url", "url": "u"}}]
)
BLOCKS = TEXT | st.lists(BLOCK, max_size=3)
TOOL = st.builds(lambda name, later, mark: {"name": name, **({"defer_loading": True} if later else mark)},
                 st.sampled_from("ab"), st.booleans(), MARK)  # fmt: skip
MESSAGES = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "assistant"]), BLOCKS),
    min_size=1, max_size=4,
)  # fmt: skip
WHOLE = st.just({"type": "ephemeral"})
FIELDS = st.fixed_dictionaries(
    {}, optional={"tools": st.lists(TOOL, max_size=3), "system": BLOCKS, "cache_control": WHOLE}
)
BODY = st.builds(lambda fields, messages: {**fields, "messages": messages}, FIELDS, MESSAGES)


def marks_in(body):
    """Where the marks are, counted in blocks from the start."""
    return [number for number, block in enumerate(_in_order(body)) if block.get("cache_control")]


def without_marks(body):
    """The blocks of a request as they would be without marks."""
    return [{key: value for key, value in block.items() if key != "cache_control"} for block in _in_order(body)]


@given(BODY, st.integers(0, 1), st.booleans())
def test_marks_change_nothing_else_and_stand_only_where_they_may(body, question, goes_on):
    before = copy.deepcopy(body)
    marked = cache.Marks("5m", cache.front(body, question=question), goes_on).on(body)
    assert body == before
    assert without_marks(marked) == without_marks(body)
    added = set(marks_in(marked)) - set(marks_in(body))
    assert len(added) <= 1 + goes_on
    blocks = list(_in_order(marked))
    assert not any(_unmarkable(blocks[number]) for number in added)
    if not goes_on and question:
        assert len(blocks) - 1 not in added


@given(BODY, st.booleans())
def test_a_request_that_is_accepted_has_four_marks_at_most(body, goes_on):
    marked = cache.Marks("5m", cache.front(body), goes_on).on(body)
    count = len(marks_in(marked)) + ("cache_control" in marked)
    if count <= 4:
        assert cache.checked(marked) is marked
    else:
        with pytest.raises(ValueError, match=f"^has {count} cache marks .*, and the API takes at most 4$"):
            cache.checked(marked)


LINES = st.lists(
    st.sampled_from(["one", "two"])
    | st.builds(lambda own, messages: {"params": {**own, "messages": messages}}, FIELDS, MESSAGES),
    min_size=2, max_size=4,
)  # fmt: skip


@given(FIELDS, st.booleans(), LINES)
def test_what_a_batch_marks_is_the_same_in_every_line_that_is_marked_there(defaults, shares_file, lines):
    front = {"type": "text", "text": "a file\n\n"}

    def compose(text):
        asked = {"type": "text", "text": text}
        return {"role": "user", "content": [front, asked] if shares_file else text}

    data = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    source = Source(io.BytesIO(data), "in", defaults, compose, False, mark=_marking(parse(["--cache"])))
    try:
        source.check()
    except UsageError:
        return  # too many
    prefixes = {}
    for given_line, line in zip(lines, source.lines(), strict=True):
        own = given_line.get("params", {}) if isinstance(given_line, dict) else {}
        theirs = {**defaults, **own, "messages": own.get("messages") or [compose(given_line)]}
        assert len(marks_in(line.params)) <= 4
        for number in set(marks_in(line.params)) - set(marks_in(theirs)):
            prefix = without_marks(line.params)[: number + 1]
            assert prefixes.setdefault(number, prefix) == prefix


@pytest.mark.parametrize("content", [None, 5, [5, None], [{}], [{"type": "text"}]])
def test_what_is_not_a_message_is_left_to_the_server(content):
    body = {"messages": [{"role": "user", "content": content}, None, {"role": "user", "content": "hi"}], "system": 5}
    marked = cache.Marks("5m", cache.front(body), goes_on=True).on(body)
    assert marked["messages"][2]["content"][0]["cache_control"] == {"type": "ephemeral"}
