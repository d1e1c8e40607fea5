"""streamcli.batch.limiter: how many requests may run, whatever the server says; time is a number here."""

import collections
import heapq
import math
import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcli.batch.limiter import MAX_HOLD, PATIENCE, Limiter

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
    limiter.succeeded(permits[0], 0)
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
    limiter.succeeded(limiter.start(100), 100)
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
            limiter.succeeded(permit, 1)
    assert allowed == [5, 5, 6, 7, 8, 9, 10, 10]


def test_a_request_that_ends_otherwise_only_makes_room():
    limiter = Limiter(2)
    permits = started(limiter)
    limiter.ended(permits[0], 0)
    assert limiter.allowed == 2
    assert len(started(limiter)) == 1


def test_starts_are_spread_over_the_time_that_an_answer_takes_once_the_server_throttles():
    limiter = Limiter(8)
    answered, throttled, *others = started(limiter, 0)
    limiter.succeeded(answered, 10)
    throttle(limiter, throttled, 10, wait=1)
    for permit in others:
        limiter.ended(permit, 10)
    starts = []
    while len(starts) < limiter.allowed:
        starts.append(starts[-1] + limiter.held(starts[-1]) if starts else 11)
        assert limiter.start(starts[-1] - 0.01) is None
        assert limiter.start(starts[-1])
    assert starts == pytest.approx([11, 11 + 8 / 3, 11 + 16 / 3])


def test_a_request_is_given_up_only_after_nobody_was_answered_for_long():
    limiter = Limiter(4)
    [first, *others] = started(limiter, 10)
    assert not any(throttle(limiter, permit, 10 + PATIENCE) for permit in others)
    assert limiter.silence(20 + PATIENCE) == 10 + PATIENCE
    assert throttle(limiter, first, 11 + PATIENCE)


def test_an_answer_to_anybody_begins_the_patience_anew():
    limiter = Limiter(4)
    one, two, three, four = started(limiter, 0)
    limiter.succeeded(one, 200)
    assert not throttle(limiter, two, 200 + PATIENCE)
    limiter.ended(three, 500)  # without a byte
    assert throttle(limiter, four, 201 + PATIENCE)


def test_as_long_as_an_answer_is_under_way_somebody_is_answered():
    limiter = Limiter(3)
    one, two, three = started(limiter, 0)
    limiter.begun(one)
    limiter.begun(one)
    assert limiter.silence(10 * PATIENCE) == 0
    assert not throttle(limiter, two, 10 * PATIENCE)
    limiter.ended(one, 20 * PATIENCE)  # it broke off
    assert not throttle(limiter, three, 20 * PATIENCE + 10)


def test_an_answer_that_is_a_refusal_after_all_is_none():
    limiter = Limiter(1)
    one = limiter.start(0)
    limiter.begun(one)
    assert throttle(limiter, one, PATIENCE + 1)


def test_a_server_with_room_for_ten_is_left_with_about_as_many():
    limiter = Limiter(100)
    now, throttled, most = 0.0, 0, []
    for _ in range(200):
        now = max(now, now + limiter.held(now))
        permits = started(limiter, now)
        for place, permit in enumerate(permits):
            if place < 10:
                limiter.succeeded(permit, now)
            else:
                throttled += 1
                assert not throttle(limiter, permit, now)
        most.append(len(permits))
    assert max(most[10:]) == 11
    assert throttled < 200


def test_no_hold_is_longer_than_the_patience_and_none_by_the_clock_longer_than_a_minute():
    limiter = Limiter(1)
    headers = {"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": at(1e9)}
    limiter.note_limits(headers, 0, WALL)
    assert limiter.held(0) == MAX_HOLD
    throttle(limiter, limiter.start(MAX_HOLD), now=MAX_HOLD, wait=1e9)
    assert limiter.held(MAX_HOLD) == PATIENCE


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
    steps=st.lists(
        st.tuples(st.sampled_from(["start", "begin", "succeed", "throttle", "end", "wait"]), st.floats(0, 99))
    ),
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
                limiter.succeeded(permit, now)
            elif step == "throttle":
                throttle(limiter, permit, now, number)
            elif step == "begin":
                limiter.begun(permit)
                running.append(permit)
            else:
                limiter.ended(permit, now)
        assert 1 <= limiter.allowed <= most
        assert len(running) <= most
        assert 0 <= limiter.held(now) <= PATIENCE + 1e-6
        assert 0 <= limiter.silence(now) <= now
    while running:
        limiter.ended(running.pop(), now)
    assert limiter.start(now + PATIENCE + 1)


