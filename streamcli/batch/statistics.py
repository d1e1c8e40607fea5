"""The results of lines in, the statistics of a whole run out.

Contract: memory is bounded however many lines there are. No I/O except that the clock is read.
"""

from __future__ import annotations

import math
import random
import time
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any

from streamcli.errors import SchemaError
from streamcli.output import price

from .results import error_type

if TYPE_CHECKING:
    from collections.abc import Mapping

# The counters that add up to all tokens of a request and its answer.
_TOKENS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")


class Sample:
    """The distribution of any quantity of numbers, estimated from at most `most` of them, each as likely as another."""

    def __init__(self, most: int = 1 << 16) -> None:
        self._most = most
        self._seen = 0
        self._kept = array("f")

    def add(self, number: float) -> None:
        """Take one number."""
        self._seen += 1
        if len(self._kept) < self._most:
            self._kept.append(number)
            return
        place = random.randrange(self._seen)  # noqa: S311 - it draws a sample, it guards nothing
        if place < self._most:
            self._kept[place] = number

    def percentiles(self) -> dict[str, float]:
        """The numbers that 50, 90 and 99 percent of all do not exceed, as p50, p90 and p99; {} if there are none."""
        ordered = sorted(self._kept)
        if not ordered:
            return {}
        return {f"p{share}": round(ordered[math.ceil(share * len(ordered) / 100) - 1], 3) for share in (50, 90, 99)}


class Statistics:
    """The statistics of a run over `total` lines, of which `before` were done already; `prices` give what it costs."""

    def __init__(self, total: int, before: int = 0, prices: price.Prices | None = None) -> None:
        self.total = total
        self.before = before
        self.succeeded = 0
        self.failed = 0
        # Why lines have a status other than 0: types of errors, and stop reasons that the caller does not accept.
        self.faults: Counter[str] = Counter()
        # How streams deviated from the documented one, by kind.
        self.deviations: Counter[str] = Counter()
        # Requests that were sent again; responses of status 429 and of status 529.
        self.retries = 0
        self.rate_limited = 0
        self.overloaded = 0
        # The longest wait in seconds that the server asked for and that was too long to wait.
        self.longest_wait = 0.0
        self.usage: Counter[str] = Counter()
        # What all messages cost; None if that is not known.
        self.cost = 0.0 if prices else None
        self._prices = prices or {}
        # Whether lines were left because of what the others used.
        self.capped = False
        self.time_to_first_token = Sample()
        self.time_to_last_token = Sample()
        self._begin = time.monotonic()
        self._end: float | None = None

    def add(self, outcome: Mapping[str, Any], status: int, asked: Any = None) -> None:
        """One line is done; `status` is its exit status, `asked` the model that it asked."""
        if outcome["type"] != "succeeded":
            self.failed += 1
            self.faults[error_type(outcome)] += 1
            return
        self.succeeded += 1
        message = outcome.get("message") or {"usage": outcome}  # where tokens are counted
        if status:
            stop_reason = message.get("stop_reason")
            of_schema = status == SchemaError.exit_code and stop_reason != "tool_use"
            self.faults["not the JSON of --schema" if of_schema else f"stop reason {stop_reason}"] += 1
        usage = message.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        self.cost = price.total(self.cost, price.cost(self._prices, usage, message.get("model"), asked))
        self.usage.update({name: count for name, count in usage.items() if type(count) is int})

    def answered(self, first_token: float | None, last_token: float) -> None:
        """An answer is complete; when its first and its last token came, in seconds since the request."""
        if first_token is not None:
            self.time_to_first_token.add(first_token)
        self.time_to_last_token.add(last_token)

    @property
    def done(self) -> int:
        """How many lines are done, those before this run included."""
        return self.before + self.succeeded + self.failed

    @property
    def tokens(self) -> int:
        """How many tokens were used, read and written, those of the prompt cache included."""
        return sum(self.usage[name] for name in _TOKENS)

    @property
    def elapsed(self) -> float:
        """The seconds since the run began, or that it took."""
        return (time.monotonic() if self._end is None else self._end) - self._begin

    def stop(self) -> None:
        """The run has ended."""
        self._end = time.monotonic()

    def fields(self) -> dict[str, Any]:
        """All of it as JSON values: times in seconds, usage counters by the API's names."""
        elapsed = self.elapsed
        return {
            "lines": self.total,
            "done_before": self.before,
            "succeeded": self.succeeded,
            "errored": self.failed,
            "faults": dict(self.faults.most_common()),
            "deviations": dict(self.deviations.most_common()),
            "retries": self.retries,
            "rate_limited": self.rate_limited,
            "overloaded": self.overloaded,
            "usage": dict(self.usage),
            "cost": price.shown(self.cost),
            "max_total_tokens_reached": self.capped,
            "duration": round(elapsed, 3),
            "output_tokens_per_second": round(self.usage["output_tokens"] / elapsed, 3) if elapsed else None,
            "time_to_first_token": self.time_to_first_token.percentiles(),
            "time_to_last_token": self.time_to_last_token.percentiles(),
        }
