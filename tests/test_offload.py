"""Many prompts by way of the Message Batches API, against a server that can be told when to fail."""

import contextlib
import json
import os
import stat

import pytest
from batches import (
    CANCELED,
    CUT,
    CUT_AFTER,
    EXPIRED,
    Batch,
    BatchesServer,
    Case,
    errored,
    prompts,
    said,
    succeeded,
    unmarked,
)
from hypothesis import given
from hypothesis import strategies as st
from odd import oddities
from server import error_response, head, json_response

from streamcli import (
    APIConnectionError,
    APIError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    OverloadedError,
    ProtocolError,
    UnexpectedResponseError,
    UsageError,
)
from streamcli.batch import offload
from streamcli.batch.offload import Counts
from streamcli.batch.results import Results
from streamcli.errors import StreamcliError
from streamcli.protocol.request import SAMPLING_API_VERSION


@pytest.fixture(autouse=True)
def _at_once(monkeypatch, without_sync):
    monkeypatch.setattr(offload, "FIRST_WAIT", 0)
    monkeypatch.setattr(offload, "SETTLING", (0, 0))
    monkeypatch.setattr(offload, "MAX_REQUESTS", 3)
    monkeypatch.setattr("streamcli.client.client.sleep", lambda seconds: None)


@pytest.fixture
def api():
    with BatchesServer() as server:
        yield server


@pytest.fixture
def case(api, tmp_path):
    return Case(api, tmp_path, prompts(*"abcdefgh"))


class TestTheWholeWay:
    def test_every_line_goes_out_once_and_comes_back_in_order(self, case, api):
        assert case.work() == 0
        assert [batch.ids for batch in api.batches] == [list("abc"), list("def"), list("gh")]
        assert case.results == succeeded(*"abcdefgh")
        assert not case.state.exists()

    def test_a_result_is_what_the_server_says(self, case, api):
        case.work()
        fifth = json.loads(case.output.read_text().splitlines()[4])
        assert len(fifth.pop("digest")) == 16
        assert fifth == {"custom_id": "e", "result": said("e", api.batches[1].requests[1]["params"])}

    def test_a_request_is_the_line_with_the_defaults_and_without_stream(self, case, api):
        case.lines = prompts("a", stream=True, max_tokens=5)
        case.work(betas=["one"])
        messages = [{"role": "user", "content": "hi"}]
        params = {"model": "m", "max_tokens": 5, "messages": messages}
        [request] = api.batches[0].requests
        assert (unmarked(request["custom_id"]), request["params"]) == ("a", params)
        assert api.batches[0].headers["anthropic-beta"] == "one"

    def test_a_part_is_bounded_in_bytes_and_holds_at_least_one_line(self, case, api, monkeypatch):
        monkeypatch.setattr(offload, "MAX_BYTES", 250)
        case.lines = [*prompts("a", "b", "c"), *prompts("d", system="x" * 500), *prompts("e")]
        case.work()
        assert [batch.ids for batch in api.batches] == [["a", "b"], ["c"], ["d"], ["e"]]

    def test_a_batch_goes_out_in_the_version_that_its_requests_need(self, case, api):
        case.lines = [*prompts("a", "b", "c"), *prompts("d", "e"), *prompts("f", temperature=0)]
        case.work()
        versions = [batch.headers["anthropic-version"] == SAMPLING_API_VERSION for batch in api.batches]
        assert versions == [False, True]

    def test_the_ids_of_a_part_carry_a_mark_of_its_own_where_that_leaves_them_ids(self, case, api):
        ids = ["a", "b" * 55, "c" * 56, "d"]
        case.lines = prompts(*ids)
        case.work()
        sent = [[request["custom_id"] for request in batch.requests] for batch in api.batches]
        marks = [ids[0][-9:] for ids in sent]
        assert sent == [["a" + marks[0], "b" * 55 + marks[0], "c" * 56], ["d" + marks[1]]]
        assert marks[0] != marks[1]
        assert case.results == succeeded(*ids)

    def test_batches_end_in_any_order_and_the_counts_tell(self, case, api):
        api.polls = 0
        ends = {4: 2, 8: 0, 11: 1}  # at which look, which batch

        def at(moment, kind):
            if (moment, kind) == ("arrived", "retrieve") and api.asked.count(kind) in ends:
                api.end(api.batches[ends.pop(api.asked.count(kind))])

        api.at = at
        case.work()
        assert case.results == succeeded(*"abcdefgh")
        assert case.seen[0] == Counts(3, 0, {"processing": 8})
        assert [counts.ended for counts in case.seen] == [0, 1, 2, 3]
        assert [counts.requests["processing"] for counts in case.seen] == [8, 6, 3, 0]
        assert case.seen[-1].requests["succeeded"] == 8

    def test_the_state_is_on_the_disk_before_anything_is_asked(self, case, api):
        states = {}
        api.at = lambda moment, kind: states.setdefault(kind, case.journal) if moment == "arrived" else None
        case.work()
        intent = states["create"]
        assert [(line["part"], line["lines"], line["count"], line["newest"]) for line in intent] == [
            (1, [[1, 3]], 3, None)
        ]
        waiting = states["retrieve"]
        assert [line["id"] for line in waiting if "id" in line] == ["msgbatch_01", "msgbatch_02", "msgbatch_03"]
        assert [line["newest"] for line in waiting if "newest" in line] == [None, "msgbatch_01", "msgbatch_02"]

    def test_only_its_owner_reads_the_state(self, case, api):
        modes = set()
        api.at = lambda moment, kind: modes.add(stat.S_IMODE(os.stat(case.state).st_mode))
        case.work()
        assert modes == {0o600}

    def test_where_nothing_is_left_to_do_nothing_is_asked(self, case, api):
        case.work()
        api.asked.clear()
        assert case.resume() == 0
        assert api.asked == []
        assert not case.state.exists()


