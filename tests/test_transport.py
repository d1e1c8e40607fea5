"""streamcli.network.transport: how a request travels, and what the environment says about it."""

import httpx
import pytest
from driver import ASK
from server import bytewise, chunk, head, ok, text_events, text_stream

from streamcli import AsyncClient, Client, UsageError
from streamcli.network.proxy import Proxy, environment_proxy, proxy_for
from streamcli.network.tls import tls_context
from streamcli.network.transport import Transport, own_client
from streamcli.protocol.request import Credential, Endpoint


class TestProxy:
    @pytest.mark.parametrize(
        ("url", "address"),
        [
            ("http://proxy:3128", (b"http", b"proxy", 3128)),
            ("proxy:3128", (b"http", b"proxy", 3128)),
            ("https://user:pass@proxy", (b"https", b"proxy", None)),
            ("http://[::1]:8080", (b"http", b"::1", 8080)),
        ],
    )
    def test_that_can_be_used(self, url, address):
        used = Proxy(url, "--proxy").checked().for_httpcore(None).url
        assert (used.scheme, used.host, used.port) == address

    def test_s_password_goes_apart_from_its_address(self):
        proxy = Proxy("http://us%20er:p%C3%A4ss@proxy", "--proxy").checked().for_httpcore(None)
        assert proxy.auth == (b"us er", "päss".encode())
        assert Proxy("http://user@proxy", "--proxy").for_httpcore(None).auth == (b"user", b"")

    @pytest.mark.parametrize(
        "url", ["ftp://proxy", "http://", "http://proxy:99999", "http://[::1", "http://pröxy", ":"]
    )
    def test_that_cannot_be_used_is_refused_by_the_name_of_its_source(self, url):
        with pytest.raises(UsageError, match="ALL_PROXY is not the URL of an http, https or socks5 proxy"):
            Proxy(url, "ALL_PROXY").checked()

    @pytest.mark.parametrize("there", [True, False])
    def test_of_socks_needs_a_package(self, monkeypatch, there):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: there or None)
        if there:
            assert Proxy("socks5://proxy:1080", "ALL_PROXY").checked().scheme == "socks5"
        else:
            with pytest.raises(UsageError, match="ALL_PROXY names a SOCKS proxy, which needs the package socksio"):
                Proxy("socks5://proxy:1080", "ALL_PROXY").checked()


class TestEnvironmentProxy:
    @pytest.mark.parametrize(
        ("environment", "chosen"),
        [
            ({}, None),
            ({"https_proxy": "http://a"}, ("http://a", "https_proxy")),
            ({"HTTPS_PROXY": "http://b"}, ("http://b", "HTTPS_PROXY")),
            ({"https_proxy": "http://a", "HTTPS_PROXY": "http://b"}, ("http://a", "https_proxy")),
            ({"all_proxy": "http://c", "HTTPS_PROXY": "http://b"}, ("http://b", "HTTPS_PROXY")),
            ({"ALL_PROXY": "c:1"}, ("http://c:1", "ALL_PROXY")),
            ({"http_proxy": "http://d"}, None),
            ({"HTTPS_PROXY": ""}, None),
            *(({"ALL_PROXY": "ftp://bad", "no_proxy": exempt}, None) for exempt in ("*", "host.example", ".example")),
            ({"https_proxy": "http://a", "NO_PROXY": "other"}, ("http://a", "https_proxy")),
            ({"https_proxy": "http://a", "NO_PROXY": "[::1],::1,fe80::/10"}, ("http://a", "https_proxy")),
        ],
    )
    def test_is_the_variable_that_is_nearest(self, environment, chosen):
        assert environment_proxy("https://host.example/v1", environment) == (chosen and Proxy(*chosen))

    def test_that_cannot_be_used_is_named(self):
        with pytest.raises(UsageError, match="ALL_PROXY"):
            environment_proxy("https://host", {"ALL_PROXY": "ftp://proxy"})


