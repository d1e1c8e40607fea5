"""nginx, Squid and mitmproxy between the command and a server: what comes through is what the server sent."""

import contextlib
import gzip
import threading
from typing import NamedTuple

import pytest
import real_servers
import scripted_model
from faults_command import Running, closed_port, streamcli
from questions import QUESTIONS, ask
from server import HANG, LAST_CHUNK, RESET, Server, chunk, error_response, head, ok, opening, text_events

pytestmark = [pytest.mark.local, pytest.mark.slow, pytest.mark.timeout(real_servers.INSTALL_WITHIN)]

NGINX = """
daemon off; master_process off; pid nginx.pid; error_log stderr;
events {}
http {
  access_log off; client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e;
  limit_req_zone $binary_remote_addr zone=one:1m rate=1r/m;
  proxy_http_version 1.1; proxy_set_header Connection "";
  server {
{server}
  }
}
"""
IN_FRONT = """
    listen 127.0.0.1:{port};
    location /buffered/ { proxy_pass {upstream}/; }
    location /unbuffered/ { proxy_pass {upstream}/; proxy_buffering off; }
    location /compressing/ { proxy_pass {upstream}/; proxy_buffering off; gzip on; gzip_types text/event-stream; }
    location /impatient/ { proxy_pass {upstream}/; proxy_read_timeout 1s; }
    location /limited/ { proxy_pass {upstream}/; limit_req zone=one; limit_req_status 429; }
    location /nobody/ { proxy_pass http://127.0.0.1:{nobody}/; }
"""
WITH_TLS = """
    listen 127.0.0.1:{port} ssl; ssl_certificate {folder}/certificate; ssl_certificate_key {folder}/key;
    location / { proxy_pass {upstream}; proxy_buffering off; }
"""
SQUID = """
http_port 127.0.0.1:{port}
http_access allow all
cache deny all
cache_mem 8 MB
pid_filename none
access_log none
cache_log /dev/null
coredump_dir /
shutdown_lifetime 0 seconds
"""
MITMDUMP = (
    *("{bin}/mitmdump", "--quiet", "--listen-host", "127.0.0.1", "--listen-port", "{port}"),
    *("--set", "confdir={folder}/ca", "--set", "ssl_verify_upstream_trusted_ca={ca_file}"),
    *("--set", "stream_large_bodies={stream}"),
)
MITMPROXY = real_servers.Server(MITMDUMP, packages=("mitmproxy==11.0.2",))
TEXT = b"Hello, world."
PARTS = [text_events("Hello", ", world.")[:3], text_events("Hello", ", world.")[3:]]


class Way(NamedTuple):
    """To the server through a part: the base URL, what else the command is told, and whether pieces come through."""

    url: str
    words: tuple = ()
    at_once: bool = True


@pytest.fixture(scope="module")
def plain():
    with Server(b"") as server:
        yield server


@pytest.fixture(scope="module")
def secure(tls):
    with Server(b"", tls=tls) as server:
        yield server


@contextlib.contextmanager
def nginx_with(lines, folder, **places):
    path = real_servers.program("nginx", "nginx-light")
    server = real_servers.Server(
        (path, "-p", "{folder}", "-c", "nginx.conf"), files={"nginx.conf": NGINX.replace("{server}", lines)}
    )
    with real_servers.running("nginx", server, folder, **places) as url:
        yield url