class TestOutcomes:
    @pytest.fixture(autouse=True)
    def _four_ways(self, case, api):
        case.lines = prompts(*"abcd")
        outcomes = {"b": errored("overloaded_error"), "c": CANCELED, "d": EXPIRED}
        api.outcome = lambda custom_id, params: outcomes.get(custom_id) or said(custom_id, params)
        self.outcomes = outcomes

    def test_each_is_recorded_as_it_is_and_the_gravest_is_the_status(self, case):
        status = case.work()
        assert case.results == [("a", "succeeded"), ("b", "errored"), ("c", "canceled"), ("d", "expired")]
        assert status >= 5

    @pytest.mark.parametrize(
        ("kind", "status"), [("invalid_request_error", 3), ("authentication_error", 4), ("api_error", 5)]
    )
    def test_an_error_has_the_status_of_its_type(self, case, kind, status):
        self.outcomes.clear()
        self.outcomes["b"] = errored(kind)
        assert case.work() == status

    def test_the_statistics_tell(self, case):
        case.work()
        fields = case.statistics.fields()
        assert (fields["succeeded"], fields["errored"], fields["faults"]) == (
            1,
            3,
            {"overloaded_error": 1, "canceled": 1, "expired": 1},
        )
        assert fields["usage"] == {"input_tokens": 3, "output_tokens": 5}

    def test_a_stop_reason_of_fail_on_has_its_own(self, case):
        self.outcomes.clear()
        assert case.work(judge=lambda message: 9 * (message["stop_reason"] == "end_turn")) == 9

    def test_what_failed_is_asked_again_and_nothing_else(self, case, api):
        case.work()
        self.outcomes.clear()
        assert case.resume() == 0
        assert [batch.ids for batch in api.batches] == [["a", "b", "c"], ["d"], ["b", "c", "d"]]
        assert case.results == succeeded(*"abcd")

    def test_or_not(self, case, api):
        before = case.work()
        self.outcomes.clear()
        assert case.resume(retry_errors=False) == before
        assert len(api.batches) == 2


ABSENT = [
    error_response(404, "not_found_error"),
    error_response(405),
    error_response(501),
    head(404, type="text/html", length=4) + b"nope",
    head(type="text/html", length=4) + b"nope",
    json_response({"data": [{"id": "m", "type": "model"}]}),
    json_response({"data": "nope"}),
]


