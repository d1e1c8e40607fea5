"""streamcli.cli.clients: what the options say is what the client does, and what cannot be used is said at once."""

import httpx
import pytest

from streamcli.cli import clients, io
from streamcli.cli.args import parse
from streamcli.errors import APIConnectionError, UsageError
from streamcli.protocol.request import Credential, Endpoint

ENDPOINT = Endpoint("http://127.0.0.1:1", Credential("x-api-key", "sk-1"))


def made(kind, *argv, endpoint=ENDPOINT):
    args = parse([*argv, "hi"])
    if kind == "many":
        return clients.async_client(args, endpoint)
    return clients.client(args, endpoint, io.Diagnostics())


@pytest.fixture(params=["one", "many"])
def kind(request):
    return request.param


def test_times_are_those_of_the_options(kind):
    client = made(kind, "--connect-timeout", "1", "--idle-timeout", "2", "--timeout", "3")
    assert client.timeout == httpx.Timeout(2, connect=1, pool=None)
    assert client.total_timeout == 3


def test_a_time_of_0_is_for_ever(kind):
    client = made(kind, "--connect-timeout", "0", "--idle-timeout", "0", "--timeout", "0")
    assert client.timeout == httpx.Timeout(None)
    assert client.total_timeout is None


def test_only_one_request_after_the_other_is_retried_here():
    assert made("one", "--retries", "5").max_retries == 5
    assert made("many", "--retries", "5").max_retries == 0


def test_a_retry_is_said(capfd):
    made("one").on_retry(APIConnectionError("no answer"), 0.5)
    assert capfd.readouterr().err == "streamcli: retrying in 0.5 s after: no answer\n"


def test_a_proxy_that_cannot_be_used_is_said_at_once(kind):
    with pytest.raises(UsageError, match=r"^--proxy is not the URL of "):
        made(kind, "--proxy", "gopher://127.0.0.1")


def test_a_certificate_that_cannot_be_used_is_said_at_once(kind):
    endpoint = ENDPOINT._replace(base_url="https://127.0.0.1:1")
    with pytest.raises(UsageError, match=r"^--ca-file cannot be used: "):
        made(kind, "--ca-file", "/nowhere", endpoint=endpoint)


def test_a_model_in_this_process_is_asked_through_no_proxy(kind, monkeypatch):
    monkeypatch.setenv("http_proxy", "gopher://127.0.0.1")
    made(kind, "--local")
