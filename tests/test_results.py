"""streamcli.batch.results: the output holds a result for each line, once, whatever ended the run before."""

import io
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd import deep

from streamcli.batch import results as batch
from streamcli.batch.results import Results
from streamcli.batch.source import Line, Source
from streamcli.errors import (
    APIConnectionError,
    APITimeoutError,
    IncompleteStreamError,
    OutputError,
    UnexpectedResponseError,
    UsageError,
    status_error,
)
from streamcli.protocol.jsontext import dumps, loads

THREE = "".join(f'{{"custom_id":"{name}","prompt":"{name}"}}\n' for name in "abc")


def source(text):
    made = Source(io.BytesIO(text.encode()), "in.jsonl", {}, lambda prompt: {"role": "user", "content": prompt}, False)
    made.check()
    return made


def succeeded(text="hi", stop_reason="end_turn"):
    return {"type": "succeeded", "message": {"content": [{"type": "text", "text": text}], "stop_reason": stop_reason}}


def failed(kind="invalid_request_error"):
    return {"type": "errored", "error": {"type": "error", "error": {"type": kind, "message": "no"}}}


def record(name, outcome=None, **more):
    return json.dumps({"custom_id": name, "result": outcome or succeeded(), **more}) + "\n"


def result(number, outcome=None):
    return batch.result(Line(number, " abc"[number], {}, digest(number)), outcome or succeeded())[0]


def digest(number, text=THREE):
    return source(text).digest(number)


