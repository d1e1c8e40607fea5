"""streamcli.network's connections on both kinds of wire: their timeouts, TLS and proxies.

Slow is what waits for real time to pass: silences, and a server that takes little at a time.
"""

import asyncio
import contextlib
import datetime
import gc
import socket
import ssl
import threading
import time
import weakref
from types import SimpleNamespace

import httpx
import pytest
import trustme
from driver import ASK
from server import (
    HANG,
    LAST_CHUNK,
    PATIENCE,
    RESET,
    UNREAD,
    Proxy,
    Server,
    bytewise,
    chunk,
    error_response,
    event,
    head,
    ok,
    opening,
    text_events,
    text_stream,
)

from streamcli import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AsyncClient,
    ContentTooLargeError,
    IncompleteStreamError,
    PermissionDeniedError,
    UsageError,
)
from streamcli.network.async_connection import AsyncBackend
from streamcli.network.async_wire import READ_BYTES, AsyncWire
from streamcli.network.connection import Backend
from streamcli.network.peer import Peer
from streamcli.network.proxy import Proxy as NamedProxy
from streamcli.network.timeouts import Deadline


def failure(client, cls=APIConnectionError, **fields):
    with pytest.raises(cls) as caught:
        client.messages.stream(**ASK, **fields).__enter__()
    return caught.value


def text(client):
    with client.messages.stream(**ASK) as stream:
        return stream.get_final_text()


@pytest.fixture
def names(monkeypatch):
    """What names resolve to: a function that sets the addresses, or the fault, of every name."""

    def resolve_to(*addresses):
        def getaddrinfo(host, port, *args, **kwargs):
            if isinstance(addresses[0], Exception):
                raise addresses[0]
            families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
            return [(f, socket.SOCK_STREAM, 6, "", (a, port)) for f, a in zip(families, addresses, strict=True)]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return resolve_to


class TestConnecting:
    def test_to_a_name_that_does_not_resolve(self, driver, names):
        names(socket.gaierror(-2, "Name or service not known"))
        error = failure(driver.client(base_url="https://nowhere.invalid"))
        assert str(error) == "cannot connect to nowhere.invalid:443: name or service not known"
        assert len(driver.waits) == 2

    def test_to_a_name_that_nobody_answers_for_ends_with_the_connect_timeout(self, driver, monkeypatch):
        asked, answered = threading.Event(), threading.Event()

        def getaddrinfo(host, port, *args, flags=0, **options):
            if flags & socket.AI_NUMERICHOST:
                raise socket.gaierror(-2, "Name or service not known")
            asked.set()
            answered.wait(PATIENCE)
            raise socket.gaierror(-3, "Temporary failure in name resolution")

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        client = driver.client(base_url="http://localhost:1", timeout=0.05, max_retries=0)
        before = set(threading.enumerate())
        try:
            assert "cannot connect to localhost:1 within the connect timeout" in str(failure(client, APITimeoutError))
            assert asked.is_set()
            [looking_up] = set(threading.enumerate()) - before
            driver.close()  # an answer that comes after the end of the loop harms nobody
        finally:
            answered.set()
        looking_up.join()

    def test_goes_on_to_the_next_address(self, driver, server, names):
        server.responses = [ok(*text_events("a"))]
        names("127.0.0.2", "127.0.0.1")  # nobody listens on the first
        assert text(driver.client(base_url=f"http://localhost:{server.port}")) == "a"

    def test_to_nobody_at_any_address(self, driver, names):
        with Server() as gone:
            pass
        names("127.0.0.2", "127.0.0.1")
        error = failure(driver.client(base_url=f"http://localhost:{gone.port}"))
        assert str(error) == f"cannot connect to localhost:{gone.port}: connection refused"

    def test_over_ipv6(self, driver):
        if not socket.has_ipv6:
            pytest.skip("no IPv6 here")
        try:
            server = Server(ok(*text_events("a")), (RESET,), host="::1")
        except OSError:
            pytest.skip("no IPv6 here")
        with server:
            client = driver.client(server, max_retries=0)
            assert text(client) == "a"
            assert f"[::1]:{server.port} broke off before responding" in str(failure(client))

    def test_to_one_who_does_not_answer_the_call(self, driver):
        with contextlib.ExitStack() as stack:
            deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            for _ in range(4):  # fill its queue, so that the next call is not taken
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(deaf.getsockname())
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
            error = failure(driver.client(base_url=url, timeout=httpx.Timeout(9, connect=0.05)), APITimeoutError)
        assert str(error) == f"cannot connect to {url[7:]} within the connect timeout of 0.05 s"
        assert len(driver.waits) == 2
        assert error.exit_code == 7

    def test_within_the_total_limit_if_that_is_shorter(self, driver, tls):
        with Server((HANG,)) as silent:
            client = driver.client(base_url=f"https://127.0.0.1:{silent.port}", timeout=9, total_timeout=0.1)
            assert str(failure(client, APITimeoutError)) == "the total timeout of 0.1 s passed"
        assert driver.waits == []