class TestSubmitting:
    @pytest.mark.parametrize("fault", ABSENT)
    def test_a_server_without_batches_is_told_by_its_list(self, case, api, fault):
        api.faults["list"] = [fault] * 3
        with pytest.raises(UnexpectedResponseError, match=r"has no Message Batches API \(.*\): leave out") as caught:
            case.work()
        assert caught.value.exit_code == 3
        assert set(api.asked) == {"list"}
        assert not case.state.exists()
        assert not case.output.exists()

    @pytest.mark.parametrize(
        "answer", [error_response(404), error_response(405), json_response({"ok": True}), json_response({"id": "x"})]
    )
    def test_or_by_its_answer_to_a_batch(self, case, api, answer):
        api.faults["list"] = [json_response({"ok": True})]
        api.faults["create"] = [answer]
        with pytest.raises(UnexpectedResponseError, match="has no Message Batches API"):
            case.work()
        assert api.asked.count("create") == 1
        assert case.resume() == 0
        assert api.accepted == list("abcdefgh")

    @pytest.mark.parametrize(
        "fault", [error_response(401, "authentication_error"), error_response(403, "permission_error")]
    )
    def test_a_key_that_may_not_is_not_a_missing_api(self, case, api, fault):
        api.faults["list"] = [fault]
        with pytest.raises(Exception, match="error: no") as caught:
            case.work()
        assert caught.value.exit_code == 4

    def test_a_rejected_part_leaves_its_lines_as_they_were(self, case, api):
        api.faults["create"] = [None, error_response(400)]
        with pytest.raises(BadRequestError):
            case.work()
        assert [batch.ids for batch in api.batches] == [list("abc")]
        assert case.resume() == 0
        assert [batch.ids for batch in api.batches] == [list("abc"), list("def"), list("gh")]

    @pytest.mark.parametrize(
        ("said", "line"),
        [
            ("requests.1.params.max_tokens: Field required", "requests.1 is line 7"),
            ("requests[2].custom_id: too long", "requests.2 is line 8"),
        ],
    )
    def test_the_line_that_it_is_refused_for_is_named(self, case, api, said, line):
        api.faults["create"] = [None, error_response(400, message=said)]
        case.lines[4:4] = [None, None]
        with pytest.raises(BadRequestError) as caught:
            case.work()
        assert caught.value.message == f"{said} ({line} of in.jsonl)"

    @pytest.mark.parametrize("said", ["no", "requests: too many", "requests.99.params: no", "my_requests.1: no"])
    def test_or_none_is(self, case, api, said):
        api.faults["create"] = [error_response(400, message=said)]
        with pytest.raises(BadRequestError) as caught:
            case.work()
        assert caught.value.message == said

    def test_an_answer_that_is_lost_does_not_make_a_second_batch(self, case, api):
        api.faults["create"] = [None, CUT_AFTER]
        assert case.work() == 0
        assert api.accepted == list("abcdefgh")
        assert case.results == succeeded(*"abcdefgh")

    @pytest.mark.parametrize("fault", [CUT, error_response(500), error_response(529), error_response(503)])
    def test_a_submission_that_came_to_nothing_is_made_again(self, case, api, fault):
        api.faults["create"] = [None, fault]
        assert case.work() == 0
        assert api.accepted == list("abcdefgh")

    def test_but_not_for_ever(self, case, api):
        api.faults["create"] = [None, *[CUT] * 3]
        with pytest.raises(APIConnectionError):
            case.work()
        assert api.asked.count("create") == 4
        assert case.resume() == 0
        assert api.accepted == list("abcdefgh")

    def test_an_overloaded_server_is_believed(self, case, api):
        api.faults["create"] = [error_response(529, "overloaded_error")] * 3
        with pytest.raises(OverloadedError):
            case.work()
        assert api.asked.count("list") == 1

    def test_a_dead_server_leaves_all_as_it_was(self, case, api):
        with pytest.raises(APIConnectionError):
            case.work(url="http://127.0.0.1:1")
        assert not case.state.exists()
        assert not case.output.exists()


