"""streamcli.errors: the tree its docstring draws, and which error response is which class."""

import copy
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamcli
from streamcli import errors
from streamcli.errors import APIError, APIStatusError, InternalServerError, StreamcliError, StreamError, status_error


def drawn():
    """The tree of the docstring: name -> (parent, exit status, rest of the line)."""
    tree, branch = {}, {}
    for indent, name, text in re.findall(r"^    ((?:[│├└─ ]{4})*)(\w+)(.*)$", errors.__doc__, re.MULTILINE):
        depth = len(indent) // 4
        code = re.match(r" +(\d\d?)(?!\d)", text)
        parent = branch.get(depth - 1)
        status = int(code[1]) if code else tree[parent][1]
        branch[depth] = name
        tree[name] = parent, status, text[code.end() :] if code else text
    return tree


TREE = drawn()
CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and value.__module__ == errors.__name__
}


def test_the_docstring_draws_every_class():
    assert TREE.keys() == CLASSES.keys()


@pytest.mark.parametrize("name", TREE)
def test_a_class_stands_where_it_is_drawn_with_the_exit_status_that_is_written_there(name):
    parent, status, _ = TREE[name]
    assert CLASSES[name].__bases__ == (CLASSES[parent] if parent else Exception,)
    assert CLASSES[name].exit_code == status


@pytest.mark.parametrize("name", TREE)
def test_every_class_is_exported_at_the_top(name):
    assert name in streamcli.__all__
    assert getattr(streamcli, name) is CLASSES[name]


STATUSES = [
    (int(status), name) for name, (_, _, text) in TREE.items() for status in re.findall(r"\b([45]\d\d)\b", text)
]
TYPES = [
    ("invalid_request_error", "BadRequestError", 400),
    ("authentication_error", "AuthenticationError", 401),
    ("billing_error", "PaymentRequiredError", 402),
    ("permission_error", "PermissionDeniedError", 403),
    ("not_found_error", "NotFoundError", 404),
    ("conflict_error", "ConflictError", 409),
    ("request_too_large", "ContentTooLargeError", 413),
    ("rate_limit_error", "RateLimitError", 429),
    ("api_error", "InternalServerError", 500),
    ("timeout_error", "GatewayTimeoutError", 504),
    ("overloaded_error", "OverloadedError", 529),
]


def body(kind, message="no", **more):
    return {"type": "error", "error": {"type": kind, "message": message}, **more}


@pytest.mark.parametrize(("status", "name"), STATUSES)
def test_a_status_is_the_class_drawn_beside_it_whatever_the_body_says(status, name):
    error = status_error(status, body("overloaded_error"))
    assert (type(error).__name__, error.status_code, error.type) == (name, status, "overloaded_error")


@pytest.mark.parametrize(
    ("status", "cls"), [(418, APIStatusError), (502, InternalServerError), (599, InternalServerError)]
)
def test_other_statuses_are_their_family(status, cls):
    assert type(status_error(status, None)) is cls


@pytest.mark.parametrize(("kind", "name", "status"), TYPES)
def test_an_error_event_is_the_class_of_its_type(kind, name, status):
    error = status_error(None, body(kind))
    assert (type(error).__name__, error.status_code, error.type) == (name, status, kind)
    assert str(error) == f"error event {kind}: no"


def test_an_error_event_of_a_type_that_nobody_knows_is_a_plain_one():
    error = status_error(None, body("meltdown"))
    assert (type(error), error.status_code, error.type) == (APIStatusError, 200, "meltdown")


def test_the_words_name_status_type_reason_and_request():
    error = status_error(429, body("rate_limit_error", "slow down", request_id="req_7"))
    assert error.request_id == "req_7"
    assert str(error) == "status 429 rate_limit_error: slow down (request_id req_7)"
    assert status_error(429, body("x", request_id="req_7"), request_id="req_head").request_id == "req_head"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["type", "error", "message", "details", "x"]), inner)
    ),
)


@given(st.none() | st.integers(400, 599), JSON)
def test_no_body_is_a_crash(status, value):
    error = status_error(status, value)
    assert isinstance(error, APIStatusError)
    assert str(error)
    assert error.message


@pytest.mark.parametrize("value", [None, "", "  ", {}, {"error": None}, {"error": {"message": 3}}, []])
def test_a_body_without_a_reason_is_said_to_have_none(value):
    assert status_error(500, value).message == "the server gave no reason"


@pytest.mark.parametrize(
    "error",
    [
        status_error(429, body("rate_limit_error"), headers={"retry-after": "3"}, request_id="req_1"),
        errors.APIConnectionError("refused", retryable=False),
        errors.IncompleteStreamError("cut", partial={"content": []}),
        errors.OutputError("disk full"),
    ],
)
def test_an_error_survives_copying_and_another_process(error):
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is type(error)
        assert (str(other), vars(other)) == (str(error), vars(error))


def test_faults_of_our_own_have_a_type_too():
    assert errors.ProtocolError("x").type == "streamcli.protocol_error"
    assert errors.APITimeoutError("x").type == "streamcli.timeout_error"


def test_everything_that_is_raised_can_be_caught_by_one_name():
    assert all(issubclass(cls, StreamcliError) for cls in CLASSES.values())
    assert issubclass(StreamError, APIError)
