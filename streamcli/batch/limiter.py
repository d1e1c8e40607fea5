"""Responses in; out comes how many requests may run at once, when the next one may start, and when to give up.

Contract: there is one limiter for all requests to one server. A throttled request (429 rate limited, 503 unavailable,
529 overloaded, or no byte within a timeout) holds back every new one and halves the number that may run, once for all
requests that started before it came. Each success raises that number a little, so that a whole round of successes
raises it by one, up to where it began; as long as it is lower, starts are spread over the time that an answer takes,
because a limit may be on requests per second. No request is given up for being throttled while the server answers
anybody. Time and chance are parameters. No I/O.
Source: streamcli(7), section "Throttling".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from streamcli.protocol.retry import unasked_wait

if TYPE_CHECKING:
    from collections.abc import Mapping

# How many seconds a server may answer nobody, or ask to wait, before a request is given up. The usual limits are by the
# minute; what is limited by the hour or the day, the next run can ask.
PATIENCE = 300.0
# The longest hold in seconds for the sake of a time of day, which a wrong clock may put anywhere.
MAX_HOLD = 60.0
# Over which part of that time starts are spread: some answers are quicker than others. How much the last one weighs.
_SPREAD, _WEIGHT = 0.8, 0.2

_PREFIX, _REMAINING, _RESET = "anthropic-ratelimit-", "-remaining", "-reset"


@dataclass(slots=True)
class Permit:
    """The permission to send one request: which round it belongs to, when it started, whether its answer has begun."""

    round: int
    started: float
    begun: bool = False


class Limiter:
    """At most `most` requests at once, fewer while the server throttles. Times are seconds on one clock, `now`.

    After `patience` seconds without an answer to anybody a throttled request is given up.
    """

    def __init__(self, most: int, *, patience: float = PATIENCE) -> None:
        self.patience = patience
        self._most = most
        self._allowed = float(most)
        self._running = 0
        self._answering = 0
        # When the server last answered somebody, or was first asked.
        self._answered = math.inf
        self._round = 0
        self._throttled_rounds = 0
        self._held_until = -math.inf
        # How long an answer takes.
        self._duration = 0.0

    @property
    def allowed(self) -> int:
        """How many requests may run at once now."""
        return int(self._allowed)

    def held(self, now: float) -> float:
        """The seconds until any request may start."""
        return max(0.0, self._held_until - now)

    def silence(self, now: float) -> float:
        """The seconds for which the server has answered nobody."""
        return 0.0 if self._answering else max(0.0, now - self._answered)

    def start(self, now: float) -> Permit | None:
        """The permit for one request, to be given back to one of the last three methods below; None: not now."""
        if self.held(now) or self._running >= self.allowed:
            return None
        self._running += 1
        self._answered = min(self._answered, now)
        if self.allowed < self._most:
            self._held_until = now + _SPREAD * self._duration / self.allowed
        return Permit(self._round, now)

    def begun(self, permit: Permit) -> None:
        """The request's answer has begun."""
        self._answering += not permit.begun
        permit.begun = True

    def ended(self, permit: Permit, now: float) -> None:
        """The request ended in a way that says nothing about how many may run."""
        if permit.begun:
            self._answered = now
        self._give_back(permit)

    def succeeded(self, permit: Permit, now: float) -> None:
        """The request has its whole answer."""
        self._give_back(permit)
        took = now - permit.started
        self._duration += _WEIGHT * (took - self._duration) if self._duration else took
        self._answered = now
        self._throttled_rounds = 0
        self._allowed = min(self._most, self._allowed + 1 / self._allowed)

    def throttled(self, permit: Permit, now: float, *, wait: float | None, chance: float) -> bool:
        """The request was throttled; returns whether it is to be given up, because nobody is answered any more.

        `wait` is what the server asks for, in seconds. If it is None, the hold is `retry.unasked_wait` of the throttled
        rounds in a row and `chance`.
        """
        if permit.round == self._round:
            self._round += 1
            self._allowed = max(1.0, min(self.allowed, self._running) // 2)
            self._hold(now, unasked_wait(self._throttled_rounds, chance) if wait is None else wait)
            self._throttled_rounds += 1
        elif wait is not None:
            self._hold(now, wait)
        self._give_back(permit)
        return self.silence(now) > self.patience

    def note_limits(self, headers: Mapping[str, str], now: float, wall: float) -> None:
        """Hold everything back until a limit that is used up, by the headers of a response, is renewed.

        `wall` is Unix time, as in the headers. Header names are lower case; nonsense is ignored.
        """
        for name, value in headers.items():
            if value == "0" and name.startswith(_PREFIX) and name.endswith(_REMAINING):
                reset = headers.get(name.removesuffix(_REMAINING) + _RESET, "")
                self._hold(now, min(_unix_time(reset) - wall, MAX_HOLD))

    def _give_back(self, permit: Permit) -> None:
        self._running -= 1
        self._answering -= permit.begun

    def _hold(self, now: float, seconds: float) -> None:
        self._held_until = max(self._held_until, now + min(seconds, self.patience))


def _unix_time(text: str) -> float:
    """The time that `text` names by RFC 3339, or minus infinity."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return -math.inf
    return time.timestamp() if time.tzinfo else -math.inf