class TestManyAtOnce:
    """Hundreds of prompts ask for the same name."""

    @pytest.fixture
    def asked(self, monkeypatch):
        """How often a name server was asked, and its answers: an exception, or addresses of 127.0.0.1."""
        asked, found = [], []

        def getaddrinfo(host, port, *args, flags=0, **options):
            if flags & socket.AI_NUMERICHOST:
                raise socket.gaierror(-2, "Name or service not known")
            asked.append(host)
            if found:
                raise found.pop()
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return SimpleNamespace(hosts=asked, faults=found)

    async def ask(self, client):
        async with client.messages.stream(**ASK) as stream:
            return await stream.get_final_text()

    def test_a_name_is_looked_up_once_for_all(self, server, asked):
        async def ask_all():
            async with AsyncClient(base_url=f"http://localhost:{server.port}") as client:
                return await asyncio.gather(*[self.ask(client) for _ in range(20)]) + [await self.ask(client)]

        server.responses = [ok(*text_events("a"))]
        assert asyncio.run(ask_all()) == ["a"] * 21
        assert asked.hosts == ["localhost"]

    def test_an_event_loop_that_has_ended_is_not_kept(self, server, asked):
        loops = []

        async def ask():
            loops.append(weakref.ref(asyncio.get_running_loop()))
            async with AsyncClient(base_url=f"http://localhost:{server.port}") as client:
                return await self.ask(client)

        server.responses = [ok(*text_events("a"))]
        assert [asyncio.run(ask()), asyncio.run(ask())] == ["a", "a"]
        gc.collect()
        assert loops[0]() is None

    def test_one_that_cannot_be_found_is_looked_up_again_by_whoever_asks_later(self, server, asked):
        async def ask_all():
            async with AsyncClient(base_url=f"http://localhost:{server.port}", max_retries=0) as client:
                failed = await asyncio.gather(*[self.ask(client) for _ in range(20)], return_exceptions=True)
                return failed, await self.ask(client)

        server.responses = [ok(*text_events("a"))]
        asked.faults.append(socket.gaierror(-3, "Temporary failure in name resolution"))
        failed, text = asyncio.run(ask_all())
        assert len({id(error) for error in failed}) == 20
        assert {str(error) for error in failed} == {
            f"cannot connect to localhost:{server.port}: temporary failure in name resolution"
        }
        assert (text, asked.hosts) == ("a", ["localhost"] * 2)


