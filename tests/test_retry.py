"""streamcli.protocol.retry: which failures are worth another attempt, and after how long."""

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcli.errors import (
    APIConnectionError,
    APITimeoutError,
    IncompleteStreamError,
    ProtocolError,
    UnexpectedResponseError,
    UsageError,
    status_error,
)
from streamcli.protocol.retry import MAX_WAIT, delay, retry_after

NOW = 1_800_000_000.0


def failed(status, code=None, **headers):
    details = {"error_code": code} if code else None
    body = {"type": "error", "error": {"type": "x", "message": "no", "details": details}}
    return status_error(status, body, headers={name.replace("_", "-"): value for name, value in headers.items()})


def wait(error, attempt=0, *, max_retries=10, chance=0.0):
    return delay(error, attempt, max_retries=max_retries, chance=chance, now=NOW)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529, 599])
def test_statuses_that_may_pass_are_tried_again(status):
    assert wait(failed(status)) == 0.5


@pytest.mark.parametrize("status", [301, 400, 401, 402, 403, 404, 413, 422])
def test_statuses_that_will_not_change_are_final(status):
    assert wait(failed(status)) is None


def test_the_server_s_own_advice_wins_over_the_status():
    assert wait(failed(400, x_should_retry="true")) == 0.5
    assert wait(failed(529, x_should_retry="false")) is None
    assert wait(failed(529, x_should_retry="perhaps")) == 0.5


@pytest.mark.parametrize("code", ["contract_spend_limit_reached", "enforced_spend_limit_reached"])
def test_waiting_lifts_no_spending_limit(code):
    assert wait(failed(429, code)) is None


def test_connection_faults_say_themselves_whether_they_may_pass():
    assert wait(APIConnectionError("refused")) == 0.5
    assert wait(APIConnectionError("certificate", retryable=False)) is None
    assert wait(APITimeoutError("idle", retryable=False)) is None


def test_a_stream_that_broke_may_be_whole_the_next_time():
    assert wait(IncompleteStreamError("cut")) == wait(ProtocolError("malformed")) == 0.5


@pytest.mark.parametrize("error", [UsageError("x"), ProtocolError("x", retryable=False), UnexpectedResponseError("x")])
def test_everything_else_is_final(error):
    assert wait(error) is None


def test_each_wait_is_twice_the_last_up_to_eight_seconds():
    assert [wait(failed(500), attempt) for attempt in range(7)] == [0.5, 1, 2, 4, 8, 8, 8]
    assert wait(failed(500), 10**9, max_retries=10**10) == 8


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 9))
def test_chance_shortens_a_wait_by_at_most_a_quarter(chance, attempt):
    longest = wait(failed(500), attempt)
    assert 0.75 * longest <= wait(failed(500), attempt, chance=chance) <= longest


def test_after_the_last_attempt_nothing_is_tried_again():
    assert wait(failed(500), 1, max_retries=2) == 1
    assert wait(failed(500), 2, max_retries=2) is None
    assert wait(failed(500), 0, max_retries=0) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "5"}, 5),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": ".5"}, 0.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
        ({"retry-after": "9" * 400}, float("inf")),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, 30),
        ({"retry-after": "Fri, 31 Dec 2999 23:59:59 GMT"}, 32503679999 - NOW),
        ({"retry-after": formatdate(NOW - 30, usegmt=True)}, None),
        *(({"retry-after": text}, None) for text in ("", "-1", "nan", "inf", "1e9", "5, 7", "5s", "٣", "soon")),
        ({"retry-after": "0"}, 0),
        ({"retry-after-ms": "0", "retry-after": "9"}, 0),
        ({}, None),
    ],
)
def test_a_server_asks_for_a_wait_in_many_ways_and_nonsense_is_ignored(headers, seconds):
    assert retry_after(headers, NOW) == seconds


@given(st.text(st.characters(max_codepoint=255)))
def test_no_header_is_a_crash(text):
    for name in ("retry-after", "retry-after-ms"):
        asked = retry_after({name: text}, NOW)
        assert asked is None or asked >= 0


def test_what_the_server_asks_for_is_obeyed_up_to_a_minute_and_beyond_it_the_call_fails_at_once():
    assert wait(failed(429, retry_after="7"), chance=0.9) == 7
    assert wait(failed(429, retry_after=str(MAX_WAIT))) == MAX_WAIT
    assert wait(failed(429, retry_after="61")) is None
    assert wait(failed(429, retry_after="nan")) == wait(failed(429, retry_after="0")) == 0.5
