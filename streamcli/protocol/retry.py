"""A failed attempt in; the seconds to wait before the next one out, or None to give up.

Contract: pure; the time and the chance are parameters. What is asked here is asked only while nothing of an answer
has been passed on. Source: streamcli(7), section "RETRIES".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from streamcli.errors import APIError, APIStatusError

if TYPE_CHECKING:
    from collections.abc import Mapping


MAX_RETRIES = 2
MAX_WAIT = 60.0
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0

_SECONDS = r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*"


def delay(error: APIError, attempt: int, *, max_retries: int, chance: float, now: float) -> float | None:
    """Seconds to wait after the failed `attempt` (0 is the first), or None if `error` is final.

    `chance` in [0, 1) spreads the waits; `now` is Unix time, for servers that send a date.
    """
    if attempt >= max_retries or not error.retryable:
        return None
    asked = retry_after(error.headers, now) if isinstance(error, APIStatusError) else None
    if not asked:
        return unasked_wait(attempt, chance)
    return asked if asked <= MAX_WAIT else None


def unasked_wait(failures: int, chance: float) -> float:
    """Seconds to wait where nobody says how long, after so many failures before the last one.

    Half a second, doubled with each up to 8, less up to a quarter by `chance` in [0, 1).
    """
    return min(_FIRST_WAIT * 2.0 ** min(failures, 10), _LONGEST_WAIT) * (1 - chance / 4)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """The wait in seconds that a server asks for, or None if it names no time, nonsense, or a date that has passed."""
    milliseconds = re.fullmatch(_SECONDS, headers.get("retry-after-ms", ""))
    if milliseconds:
        return float(milliseconds[1]) / 1000
    text = headers.get("retry-after", "")
    seconds = re.fullmatch(_SECONDS, text)
    return float(seconds[1]) if seconds else _until(text, now)


def _until(date: str, now: float) -> float | None:
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - only for the few servers that send a date

    try:
        wait = parsedate_to_datetime(date).timestamp() - now
    except (ValueError, OverflowError, IndexError):
        return None
    return wait if wait > 0 else None
