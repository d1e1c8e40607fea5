"""Events and usage counters in, what is worth telling of an answer out: when its parts came and what it used.

Contract: counters keep the names that the API gives them, and what is not known is left out. No I/O but a look at the
clock.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from streamcli.protocol.jsontext import dumps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from streamcli.protocol.exchange import Exchange, Received


class Meter:
    """When the answer's parts came, in seconds since the request began, and what the turns before the last one used."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self.first_token: float | None = None
        self.end: float | None = None
        self.turns = 1
        self._earlier: dict[str, Any] = {}

    def seen(self, received: Received) -> None:
        """Mark the first delta."""
        if received.event is not None and received.event.get("type") == "content_block_delta":
            self.first_token = self._clock() - self._start

    def turn(self, usage: Mapping[str, Any]) -> None:
        """Mark a turn that another one follows."""
        self._earlier = added(self._earlier, usage)
        self.turns += 1

    def usage(self, last: Mapping[str, Any]) -> dict[str, Any]:
        """The counters of all turns, `last` those of the last one."""
        return added(self._earlier, last)

    def stop(self) -> None:
        """Mark the end."""
        self.end = self._clock() - self._start


def added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Usage counters in sum, inner ones too; of what cannot be added, the later."""
    return {**one, **{name: _sum(one.get(name), value) for name, value in other.items() if value is not None}}


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        return added(one, other)
    if type(one) in {int, float} and type(other) in {int, float}:
        return one + other
    return other


def summary(exchange: Exchange, meter: Meter) -> dict[str, Any]:
    """The final message's facts: what it is, the usage of all turns, how long it took in seconds.

    `output_tokens_per_second` is over the whole duration; `turns` is there where there was more than one. What is not
    known is left out.
    """
    message = exchange.accumulator.snapshot() or {}
    usage = meter.usage(exchange.accumulator.usage)
    tokens, duration = usage.get("output_tokens"), meter.end
    rate = tokens / duration if isinstance(tokens, int) and duration else None
    named = {
        "id": message.get("id"),
        "model": message.get("model"),
        "stop_reason": message.get("stop_reason"),
        "request_id": exchange.request_id,
    }
    known = {
        **named,
        **{name: counter for name, counter in usage.items() if name not in named},
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
    """Facts as key and text; a counter inside a counter gets a dotted key."""
    for key, value in known.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", text) for inner, text in summary_lines(value))
        elif value is not None:
            yield key, value if isinstance(value, str) else dumps(value).decode()