class TestSilence:
    def test_before_the_head_names_the_idle_limit_and_is_final(self, driver, server):
        server.responses = [(HANG,)]
        error = failure(driver.client(server, timeout=httpx.Timeout(9, read=0.05)), APITimeoutError)
        assert str(error) == f"nothing came from 127.0.0.1:{server.port} within the idle timeout of 0.05 s"
        assert len(server.requests) == 1

    def test_of_a_server_that_takes_no_more_names_it_too(self, driver):
        with Server((UNREAD, threading.Event())) as server:
            body = {"system": "x" * 30_000_000}
            error = failure(driver.client(server, timeout=httpx.Timeout(9, write=0.1)), APITimeoutError, **body)
        assert str(error) == f"127.0.0.1:{server.port} accepted no data within the idle timeout of 0.1 s"

    def test_in_a_refusal_s_body_does_not_hide_the_refusal(self, driver, server, monkeypatch):
        monkeypatch.setattr("streamcli.network.response.ERROR_BODY_TIMEOUT", 0.3)
        server.responses = [(head(413, length=99), b"too much", HANG)]
        assert str(failure(driver.client(server), ContentTooLargeError)).startswith("status 413: too much")

    def test_of_a_page_that_does_not_end_is_not_waited_out(self, driver, server, monkeypatch):
        monkeypatch.setattr("streamcli.network.response.ERROR_BODY_TIMEOUT", 0.3)
        drip = [step for _ in range(500) for step in (b"x", 0.01)]
        server.responses = [(head(type="text/html"), *drip)]
        with pytest.raises(Exception, match="the response is not an event stream but text/html: xx"):
            driver.client(server).messages.stream(**ASK).__enter__()
        assert server.hung_up()


class TestALongRequest:
    LONG = ASK | {"messages": [{"role": "user", "content": "é" * 10_000_000}]}

    @pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
    def test_arrives_whole(self, driver, tls, ca_file, secure):
        with Server(ok(*text_events("a")), tls=tls if secure else None) as server:
            client = driver.routed(server, ca_file=ca_file if secure else None)
            with client.messages.stream(**self.LONG) as stream:
                stream.until_done()
            assert server.requests[0].json["messages"] == self.LONG["messages"]

    def test_that_is_refused_before_it_was_read_is_a_refusal(self, driver, server):
        server.responses = [(UNREAD, error_response(413, "request_too_large", "too large"), 0.1)]
        with pytest.raises(ContentTooLargeError, match="too large"):
            driver.client(server).messages.stream(**self.LONG).__enter__()

    @pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 102 Processing\r\n\r\n"])
    @pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
    def test_that_is_rejected_on_a_connection_that_stays_open_is_rejected_at_once(
        self, driver, tls, ca_file, interim, secure
    ):
        stays_open = threading.Event()
        body = b'{"type":"error","error":{"type":"request_too_large","message":"too large"}}'
        response = (UNREAD, interim + head(413, type="application/json", length=len(body)) + body, stays_open)
        with Server(response, tls=tls if secure else None) as server:
            client = driver.routed(server, ca_file=ca_file if secure else None)
            start = time.monotonic()
            with pytest.raises(ContentTooLargeError, match="too large"):
                client.messages.stream(**self.LONG, timeout=60).__enter__()
            assert time.monotonic() - start < PATIENCE / 2  # for then the server hangs up

    def test_of_which_the_server_takes_little_at_a_time_is_not_cut_off(self, driver, server):
        server.pause = 0.05  # all of it takes longer than the idle timeout, no part of it does
        server.responses = [ok(*text_events("a"))]
        with driver.client(server, timeout=0.8).messages.stream(**self.LONG) as stream:
            assert stream.get_final_text() == "a"