@pytest.fixture(scope="module")
def nginx(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nginx")
    with closed_port() as nobody, nginx_with(IN_FRONT, folder, upstream=plain.url, nobody=nobody) as url:
        yield url


@pytest.fixture(scope="module")
def squid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squid")
    path = real_servers.program("squid", "squid")
    server = real_servers.Server((path, "-N", "-f", "squid.conf"), files={"squid.conf": SQUID})
    with real_servers.running("Squid", server, folder) as url:
        yield url


@pytest.fixture(scope="module")
def mitmproxy(ca_file, tmp_path_factory):
    """The URLs of mitmproxy, once as it comes and once streaming, and its authority's certificate."""
    with contextlib.ExitStack() as stack:

        def started(**places):
            folder = tmp_path_factory.mktemp("mitmproxy")
            return stack.enter_context(real_servers.running("mitmproxy", MITMPROXY, folder, **places)), folder / "ca"

        (collects, one), (streams, other) = (started(ca_file=ca_file, stream=size) for size in ("1g", "1"))
        yield {"collects": (collects, one), "streams": (streams, other)}


WAYS = {
    "nginx": lambda get: Way(f"{get('nginx')}/unbuffered"),
    "nginx, buffering": lambda get: Way(f"{get('nginx')}/buffered", at_once=False),
    "nginx, compressing": lambda get: Way(f"{get('nginx')}/compressing", ("-H", "accept-encoding: gzip")),
    "Squid": lambda get: Way(get("plain").url, ("--proxy", get("squid"))),
    "Squid, CONNECT": lambda get: Way(get("secure").url, ("--proxy", get("squid"), "--ca-file", get("ca_file"))),
    "mitmproxy": lambda get: _through_mitmproxy(get, "plain", "streams"),
    "mitmproxy, CONNECT": lambda get: _through_mitmproxy(get, "secure", "streams"),
    "mitmproxy, collecting": lambda get: _through_mitmproxy(get, "secure", "collects")._replace(at_once=False),
}


def _through_mitmproxy(get, server, kind):
    url, folder = get("mitmproxy")[kind]
    return Way(get(server).url, ("--proxy", url, "--ca-file", folder / "mitmproxy-ca-cert.pem"))


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param](request.getfixturevalue)


@pytest.fixture
def says(plain, secure):
    """A function that sets what the server behind the part says."""

    def says(*answer):
        plain.responses = secure.responses = [answer]

    return says


def words(way, *more):
    return ["--base-url", way.url, *way.words, "-I", "--retries", "0", *more, "hi"]


class TestWhatComesThrough:
    def test_is_the_answer(self, way, says):
        says(ok(*text_events("Hello", ", world.")))
        assert streamcli(*words(way)) == (0, TEXT, "")

    def test_comes_piece_by_piece_where_the_part_lets_it(self, way, says):
        gate = threading.Event()
        first, rest = (b"".join(map(chunk, part)) for part in PARTS)
        says(head(chunked=True) + first, gate, rest + LAST_CHUNK)
        with Running(*words(way)) as running:
            if way.at_once:
                running.until_out(b"Hello")
            gate.set()
            assert running.end() == (0, TEXT, "")

    @pytest.mark.parametrize(
        ("status", "kind", "end"),
        [(400, "invalid_request_error", 3), (401, "authentication_error", 4), (429, "rate_limit_error", 5)]
        + [(500, "api_error", 5), (529, "overloaded_error", 5)],
    )
    def test_is_the_status_of_an_error_response_with_its_words(self, way, says, status, kind, end):
        says(error_response(status, kind, "these words", retry_after="7"))
        ended = streamcli(*words(way))
        assert (ended.status, ended.out) == (end, b"")
        assert ended.error.startswith(f"status {status} {kind}: these words")
        assert "req_1" in ended.error

    def test_is_incomplete_where_the_server_breaks_it_off(self, way, says):
        gate = threading.Event()
        says(head(chunked=True) + chunk(opening("Hello")), gate, RESET)
        with Running(*words(way)) as running:
            if way.at_once:
                running.until_out(b"Hello")
            gate.set()
            status, out, _ = running.end()
        # A part that has sent nothing yet may say 502 instead.
        assert (status, out) == (8, b"Hello") or (not way.at_once and status == 5)

    def test_is_incomplete_where_it_ends_early(self, way, says):
        says(ok(opening("Hello")))
        assert streamcli(*words(way))[:2] == (8, b"Hello")

    @pytest.mark.parametrize("label", [{"content_encoding": "gzip"}, {}], ids=["labelled", "not labelled"])
    def test_is_read_where_it_is_compressed(self, way, says, label):
        if way.words[:1] == ("-H",) and not label:
            pytest.skip("it would be compressed twice")
        says(head(**label) + gzip.compress(b"".join(text_events("Hello", ", world."))))
        assert streamcli(*words(way)) == (0, TEXT, "")