class TestAfterASubmissionThatBrokeOff:
    """The batch was accepted or not, and the run ended before it knew: the next one must find out."""

    def broken_off(self, case, api, fault=CUT_AFTER):
        """A first part, and a second one whose end is not known."""
        api.faults = {"create": [None, fault], "list": [None, None, error_response(401, "authentication_error")]}
        with pytest.raises(AuthenticationError):
            case.work()
        assert "id" not in case.journal[-1]

    def somebody_elses(self, api, *ids):
        batch = Batch(f"msgbatch_x{len(api.batches)}", prompts(*ids, model="m"), {})
        api.batches.append(batch)
        return batch

    @pytest.mark.parametrize("others", ["", "x", "xyz", "def"])
    def test_the_one_whose_results_show_the_mark_is_it(self, case, api, others):
        self.broken_off(case, api)
        other = self.somebody_elses(api, *others) if others else None
        assert case.resume() == 0
        assert [each for batch in api.batches for each in batch.ids if batch != other] == list("abcdefgh")
        assert case.results == succeeded(*"abcdefgh")
        assert "found the batch of part 2, whose submission broke off: msgbatch_02" in case.notes

    @pytest.mark.parametrize("others", ["", "x", "xyz", "def"])
    def test_where_there_is_none_it_is_submitted(self, case, api, others):
        self.broken_off(case, api, CUT)
        other = self.somebody_elses(api, *others) if others else None
        assert case.resume() == 0
        assert [each for batch in api.batches for each in batch.ids if batch != other] == list("abcdefgh")
        assert case.results == succeeded(*"abcdefgh")

    @pytest.mark.parametrize("fault", [CUT, CUT_AFTER])
    def test_as_long_as_that_cannot_be_told_it_is_waited_for_and_the_others_go_on(self, case, api, fault):
        other = Batch("msgbatch_x", prompts(*"abc", model="m"), {})

        def at(moment, kind):
            if moment == "arrived" and api.asked.count("create") == 1 and other not in api.batches:
                api.batches.append(other)  # between our look and our submission
            if moment == "arrived" and api.asked.count("retrieve") == 12:
                api.polls = 1
                for batch in api.batches:
                    batch.polls = 0

        case.lines = prompts(*"abcdef")
        api.polls, api.faults, api.at = 0, {"create": [fault]}, at
        assert case.work() == 0
        assert case.results == succeeded(*"abcdef")
        ours = [batch.ids for batch in api.batches if batch != other]
        assert ours == ([list("abc"), list("def")] if fault is CUT_AFTER else [list("def"), list("abc")])
        [note] = [note for note in case.notes if " may be part 1" in note]
        assert note.endswith(
            "whose submission broke off: its results will tell; to submit the part now, end this run and add the line "
            f'{{"part":1,"id":null}} to {case.state}'
        )

    @pytest.mark.parametrize(
        "pieces",
        [
            lambda body: [b"<html>\n"],
            lambda body: [b""],
            lambda body: [body.replace(b"custom_id", b"id")],
            lambda body: [body.partition(b"\n")[0] + b"\n"],
            lambda body: [CUT],
        ],
        ids=["a page", "empty", "without ids", "too few", "cut"],
    )
    def test_what_cannot_be_read_does_not_show_that_it_is_somebody_else_s(self, case, api, pieces):
        self.broken_off(case, api)
        left = [pieces, pieces]
        api.pieces = lambda body: left.pop()(body) if b'"d-' in body and left else [body]
        for _ in range(2):
            with contextlib.suppress(APIError):
                case.resume()
        assert case.resume() == 0
        assert api.accepted == list("abcdefgh")
        assert case.results == succeeded(*"abcdefgh")

    def test_a_batch_of_before_is_never_it(self, case, api):
        self.somebody_elses(api, "x", "y", "z")
        self.broken_off(case, api, CUT)
        assert case.resume() == 0
        assert api.accepted == list("xyzabcdefgh")

    def test_it_may_be_listed_late(self, case, api):
        self.broken_off(case, api)
        late = json_response({"data": [api.shown(api.batches[0])], "has_more": False})
        api.faults["list"] = [late]
        assert case.resume() == 0
        assert api.accepted == list("abcdefgh")

    def test_where_the_batch_before_is_gone_nobody_can_tell(self, case, api):
        self.broken_off(case, api)
        api.faults["list"] = [json_response({"data": [], "has_more": False})]
        with pytest.raises(UsageError, match=r"part 2 .* because batch msgbatch_01 is no longer listed"):
            case.resume()
        assert case.resume() == 0

    @pytest.mark.parametrize("choice", ["msgbatch_02", None])
    def test_where_ids_are_too_long_for_a_mark_a_person_tells(self, case, api, choice):
        ids = [each * 60 for each in "abcdefgh"]
        case.lines = prompts(*ids)
        self.broken_off(case, api)
        api.end(api.batches[1])
        with pytest.raises(UsageError) as caught:
            case.resume()
        assert caught.value.message == (
            "batch msgbatch_02 may be part 2, whose submission broke off, and the ids are too long to show it: add the "
            f'line {{"part":2,"id":"ID"}} to {case.state}, with the ID of its batch or null for none'
        )
        with case.state.open("a") as state:
            state.write(json.dumps({"part": 2, "id": choice}) + "\n")
        assert case.resume() == 0
        assert case.results == succeeded(*ids)
        assert (api.accepted.count(ids[3]) == 1) == (choice is not None)

    def test_counts_that_say_nothing_rule_no_batch_out(self, case, api):
        self.broken_off(case, api)
        shown = [
            api.shown(batch) | {"request_counts": counts}
            for batch, counts in zip(api.batches[::-1], ["?", {}], strict=True)
        ]
        api.faults["list"] = [json_response({"data": shown, "has_more": False})]
        assert case.resume() == 0
        assert api.accepted == list("abcdefgh")