class TestTLS:
    def test_carries_a_stream(self, driver, tls_server, ca_file):
        stream = text_stream("a", "é" * 100_000, "c")
        tls_server.responses = [ok(stream), tuple(bytewise(ok(text_stream("a", "b"))))]
        client = driver.routed(tls_server, ca_file=ca_file)
        assert text(client) == "a" + "é" * 100_000 + "c"
        assert text(client) == "ab"

    def test_takes_its_trust_from_the_environment(self, driver, tls_server, ca_file, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", ca_file)
        tls_server.responses = [ok(*text_events("a"))]
        assert text(driver.client(tls_server)) == "a"

    def test_with_somebody_unknown_is_refused_and_not_tried_again(self, driver, tls_server):
        tls_server.responses = [(HANG,)]
        error = failure(driver.client(tls_server))
        words = (
            "certificate verify failed: unable to get local issuer certificate; "
            "to trust another one, use --ca-file or SSL_CERT_FILE"
        )
        assert str(error) == f"the TLS handshake with 127.0.0.1:{tls_server.port} failed: {words}"
        assert tls_server.connections == 1
        assert tls_server.requests == []

    def test_trusts_the_system_s_own_authorities_too(self, driver, tls_server, ca_file, monkeypatch):
        monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda self: self.load_verify_locations(ca_file))
        tls_server.responses = [ok(*text_events("a"))]
        assert text(driver.client(tls_server)) == "a"

    @pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
    def test_trusts_what_a_variable_names_alone(self, driver, tls_server, ca_file, monkeypatch, tmp_path, variable):
        other = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(other)
        monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda self: self.load_verify_locations(ca_file))
        monkeypatch.setenv(variable, str(other if variable == "SSL_CERT_FILE" else tmp_path))
        assert "certificate verify failed" in str(failure(driver.client(tls_server)))

    def test_with_somebody_else_is_refused(self, driver, authority, ca_file):
        with Server((HANG,), tls=certified(authority, "other.example")) as other:
            error = failure(driver.routed(other, ca_file=ca_file))
        assert "certificate verify failed: IP address mismatch" in str(error)

    def test_with_a_certificate_that_is_over_is_refused(self, driver, authority, ca_file):
        over = {"not_after": datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)}
        with Server((HANG,), tls=certified(authority, "127.0.0.1", **over)) as server:
            error = failure(driver.routed(server, ca_file=ca_file))
        assert "certificate verify failed: certificate has expired" in str(error)

    def test_with_a_server_that_speaks_none_is_refused(self, driver, server):
        server.responses = [(UNREAD, b"HTTP/1.1 400 Bad Request\r\n\r\n")]
        error = failure(driver.client(base_url=server.url.replace("http", "https")))
        assert str(error) == f"the TLS handshake with 127.0.0.1:{server.port} failed: wrong version number"
        assert server.connections == 1

    def test_that_does_not_begin_ends_with_the_connect_timeout(self, driver, server):
        silence = threading.Event()
        server.responses = [(UNREAD, silence)]
        client = driver.client(base_url=server.url.replace("http", "https"), timeout=0.3, max_retries=0)
        late = f"the TLS handshake with 127.0.0.1:{server.port} did not end within the connect timeout of 0.3 s"
        assert str(failure(client, APITimeoutError)) == late

    def test_that_is_hung_up_on_is_refused(self, driver, server):
        server.responses = [(UNREAD,)]
        error = failure(driver.client(base_url=server.url.replace("http", "https")))
        assert str(error).startswith(f"the TLS handshake with 127.0.0.1:{server.port} failed: ")

    @pytest.mark.parametrize("end", [(), (RESET,)], ids=["closed", "reset"])
    def test_that_ends_in_mid_stream_is_incomplete(self, driver, tls_server, ca_file, end):
        tls_server.responses = [(head(chunked=True) + chunk(opening("a")), *end)]
        manager = driver.routed(tls_server, ca_file=ca_file).messages.stream(**ASK)
        with manager as stream, pytest.raises(IncompleteStreamError) as caught:
            stream.until_done()
        assert caught.value.partial.content[0].text == "a"

    def test_is_closed_with_the_stream(self, driver, tls_server, ca_file):
        tls_server.responses = [(head(), opening("a"), HANG)]
        with driver.routed(tls_server, ca_file=ca_file).messages.stream(**ASK) as stream:
            next(stream)
        assert tls_server.hung_up()

    @pytest.mark.parametrize(
        ("variable", "value"),
        [("SSL_CERT_FILE", "/nowhere"), ("SSL_CERT_FILE", __file__), ("SSL_CERT_DIR", "/nowhere")]
        + [("SSLKEYLOGFILE", "/nowhere/log")],
    )
    def test_cannot_begin_with_a_useless_variable(self, driver, tls_server, monkeypatch, variable, value):
        monkeypatch.setenv(variable, value)
        error = failure(driver.client(tls_server), UsageError)
        assert variable in str(error)
        assert tls_server.connections == 0

    def test_cannot_begin_with_a_useless_ca_file(self, driver, tls_server):
        with pytest.raises(UsageError, match="--ca-file cannot be used"):
            driver.routed(tls_server, ca_file="/nowhere")


