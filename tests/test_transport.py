"""streamcli.network.transport: how a request travels, and what the environment says about it."""

import httpcore
import httpx
import pytest
from driver import ASK
from server import bytewise, chunk, head, ok, text_events, text_stream

from streamcli.errors import UsageError
from streamcli.network.async_connection import AsyncConnection
from streamcli.network.connection import Connection
from streamcli.network.proxy import Proxy
from streamcli.network.tls import tls_context
from streamcli.network.transport import Transport, own_client


class TestTrust:
    def test_of_a_file_given_is_in_it_alone(self, ca_file):
        assert len(tls_context(ca_file).get_ca_certs()) == 1

    def test_is_the_public_authorities_otherwise(self):
        assert len(tls_context().get_ca_certs()) > 50

    def test_cannot_be_read_from_what_holds_no_certificate(self):
        with pytest.raises(UsageError, match=r"^--ca-file cannot be used: no certificate or crl found$"):
            tls_context(__file__)

    @pytest.mark.parametrize("variable", ["SSL_CERT_FILE", None])
    def test_is_not_blamed_for_a_log_of_keys_that_cannot_be_written(self, ca_file, monkeypatch, variable):
        if variable:
            monkeypatch.setenv(variable, ca_file)
        monkeypatch.setenv("SSLKEYLOGFILE", "/nowhere/log")
        with pytest.raises(UsageError, match=r"^SSLKEYLOGFILE cannot be used: no such file or directory$"):
            tls_context(None if variable else ca_file)


class TestOwnClient:
    def test_goes_through_the_proxy_that_it_is_given_and_no_other(self, server, monkeypatch):
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        server.responses = [ok(b"a")]
        with own_client() as client:
            assert client.get(server.url).content == b"a"
        proxy = Proxy("http://127.0.0.1:1", "--proxy")
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

    def test_sends_a_cookie_back_to_whoever_set_it(self, driver, server):
        server.responses = [head(set_cookie="to=one") + text_stream("a"), ok(*text_events("a"))]
        client = driver.client(server)
        for _ in range(2):
            with client.messages.stream(**ASK) as stream:
                stream.until_done()
        assert [request.headers.get("cookie") for request in server.requests] == [None, "to=one"]

    def test_sends_a_short_request_in_one_write_and_asks_no_pool(self, driver, server, monkeypatch):
        writes = []
        for kind in (Connection, AsyncConnection):
            write = kind.write
            monkeypatch.setattr(kind, "write", lambda self, *args, write=write: writes.append(1) or write(self, *args))
        monkeypatch.delattr(httpcore, "ConnectionPool")
        monkeypatch.delattr(httpcore, "AsyncConnectionPool")
        server.responses = [ok(*text_events("a"))]
        with driver.client(server).messages.stream(**ASK) as stream:
            stream.until_done()
        assert writes == [1]


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
