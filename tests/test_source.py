"""streamcli.batch.source: the input is read as it is, or rejected with the line that is wrong."""

import io
import json
import os
import re
import tracemalloc

import pytest

from streamcli.batch.source import InputChangedError, Source
from streamcli.errors import UsageError

DEFAULTS = {"model": "m", "max_tokens": 9}


def user(text):
    return {"role": "user", "content": text}


def source(text, *, checked=True, defaults=DEFAULTS, compose=user, as_prompts=False):
    data = text if isinstance(text, bytes) else text.encode()
    made = Source(io.BytesIO(data), "in.jsonl", defaults, compose, as_prompts)
    if checked:
        made.check()
    return made


def lines(text, **options):
    return list(source(text, **options).lines())


def params(text, **options):
    [line] = lines(text, **options)
    return line.params


def rejected(text, **options):
    with pytest.raises(UsageError) as caught:
        source(text, **options)
    return str(caught.value).removeprefix("in.jsonl: ")


@pytest.mark.parametrize(
    "text", ['"hi"', '{"prompt": "hi"}', f'{{"params": {{"messages": [{json.dumps(user("hi"))}]}}}}']
)
def test_the_three_kinds_of_line_ask_the_same(text):
    assert params(text) == {"model": "m", "max_tokens": 9, "messages": [user("hi")]}


def test_each_line_is_a_prompt_as_it_stands_where_that_is_asked_for():
    found = lines('  {"prompt": 1} \r\n\n"b"\n', as_prompts=True)
    assert [line.params["messages"] for line in found] == [[user('  {"prompt": 1} ')], [user('"b"')]]


def test_params_go_over_the_defaults_key_by_key():
    text = '{"params": {"model": "x", "metadata": {"a": 1}, "stream": false, "messages": ["as it is"]}}'
    defaults = {"model": "m", "metadata": {"b": 2}, "top_k": 3, "stream": True}
    assert params(text, defaults=defaults) == {
        "model": "x",
        "metadata": {"a": 1},
        "top_k": 3,
        "messages": ["as it is"],
    }


def test_a_prompt_is_put_into_words_by_the_caller():
    assert params('"b"', compose=lambda text: user(f"a {text} c"))["messages"] == [user("a b c")]


def test_blank_lines_byte_order_marks_and_carriage_returns_are_not_input():
    found = lines(b'\xef\xbb\xbf\r\n{"custom_id":"a","prompt":"hi"}\r\n \t\n"there"')
    assert [(line.number, line.params["messages"][0]["content"]) for line in found] == [(2, "hi"), (4, "there")]


def test_a_mark_before_the_first_line_is_not_part_of_it():
    assert lines(b"\xef\xbb\xbfhi", as_prompts=True)[0].params["messages"] == [user("hi")]


def test_only_a_line_feed_ends_a_line():
    assert params('"a\u2028b\x85c"')["messages"] == [user("a\u2028b\x85c")]


def test_integers_are_sent_as_they_came():
    assert params('{"params": {"messages": [123456789012345678901234567890]}}')["messages"] == [
        123456789012345678901234567890
    ]


def test_it_can_be_read_as_often_as_one_likes():
    made = source('"a"\n"b"\n')
    assert list(made.lines()) == list(made.lines())
    assert (made.count, made.last) == (2, 2)


def test_what_the_file_grows_by_later_is_not_looked_at():
    file = io.BytesIO(b'"a"\n')
    made = Source(file, "in.jsonl", DEFAULTS, user, False)
    assert made.check() == 1
    file.seek(0, os.SEEK_END)
    file.write(b'"b"\n')
    assert len(list(made.lines())) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "4 of its 4 requests are missing"),
        ('"a"\n"b"\n\n"c"\n', "1 of its 4 requests are missing"),
        ('"a"\n"b"\n\n"c"\n\n\n\n\n"d"', "1 of its 4 requests are missing"),
        ('"a"\n"B"\n\n"c"\n"d"\n', "line 2 is not the one that was checked"),
        ('"a"\n"b"\n"x"\n"c"\n"d"\n', "line 3 is not the one that was checked"),
        ('"b"\n\n"c"\n"d"\n', "line 1 is not the one that was checked"),
        ('"a"\n{"custom_id":"b","prompt":"b"}\n\n"c"\n"d"\n', "line 2 is not the one that was checked"),
        ('"a"\n{"custom', "line 2 is not JSON: "),
        ('"a"\n""\n', "line 2 has no prompt"),
    ],
)
def test_the_lines_that_were_checked_are_the_lines_that_are_asked(text, why):
    file = io.BytesIO(b'"a"\n"b"\n\n"c"\n"d"\n')
    made = Source(file, "in.jsonl", DEFAULTS, user, False)
    made.check()
    file.seek(0)
    file.truncate()
    file.write(text.encode())
    with pytest.raises(InputChangedError) as caught:
        list(made.lines())
    assert str(caught.value).startswith(f"in.jsonl changed after it was checked: {why}")


def test_a_file_that_cannot_be_read_any_more_is_said(monkeypatch):
    class Torn(io.BytesIO):
        def __next__(self):
            raise OSError(5, "Input/output error")

    with pytest.raises(UsageError, match=r"cannot read in.jsonl: input/output error"):
        Source(Torn(b'"a"'), "in.jsonl", DEFAULTS, user, False).check()


def test_an_iteration_that_is_left_leaves_the_file_open():
    made = source('"a"\n"b"\n')
    next(made.lines())
    assert len(list(made.lines())) == 2


