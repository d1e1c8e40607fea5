"""streamcli.batch.limiter: how many requests may run, whatever the server says; time is a number here."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcli.batch.limiter import MAX_HOLD, Limiter

WALL = 1_800_000_000.0


def started(limiter, now=0.0):
    """The permits of as many requests as may start."""
    return list(iter(lambda: limiter.start(now), None))


def throttle(limiter, permit, now=0.0, wait=None, chance=0.0):
    return limiter.throttled(permit, now, wait=wait, chance=chance)


def at(seconds):
    return datetime.fromtimestamp(WALL + seconds, UTC).isoformat().replace("+00:00", "Z")


def test_as_many_run_at_once_as_was_asked_for():
    limiter = Limiter(3)
    permits = started(limiter)
    assert len(permits) == 3
    limiter.succeeded(permits[0])
    assert len(started(limiter)) == 1


def test_a_throttled_response_halves_what_runs_once_for_the_whole_round():
    limiter = Limiter(100)
    for permit in started(limiter):
        assert not throttle(limiter, permit, wait=1)
    assert limiter.allowed == 50
    assert len(started(limiter, now=1)) == 50


def test_what_runs_counts_and_not_what_might():
    limiter = Limiter(100)
    permits = [limiter.start(0) for _ in range(6)]
    throttle(limiter, permits[0])
    assert limiter.allowed == 3


def test_a_throttled_response_holds_everybody_back_for_as_long_as_the_server_asks():
    limiter = Limiter(4)
    throttle(limiter, limiter.start(10), now=10, wait=7)
    assert limiter.held(12) == 5
    assert limiter.start(16.9) is None
    assert limiter.start(17) is not None


def test_the_longest_of_several_holds_counts():
    limiter = Limiter(4)
    permits = started(limiter)
    for permit, wait in zip(permits, (3, 9, 1), strict=False):
        throttle(limiter, permit, wait=wait)
    assert limiter.held(0) == 9


def test_where_the_server_asks_for_nothing_the_hold_doubles_with_each_round_up_to_8_seconds():
    limiter = Limiter(1)
    holds = []
    for _ in range(7):
        now = limiter.held(0)
        throttle(limiter, limiter.start(now), now=now)
        holds.append(limiter.held(now))
    assert holds == [0.5, 1, 2, 4, 8, 8, 8]


def test_chance_spreads_the_hold_that_nobody_asked_for():
    limiter = Limiter(1)
    throttle(limiter, limiter.start(0), chance=1.0)
    assert limiter.held(0) == 0.375


def test_a_success_begins_the_holds_anew():
    limiter = Limiter(1)
    for _ in range(3):
        throttle(limiter, limiter.start(limiter.held(0) or 0.0), now=0)
    limiter.succeeded(limiter.start(100))
    throttle(limiter, limiter.start(100), now=100)
    assert limiter.held(100) == 0.5


def test_a_round_of_successes_lets_one_more_run_and_never_more_than_at_the_beginning():
    limiter = Limiter(10)
    for permit in started(limiter):
        throttle(limiter, permit, wait=1)
    allowed = []
    for _ in range(8):
        permits = started(limiter, now=1)
        allowed.append(len(permits))
        for permit in permits:
            limiter.succeeded(permit)
    assert allowed == [5, 5, 6, 7, 8, 9, 10, 10]


def test_a_request_that_ends_otherwise_only_makes_room():
    limiter = Limiter(2)
    permits = started(limiter)
    limiter.ended(permits[0])
    assert limiter.allowed == 2
    assert len(started(limiter)) == 1


def test_a_throttled_response_counts_against_a_request_only_where_it_ran_alone():
    limiter = Limiter(2)
    assert [throttle(limiter, permit, wait=1) for permit in started(limiter)] == [False, False]
    assert throttle(limiter, limiter.start(1), now=1, wait=1)


def test_a_server_with_room_for_ten_is_left_with_about_as_many():
    limiter = Limiter(100)
    now, throttled, most = 0.0, 0, []
    for _ in range(200):
        now = max(now, now + limiter.held(now))
        permits = started(limiter, now)
        for place, permit in enumerate(permits):
            if place < 10:
                limiter.succeeded(permit)
            else:
                throttled += 1
                assert not throttle(limiter, permit, now)
        most.append(len(permits))
    assert max(most[10:]) == 11
    assert throttled < 200


def test_no_hold_is_longer_than_a_minute():
    limiter = Limiter(1)
    throttle(limiter, limiter.start(0), wait=1e9)
    assert limiter.held(0) == MAX_HOLD


def test_nothing_starts_before_a_limit_of_which_nothing_remains_is_renewed():
    limiter = Limiter(5)
    headers = {"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": at(12)}
    limiter.note_limits(headers, 3.0, WALL)
    assert limiter.held(3.0) == 12


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"anthropic-ratelimit-tokens-remaining": "1", "anthropic-ratelimit-tokens-reset": at(9)},
        {"anthropic-ratelimit-tokens-remaining": "0"},
        {"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": "soon"},
        {"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": "2026-11-22T10:00:00"},
        {"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-tokens-reset": at(-9)},
        {"anthropic-ratelimit-tokens-remaining": "0", "anthropic-ratelimit-requests-reset": at(9)},
        {"x-ratelimit-tokens-remaining": "0", "x-ratelimit-tokens-reset": at(9)},
    ],
    ids=["none", "one left", "no reset", "no time", "no zone", "past", "another limit", "another server"],
)
def test_headers_that_say_nothing_hold_nothing(headers):
    limiter = Limiter(5)
    limiter.note_limits(headers, 0.0, WALL)
    assert limiter.held(0.0) == 0


@given(
    most=st.integers(1, 50),
    steps=st.lists(st.tuples(st.sampled_from(["start", "succeed", "throttle", "end", "wait"]), st.floats(0, 99))),
)
def test_whatever_happens_at_least_one_may_run_and_never_more_than_asked_for(most, steps):
    limiter, running, now = Limiter(most), [], 0.0
    for step, number in steps:
        if step == "start":
            permit = limiter.start(now)
            if permit:
                running.append(permit)
        elif step == "wait":
            now += number
        elif running:
            permit = running.pop(int(number) % len(running))
            if step == "succeed":
                limiter.succeeded(permit)
            elif step == "throttle":
                throttle(limiter, permit, now, number)
            else:
                limiter.ended(permit)
        assert 1 <= limiter.allowed <= most
        assert len(running) <= most
        assert 0 <= limiter.held(now) <= MAX_HOLD + 1e-6
    while running:
        limiter.ended(running.pop())
    assert len(started(limiter, now + MAX_HOLD + 1)) == limiter.allowed