class TestWaiting:
    @pytest.mark.parametrize(
        "fault",
        [
            CUT,
            error_response(500),
            error_response(429, "rate_limit_error"),
            head(length=9) + b"{",
            error_response(404, "not_found_error"),
            json_response({"id": "msgbatch_01"}),
            json_response({"id": ["msgbatch_01"], "processing_status": "ended"}),
            head(type="text/html", length=2) + b"<p",
        ],
    )
    @pytest.mark.parametrize("kind", ["retrieve", "results"])
    def test_a_look_that_fails_is_repeated(self, case, api, fault, kind):
        api.faults[kind] = [fault] * 4  # more than one call's own attempts
        assert case.work() == 0
        assert case.results == succeeded(*"abcdefgh")
        assert api.accepted == list("abcdefgh")
        assert [note for note in case.notes if note.startswith("trying again after: ")]

    def test_but_not_for_ever_and_what_waits_is_known_to_the_next_run(self, case, api, monkeypatch):
        monkeypatch.setattr(offload, "MAX_FAULTS", 4)
        api.faults["retrieve"] = [error_response(500)] * 45
        with pytest.raises(InternalServerError):
            case.work()
        assert api.asked.count("retrieve") == 45
        assert case.resume() == 0
        assert api.accepted == list("abcdefgh")

    def test_a_fault_of_all_is_said_once(self, case, api):
        api.faults["retrieve"] = [error_response(500)] * 9
        case.work()
        assert [note for note in case.notes if note.startswith("trying again after")] == [
            "trying again after: status 500 invalid_request_error: no (request_id req_1)"
        ]

    def test_the_waits_grow_up_to_a_minute(self, case, api, monkeypatch):
        waits = []
        monkeypatch.setattr(offload, "FIRST_WAIT", 1.0)
        monkeypatch.setattr(offload.time, "sleep", waits.append)
        api.polls = 15
        case.lines = case.lines[:1]
        case.work()
        assert waits[:3] == [1.0, 1.5, 2.25]
        assert waits == sorted(waits)
        assert waits[-1] == 60

    def test_a_batch_that_is_gone_does_not_hold_up_the_others_and_nobody_is_told_to_pay_twice(self, case, api):
        gone = []

        def at(moment, kind):
            if (moment, kind) == ("done", "create") and len(api.batches) == 1 and not gone:
                gone.append(api.batches[0])
            if gone and moment == "arrived":
                api.batches[0] = Batch("msgbatch_deleted", gone[0].requests, {})

        api.at = at
        with pytest.raises(NotFoundError) as caught:
            case.work()
        assert caught.value.message.endswith(
            "; batch msgbatch_01 was made here and is paid for: look for it with the key and the workspace that it was "
            'made with; only if it is gone for good, add the line {"part":1,"id":null} to '
            f"{case.state} to ask, and pay for, its lines again"
        )
        assert sorted(case.results) == succeeded(*"defgh")
        with case.state.open("a") as state:
            state.write('{"part": 1, "id": null}\n')
        api.at = lambda *_: None
        assert case.resume() == 0
        assert [batch.ids for batch in api.batches[1:]] == [list("def"), list("gh"), list("abc")]

    def test_an_answer_that_is_never_a_batch_ends_it(self, case, api, monkeypatch):
        monkeypatch.setattr(offload, "MAX_FAULTS", 2)
        case.lines = case.lines[:1]
        api.faults["retrieve"] = [json_response({"id": "msgbatch_01"})] * 3
        with pytest.raises(ProtocolError, match="request for batch msgbatch_01 is not a batch; batch msgbatch_01 was"):
            case.work()
        assert case.resume() == 0
        assert api.accepted == ["a"]

    @pytest.mark.parametrize("counts", [None, 5, "many", [], {"succeeded": "three"}, {"succeeded": [1]}, {"odd": 1e9}])
    def test_counts_of_another_form_are_not_counted(self, case, api, monkeypatch, counts):
        monkeypatch.setattr(api, "shown", lambda batch: BatchesServer.shown(api, batch) | {"request_counts": counts})
        assert case.work() == 0
        assert case.results == succeeded(*"abcdefgh")