def certified(authority: trustme.CA, name, **options):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name, **options).configure_cert(context)
    return context


def by(proxy):
    """The proxy as --proxy names it."""
    return NamedProxy(proxy.url, "--proxy").checked()


def rejecting(status, *fields):
    """A proxy that responds with an error of its own."""
    lines = [f"HTTP/1.1 {status}", "content-length: 0", *fields, "", ""]
    return Proxy("\r\n".join(lines).encode())


@contextlib.contextmanager
def speaking(*replies):
    """A server that says one after the other, each when it has heard something; with b"" it hangs up."""

    def speak():
        connection, _ = listener.accept()
        with connection:
            for reply in replies:
                connection.recv(READ_BYTES)
                if not reply:  # what is still on its way is read, else it would be a reset
                    connection.shutdown(socket.SHUT_WR)
                    break
                connection.sendall(reply)
            while connection.recv(READ_BYTES):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=speak)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


class TestProxies:
    def test_pass_on_plain_http(self, driver, server, proxy):
        server.responses = [ok(*text_events("a"))]
        assert text(driver.routed(server, proxy=by(proxy))) == "a"
        assert [(request.method, request.path) for request in proxy.requests] == [("POST", f"{server.url}/v1/messages")]

    def test_tunnel_https_and_see_nothing_of_it(self, driver, tls_server, proxy, ca_file):
        tls_server.responses = [ok(*text_events("a")), (head(), opening("b"), HANG)]
        client = driver.routed(tls_server, ca_file=ca_file, proxy=by(proxy))
        assert text(client) == "a"
        [request] = proxy.requests
        assert (request.method, request.path) == ("CONNECT", f"127.0.0.1:{tls_server.port}")
        assert "x-api-key" not in request.headers
        with client.messages.stream(**ASK) as stream:
            next(stream)
        assert tls_server.hung_up(1)

    def test_are_told_their_password(self, driver, server, proxy):
        named = NamedProxy(proxy.url.replace("//", "//us%20er:p%C3%A4ss@"), "--proxy").checked()
        server.responses = [ok(*text_events("a"))]
        assert text(driver.routed(server, proxy=named)) == "a"
        assert proxy.requests[0].headers["proxy-authorization"] == "Basic dXMgZXI6cMOkc3M="

    def test_spoken_to_by_https_are_trusted_as_servers_are(self, driver, server, tls, ca_file):
        server.responses = [ok(*text_events("a"))]
        with Proxy(tls=tls) as proxy:
            assert text(driver.routed(server, proxy=by(proxy), ca_file=ca_file)) == "a"

    def test_spoken_to_by_https_tunnel_https_inside_it(self, driver, tls_server, tls, ca_file):
        tls_server.responses = [ok(text_stream("a", "é" * 100_000)), (head(), opening("b"), HANG)]
        with Proxy(tls=tls) as proxy:
            client = driver.routed(tls_server, proxy=by(proxy), ca_file=ca_file)
            assert text(client) == "a" + "é" * 100_000
            with client.messages.stream(**ASK) as stream:
                next(stream)
            assert tls_server.hung_up(1)

    @pytest.mark.parametrize(
        ("url", "line"),
        [
            ("https://[2001:db8::1]:8443", "CONNECT [2001:db8::1]:8443"),
            ("https://[2001:db8::1]", "CONNECT [2001:db8::1]:443"),
            ("http://[2001:db8::1]:8080", "POST http://[2001:db8::1]:8080/v1/messages"),
            ("https://example.com:8443", "CONNECT example.com:8443"),
        ],
    )
    def test_are_told_an_address_as_a_url_has_it(self, driver, url, line):
        with rejecting("407 Who are you") as proxy:
            failure(driver.routed(None, url=url, proxy=by(proxy), settings={"allow_http": True}))
        [request] = proxy.requests
        assert f"{request.method} {request.path}" == line
        assert request.headers["host"] == url.partition("//")[2] + (":443" if url.endswith("]") else "")

    @pytest.mark.parametrize(
        ("status", "fields", "said", "attempts"),
        [
            ("407 Who are you", (), "407 Who are you", 1),
            ("403 Forbidden", ("X-Squid-Error: ERR_ACCESS_DENIED 0",), "403 Forbidden", 1),
            ("503 Busy", ("X-Squid-Error: ERR_CONNECT_FAIL 111",), "503 Busy", 3),
        ],
    )
    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_that_reject_are_named_and_asked_again_as_servers_are(
        self, driver, server, scheme, status, fields, said, attempts
    ):
        url = f"{scheme}://127.0.0.1:{server.port}"
        with rejecting(status, *fields) as proxy:
            error = failure(driver.routed(server, url=url, proxy=by(proxy), settings={"max_retries": 2}))
        what = "the request" if scheme == "http" else "the connection"
        start = f"the proxy 127.0.0.1:{proxy.port} rejected {what} to 127.0.0.1:{server.port}: {said}"
        assert str(error).startswith(start)
        assert (error.exit_code, len(proxy.requests)) == (6, attempts)

    @pytest.mark.parametrize(("status", "attempts"), [("403 Forbidden", 1), ("502 Bad Gateway", 3), ("429 Slow", 3)])
    def test_that_open_no_tunnel_are_asked_again_where_that_may_help(self, driver, status, attempts):
        with rejecting(status) as proxy:
            client = driver.routed(None, url="https://127.0.0.1:1", proxy=by(proxy), settings={"max_retries": 2})
            error = failure(client)
        assert str(error) == f"the proxy 127.0.0.1:{proxy.port} rejected the connection to 127.0.0.1:1: {status}"
        assert len(proxy.requests) == attempts

    def test_that_pass_on_a_403_of_the_server_take_no_blame_for_it(self, driver, server, proxy):
        server.responses = [error_response(403, "permission_error", "no")]
        assert failure(driver.routed(server, proxy=by(proxy)), PermissionDeniedError).exit_code == 4

    def test_that_are_dead_are_called_so(self, driver, server):
        with Proxy() as proxy:
            pass
        error = failure(driver.routed(server, proxy=by(proxy)))
        assert str(error) == f"cannot connect to the proxy 127.0.0.1:{proxy.port}: connection refused"

    def test_are_not_quoted_with_their_own_password(self, driver, monkeypatch):
        with Proxy(head(502, type="text/plain") + b"Basic dXM6c2VzYW0tNzc4OA==, sesam-7788") as proxy:
            monkeypatch.setenv("http_proxy", proxy.url.replace("//", "//us:sesam-7788@"))
            error = failure(driver.client(base_url="http://api.test", allow_http=True, max_retries=0), APIError)
        assert (error.message, error.body) == ("Basic ***, ***", "Basic ***, ***")

    def test_that_say_nothing_have_the_time_that_connecting_has(self, driver, server):
        server.responses = [(HANG,)]
        patience = {"timeout": httpx.Timeout(9, connect=0.3), "max_retries": 1}
        client = driver.routed(None, url="https://127.0.0.1:1", proxy=by(server), settings=patience)
        error = failure(client, APITimeoutError)
        place = f"the proxy 127.0.0.1:{server.port}"
        assert str(error) == f"{place} opened no connection to the server within the connect timeout of 0.3 s"
        assert len(server.requests) == 2

    @pytest.mark.parametrize(
        ("replies", "said"),
        [
            ([], " opened no connection to the server within the connect timeout of 0.3 s"),
            ([b"\5\0"], " opened no connection to the server within the connect timeout of 0.3 s"),
            ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], " does not speak SOCKS 5: Malformed reply"),
            ([b"\5\0", b"\5\5\0\1" + bytes(6)], " rejected the connection to localhost:1: Proxy Server could not"),
            ([b"\5\0", b"\5\0\0\1" + bytes(6), b""], " broke off before responding: "),
        ],
    )
    def test_of_socks_have_their_faults_named(self, driver, replies, said):
        pytest.importorskip("socksio")
        with speaking(*replies) as port:
            named = NamedProxy(f"socks5://127.0.0.1:{port}", "--proxy").checked()
            connect = 0.3 if "timeout" in said else 9
            settings = {"timeout": httpx.Timeout(9, connect=connect), "max_retries": 0}
            client = driver.routed(None, url="http://localhost:1", proxy=named, settings=settings)
            error = failure(client, APIError)
        assert str(error).startswith(f"the proxy 127.0.0.1:{port}{said}")

    def test_do_not_take_the_blame_for_the_server_s_certificate(self, driver, tls_server, proxy):
        tls_server.responses = [(HANG,)]
        url = tls_server.url.replace("127.0.0.1", "localhost")
        error = failure(driver.routed(tls_server, url=url, proxy=by(proxy)))
        whom = f"localhost through the proxy 127.0.0.1:{proxy.port}"
        assert str(error).startswith(f"the TLS handshake with {whom} failed: certificate verify failed")

    def test_do_not_take_the_blame_for_a_server_that_breaks_off(self, driver, tls_server, proxy, ca_file):
        tls_server.responses = [b""]
        url = tls_server.url.replace("127.0.0.1", "localhost")
        error = failure(driver.routed(tls_server, url=url, proxy=by(proxy), ca_file=ca_file))
        assert str(error).startswith(f"localhost through the proxy 127.0.0.1:{proxy.port} broke off before responding")

    def test_of_the_environment_are_not_asked_for_loopback(self, driver, server, monkeypatch):
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        server.responses = [ok(*text_events("a"))]
        assert text(driver.client(server)) == "a"

    def test_that_cannot_be_used_are_a_usage_error(self, driver, monkeypatch):
        monkeypatch.setenv("HTTPS_PROXY", "ftp://proxy")
        with pytest.raises(UsageError, match="HTTPS_PROXY"):
            driver.client(base_url="https://api.invalid")


