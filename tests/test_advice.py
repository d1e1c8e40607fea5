"""streamcli.cli.advice: what helps is said, and nothing where that is not known."""

import pytest

from streamcli.cli.advice import advice
from streamcli.errors import APIConnectionError, status_error
from streamcli.protocol.request import DEFAULT_BASE_URL, DEFAULT_MODEL, Credential, Endpoint

KEY, TOKEN = Credential("x-api-key", "k"), Credential("bearer", "k")
OTHER = "https://box.test"


@pytest.mark.parametrize(
    ("status", "message", "endpoint", "model", "helps"),
    [
        (401, "Unauthorized", Endpoint(OTHER, KEY), DEFAULT_MODEL, "--auth bearer"),
        (401, "invalid x-api-key", Endpoint(OTHER, KEY), DEFAULT_MODEL, None),
        (401, "Unauthorized", Endpoint(OTHER, TOKEN), DEFAULT_MODEL, None),
        (401, "Unauthorized", Endpoint("http://localhost", None), DEFAULT_MODEL, "ANTHROPIC_AUTH_TOKEN"),
        (401, "Unauthorized", Endpoint(OTHER, None, None, (("authorization", "Basic x"),)), None, None),
        (401, "Unauthorized", Endpoint(DEFAULT_BASE_URL, KEY), DEFAULT_MODEL, None),
        (404, "not found", Endpoint(OTHER, KEY), DEFAULT_MODEL, "choose another model with -m"),
        (404, "not found", Endpoint(DEFAULT_BASE_URL, KEY), DEFAULT_MODEL, None),
        (404, "not found", Endpoint(OTHER, KEY), "small", None),
        (404, "not found", Endpoint(OTHER, KEY), None, None),
        (400, f"no {DEFAULT_MODEL} here", Endpoint(OTHER, KEY), DEFAULT_MODEL, "--models lists"),
        (400, "too long", Endpoint(OTHER, KEY), DEFAULT_MODEL, None),
        (404, "not found", Endpoint(OTHER, KEY), ["no text"], None),
    ],
)
def test_an_error_response_is_followed_by_what_helps(status, message, endpoint, model, helps):
    said = advice(status_error(status, message), endpoint, model)
    assert helps in said if helps else said == ""


REFUSED = "cannot connect to {}: connection refused"


@pytest.mark.parametrize(
    ("message", "place", "helps"),
    [
        (REFUSED.format("localhost:1"), "http://localhost:1", "is the server running, and is that its port?"),
        (REFUSED.format("box.test"), OTHER, ""),
        (REFUSED.format("the proxy localhost:2"), "http://localhost:1", ""),
        ("localhost:1 broke off", "http://localhost:1", ""),
    ],
)
def test_a_server_of_this_machine_that_refuses_a_connection_may_not_be_running(message, place, helps):
    assert advice(APIConnectionError(message), Endpoint(place, KEY), DEFAULT_MODEL) == helps