class TestFetching:
    def test_results_that_break_off_are_kept_and_the_others_fetched(self, case, api):
        cuts = [50, 400, 600]
        api.pieces = lambda body: [body[: cuts.pop()], CUT] if cuts else [body]
        assert case.work() == 0
        assert case.results == succeeded(*"abcdefgh")
        assert cuts == []

    def test_what_is_kept_is_not_written_again(self, case, api, monkeypatch):
        written = []
        monkeypatch.setattr(offload, "_BLOCK", 1)
        monkeypatch.setattr(
            Results, "write", lambda self, block, write=Results.write: (written.extend(block), write(self, block))
        )
        api.faults["results"] = [None, CUT, CUT, CUT]
        api.pieces = lambda body: [body[:600], CUT] if api.asked.count("results") == 1 else [body]
        case.work()
        assert sorted(result.number for result in written) == list(range(1, 9))

    def test_results_that_name_another_host_are_fetched_from_ours(self, case, api):
        api.results_host = "http://example.com"
        assert case.work() == 0

    @pytest.mark.parametrize("place", [None, "/gateway", "", "https://api.anthropic.com"])
    def test_below_a_path_they_are_fetched_wherever_the_batch_says_that_they_are(self, case, api, place):
        api.prefix, api.results_host = "/gateway", place
        assert case.work(url=f"{api.url}/gateway") == 0
        assert case.results == succeeded(*"abcdefgh")

    def test_a_batch_that_ended_without_saying_where_its_results_are_has_them_where_the_api_has_them(
        self, case, api, monkeypatch
    ):
        monkeypatch.setattr(api, "shown", lambda batch: BatchesServer.shown(api, batch) | {"results_url": None})
        assert case.work() == 0
        assert case.results == succeeded(*"abcdefgh")

    def test_one_whose_results_are_archived_is_not_a_usage_error(self, case, api, monkeypatch):
        archived = {"results_url": None, "archived_at": "2026-12-24T00:00:00Z"}
        monkeypatch.setattr(offload, "MAX_FAULTS", 2)
        monkeypatch.setattr(api, "shown", lambda batch: BatchesServer.shown(api, batch) | archived)
        with pytest.raises(UnexpectedResponseError, match="it is archived; batch msgbatch_01 was made") as caught:
            case.work()
        assert caught.value.exit_code == 3

    @pytest.mark.parametrize(
        "change",
        [
            lambda body: body.replace(b'"type": "succeeded", ', b""),
            lambda body: body.replace(b'"type": "succeeded"', b'"type": ["succeeded"]'),
            lambda body: body.replace(b'"message": {', b'"messages": {'),
            lambda body: body.replace(b'"message": {', b'"message": 5, "messages": {'),
            lambda body: body.replace(b'"result": {', b'"result": [], "results": {'),
            lambda body: body.replace(b'"result": {', b'"result": null, "results": {'),
        ],
    )
    def test_an_odd_result_is_that_line_s_error_and_of_no_other(self, case, api, change):
        api.pieces = lambda body: [b"".join(change(line) if b'"b-' in line else line for line in body.splitlines(True))]
        assert case.work() == 8
        assert case.results == [("a", "succeeded"), ("b", "errored"), *succeeded(*"cdefgh")]
        error = json.loads(case.output.read_text().splitlines()[1])["result"]["error"]["error"]
        assert error["type"] == "streamcli.protocol_error"
        api.pieces = lambda body: [body]
        assert case.resume() == 0
        assert case.results == succeeded(*"abcdefgh")

    @pytest.mark.parametrize(
        "change",
        [
            lambda body: body.replace(b'"a-', b'"z-'),
            lambda body: body.replace(b'"a-', b'"d-'),
            lambda body: body.replace(b'"custom_id": ', b'"id": '),
            lambda body: body.replace(b'"custom_id": ', b'"custom_id": 5, "id": '),
            lambda body: body.replace(b'"custom_id": ', b'"custom_id": [[]], "id": '),
            lambda body: b"null\n",
            lambda body: b"<html>\n",
        ],
    )
    def test_a_line_whose_result_cannot_be_told_from_others_fails_alone(self, case, api, change):
        def pieces(body):
            first = sorted(body.splitlines(True), key=lambda line: b'"a-' not in line)
            return [change(first[0]), *first[1:]] if b'"a-' in body else [body]

        api.pieces = pieces
        assert case.work() == 8
        assert case.results == [("a", "errored"), *succeeded(*"bcdefgh")]
        assert "batch msgbatch_01 has no result for this line" in case.output.read_text()
        api.pieces = lambda body: [body]
        assert case.resume() == 0
        assert case.results == succeeded(*"abcdefgh")

    @pytest.mark.parametrize(
        ("pieces", "kept"),
        [
            (lambda body: [body.partition(b"\n")[2]], 2),
            (lambda body: [body[:-20]], 2),
            (lambda body: [b"<html>\n"], 0),
            (lambda body: [b""], 0),
            (lambda body: [body[:50], b"?", CUT], 0),
        ],
        ids=["one is missing", "cut short", "a page", "empty", "malformed"],
    )
    def test_results_that_are_not_all_there_are_left_where_they_are_and_nothing_is_paid_twice(
        self, case, api, monkeypatch, pieces, kept
    ):
        monkeypatch.setattr(offload, "MAX_FAULTS", 2)
        api.pieces = lambda body: pieces(body) if b'"a-' in body else [body]
        with pytest.raises(StreamcliError):
            case.work()
        assert len(case.results) == kept + 5
        assert {kind for _, kind in case.results} == {"succeeded"}
        api.pieces = lambda body: [body]
        assert case.resume() == 0
        assert case.results == succeeded(*"abcdefgh")
        assert api.accepted == list("abcdefgh")

    def test_a_result_that_comes_late_is_not_missed(self, case, api):
        api.pieces = lambda body: [body] if api.asked.count("results") > 2 else [body.partition(b"\n")[2]]
        assert case.work() == 0
        assert api.accepted == list("abcdefgh")

    def test_a_result_that_comes_twice_is_one(self, case, api):
        api.pieces = lambda body: [body, body]
        case.work()
        assert case.results == succeeded(*"abcdefgh")