class TestDeadline:
    def test_a_timeout_is_shortened_to_what_is_left_of_the_total(self):
        assert Deadline().within(None) is None
        assert Deadline().within(3) == 3
        assert Deadline(100, time.monotonic() + 100).within(3) == 3
        assert 0.5 < Deadline(1, time.monotonic() + 1).within(None) <= 1

    def test_one_can_be_brought_forward_and_not_put_off(self):
        soon = Deadline(1, time.monotonic() + 1)
        assert soon.at_most(5) == soon
        assert Deadline(100, time.monotonic() + 100).at_most(5).within(None) <= 5
        assert Deadline().at_most(5).within(None) <= 5

    def test_one_that_has_passed_is_an_error(self):
        with pytest.raises(APITimeoutError, match="total timeout of 5 s"):
            Deadline(5, 0.0).within(3)

    def test_the_system_s_own_patience_is_named_where_no_timeout_was_set(self):
        error = Peer("", "host", 80, Deadline()).late("connect", None)
        assert str(error) == "cannot connect to host:80 within the system's own timeout"


class TestAHandshakeThatFails:
    """httpcore forgets the connection, so whoever fails closes it."""

    LATE = Deadline(1, 0.0)

    def test_closes_the_connection(self, server, tls):
        server.responses = [(HANG,)]
        connection = Backend(Deadline()).connect_tcp(server.host, server.port)
        connection.peer.deadline = self.LATE
        with pytest.raises(APITimeoutError):
            connection.start_tls(tls)
        assert connection.get_extra_info("socket").fileno() == -1

    def test_closes_the_asynchronous_connection(self, server, tls):
        server.responses = [(HANG,)]

        async def main():
            connection = await AsyncBackend(Deadline()).connect_tcp(server.host, server.port)
            connection.peer.deadline = self.LATE
            with pytest.raises(APITimeoutError):
                await connection.start_tls(tls)
            await asyncio.sleep(0)
            assert connection.get_extra_info("socket").fileno() == -1

        asyncio.run(main())