class TestNginx:
    def test_that_waits_no_longer_leaves_an_incomplete_answer(self, nginx, says):
        says(head(chunked=True) + chunk(opening("Hello")), HANG)
        status, out, err = streamcli(*words(Way(f"{nginx}/impatient")))
        assert (status, out) == (8, b"Hello")
        assert "broke off" in err

    def test_that_waited_in_vain_answers_504(self, nginx, says):
        says(HANG)
        ended = streamcli(*words(Way(f"{nginx}/impatient")))
        assert (ended.status, ended.out) == (5, b"")
        assert ended.error.startswith("status 504")

    def test_that_finds_nobody_answers_502(self, nginx):
        ended = streamcli(*words(Way(f"{nginx}/nobody")))
        assert (ended.status, ended.out) == (5, b"")
        assert ended.error.startswith("status 502")

    def test_that_limits_requests_throttles_the_second(self, nginx, says):
        says(ok(*text_events("Hello")))
        limited = words(Way(f"{nginx}/limited"))
        assert streamcli(*limited).status == 0
        ended = streamcli(*limited)
        assert ended.status == 5
        assert ended.error.startswith("status 429")

    def test_that_takes_no_body_of_that_length_answers_413(self, nginx, tmp_path):
        (tmp_path / "long").write_bytes(b"x" * (2 << 20))
        ended = streamcli(*words(Way(f"{nginx}/unbuffered"), "-f", tmp_path / "long"))
        assert (ended.status, ended.out) == (3, b"")
        assert ended.error.startswith("status 413")

    def test_speaks_tls_for_a_server_that_does_not(self, authority, ca_file, tmp_path, monkeypatch):
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(tmp_path / "key")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / "certificate")
        model = scripted_model.write(tmp_path / "scripted.gguf")
        with (
            real_servers.llamacpp(model, tmp_path / "llama.cpp") as upstream,
            nginx_with(WITH_TLS, tmp_path, upstream=upstream) as url,
        ):
            secure = url.replace("http:", "https:")
            ended = streamcli("--base-url", secure, "--ca-file", ca_file, "-I", "ask:text")
            unknown = streamcli("--base-url", secure, "-I", "--retries", "0", "ask:text")
            monkeypatch.setenv("SSL_CERT_FILE", ca_file)
            outcomes = [ask(secure, question)[:2] for question in QUESTIONS.values()]
        assert ended == (0, TEXT, "")
        assert unknown.status == 6
        assert "certificate" in unknown.error
        assert outcomes == [question.meant[:2] for question in QUESTIONS.values()]


class TestSquid:
    def test_that_finds_nobody_is_named_with_its_reason(self, squid):
        with closed_port() as port:
            nobody = f"http://127.0.0.1:{port}"
            ended = streamcli("--base-url", nobody, "--proxy", squid, "-I", "--retries", "0", "hi")
        assert (ended.status, ended.out) == (6, b"")
        assert ended.error.startswith(f"the proxy {squid.removeprefix('http://')} rejected the request to ")
        assert "ERR_CONNECT_FAIL" in ended.error

    def test_that_can_open_no_tunnel_is_a_failed_connection(self, squid, ca_file):
        with closed_port() as port:
            nobody = f"https://127.0.0.1:{port}"
            ended = streamcli("--base-url", nobody, "--proxy", squid, "-I", "--retries", "0", "hi")
        assert (ended.status, ended.out) == (6, b"")
        assert "503" in ended.error


def test_mitmproxy_is_not_trusted_without_its_certificate(mitmproxy, secure):
    url, _ = mitmproxy["streams"]
    ended = streamcli("--base-url", secure.url, "--proxy", url, "-I", "--retries", "0", "hi")
    assert (ended.status, ended.out) == (6, b"")
    assert "certificate" in ended.error