def names(path):
    """The ids in the file, in capitals where they succeeded."""
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    return "".join(
        line["custom_id"].upper() if line["result"]["type"] == "succeeded" else line["custom_id"] for line in found
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.jsonl"


def opened(path, text=THREE, *, resume=True, retry_errors=True, **options):
    return Results(str(path), source(text), resume=resume, retry_errors=retry_errors, **options)


def not_opened(path, **options):
    before = path.read_bytes()
    with pytest.raises(UsageError) as caught:
        opened(path, **options)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    return str(caught.value).removeprefix(str(path))


class TestResults:
    def test_what_is_written_is_in_the_file_at_once(self, path):
        with opened(path, resume=False) as results:
            results.write([result(1)])
            assert names(path) == "A"
            results.write([result(2, failed()), result(3)])
            assert names(path) == "AbC"
            assert (results.recorded, results.failed, results.status, results.complete) == (3, 1, 3, True)

    def test_one_that_got_nothing_leaves_no_file(self, path):
        opened(path).close()
        assert not path.exists()

    def test_a_file_that_exists_is_rejected_unless_the_run_resumes(self, path):
        path.write_text(record("a"))
        assert not_opened(path, resume=False).startswith(" already exists: ")

    def test_a_file_that_is_empty_is_as_good_as_none(self, path):
        path.touch()
        opened(path, resume=False).close()

    def test_what_succeeded_is_done_and_what_failed_is_not(self, path):
        path.write_text(record("b") + record("a", failed()))
        with opened(path) as results:
            assert [results.done(number) for number in (1, 2, 3)] == [False, True, False]
            assert (results.recorded, results.failed, results.status) == (1, 0, 0)
        assert names(path) == "B"

    def test_what_failed_is_done_too_where_it_is_not_to_be_tried_again(self, path):
        path.write_text(record("b") + record("a", failed("overloaded_error")))
        with opened(path, retry_errors=False) as results:
            assert [results.done(number) for number in (1, 2, 3)] == [True, True, False]
            assert (results.failed, results.status) == (1, 5)
        assert names(path) == "Ba"

    def test_a_file_without_failures_is_left_alone(self, path):
        path.write_text(record("a") + record("b"))
        before = path.stat()
        opened(path).close()
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    @pytest.mark.parametrize("retry_errors", [True, False])
    def test_of_several_results_of_one_line_a_success_stays(self, path, retry_errors):
        path.write_text(record("a", failed()) + record("b") + record("a") + record("a", failed()) + record("a"))
        opened(path, retry_errors=retry_errors).close()
        assert names(path) == "BA"

    def test_a_torn_tail_is_not_done_and_goes_with_the_next_result(self, path):
        whole = record("b").encode()
        for tail in (b"\0" + whole[1:], whole[:-9], whole[:1]):
            path.write_bytes(record("a").encode() + tail)
            with opened(path) as results:
                assert not results.done(2)
                results.write([result(3)])
            assert names(path) == "AC"

    def test_a_file_that_is_nothing_but_a_torn_tail_is_begun_anew(self, path):
        for tail in (b"\0" + record("a").encode()[1:40], b'{"custom_id":"a","resu', b"\0\0\0"):
            path.write_bytes(tail)
            with opened(path) as results:
                results.write([result(2)])
            assert names(path) == "B"

    def test_a_last_line_without_its_end_is_done(self, path):
        path.write_text(record("a").rstrip("\n"))
        with opened(path) as results:
            assert results.done(1)
            results.write([result(2)])
        assert names(path) == "AB"

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            (record("a") + "nonsense\n" + record("b"), 2),
            (record("a") + '{"custom_id": "b"\n' + record("c"), 2),
            ("[]\n", 1),
            ('{"custom_id": "a"}\n', 1),
            ('{"custom_id": "a", "result": {}}\n', 1),
            ('{"custom_id": 1, "result": {"type": "succeeded"}}\n', 1),
            (record("a", digest=["x"]), 1),
            ("Dear diary", 1),
            ('{"my": "only copy', 1),
            ("\0\0\0 ftypmp42", 1),
            (record("a") + record("b").replace("b", "\udcff"), 2),
        ],
    )
    def test_a_file_that_holds_anything_else_is_left_alone(self, path, text, line):
        path.write_text(text, errors="surrogateescape")
        assert not_opened(path) == f": line {line} {batch._FOREIGN}"

    def test_results_of_another_input_are_left_alone(self, path):
        path.write_text(record("a") + record("z"))
        assert not_opened(path).startswith(": line 2 belongs to another input: in.jsonl has no line 'z'")

    def test_results_of_an_input_that_was_edited_since_are_left_alone(self, path):
        with opened(path, '"one"\n"two"\n', resume=False) as results:
            [first, _] = source('"one"\n"two"\n').lines()
            results.write([batch.result(first, succeeded())[0]])
        assert " belongs to another input: " in not_opened(path, text='"One"\n"two"\n')

    @pytest.mark.parametrize(
        ("outcome", "retry_errors"), [(succeeded(), True), (succeeded(), False), (failed(), False)]
    )
    def test_so_are_those_of_a_request_that_was_edited_under_its_id(self, path, outcome, retry_errors):
        with opened(path, resume=False) as results:
            results.write([result(1), result(2, outcome)])
        edited = THREE.replace('"prompt":"b"', '"prompt":"B"')
        assert not_opened(path, text=edited, retry_errors=retry_errors) == (
            ": line 2 does not answer line 2 of in.jsonl, which was edited since or asked with other "
            "options: remove the result to ask again, or write to another file"
        )

    def test_one_that_failed_may_be_edited_and_is_asked_again(self, path):
        with opened(path, resume=False) as results:
            results.write([result(1), result(2, failed())])
        with opened(path, THREE.replace('"prompt":"b"', '"prompt":"B"')) as results:
            assert [results.done(number) for number in (1, 2)] == [True, False]

    def test_a_result_that_does_not_say_what_was_asked_is_taken_for_its_line_s(self, path):
        path.write_text(record("b") + record("a", digest=None) + record("c", digest=digest(3)))
        with opened(path) as results:
            assert results.complete

    def test_two_runs_never_write_one_file(self, path):
        with opened(path, resume=False) as results:
            results.write([result(1)])
            with pytest.raises(UsageError, match="is being written by another run"):
                opened(path)

    def test_a_file_in_the_input_s_order_is_left_as_it_is_in_the_end(self, path):
        with opened(path, resume=False) as results:
            results.write([result(1), result(2), result(3)])
            before = path.stat().st_ino
            results.finish(ordered=True)
        assert path.stat().st_ino == before

    def test_results_that_came_out_of_order_are_brought_into_it_in_the_end(self, path):
        path.write_text(record("a", failed()) + record("c", succeeded("caf\u00e9 \u2028")).rstrip("\n"))
        with opened(path) as results:
            results.write([result(2, failed())])
            results.finish(ordered=True)
            assert names(path) == "Cb"  # not yet: a line is missing
            results.write([result(1)])
            results.finish(ordered=True)
            assert names(path) == "AbC"

    def test_they_stay_as_they_came_where_no_order_is_wanted(self, path):
        with opened(path, resume=False) as results:
            results.write([result(3), result(1), result(2)])
            results.finish(ordered=False)
        assert names(path) == "CAB"

    def test_a_file_out_of_order_is_ordered_by_the_next_run_though_nothing_is_left_to_ask(self, path):
        parts = {"c": record("c"), "blank": "\r\n", "a": record("a"), "b": record("b")}
        whole = "".join(parts.values())
        torn = record("a")[1:40]
        for text in (whole, whole + "\0" + torn, "\ufeff" + whole, whole.rstrip(), whole.rstrip() + "\0{" + torn):
            path.write_text(text)
            with opened(path) as results:
                assert results.complete
                results.finish(ordered=True)
            assert names(path) == "ABC"

    def test_a_file_that_another_program_changed_is_not_put_in_order(self, path):
        path.write_text(record("c") + record("a") + record("b"))
        with opened(path) as results:
            path.write_text(record("c") + record("a"))
            with pytest.raises(OutputError, match="another program"):
                results.finish(ordered=True)
        assert names(path) == "CA"

    def test_a_disk_that_is_full_leaves_what_was_there(self, path, monkeypatch):
        def full(fd, data, offset):
            raise OSError(28, "No space left on device")

        with opened(path, resume=False) as results:
            results.write([result(1)])
            monkeypatch.setattr(os, "pwrite", full)
            with pytest.raises(OutputError, match="no space left on device"):
                results.write([result(2)])
            assert (results.done(2), results.recorded) == (False, 1)
        assert names(path) == "A"

    def test_what_is_there_already_is_judged_too(self, path):
        path.write_text(record("a", succeeded(stop_reason="max_tokens")) + record("b"))
        with opened(path, judge=lambda message: 9 * (message["stop_reason"] == "max_tokens")) as results:
            assert (results.done(1), results.failed, results.status) == (True, 1, 9)

    @settings(max_examples=30)
    @given(
        kept=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=8),
        order=st.permutations([1, 2, 3]),
        retry_errors=st.booleans(),
    )
    def test_whatever_is_there_already_each_line_has_one_result_in_the_end(
        self, tmp_path_factory, kept, order, retry_errors
    ):
        path = tmp_path_factory.mktemp("results") / "out.jsonl"
        path.write_text("".join(record(name, succeeded() if well else failed()) for name, well in kept))
        had = {name for name, well in kept if well}
        with opened(path, retry_errors=retry_errors) as results:
            for number in order:
                if results.done(number):
                    assert " abc"[number] in (had if retry_errors else {name for name, _ in kept})
                else:
                    assert " abc"[number] not in had
                    results.write([result(number)])
            results.finish(ordered=True)
        assert names(path).lower() == "abc"
        assert {name.lower() for name in names(path) if name.isupper()} >= had

    def test_of_several_results_in_one_write_those_that_are_whole_count(self, path):
        with opened(path) as results:
            results.write([result(1), result(2)])
        whole = path.read_bytes()
        for length in range(whole.index(b"\n") + 1, len(whole)):
            path.write_bytes(whole[:length])
            with opened(path) as results:
                assert results.recorded == 1 + (length == len(whole) - 1)

    def test_a_last_line_without_an_end_gets_one(self, path):
        with opened(path) as results:
            results.write([result(1), result(2), result(3)])
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with opened(path) as results:
            results.finish(ordered=True)
        assert path.read_bytes() == whole