@pytest.mark.parametrize(
    ("changed", "is_same"),
    [
        ({}, True),
        ({"text": '\n{"custom_id":"b","prompt":"hi"}'}, True),
        ({"text": '{"custom_id":"a","prompt":"hi!"}'}, False),
        ({"defaults": {"model": "n"}}, False),
        ({"compose": lambda text: user(text + "!")}, False),
    ],
    ids=["nothing", "its place and its id", "the prompt", "an option", "what goes with it"],
)
def test_the_hash_of_a_request_is_another_where_what_is_asked_is(changed, is_same):
    [line] = lines('{"custom_id":"a","prompt":"hi"}')
    made = source(**{"text": '{"custom_id":"a","prompt":"hi"}'} | changed)
    assert (made.digest(made.last) == line.digest) == is_same


def test_a_line_is_found_by_its_id():
    made = source('{"custom_id":"a","prompt":"x"}\n\n{"custom_id":"b","prompt":"x"}')
    assert [made.number(name) for name in ("a", "b", "c")] == [1, 3, 0]


def test_ids_without_end_are_told_apart():
    made = source("".join(f'{{"custom_id":"id{n}","prompt":"x"}}\n' for n in range(5000)))
    assert [made.number(f"id{n}") for n in range(5001)] == [*range(1, 5001), 0]


def test_a_line_without_an_id_gets_one_that_the_api_takes_and_that_stays():
    (one, other), again = lines('"a"\n"a"'), lines('"a"\n"a"')
    assert [one, other] == again
    assert one.custom_id != other.custom_id
    assert all(batch_id.startswith("line-") for batch_id in (one.custom_id, other.custom_id))
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", one.custom_id)


@pytest.mark.parametrize(
    "changed",
    [{"text": '"b"'}, {"text": '\n"a"'}, {"defaults": {"model": "n"}}, {"compose": lambda text: user(text + "!")}],
    ids=["the prompt", "its place", "an option", "what goes with it"],
)
def test_that_id_is_another_where_anything_is(changed):
    assert lines(**{"text": '"a"'} | changed)[0].custom_id != lines('"a"')[0].custom_id


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nonsense", "line 1 is not JSON: "),
        ('"a"\n{"prompt": "b"', "line 2 is not JSON: "),
        (b'"a"\n\n"\xff"', "line 3 is not UTF-8: byte 2 is 0xff"),
        ("1", "line 1 is neither a string nor an object with prompt or params"),
        ('["a"]', "line 1 is neither a string nor an object with prompt or params"),
        ("null", "line 1 is neither a string nor an object with prompt or params"),
        ('""', "line 1 has no prompt"),
        ('" \\n"', "line 1 has no prompt"),
        ("{}", "line 1 has no prompt"),
        ('{"custom_id": "a"}', "line 1 has no prompt"),
        ('{"prompt": null}', "line 1 has a prompt that is not a string"),
        ('{"prompt": ["a"]}', "line 1 has a prompt that is not a string"),
        ('{"prompt": "a", "params": {}}', "line 1 has both prompt and params: leave one out"),
        ('{"params": []}', "line 1 has params that are not an object"),
        ('{"params": {}}', "line 1 has no prompt: its params have no messages"),
        ('{"params": {"messages": []}}', "line 1 has no prompt: its params have no messages"),
        ('{"params": {"messages": "a"}}', "line 1 has messages that are not a list"),
        ('{"custom_id": 1, "prompt": "a"}', "line 1 needs a custom_id that is a non-empty string"),
        ('{"custom_id": "", "prompt": "a"}', "line 1 needs a custom_id that is a non-empty string"),
        (
            '{"prompt": "a", "model": "x"}',
            "line 1 has an unknown key 'model': fields of the request go into params",
        ),
    ],
)
def test_what_is_not_a_request_is_rejected_with_its_line(text, why):
    assert rejected(text).startswith(why)


def test_for_plain_text_instead_of_json_the_message_names_the_way_out():
    assert rejected("hello").endswith("; with --lines each line is a prompt as it stands")


def test_what_cannot_be_sent_is_found_too():
    assert rejected('"a"', compose=lambda text: user(text + "\udcff")).startswith("line 1 cannot be written as JSON: ")


def test_bytes_that_are_not_text_are_not_a_prompt_either():
    assert rejected(b"a\n\xff", as_prompts=True) == "line 2 is not UTF-8: byte 1 is 0xff"


def test_an_id_that_comes_twice_is_rejected_with_both_lines():
    text = '{"custom_id":"a","prompt":"x"}\n"y"\n{"custom_id":"a","params":{"messages":["z"]}}'
    assert rejected(text) == "line 3 repeats the custom_id 'a' of line 1"


def test_an_id_that_was_made_for_another_line_is_rejected_too():
    made = lines('"x"')[0].custom_id
    assert rejected(f'"x"\n{{"custom_id":"{made}","prompt":"y"}}').startswith("line 2 repeats the custom_id")


def test_a_line_may_be_of_any_length():
    assert params(json.dumps("x" * 20_000_000))["messages"][0]["content"] == "x" * 20_000_000


def test_a_line_that_is_not_in_work_costs_some_tens_of_bytes(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"custom_id":"request-{n}","prompt":"Say {n}"}}\n' for n in range(20_000)))
    with path.open("rb") as file:
        made = Source(file, "in.jsonl", DEFAULTS, user, False)
        tracemalloc.start()
        made.check()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 20_000 * 60
