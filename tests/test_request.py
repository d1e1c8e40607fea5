"""streamcli.protocol.request: what goes out, and what is rejected before anything does."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcli.errors import UsageError
from streamcli.protocol.request import (
    Credential,
    Endpoint,
    checked_base_url,
    credential,
    custom_headers,
    is_loopback,
    parsed_header,
    readable_on_the_way,
)
from streamcli.version import __version__

KEY = Credential("x-api-key", "sk-1")
HOST = Endpoint("https://host", KEY)
BODY = {"model": "m", "max_tokens": 1, "messages": []}


def headers(endpoint=HOST, body=BODY, **options):
    return endpoint.request("POST", "/v1/messages", body, **options).headers


def test_a_plain_request_carries_these_headers_and_no_more():
    request = HOST.request("POST", "/v1/messages", BODY)
    assert request.method == "POST"
    assert request.url == "https://host/v1/messages"
    assert request.headers == {
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": f"streamcli/{__version__}",
        "anthropic-version": "2026-10-21",
        "content-type": "application/json",
        "x-api-key": "sk-1",
    }


def test_the_body_is_compact_json_in_utf_8():
    assert HOST.request("POST", "/", {"a": "é\0", "b": [1.5, None]}).body == '{"a":"é\\u0000","b":[1.5,null]}'.encode()


def test_a_get_has_no_body_and_no_content_type():
    request = HOST.request("GET", "/v1/models")
    assert request.body == b""
    assert "content-type" not in request.headers


def test_a_prefix_in_the_base_url_stays():
    assert Endpoint("https://host/a/b", KEY).request("GET", "/v1/models").url == "https://host/a/b/v1/models"


@pytest.mark.parametrize("field", ["temperature", "top_p", "top_k"])
def test_a_body_that_the_newest_version_rejects_goes_out_as_an_older_one(field):
    assert headers(body={**BODY, field: 1})["anthropic-version"] == "2023-06-01"
    assert headers(HOST._replace(api_version="2030-01-01"), {**BODY, field: 1})["anthropic-version"] == "2030-01-01"


def test_betas_are_joined_without_repeats_and_absent_if_there_are_none():
    assert headers(betas=["a", "b", "a"])["anthropic-beta"] == "a,b"
    assert "anthropic-beta" not in headers(betas=[])


def test_the_caller_s_headers_replace_ours_whatever_their_case_and_the_call_s_replace_the_client_s():
    endpoint = HOST._replace(headers=(("User-Agent", "mine"), ("X-A", "client")))
    sent = headers(endpoint, headers=[("x-a", " call\t"), ("ANTHROPIC-VERSION", "2")])
    assert (sent["user-agent"], sent["x-a"], sent["anthropic-version"]) == ("mine", "call", "2")


@pytest.mark.parametrize("value", ["a\nb", "a\r\nx: y", "a\0", "\x1b", "€", "\x7f"])
def test_a_header_that_cannot_be_sent_is_rejected_without_its_value(value):
    with pytest.raises(UsageError) as caught:
        headers(headers=[("x-secret", value)])
    assert "x-secret" in str(caught.value)
    assert value not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "a:", "é", "a\n"])
def test_what_is_not_a_header_name_is_rejected(name):
    with pytest.raises(UsageError, match="not a header name"):
        headers(headers=[(name, "x")])


@pytest.mark.parametrize("body", [{"a": object()}, {"a": "\ud800"}, {("a",): 1}])
def test_a_body_that_cannot_be_json_is_rejected(body):
    with pytest.raises(UsageError, match="cannot be written as JSON"):
        HOST.request("POST", "/", body)


class TestCredential:
    @pytest.mark.parametrize(
        ("environment", "header"),
        [
            ({"ANTHROPIC_API_KEY": "k"}, ("x-api-key", "k")),
            ({"ANTHROPIC_AUTH_TOKEN": "t"}, ("authorization", "Bearer t")),
            ({"ANTHROPIC_API_KEY": "k", "ANTHROPIC_AUTH_TOKEN": "t"}, ("x-api-key", "k")),
            ({"ANTHROPIC_API_KEY": "", "ANTHROPIC_AUTH_TOKEN": "t"}, ("authorization", "Bearer t")),
            ({"ANTHROPIC_API_KEY": " \n", "ANTHROPIC_AUTH_TOKEN": " t\r\n"}, ("authorization", "Bearer t")),
        ],
    )
    def test_comes_from_the_environment_and_goes_out_alone(self, environment, header):
        assert credential(environment).header == header
        sent = headers(Endpoint("https://host", credential(environment)))
        assert [name for name in ("x-api-key", "authorization") if name in sent] == [header[0]]

    def test_given_as_an_argument_wins(self):
        assert credential({"ANTHROPIC_API_KEY": "k"}, key=" mine ").secret == "mine"

    def test_can_be_told_how_to_go_out(self):
        assert credential({"ANTHROPIC_API_KEY": "k"}, scheme="bearer").header == ("authorization", "Bearer k")

    def test_of_nothing_is_none(self):
        assert credential({"ANTHROPIC_API_KEY": " "}, key="") is None

    @pytest.mark.parametrize("key", ["sk-1\nsk-2", "“sk-1”", "sk\x7f", "sk-é"])
    def test_that_no_header_can_carry_is_rejected_and_never_shown(self, key):
        with pytest.raises(UsageError) as caught:
            credential({"ANTHROPIC_API_KEY": key})
        assert "ANTHROPIC_API_KEY" in str(caught.value)
        assert "sk" not in str(caught.value)

    def test_is_in_no_repr(self):
        assert "sk-1" not in repr(HOST) + repr(HOST.request("GET", "/"))


class TestWhereACredentialGoes:
    def test_without_one_only_to_this_machine(self):
        with pytest.raises(UsageError, match="no API key: pass api_key, or set ANTHROPIC_API_KEY"):
            Endpoint("https://host", None).request("GET", "/")
        assert "x-api-key" not in Endpoint("http://127.0.0.1:1", None).request("GET", "/").headers

    def test_a_header_of_the_caller_s_own_is_one(self):
        own = Endpoint("https://host", None, headers=(("X-Api-Key", "k"),))
        assert own.request("GET", "/").headers["x-api-key"] == "k"

    @pytest.mark.parametrize("url", ["https://evil/x", "http://host/x", "https://host:444/x", "https://host.evil/x"])
    def test_to_no_other_host_even_if_the_server_names_one(self, url):
        assert HOST.request("GET", "https://host/x").url == "https://host/x"
        with pytest.raises(UsageError, match="is not on https://host"):
            HOST.request("GET", url)

    @pytest.mark.parametrize(
        ("url", "is_one"),
        [
            ("http://localhost", True),
            ("http://LOCALHOST:80/a", True),
            ("http://a.localhost", True),
            ("http://127.0.0.1", True),
            ("http://127.1.2.3:9", True),
            ("http://[::1]:80", True),
            ("http://localhost.evil.com", False),
            ("http://127.0.0.1.evil.com", False),
            ("http://evil-localhost", False),
            ("http://localhost@evil.com", False),
            ("http://10.0.0.1", False),
            ("http://[::2]", False),
        ],
    )
    def test_loopback_is_judged_by_the_name(self, url, is_one):
        assert is_loopback(url) is is_one

    @pytest.mark.parametrize(
        ("url", "proxy", "is_readable"),
        [
            ("http://api.test", None, True),
            ("http://127.0.0.1", None, False),
            ("https://api.test", None, False),
            ("https://api.test", "http://proxy.test", False),
            ("http://127.0.0.1", "http://proxy.test", True),
            ("http://127.0.0.1", "https://proxy.test", True),
            ("http://api.test", "http://127.0.0.1:8080", False),
        ],
    )
    def test_a_key_can_be_read_where_it_leaves_this_machine_by_plain_http(self, url, proxy, is_readable):
        assert readable_on_the_way(url, proxy) is is_readable


def checked(url, *, has_credential=True, allow_http=False):
    return checked_base_url(url, source="--base-url", has_credential=has_credential, allow_http=allow_http)


class TestBaseURL:
    @pytest.mark.parametrize(
        "url", ["https://host", "https://host:8443/prefix", "http://127.0.0.1:80", "http://[::1]:1"]
    )
    def test_that_can_be_used_loses_only_its_last_slash(self, url):
        assert checked(url) == checked(url + "/") == url

    @pytest.mark.parametrize(
        "url",
        [
            "host",
            "//host",
            "ftp://host",
            "https://",
            "https://[::1",
            "https://host:99999",
            "https://host:0",
            "https://h:x",
        ]
        + ["https://ho st", "https://host\n", "https://host/\x1b", "https://u:p@host", "https://h?a", "https://h#a"]
        + ["https://host\\@evil", ""],
    )
    def test_that_cannot_be_used_is_rejected_by_the_name_of_its_source(self, url):
        with pytest.raises(UsageError, match="--base-url"):
            checked(url)

    @pytest.mark.parametrize("end", ["/v1", "/v1/", "/v1/messages", "/v1/messages/", "//v1//messages"])
    @pytest.mark.parametrize("start", ["https://host", "https://host:8443/api", "http://[::1]:1/v1x"])
    def test_may_be_that_of_the_endpoint_or_of_its_version(self, start, end):
        assert checked(start + end) == start

    @pytest.mark.parametrize(
        "url", ["https://host/v1x", "https://host/messages", "https://v1", "https://host/v1/models"]
    )
    def test_that_ends_in_something_else_stays(self, url):
        assert checked(url) == url

    def test_a_key_goes_over_plain_http_to_this_machine_only_unless_allowed(self):
        with pytest.raises(UsageError, match="plain http to host"):
            checked("http://host")
        assert checked("http://host", allow_http=True) == checked("http://host", has_credential=False) == "http://host"

    @given(st.text(st.sampled_from("https:/@[]\\.?#%127localhostevil"), max_size=30))
    def test_names_one_host_to_all_who_read_it(self, rest):
        try:
            url = checked(f"https://{rest}")
            host = httpx.URL(url).host
        except (UsageError, httpx.InvalidURL):
            return
        assert is_loopback(url) == is_loopback(f"https://[{host}]" if ":" in host else f"https://{host}")


class TestHeaderLines:
    def test_are_split_at_the_first_colon(self):
        assert parsed_header("X-A:  b: c ", source="-H") == ("X-A", "b: c")

    @pytest.mark.parametrize("line", ["no colon", ": x", "a b: c", "x: a\0b"])
    def test_that_cannot_be_sent_are_rejected(self, line):
        with pytest.raises(UsageError):
            parsed_header(line, source="-H")

    def test_of_the_environment_may_have_other_lines_between_them(self):
        environment = {"ANTHROPIC_CUSTOM_HEADERS": "X-A: 1\nrubbish\n\nX-B:2"}
        assert custom_headers(environment) == (("X-A", "1"), ("X-B", "2"))
        assert custom_headers({}) == ()