# What an outcome means


@pytest.mark.parametrize(
    "error",
    [
        *(status_error(code, {"error": {"type": kind, "message": "no"}}) for code, kind in [
            (400, "invalid_request_error"),
            (401, "authentication_error"),
            (413, "request_too_large"),
            (429, "rate_limit_error"),
            (500, "api_error"),
            (529, "overloaded_error"),
        ]),
        status_error(None, {"error": {"type": "something_new"}}),
        status_error(404, "not here"),
        UsageError("no key"),
        APIConnectionError("refused"),
        APITimeoutError("idle"),
        UnexpectedResponseError("a page"),
        IncompleteStreamError("cut"),
    ],
    ids=lambda error: f"{type(error).__name__}-{error.type}",
)  # fmt: skip
def test_an_error_s_status_can_be_told_from_its_record(error):
    expected = error.exit_code if error.type != "something_new" else 5
    assert batch.status(batch.errored(error)) == expected


def test_an_error_is_recorded_as_the_batches_results_have_it():
    error = status_error(429, {"error": {"type": "rate_limit_error", "message": "slow down"}}, request_id="req_1")
    assert batch.errored(error) == {
        "type": "errored",
        "error": {
            "type": "error",
            "error": {"type": "rate_limit_error", "message": "slow down"},
            "request_id": "req_1",
        },
    }
    details = {"error_code": "ramp_limit_exceeded"}
    error = status_error(429, {"error": {"type": "rate_limit_error", "message": "slow down", "details": details}})
    assert batch.errored(error)["error"]["error"]["details"] == details
    assert batch.errored(IncompleteStreamError("cut"))["error"] == {
        "type": "error",
        "error": {"type": "streamcli.incomplete_stream", "message": "cut"},
    }


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (succeeded(), 0),
        (succeeded(stop_reason="refusal"), 9),
        ({"type": "expired"}, 5),
        ({"type": "canceled"}, 5),
        ({"type": "errored"}, 5),
        ({"type": "something_new"}, 8),
    ],
)
def test_every_outcome_has_its_status(outcome, status):
    assert batch.status(outcome, lambda message: 9 * (message.get("stop_reason") == "refusal")) == status


@pytest.mark.parametrize("code", [401, 403, 404, 413, 429, 500, 502, 529])
def test_a_result_keeps_the_status_of_an_error_response_without_a_type(code):
    error = status_error(code, "<html>")
    assert batch.status(batch.errored(error)) == error.exit_code


@pytest.mark.parametrize("depth", [240, 260, 900, 1019, 1021, 1100])
def test_an_answer_that_could_not_be_read_again_is_an_error_that_says_so(depth):
    line = Line(1, "a", {}, "0" * 16)
    got, outcome = batch.result(line, {"type": "succeeded", "message": {"content": deep(depth)}}, lambda message: 9)
    recorded = loads(got.line)["result"]
    if depth < 1020:
        assert (dumps(recorded), outcome["type"], got.status) == (dumps(outcome), "succeeded", 9)
    else:
        assert (recorded["error"]["error"]["type"], outcome["type"], got.status) == (
            "streamcli.protocol_error",
            "errored",
            8,
        )
