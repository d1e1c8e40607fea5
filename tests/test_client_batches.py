"""The Message Batches API through both halves of the library (streamcli(7), section "Message Batches")."""

import asyncio
import gc
import json
import weakref

import httpx
import pytest
from batches import CUT, CUT_AFTER, BatchesServer, said
from hypothesis import given
from hypothesis import strategies as st
from server import HANG, bytewise, cut_at, error_response, head, json_response

from streamcli import (
    APIConnectionError,
    AsyncClient,
    AuthenticationError,
    IncompleteStreamError,
    InternalServerError,
    NotFoundError,
    OverloadedError,
    ProtocolError,
    UnexpectedResponseError,
    UsageError,
)
from streamcli.protocol.request import API_VERSION, SAMPLING_API_VERSION

PARAMS = {"model": "m", "max_tokens": 16, "messages": [{"role": "user", "content": "hi"}]}


def requests(*ids, **params):
    return [{"custom_id": custom_id, "params": PARAMS | params} for custom_id in ids]


@pytest.fixture
def api():
    with BatchesServer() as server:
        yield server


@pytest.fixture
def batches(driver, api):
    return driver.client(api).messages.batches


def ended(batches, api, *ids):
    """The id of a batch that has ended."""
    batch = batches.create(requests=requests(*ids))
    api.end(api.batches[-1])
    return batch.id


class TestCreate:
    def test_a_batch_is_submitted_as_it_is(self, batches, api):
        batch = batches.create(requests=requests("a", "b"))
        assert (batch.id, batch.processing_status, batch.request_counts.processing) == ("msgbatch_01", "in_progress", 2)
        assert api.batches[0].requests == requests("a", "b")

    def test_betas_and_headers_go_out_with_it(self, batches, api):
        batches.create(requests=requests("a"), betas=["one", "two"], extra_headers={"x-extra": "yes"})
        sent = api.batches[0].headers
        assert (sent["anthropic-beta"], sent["x-extra"]) == ("one,two", "yes")

    def test_it_is_the_same_under_beta(self, driver, api):
        assert driver.client(api).beta.messages.batches.create(requests=requests("a")).id == "msgbatch_01"

    @pytest.mark.parametrize(("params", "version"), [({}, API_VERSION), ({"top_p": 0.5}, SAMPLING_API_VERSION)])
    def test_the_version_is_the_one_that_its_requests_need(self, batches, api, params, version):
        batches.create(requests=[*requests("a"), *requests("b", **params)])
        assert api.batches[0].headers["anthropic-version"] == version

    @pytest.mark.parametrize("settings", [{"api_version": "x"}, {"default_headers": {"Anthropic-Version": "x"}}])
    def test_a_version_that_was_chosen_stays(self, driver, api, settings):
        driver.client(api, **settings).messages.batches.create(requests=requests("a", temperature=0))
        assert api.batches[0].headers["anthropic-version"] == "x"

    @pytest.mark.parametrize("status", [408, 409, 429, 529])
    def test_after_a_refusal_it_is_tried_again(self, driver, batches, api, status):
        api.faults["create"] = [error_response(status, retry_after="3")]
        batches.create(requests=requests("a"))
        assert (api.asked, driver.waits, len(api.batches)) == (["create", "create"], [3.0], 1)

    @pytest.mark.parametrize(
        ("fault", "error", "made"),
        [
            (CUT, APIConnectionError, 0),
            (CUT_AFTER, APIConnectionError, 1),
            (b"", APIConnectionError, 0),
            (b"HTTP/1.1 2", APIConnectionError, 0),
            (error_response(500), InternalServerError, 0),
            (error_response(504, x_should_retry="true"), InternalServerError, 0),
            (head(type="application/json", length=100) + b"{", IncompleteStreamError, 0),
            (head(type="text/html", length=2) + b"hi", UnexpectedResponseError, 0),
        ],
    )
    def test_what_may_have_been_done_is_never_done_again(self, driver, batches, api, fault, error, made):
        api.faults["create"] = [fault, CUT]
        with pytest.raises(error):
            batches.create(requests=requests("a"))
        assert (api.asked, driver.waits, len(api.batches)) == (["create"], [], made)

    def test_refusals_come_to_an_end(self, batches, api):
        api.faults["create"] = [error_response(529, "overloaded_error")] * 3
        with pytest.raises(OverloadedError):
            batches.create(requests=requests("a"))
        assert api.asked == ["create"] * 3

    def test_what_is_no_json_is_not_sent(self, batches, api):
        with pytest.raises(UsageError, match="cannot be written as JSON"):
            batches.create(requests=[{"custom_id": "a", "params": {"x": object()}}])
        assert api.asked == []