class TestCancel:
    def test_every_batch_that_has_not_ended_is_cancelled(self, case, api):
        api.faults["retrieve"] = [error_response(401, "authentication_error")]
        api.polls = 0
        with pytest.raises(AuthenticationError):
            case.work()
        api.end(api.batches[1])
        case.notes.clear()
        case.cancel()
        assert [batch.status for batch in api.batches] == ["canceling", "ended", "canceling"]
        assert case.notes == [
            "batch msgbatch_01 is being cancelled: fetch the results it has with --resume",
            "batch msgbatch_02 has already ended: fetch its results with --resume",
            "batch msgbatch_03 is being cancelled: fetch the results it has with --resume",
        ]
        assert case.resume() == 5
        kinds = [kind for _, kind in case.results]
        assert kinds == ["canceled"] * 3 + ["succeeded"] * 3 + ["canceled"] * 2

    def test_one_that_may_be_somebody_else_s_is_not(self, case, api):
        case.lines = prompts(*"abcdef")
        api.faults = {"create": [None, CUT_AFTER], "list": [None, None, error_response(401, "authentication_error")]}
        api.polls = 0
        with pytest.raises(AuthenticationError):
            case.work()
        with pytest.raises(UsageError) as caught:
            case.cancel()
        assert caught.value.message == (
            "a batch that may be part 2 was not cancelled, because only its results can show whose it is; if it is "
            f'yours, add the line {{"part":2,"id":"ID"}} to {case.state} with its ID'
        )
        assert [batch.status for batch in api.batches] == ["canceling", "in_progress"]
        with case.state.open("a") as state:
            state.write('{"part": 2, "id": "msgbatch_02"}\n')
        case.cancel()
        assert [batch.status for batch in api.batches] == ["ended", "canceling"]

    def test_one_that_the_server_does_not_know_yet_is(self, case, api):
        case.lines = case.lines[:1]
        api.faults["retrieve"] = [error_response(401, "authentication_error"), error_response(404, "not_found_error")]
        api.polls = 0
        with pytest.raises(AuthenticationError):
            case.work()
        case.cancel()
        assert api.batches[0].status == "canceling"

    def test_where_there_is_none_it_says_so(self, case, api):
        case.cancel()
        assert api.asked == []
        assert case.notes == [f"there is no batch to cancel for {case.output}"]
        assert not case.state.exists()


