"""streamcli.errors: the tree its docstring draws, and which error response is which class."""

import copy
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamcli
from streamcli import errors
from streamcli.errors import (
    APIError,
    APIStatusError,
    InternalServerError,
    OverloadedError,
    RateLimitError,
    StreamcliError,
    StreamError,
    status_error,
)


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


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"error": "text"}, "text"),
        ({"error": {"code": "1302", "message": "slow down"}}, "slow down"),
        ({"type": "error", "message": {"type": "api_error", "message": "inner"}}, "inner"),
        ({"type": "error", "message": "not loaded"}, "not loaded"),
        ({"detail": "boom"}, "boom"),
        ({"detail": [{"msg": "field required"}]}, '{"detail": [{"msg": "field required"}]}'),
        ({"error": {"message": 3}}, '{"message": 3}'),
        ({"object": "error", "message": "m", "code": 404}, "m"),
    ],
)
def test_the_words_of_an_error_are_found_wherever_a_server_puts_them(value, words):
    assert status_error(None, value).message == words


@pytest.mark.parametrize(
    ("value", "cls"),
    [
        ({"code": 500, "message": "m", "type": "server_error"}, InternalServerError),
        ({"error": {"code": "429", "message": "m"}}, RateLimitError),
        ({"code": 529, "error": {"message": "m"}}, OverloadedError),
        ({"error": {"type": "overloaded_error", "code": 400}}, OverloadedError),
        ({"error": {"code": "1302"}}, APIStatusError),
        ({"error": {"code": 200}}, APIStatusError),
        ({"error": {"code": True}}, APIStatusError),
    ],
)
def test_the_class_of_an_error_event_is_that_of_its_type_or_of_a_code_that_is_a_status(value, cls):
    assert type(status_error(None, value)) is cls


@pytest.mark.parametrize("value", [None, "", "  ", {}, {"error": None}, {"error": {"message": None}}, []])
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


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (status_error(429, {}), True),
        (status_error(500, {}), True),
        (status_error(400, {}), False),
        (status_error(429, {}, headers={"x-should-retry": "false"}), False),
        (status_error(400, {}, headers={"x-should-retry": "true"}), True),
        (status_error(429, {"error": {"details": {"error_code": "enforced_spend_limit_reached"}}}), False),
        (status_error(429, {"error": {"details": {"error_code": ["odd"]}}}), True),
        (status_error(None, {"error": {"type": "nobody_knows"}}), True),
        (status_error(None, {"error": {"type": "invalid_request_error"}}), False),
        (errors.APIConnectionError("m", retryable=False), False),
        (errors.APIConnectionError("m"), True),
        (errors.IncompleteStreamError("m"), True),
        (errors.ProtocolError("m", retryable=False), False),
        (errors.UsageError("m"), False),
    ],
)
def test_an_error_knows_whether_another_attempt_could_end_differently(error, retryable):
    assert error.retryable is error.evidence()["retryable"] is retryable


def test_what_was_too_slow_may_be_quick_later_though_it_is_not_asked_again():
    error = errors.APITimeoutError("m", retryable=False)
    assert error.evidence()["retryable"]
    assert not error.retryable


def test_the_details_of_an_error_are_in_its_words_where_they_are_words_and_numbers():
    details = {"error_code": "limit \n reached", "tries": 3, "more": {"a": 1}, "nothing": None, "on": True}
    error = status_error(429, {"error": {"message": "No.", "details": details}}, request_id="req_1")
    assert str(error) == "status 429: No. (error_code limit reached, tries 3, request_id req_1)"
    assert error.message == "No."
    long = status_error(429, {"error": {"message": "No.", "details": {"a": "x" * 500}}})
    assert str(long) == f"status 429: No. (a {'x' * 120}…)"


def test_the_details_of_an_error_are_evidence():
    assert status_error(400, {"error": {"details": {"a": 1}}}).evidence()["details"] == {"a": 1}
    assert status_error(400, {}).evidence()["details"] is None
