"""Responses in, out how many requests may run at once and when the next one may start.

Contract: there is one limiter for all requests to one server. A throttled response (429 rate limited, 529 overloaded)
holds back every new request and halves the number that may run, once for all requests that started before it came.
Each success raises that number a little, so that a whole round of successes raises it by one, up to where it began.
Time and chance are parameters. No I/O.
Source: streamcli(7), section "Throttling".
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

# The longest hold in seconds, whatever a server asks for or a wrong clock suggests.
MAX_HOLD = 60.0
_FIRST_HOLD, _LONGEST_UNASKED_HOLD = 0.5, 8.0

_PREFIX, _REMAINING, _RESET = "anthropic-ratelimit-", "-remaining", "-reset"


class Permit(NamedTuple):
    """The permission to send one request: which round it belongs to, and whether it runs alone."""

    round: int
    alone: bool


class Limiter:
    """At most `most` requests at once, fewer while the server throttles. Times are seconds on one clock, `now`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._allowed = float(most)
        self._running = 0
        self._round = 0
        self._throttled_rounds = 0
        self._held_until = -math.inf

    @property
    def allowed(self) -> int:
        """How many requests may run at once now."""
        return int(self._allowed)

    def held(self, now: float) -> float:
        """The seconds until any request may start."""
        return max(0.0, self._held_until - now)

    def start(self, now: float) -> Permit | None:
        """The permit of one request, to be given back to one of the methods below, or None: not now."""
        if now < self._held_until or self._running >= self.allowed:
            return None
        self._running += 1
        return Permit(self._round, alone=self.allowed == 1)

    def ended(self, permit: Permit) -> None:  # noqa: ARG002 - every permit is given back the same way
        """The request ended in a way that says nothing about how many may run."""
        self._running -= 1

    def succeeded(self, permit: Permit) -> None:
        """The request has its whole answer."""
        self.ended(permit)
        self._throttled_rounds = 0
        self._allowed = min(self._most, self._allowed + 1 / self._allowed)

    def throttled(self, permit: Permit, now: float, *, wait: float | None, chance: float) -> bool:
        """The request was throttled; returns whether that counts as a failed attempt, because it ran alone.

        `wait` is what the server asks for, in seconds. If it is None, the hold doubles with each throttled round, from
        half a second to 8 seconds, less up to a quarter by `chance` in [0, 1).
        """
        if permit.round == self._round:
            self._round += 1
            self._allowed = max(1.0, min(self.allowed, self._running) // 2)
            unasked = min(_FIRST_HOLD * 2.0 ** min(self._throttled_rounds, 10), _LONGEST_UNASKED_HOLD)
            self._throttled_rounds += 1
            self.hold(now, unasked * (1 - chance / 4) if wait is None else wait)
        elif wait is not None:
            self.hold(now, wait)
        self.ended(permit)
        return permit.alone

    def hold(self, now: float, seconds: float) -> None:
        """Let nothing start for `seconds`, MAX_HOLD at most."""
        self._held_until = max(self._held_until, now + min(seconds, MAX_HOLD))

    def note_limits(self, headers: Mapping[str, str], now: float, wall: float) -> None:
        """Let nothing start before a limit is renewed of which, by a response's headers, nothing remains.

        `wall` is Unix time, as in the headers. Header names are lower case; nonsense is ignored.
        """
        for name, value in headers.items():
            if value == "0" and name.startswith(_PREFIX) and name.endswith(_REMAINING):
                reset = headers.get(name.removesuffix(_REMAINING) + _RESET, "")
                self.hold(now, _unix_time(reset) - wall)


def _unix_time(text: str) -> float:
    """The time that `text` names by RFC 3339, or minus infinity."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return -math.inf
    return time.timestamp() if time.tzinfo else -math.inf