@given(kind=st.sampled_from(["create", "list", "retrieve", "results", "error"]), data=st.data())
def test_whatever_json_the_server_says_anywhere_the_run_ends_well_or_with_an_error_of_ours(
    tmp_path_factory, kind, data
):
    with pytest.MonkeyPatch.context() as patch, BatchesServer() as api:
        patch.setattr(offload, "MAX_FAULTS", 2)
        case = Case(api, tmp_path_factory.mktemp("odd"), prompts(*"abcd"))
        counts = {"processing": 0, "succeeded": 3, "errored": 0}
        batch = {"id": "msgbatch_01", "processing_status": "ended", "request_counts": counts, "results_url": None}
        record = {"custom_id": "a", "result": said("a", {"model": "m", "messages": [{"content": "hi"}]})}
        error = {"type": "error", "error": {"type": "api_error", "message": "no", "details": {"error_code": "x"}}}
        told = {"create": batch, "list": {"data": [batch], "has_more": False}, "retrieve": batch, "error": error}
        body = data.draw(oddities(told.get(kind) or record))
        if kind == "results":
            api.pieces = lambda whole: [body + b"\n" + whole]
        else:
            status = data.draw(st.sampled_from([400, 404, 429, 500])) if kind == "error" else 200
            answer = head(status, type="application/json", length=len(body)) + body
            api.faults[data.draw(st.sampled_from(["create", "retrieve"])) if kind == "error" else kind] = [answer] * 3
        with contextlib.suppress(StreamcliError):
            case.work()