# Servers with limits, simulated: an event at a time, in no time.


class Bucket:
    """Admits `rate` requests a second, and up to `burst` that were not made before; a burst of 1 leaks drop by drop."""

    def __init__(self, rate, burst=1):
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, 0.0

    def admits(self, now, running):
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        admitted = self._tokens >= 1 - 1e-9
        self._tokens -= admitted
        return admitted

    def opens(self, now):
        return (1 - self._tokens) / self._rate


class Window:
    """Admits `count` requests in each window of `seconds`; what is refused counts too where that is said."""

    def __init__(self, count, seconds, *, counts_all=False):
        self._count, self._seconds, self._counts_all = count, seconds, counts_all
        self._begin, self._seen = 0.0, 0

    def admits(self, now, running):
        if now >= self._begin + self._seconds:
            self._begin, self._seen = now - now % self._seconds, 0
        admitted = self._seen < self._count
        self._seen += admitted or self._counts_all
        return admitted

    def opens(self, now):
        return self._begin + self._seconds - now


class Places:
    """Admits a request while fewer than `count` are answered."""

    def __init__(self, count):
        self._count = count

    def admits(self, now, running):
        return running < self._count

    def opens(self, now):
        return 1.0


def served(limit, *, lines, jobs, takes, asks, seed):
    """How many lines are given up, how many requests were refused, and how long it took."""
    limiter, chance = Limiter(jobs), random.Random(seed)
    queue, left = collections.deque([None] * min(jobs, lines)), lines - jobs
    now, order, running, lost, refused, events = 0.0, 0, 0, 0, 0, []
    while queue or events:
        while queue and (permit := limiter.start(now)):
            queue.popleft()
            admitted = limit.admits(now, running)
            running += admitted
            if admitted:
                limiter.begun(permit)
            ends = now + (takes * (0.5 + chance.random()) if admitted else 0.01)
            order += 1
            heapq.heappush(events, (ends, order, admitted, permit))
        soonest = now + limiter.held(now) if queue and limiter.held(now) else math.inf
        if not events or events[0][0] > soonest:
            now = soonest
            continue
        now, _, admitted, permit = heapq.heappop(events)
        if admitted:
            running -= 1
            limiter.succeeded(permit, now)
        else:
            refused += 1
            wait = limit.opens(now) if asks else None
            if not limiter.throttled(permit, now, wait=wait, chance=chance.random()):
                queue.append(None)
                continue
            lost += 1
        if left > 0:
            left -= 1
            queue.append(None)
    return lost, refused, now


RATES = st.sampled_from([1 / 200, 1 / 60, 0.1, 0.5, 1, 3, 10, 100])
LIMITS = st.one_of(
    st.builds(Bucket, RATES, st.sampled_from([1, 1, 2, 5, 50])),
    st.builds(Window, st.integers(1, 60), st.sampled_from([1, 10, 60, 120, 240]), counts_all=st.booleans()),
    st.builds(Places, st.integers(1, 30)),
)


@given(
    limit=LIMITS,
    jobs=st.sampled_from([1, 2, 8, 50, 300]),
    takes=st.sampled_from([0.05, 2, 60, 500]),
    asks=st.booleans(),
    seed=st.integers(),
)
def test_a_limited_server_gets_all_lines_through_only_slower(limit, jobs, takes, asks, seed):
    lost, refused, _ = served(limit, lines=200, jobs=jobs, takes=takes, asks=asks, seed=seed)
    assert lost == 0
    assert refused <= 200 * 50


def test_a_server_that_answers_nobody_is_given_up():
    lost, refused, _ = served(Places(0), lines=20, jobs=8, takes=1, asks=False, seed=1)
    assert lost == 20
    assert refused < 100