class TestTrust:
    def test_of_a_file_given_is_in_it_alone(self, ca_file):
        assert len(tls_context(ca_file).get_ca_certs()) == 1

    def test_is_the_public_authorities_otherwise(self):
        assert len(tls_context().get_ca_certs()) > 50


class TestProxyFor:
    CLEAR = Endpoint("http://host", Credential("bearer", "secret-key"))

    def test_a_key_is_not_handed_in_clear_to_another_machine(self, monkeypatch):
        monkeypatch.setenv("http_proxy", "http://proxy.example:8080")
        with pytest.raises(UsageError, match=r"^http_proxy takes plain http to proxy\.example: the key"):
            proxy_for(self.CLEAR)
        assert proxy_for(self.CLEAR, allow_http=True)
        assert proxy_for(Endpoint("http://host", None))
        assert proxy_for(self.CLEAR, named="localhost:1") == Proxy("http://localhost:1", "--proxy")

    def test_nor_by_the_library(self, monkeypatch):
        monkeypatch.setenv("http_proxy", "http://proxy.example:8080")
        keyed = {"api_key": "secret-key", "base_url": "http://127.0.0.1:1"}
        for client in (Client, AsyncClient):
            with pytest.raises(UsageError, match="the key would be readable there"):
                client(**keyed)
            client(**keyed, allow_http=True)


class TestOwnClient:
    def test_goes_through_the_proxy_that_it_is_given_and_no_other(self, server, monkeypatch):
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        server.responses = [ok(b"a")]
        with own_client() as client:
            assert client.get(server.url).content == b"a"
        proxy = proxy_for(Endpoint(server.url, None))
        with own_client(proxy=proxy) as client, pytest.raises(Exception, match=r"the proxy 127\.0\.0\.1:1"):
            client.get(server.url)

    def test_may_have_another_transport_around_its_own(self, server):
        class Recorder(httpx.BaseTransport):
            def __init__(self, inner):
                self.inner = inner
                self.paths = []

            def handle_request(self, request):
                self.paths.append(request.url.path)
                return self.inner.handle_request(request)

        recorders = []
        server.responses = [ok(b"a")]
        with own_client(around=lambda inner: recorders.append(Recorder(inner)) or recorders[0]) as client:
            client.get(f"{server.url}/x")
        assert recorders[0].paths == ["/x"]

    def test_follows_no_redirect_and_reads_no_netrc(self, server, tmp_path, monkeypatch):
        netrc = tmp_path / ".netrc"
        netrc.write_text("machine 127.0.0.1 login a password b")
        monkeypatch.setenv("NETRC", str(netrc))
        server.responses = [head(302, length=0, location="/elsewhere")]
        with own_client() as client:
            assert client.get(server.url).status_code == 302
        assert len(server.requests) == 1
        assert "authorization" not in server.requests[0].headers


class TestReads:
    def reads(self, driver, server, answer):
        server.responses = [answer]
        with driver.client(server).messages.stream(**ASK) as stream:
            reads = []
            for data in stream.reads():
                reads.append(data)
                list(stream.exchange.receive(data))
        return reads

    def test_are_those_of_the_network_however_many_chunks_they_hold(self, driver, server):
        whole = text_stream("a", "b")
        assert self.reads(driver, server, head(chunked=True) + b"".join(map(chunk, bytewise(whole)))) == [whole]

    def test_hold_nothing_of_the_framing(self, driver, server):
        reads = self.reads(driver, server, tuple(bytewise(ok(*text_events("a", "b")))))
        assert b"".join(reads) == text_stream("a", "b")

    def test_stop_at_message_stop(self, driver, server):
        more = head(chunked=True) + chunk(text_stream("a") + b": more") + chunk(b"more")
        assert b"".join(self.reads(driver, server, more)) == text_stream("a") + b": moremore"


def test_each_request_has_a_connection_of_its_own(server):
    server.responses = [ok(b"a", framing="length")]
    with httpx.Client(transport=Transport()) as client:
        for _ in range(3):
            assert client.get(server.url).content == b"a"
    assert server.connections == 3
