"""JSON that is well formed and says something of another type than expected, at any one place of what was meant."""

import json
import sys

from hypothesis import strategies as st

_DEPTH = 1100


def deep(depth):
    """A list in a list, so many times."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


VALUES = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 10**30, 1.5, "", "text", "\x00", [], {}, [[]], {"type": []}, ["text"]]),
    st.sampled_from([300, 900, 1000, _DEPTH]).map(deep),
)


def places(value, here=()):
    """Every place in a JSON value, as keys and indices; the whole of it first."""
    yield here
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*here, key))


def changed(value, place, other):
    """`value` with `other` at a place."""
    if not place:
        return other
    first, *rest = place
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[first] = changed(copy[first], rest, other)
    return copy


def written(value):
    """A value as JSON text, nested as deeply as it likes."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20 * _DEPTH)
    try:
        return json.dumps(value).encode()
    finally:
        sys.setrecursionlimit(before)


@st.composite
def oddities(draw, value):
    """`value` with something else at one of its places, as JSON text."""
    place = draw(st.sampled_from(list(places(value))))
    return written(changed(value, place, draw(VALUES)))