class TestAsyncio:
    def test_one_timer_watches_a_connection_however_many_reads_there_are(self, server):
        reads = threading.Semaphore(0)

        def answer(request):
            yield head(chunked=True) + chunk(opening())
            for _ in range(100):
                reads.acquire()
                yield chunk(event("ping"))
            yield chunk(b"".join(text_events()[2:])) + LAST_CHUNK

        async def main():
            loop = asyncio.get_running_loop()
            call_at = loop.call_at

            def counted(when, callback, *args, **options):
                timers.append(callback.__name__)
                return call_at(when, callback, *args, **options)

            loop.call_at = counted
            async with AsyncClient(api_key="k", base_url=server.url).messages.stream(**ASK) as stream:
                async for received in stream:
                    if received.type in {"message_start", "ping"}:
                        reads.release()  # the server says more only once this was read

        server.responses, timers = [answer], []
        asyncio.run(main())
        assert timers.count("_look") == 1

    class Transport:
        paused = False

        def pause_reading(self):
            self.paused = True

        def resume_reading(self):
            self.paused = False

    def test_a_reader_who_is_slow_stops_the_sender(self):
        async def main():
            wire, transport = AsyncWire(), self.Transport()
            wire.connection_made(transport)
            sent = 0
            while not transport.paused:
                room = wire.get_buffer(-1)
                assert 0 < len(room) <= READ_BYTES
                room[:1000] = b"x" * len(room[:1000])
                sent += len(room[:1000])
                wire.buffer_updated(len(room[:1000]))
            assert sent == READ_BYTES
            assert await wire.read(None) == b"x" * sent
            assert not transport.paused

        asyncio.run(main())

    def test_a_read_is_given_as_much_room_as_it_asks_for(self):
        """TLS asks for room for all that it holds when the connection ends; asyncio drops what finds none."""

        async def main():
            wire, came = AsyncWire(), b""
            wire.connection_made(self.Transport())
            for size in (1, 20_000, 300_000):
                room = wire.get_buffer(size)
                assert len(room) >= size
                room[:size] = b"%d" % (size % 7) * size
                wire.buffer_updated(size)
                came += b"%d" % (size % 7) * size
            assert await wire.read(None) == came

        asyncio.run(main())

    def test_a_timeout_counts_only_where_there_is_nothing_to_read(self):
        """As after a stop: only the time went by, and the wait for the socket was broken off."""

        async def main(*came):
            loop = asyncio.get_running_loop()
            ours, theirs = socket.socketpair()
            with theirs:
                _, wire = await loop.create_connection(AsyncWire, sock=ours)
                select = loop._selector.select

                def stopped(timeout=None):
                    loop._selector.select = select
                    time.sleep(0.05)
                    theirs.sendall(b"".join(came))
                    return []

                loop._selector.select = stopped
                try:
                    return await wire.read(0.01)
                finally:
                    await wire.aclose()

        assert asyncio.run(main(b"late")) == b"late"
        with pytest.raises(TimeoutError):
            asyncio.run(main())
