"""Usage counters and the prices of models in, what an answer costs out.

Contract: prices are for a million, under the API's names of counters; a counter inside another one has a dot in its
name. A cost is known only where all tokens have a price: otherwise it would be too low, and is left out. No I/O.
Source: streamcli(5), section "Prices".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from streamcli.protocol.userinput import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

# The prices of counters by the name of the model, as `checked` gives them.
Prices = Mapping[str, Mapping[str, float]]

# The counters that can have a price, each with the one that counts the same tokens among others.
COUNTERS = {
    "input_tokens": "",
    "output_tokens": "",
    "cache_creation_input_tokens": "",
    "cache_read_input_tokens": "",
    "cache_creation.ephemeral_5m_input_tokens": "cache_creation_input_tokens",
    "cache_creation.ephemeral_1h_input_tokens": "cache_creation_input_tokens",
    "output_tokens_details.thinking_tokens": "output_tokens",
    "server_tool_use.web_search_requests": "",
    "server_tool_use.web_fetch_requests": "",
}
# Those of all tokens there are: what they count must have a price.
_TOKENS = [name for name in COUNTERS if "." not in name]
_UNIT = 1_000_000
# Digits behind the point, far below what one token costs: what a sum of floats gets wrong is not shown.
_DIGITS = 9


def cost(of_models: Prices, usage: Mapping[str, Any], *models: Any) -> float | None:
    """What `usage` costs by the prices of the first of `models` that has any, or None if that is not known."""
    prices = next((of_models[name] for name in models if isinstance(name, str) and name in of_models), {})
    counts: dict[str, float] = {name: count for name, count in _leaves(usage) if type(count) in {int, float}}
    for name, whole in COUNTERS.items():
        if whole and name in prices:
            counts[whole] = max(0, counts.get(whole, 0) - counts.get(name, 0))
    if not prices or not counts or any(counts.get(name) and name not in prices for name in _TOKENS):
        return None
    return sum(counts.get(name, 0) * price for name, price in prices.items()) / _UNIT


def total(one: float | None, other: float | None) -> float | None:
    """The sum of two costs, which is not known if one of them is not."""
    return None if one is None or other is None else one + other


def shown(cost: float | None) -> float | None:
    """A cost as it is shown."""
    return None if cost is None else round(cost, _DIGITS)


def checked(table: Any) -> dict[str, float]:
    """The prices in a model's `table`, by the counters' names. Raises ValueError, which says what is wrong with it."""
    if not isinstance(table, dict):
        raise ValueError("is not a table of prices")  # noqa: TRY004 - whatever is wrong, it is the user's
    prices = dict(_leaves(table))
    for name, price in prices.items():
        if name not in COUNTERS:
            is_of_table = name.rpartition(".")[2] in COUNTERS  # [price.m-1.5] is a table of a table
            hint = "; a model's name with a dot in it needs quotes" if is_of_table else nearest(name, COUNTERS)
            raise ValueError(f"has {name}, which is not a counter{hint}")
        if type(price) not in {int, float} or not 0 <= price < math.inf:
            raise ValueError(f"needs a number of at least 0 for {name}")
    return prices


def _leaves(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", leaf) for inner, leaf in _leaves(value))
        else:
            yield name, value
