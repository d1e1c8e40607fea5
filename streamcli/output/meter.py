"""Events and usage counters in, the summary of an answer out: what it is, when it came and what it used.

Contract: counters keep the names that the API gives them, and what is not known is left out. No I/O except that the
clock is read.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from streamcli.protocol.jsontext import dumps

from .price import Prices, cost, shown, total

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from streamcli.protocol.exchange import Exchange, Received


class Meter:
    """When an answer came, in seconds since the request began, and what the turns before the last one used.

    What they cost is known by `prices`, of the model that answered, else of the one that was `asked`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, prices: Prices | None = None) -> None:
        self.asked: Any = None
        self._prices = prices or {}
        self._spent: float | None = 0.0
        self._clock = clock
        self._start = clock()
        self.first_token: float | None = None
        self.end: float | None = None
        self.turns = 1
        self._earlier: dict[str, Any] = {}

    def elapsed(self) -> float:
        """The seconds since the request began."""
        return self._clock() - self._start

    def seen(self, received: Received) -> None:
        """Note when the first delta came; to be called for each event as long as `first_token` is None."""
        if received.event is not None and received.event.get("type") == "content_block_delta":
            self.first_token = self.elapsed()

    def turn(self, usage: Mapping[str, Any], model: Any = None) -> None:
        """Count a turn, answered by `model`, that another one follows."""
        self._spent = self.cost(usage, model)
        self._earlier = added(self._earlier, usage)
        self.turns += 1

    def usage(self, last: Mapping[str, Any]) -> dict[str, Any]:
        """The sum of the counters of all turns; `last` are those of the last one."""
        return added(self._earlier, last)

    def price(self, usage: Mapping[str, Any], model: Any) -> float | None:
        """What one answer of `model` costs, or None if that is not known."""
        return cost(self._prices, usage, model, self.asked)

    def cost(self, last: Mapping[str, Any], model: Any) -> float | None:
        """What all turns cost, of which the last one used `last` and was answered by `model`; None if not known."""
        return total(self._spent, self.price(last, model))

    def stop(self) -> None:
        """Note when the answer ended."""
        self.end = self.elapsed()


def added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The sum of two sets of usage counters, inner ones too; what cannot be added is taken from `other`."""
    return {**one, **{name: _sum(one.get(name), value) for name, value in other.items() if value is not None}}


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        return added(one, other)
    if type(one) in {int, float} and type(other) in {int, float}:
        return one + other
    return other


def summary(exchange: Exchange, meter: Meter) -> dict[str, Any]:
    """The fields of the summary: what the final message is, the usage of all turns, times in seconds.

    `output_tokens_per_second` is over the whole duration; `turns` is left out if there was only one.
    """
    message = exchange.accumulator.snapshot() or {}
    usage = meter.usage(exchange.accumulator.usage)
    tokens, duration = usage.get("output_tokens"), meter.end
    rate = tokens / duration if isinstance(tokens, int) and duration else None
    named = {
        "id": message.get("id"),
        "model": message.get("model"),
        "stop_reason": message.get("stop_reason"),
        "stop_details": message.get("stop_details"),
        "request_id": exchange.request_id,
    }
    known = {
        **named,
        **{name: counter for name, counter in usage.items() if name not in named},
        "cost": shown(meter.cost(exchange.accumulator.usage, message.get("model"))),
        "turns": meter.turns if meter.turns > 1 else None,
        "deviations": exchange.deviations or None,
        "time_to_first_token": _rounded(meter.first_token),
        "duration": _rounded(duration),
        "output_tokens_per_second": _rounded(rate),
    }
    return {key: value for key, value in known.items() if value is not None}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def summary_lines(known: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The fields as key and text; a counter inside a counter gets a dotted key."""
    for key, value in known.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", text) for inner, text in summary_lines(value))
        elif value is not None:
            yield key, value if isinstance(value, str) else dumps(value).decode()