class TestRetrieveListCancel:
    def test_a_batch_as_it_is_now(self, batches, api):
        batch = batches.create(requests=requests("a", "b"))
        api.polls = 2
        first, second = batches.retrieve(batch.id), batches.retrieve(batch.id)
        assert (first.processing_status, second.processing_status) == ("in_progress", "ended")
        assert (first.request_counts.succeeded, second.request_counts.succeeded) == (0, 2)

    def test_a_lost_connection_is_no_obstacle(self, driver, batches, api):
        batch = batches.create(requests=requests("a"))
        api.faults["retrieve"] = [CUT, error_response(503)]
        assert batches.retrieve(batch.id).id == batch.id
        assert len(driver.waits) == 2

    def test_a_batch_that_nobody_knows(self, batches):
        with pytest.raises(NotFoundError):
            batches.retrieve("msgbatch_99")

    def test_an_id_goes_no_further_than_its_place_in_the_path(self, batches, server, driver):
        server.responses = [json_response({"id": "x"})]
        driver.client(server).messages.batches.retrieve("../models?a=b")
        assert server.request().path == "/v1/messages/batches/..%2Fmodels%3Fa%3Db"
        with pytest.raises(UsageError, match="empty"):
            batches.retrieve("")

    @pytest.mark.parametrize("limit", [1, 2, 1000])
    def test_all_batches_the_newest_first(self, batches, api, limit):
        for custom_id in "abc":
            batches.create(requests=requests(custom_id))
        assert [batch.id for batch in batches.list(limit=limit)] == ["msgbatch_03", "msgbatch_02", "msgbatch_01"]
        assert api.asked.count("list") == -(-3 // limit)

    def test_those_after_one_and_those_before_one(self, batches):
        for custom_id in "abcd":
            batches.create(requests=requests(custom_id))
        assert [batch.id for batch in batches.list(after_id="msgbatch_03")] == ["msgbatch_02", "msgbatch_01"]
        before = [batch.id for batch in batches.list(before_id="msgbatch_01", limit=2)]
        assert sorted(before) == ["msgbatch_02", "msgbatch_03", "msgbatch_04"]

    def test_a_server_that_has_always_more_of_the_same_is_asked_twice(self, driver, server):
        page = {"data": [{"id": "a"}], "has_more": True, "first_id": "a", "last_id": "a"}
        server.responses = [json_response(page)]
        assert len(list(driver.client(server).messages.batches.list())) == 2

    @pytest.mark.parametrize("way", [{}, {"before_id": "c"}])
    def test_a_server_whose_pages_go_round_is_asked_for_each_once(self, driver, server, way):
        pages = [{"data": [{"id": x}], "has_more": True, "first_id": x, "last_id": x} for x in "abc"]
        server.responses = [json_response(page) for page in pages * 2]
        listed = [batch.id for batch in driver.client(server).messages.batches.list(**way)]
        assert listed == ([*"abca"] if not way else [*"abc"])

    @pytest.mark.parametrize("place", [1, ["a"], {"a": 1}, True])
    def test_a_page_that_ends_nowhere_is_an_error(self, driver, server, place):
        server.responses = [json_response({"data": [], "has_more": True, "last_id": place})]
        with pytest.raises(UnexpectedResponseError, match="last_id is not a string"):
            list(driver.client(server).messages.batches.list())

    def test_no_batches_at_all(self, batches):
        assert list(batches.list()) == []

    def test_a_batch_is_cancelled(self, batches, api):
        batch = batches.create(requests=requests("a", "b"))
        assert batches.cancel(batch.id).processing_status == "canceling"
        assert batches.retrieve(batch.id).request_counts.canceled == 2


class TestResults:
    def test_each_as_it_was_sent(self, batches, api):
        batch_id = ended(batches, api, "a", "b", "c")
        results = {result.custom_id: result.result for result in batches.results(batch_id)}
        assert results.keys() == {"a", "b", "c"}
        assert results["b"].message.content[0].text == "re: hi"
        assert results["b"] == said("b", PARAMS)

    @pytest.mark.parametrize("framing", ["chunked", "length"])
    @pytest.mark.parametrize("pieces", [bytewise, lambda body: [body[:50], body[50:]]])
    def test_however_the_body_comes(self, batches, api, framing, pieces):
        batch_id = ended(batches, api, "a", "b")
        api.pieces, api.framing = pieces, framing
        assert sorted(result.custom_id for result in batches.results(batch_id)) == ["a", "b"]

    def test_they_are_handed_out_as_they_come(self, batches, api):
        batch_id = ended(batches, api, "a", "b")
        came = []
        api.pieces = lambda body: (came.append(piece) or piece for piece in [*body.splitlines(keepends=True), CUT])
        results = iter(batches.results(batch_id))
        assert len([next(results), next(results)]) == 2
        with pytest.raises(IncompleteStreamError):
            next(results)

    def test_a_body_that_breaks_off_is_an_error_after_what_came(self, batches, api):
        batch_id = ended(batches, api, "a", "b")
        api.pieces = lambda body: [body[:-20], CUT]
        results = batches.results(batch_id)
        assert next(iter(results)).custom_id
        with pytest.raises(IncompleteStreamError, match="broke off"):
            next(results)
        assert list(results) == []

    def test_that_were_closed_early_are_not_taken_for_whole(self, batches, api):
        results = batches.results(ended(batches, api, "a", "b"))
        next(iter(results))
        results.close()
        with pytest.raises(IncompleteStreamError, match="the results were closed before they ended"):
            next(results)

    def test_that_were_closed_while_one_waits_for_them_are_not_taken_for_whole(self, server):
        batch = {"id": "x", "processing_status": "ended"}
        server.responses = [json_response(batch), (head(type="application/binary"), b"{}\n", HANG)]

        async def main():
            async with AsyncClient(api_key="k", base_url=server.url) as client:
                results = await client.messages.batches.results("x")
                assert await anext(results) == {}
                waiting = asyncio.ensure_future(anext(results))
                await asyncio.sleep(0)
                await results.close()
                with pytest.raises(IncompleteStreamError, match="the results were closed before they ended"):
                    await waiting

        asyncio.run(main())

    def test_of_which_a_line_does_not_end_are_not_kept(self, batches, api, monkeypatch):
        monkeypatch.setattr("streamcli.client.calls.MAX_BODY", 1000)
        batch_id = ended(batches, api, "a")
        api.pieces = lambda _: [b"x" * 600, b"x" * 600]
        with pytest.raises(ProtocolError, match="a line of the results is longer than"):
            list(batches.results(batch_id))

    def test_before_the_end_there_are_none(self, batches, api):
        batch = batches.create(requests=requests("a"))
        api.polls = 0
        with pytest.raises(UsageError, match="batch msgbatch_01 has no results to read: it is in_progress"):
            batches.results(batch.id)

    def test_long_after_it_there_are_none_any_more(self, driver, server):
        batch = {"id": "x", "processing_status": "ended", "archived_at": "2026-12-24T00:00:00Z", "results_url": None}
        server.responses = [json_response(batch)]
        with pytest.raises(UnexpectedResponseError, match="batch x has no results any more: it is archived"):
            driver.client(server).messages.batches.results("x")

    @pytest.mark.parametrize("url", [None, "", 5, {}, "//host/results", "results", "http://[", "https://elsewhere/r"])
    def test_where_it_does_not_say_where_they_are_at_this_host_they_are_asked_for_where_the_api_has_them(
        self, driver, url
    ):
        assert asked_for(driver, "/gateway", url) == "/gateway/v1/messages/batches/x/results"

    @pytest.mark.parametrize(
        ("url", "path"),
        [
            ("/gateway/v1/messages/batches/x/results", "/gateway/v1/messages/batches/x/results"),
            ("/v1/messages/batches/x/results", "/gateway/v1/messages/batches/x/results"),
            ("/gateways/results?a=b", "/gateway/gateways/results?a=b"),
            ("http://localhost/gateway/results/x", "/gateway/results/x"),
            ("http://localhost/files/x", "/files/x"),
        ],
    )
    def test_below_a_path_its_url_has_that_path_once(self, driver, url, path):
        assert asked_for(driver, "/gateway", url) == path

    @pytest.mark.parametrize("host", ["http://127.0.0.1:1", "https://127.0.0.1", "http://localhost@127.0.0.1"])
    def test_the_key_goes_to_no_other_host_but_results_are_asked_for_at_ours(self, batches, api, host):
        batch_id = ended(batches, api, "a")
        api.results_host = host
        assert [result.custom_id for result in batches.results(batch_id)] == ["a"]

    def test_a_lost_connection_before_the_first_byte_is_no_obstacle(self, driver, batches, api):
        batch_id = ended(batches, api, "a")
        api.faults["results"] = [CUT, error_response(500)]
        assert len(list(batches.results(batch_id))) == 1
        assert len(driver.waits) == 2

    def test_a_refusal_is_the_error_that_it_is(self, batches, api):
        batch_id = ended(batches, api, "a")
        api.faults["results"] = [error_response(401, "authentication_error")]
        with pytest.raises(AuthenticationError):
            batches.results(batch_id)

    def test_a_coding_that_nobody_asked_for_is_refused(self, batches, api):
        batch_id = ended(batches, api, "a")
        api.faults["results"] = [head(type="application/binary", content_encoding="br", length=2) + b"\x1f\x8b"]
        with pytest.raises(UnexpectedResponseError, match=r"the coding br, which was not asked for"):
            batches.results(batch_id)

    def test_a_page_for_people_is_no_result(self, batches, api):
        batch_id = ended(batches, api, "a")
        api.faults["results"] = [head(type="text/html", length=12) + b"<html></html"]
        with pytest.raises(ProtocolError, match="not a JSON object: b'<html></html'") as caught:
            list(batches.results(batch_id))
        assert caught.value.request_id == "req_1"

    def test_left_early_or_left_alone_the_connection_is_dropped(self, batches, api):
        batch_id = ended(batches, api, "a", "b")
        with batches.results(batch_id) as results:
            next(iter(results))
        left = batches.results(batch_id)
        response = weakref.ref(getattr(left, "_it", left)._reads._pieces.response)
        del left, results
        gc.collect()
        assert response() is None


# Bodies.


def asked_for(driver, path, url):
    """Where results are asked for, below a base URL with that path, when the batch says that they are at `url`."""
    batch = {"id": "x", "processing_status": "ended", "results_url": url}
    asked = []

    def answer(request):
        asked.append(request.url.raw_path.decode())
        body = json.dumps(batch).encode() if len(asked) == 1 else b"{}"
        return httpx.Response(200, stream=driver.body([body]))

    client = driver.client(
        base_url=f"http://localhost{path}", http_client=driver.http_client(httpx.MockTransport(answer))
    )
    assert list(client.messages.batches.results("x")) == [{}]
    return asked[1]


def read(driver, pieces):
    """The results that come in these pieces."""
    batch = {"id": "x", "results_url": "/results"}
    bodies = {"/results": pieces, "/v1/messages/batches/x": [json.dumps(batch).encode()]}
    client = driver.mocked(lambda request: httpx.Response(200, stream=driver.body(bodies[request.url.path])))
    return list(client.messages.batches.results("x"))


RESULT = st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(), max_size=3)


