"""How long each step may take, and the deadline that a whole call has.

Contract: every wait of the network is at most its own timeout, and ends with the deadline where that is sooner, so
that endless interim responses and slow drips end too.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import httpx

from streamcli.errors import APITimeoutError

CONNECT_TIMEOUT = 5.0
# Bytes of any kind count, pings included; the API pings every few seconds.
IDLE_TIMEOUT = 90.0
TIMEOUT = httpx.Timeout(IDLE_TIMEOUT, connect=CONNECT_TIMEOUT, pool=None)
# A response that is not a stream has no pings, and comes when all of it is thought out.
WHOLE_TIMEOUT = httpx.Timeout(600.0, connect=CONNECT_TIMEOUT, pool=None)
# The status of an error response is known already; its body gets this long to say why.
ERROR_BODY_TIMEOUT = 5.0

# A timer may fire this much early.
_TIMER_PRECISION = 0.001


class Deadline(NamedTuple):
    """When a call must be over: `at` on the clock of `time.monotonic`, after `total` seconds; both None for never."""

    total: float | None = None
    at: float | None = None

    def within(self, timeout: float | None) -> float | None:
        """`timeout`, or the time left where that is shorter. Raises APITimeoutError where none is left."""
        if self.at is None:
            return timeout
        left = self.at - time.monotonic()
        if left <= 0:
            raise self.error()
        return left if timeout is None else min(timeout, left)

    def at_most(self, seconds: float) -> Deadline:
        """The same, or `seconds` from now if that is sooner."""
        at = time.monotonic() + seconds
        return self if self.at is not None and self.at <= at else Deadline(seconds, at)

    def passed(self) -> bool:
        """Whether the time is over, and not only the timeout of a single step."""
        return self.at is not None and time.monotonic() >= self.at - _TIMER_PRECISION

    def error(self) -> APITimeoutError:
        """The error of a call that took too long."""
        return APITimeoutError(f"the total timeout of {self.total:g} s passed", retryable=False)
