"""streamcli.output.price: what usage costs. The tables and where a cost is shown are in cli/price.txt."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcli.output.meter import added
from streamcli.output.price import COUNTERS, checked, cost, shown

TOKENS = [name for name in COUNTERS if "." not in name]
COUNT = st.integers(0, 10**9)
PRICE = st.floats(0, 1000)


@st.composite
def usages(draw):
    """Usage as the API gives it: what an inner counter counts is in the outer one too."""
    usage = {name: draw(COUNT) for name in TOKENS}
    short, long = draw(COUNT), draw(COUNT)
    usage["cache_creation"] = {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long}
    usage["cache_creation_input_tokens"] = short + long
    return usage | {"service_tier": "standard", "server_tool_use": None}


@given(usages(), usages(), st.fixed_dictionaries(dict.fromkeys(COUNTERS, PRICE)))
def test_the_cost_of_a_sum_is_the_sum_of_the_costs(one, other, table):
    prices = {"m": table}
    together = cost(prices, added(one, other), "m")
    assert math.isclose(together, cost(prices, one, "m") + cost(prices, other, "m"), abs_tol=1e-9)


@given(usages(), PRICE)
def test_what_is_counted_twice_is_paid_once(usage, price):
    plain = cost({"m": dict.fromkeys(TOKENS, price)}, usage, "m")
    parts = cost({"m": dict.fromkeys(COUNTERS, price)}, usage, "m")
    assert math.isclose(plain, parts, abs_tol=1e-9)
    assert math.isclose(plain, sum(usage[name] for name in TOKENS) * price / 1e6, abs_tol=1e-9)


@given(usages(), st.dictionaries(st.sampled_from(TOKENS), PRICE))
def test_a_cost_is_known_only_where_every_token_has_a_price(usage, table):
    has_all = bool(table) and all(name in table for name in TOKENS if usage[name])
    assert (cost({"m": table}, usage, "m") is not None) == has_all


def test_the_parts_of_a_counter_do_for_the_whole_of_it():
    prices = {"m": {"cache_creation.ephemeral_1h_input_tokens": 6.0}}
    usage = {"cache_creation_input_tokens": 10, "cache_creation": {"ephemeral_1h_input_tokens": 10}}
    assert shown(cost(prices, usage, "m")) == 0.00006
    assert cost(prices, usage | {"cache_creation_input_tokens": 11}, "m") is None
    assert shown(cost(prices, usage | {"cache_creation_input_tokens": None}, "m")) == 0.00006


def test_the_model_that_answered_comes_first_and_a_name_is_meant_exactly():
    prices = {"a-1": {"input_tokens": 1e6}, "a": {"input_tokens": 2e6}}
    assert cost(prices, {"input_tokens": 1}, "a-1", "a") == 1
    assert cost(prices, {"input_tokens": 1}, "a-2", "a") == 2
    assert cost(prices, {"input_tokens": 1}, None, ["a"]) is None
    assert cost(prices, {"input_tokens": 1}, "A", "a-") is None


@pytest.mark.parametrize("usage", [{}, {"input_tokens": None}, {"input_tokens": "many"}, {"input_tokens": True}])
def test_usage_without_a_number_costs_nobody_knows_what(usage):
    assert cost({"m": {"input_tokens": 1}}, usage, "m") is None


@pytest.mark.parametrize("price", [True, "3", -0.1, math.nan, math.inf, None, [3]])
def test_what_is_not_a_price_is_rejected(price):
    with pytest.raises(ValueError, match=r"^needs a number of at least 0 for output_tokens$"):
        checked({"input_tokens": 3, "output_tokens": price})


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (3, "is not a table of prices"),
        ({"input_token": 3}, "has input_token, which is not a counter; did you mean input_tokens?"),
        ({"cache_read_tokens": 3},
         "has cache_read_tokens, which is not a counter; did you mean cache_read_input_tokens?"),
        ({"5": {"input_tokens": 3}},
         "has 5.input_tokens, which is not a counter; a model's name with a dot in it needs quotes"),
        ({"nonsense": 3}, "has nonsense, which is not a counter"),
        ({"input_tokens": {"x": 3}}, "has input_tokens.x, which is not a counter; did you mean input_tokens?"),
    ],
)  # fmt: skip
def test_what_is_not_a_table_of_prices_is_rejected(table, why):
    with pytest.raises(ValueError, match=f"^{re.escape(why)}$"):
        checked(table)