@given(
    results=st.lists(RESULT, max_size=5),
    end=st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r\n \r\n"]),
    last=st.booleans(),
    data=st.data(),
)
def test_lines_are_the_same_however_they_are_cut_and_ended(driver, results, end, last, data):
    body = end.join(json.dumps(result).encode() for result in results) + (end if last else b"")
    positions = data.draw(st.lists(st.integers(0, len(body)), max_size=8))
    assert read(driver, cut_at(body, positions)) == results


@pytest.mark.parametrize("line", [b"[]", b"1", b"{", b'{"a": 1} {}', b"\xff"])
def test_a_line_that_is_no_object_breaks_the_rules(driver, line):
    with pytest.raises(ProtocolError, match="not a JSON object"):
        read(driver, [b'{"custom_id": "a"}\n' + line + b"\n"])


def test_the_lines_behind_it_are_not_lost(driver):
    batch = {"id": "x", "results_url": "/results"}
    pieces = [b'{"custom_id": "a"}\nnull\n{"custom_', b'id": "b"}\n']
    bodies = {"/results": pieces, "/v1/messages/batches/x": [json.dumps(batch).encode()]}
    client = driver.mocked(lambda request: httpx.Response(200, stream=driver.body(bodies[request.url.path])))
    results = client.messages.batches.results("x")
    assert next(results).custom_id == "a"
    with pytest.raises(ProtocolError):
        next(results)
    assert [result.custom_id for result in results] == ["b"]


def test_a_large_integer_stays_what_it_is(driver):
    assert read(driver, [b'{"n": 123456789012345678901234567890}'])[0].n == 123456789012345678901234567890


def test_the_time_is_linear_in_the_length_of_a_line(driver):
    """Else this would go on for an hour."""
    assert len(read(driver, [b'{"a": "', *[b"x" * 100] * 200_000, b'"}\n'])) == 1
