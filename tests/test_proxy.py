"""streamcli.network.proxy: which proxy a request goes through. Nothing is sent, and no name is looked up."""

import pytest

from streamcli.errors import UsageError
from streamcli.network.proxy import Proxy, environment_proxy, is_exempt, proxy_for
from streamcli.protocol.request import Credential, Endpoint

# What is asked, NO_PROXY, and whether curl 7.88.1 then goes straight.
AS_CURL = [
    ("https://10.1.2.3:8443", "10.0.0.0/8", True),
    ("https://10.1.2.3:8443", "10.0.0.0/16", False),
    ("https://10.1.2.3:8443", "10.1.2.3", True),
    ("https://10.1.2.3:8443", "10.1.2.3:443", False),
    ("https://10.1.2.3:8443", "10.1.2.3/32", True),
    ("https://10.1.2.3:8443", "10.1.2.3/33", False),
    ("https://10.1.2.3:8443", ".2.3", False),
    ("https://10.1.2.3:8443", "2.3", False),
    ("https://10.1.2.3:8443", "other 10.0.0.0/8", True),
    ("https://10.1.2.3:8443", "2001:db8::/32", False),
    ("https://10.1.2.3:8443", "*", True),
    ("https://10.1.2.3.example:8443", "10.1.2.3", False),
    ("https://[2001:db8::1]:8443", "2001:db8::1", True),
    ("https://[2001:db8::1]:8443", "2001:DB8::1", True),
    ("https://[2001:db8::1]:8443", "2001:db9::/32", False),
    ("https://[2001:db8::1]:8443", "[2001:db8::1]:443", False),
    ("https://a.example.com:8443", "example.com", True),
    ("https://a.example.com:8443", ".example.com", True),
    ("https://example.com:8443", ".example.com", True),
    ("https://example.com:8443", "..example.com", False),
    ("https://badexample.com:8443", "example.com", False),
    ("https://example.com:8443", "a.example.com", False),
    ("https://example.com:8443", "example.com.", True),
    ("https://example.com.:8443", "example.com", True),
    ("https://example.com:8443", "EXAMPLE.com", True),
    ("https://EXAMPLE.com:8443", "example.com", True),
    ("https://example.com:8443", "example.com:443", False),
    ("https://example.com:8443", "other example.com", True),
    ("https://example.com:8443", "other,example.com", True),
    ("https://example.com:8443", "other\texample.com", True),
    ("https://example.com:8443", "other;example.com", False),
    ("https://example.com:8443", " , example.com ,", True),
    ("https://example.com:8443", "10.0.0.0/8", False),
    ("https://example.com:8443", "*", True),
    ("https://example.com:8443", " * ", False),
    ("https://example.com:8443", "other,*", False),
    ("https://example.com:8443", "*.com", False),
    ("https://example.com:8443", ".", False),
    ("https://example.com:8443", ",", False),
    ("https://example.com:8443", "", False),
]
# The same, where we go straight and curl does not, because whoever wrote it meant that.
BEYOND_CURL = [
    ("https://10.1.2.3:8443", "10.1.2.3:8443"),
    ("https://10.1.2.3:8443", "0.0.0.0/0"),
    ("https://example.com:8443", "example.com:8443"),
    ("https://example.com", "example.com:443"),
    ("http://example.com", "example.com:80"),
    ("https://a.example.com:8443", ".example.com:8443"),
    ("https://[2001:db8::1]:8443", "2001:db8::/32"),
    ("https://[2001:db8::1]:8443", "2001:db8:0::1"),
    ("https://[2001:db8::1]:8443", "[2001:db8::1]"),
    ("https://[2001:db8::1]:8443", "[2001:db8::1]:8443"),
    ("https://[2001:db8::1]:8443", "[2001:db8::/32]"),
]
ODD = [
    "[",
    "]",
    "[]",
    ":",
    "::",
    "/",
    "a/b",
    "1.2.3.4/x",
    "[::1",
    "::1]",
    "é",
    "\0",
    "a:b:c",
    "[::1]:x",
    "%",
    "1.2.3.4:",
]
ENV = {"http_proxy": "http://proxy.invalid:3128", "ALL_PROXY": "http://proxy.invalid:3128"}


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
            with pytest.raises(UsageError, match=r"ALL_PROXY names a SOCKS proxy, which needs socksio: .* socksio$"):
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
            ({"https_proxy": " ", "ALL_PROXY": " http://c\n"}, ("http://c", "ALL_PROXY")),
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


class TestNoProxy:
    @pytest.mark.parametrize(("url", "no_proxy", "straight"), AS_CURL)
    def test_is_read_as_curl_reads_it(self, url, no_proxy, straight):
        assert is_exempt(url, no_proxy) == straight

    @pytest.mark.parametrize(("url", "no_proxy"), BEYOND_CURL)
    def test_is_read_where_curl_reads_nothing(self, url, no_proxy):
        assert is_exempt(url, no_proxy)

    @pytest.mark.parametrize("no_proxy", ODD)
    @pytest.mark.parametrize("url", ["https://example.com", "https://10.1.2.3", "https://[2001:db8::1]:1"])
    def test_that_means_nothing_exempts_nothing(self, url, no_proxy):
        assert not is_exempt(url, no_proxy)


class TestTheEnvironment:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "a.localhost", "[::1]"])
    @pytest.mark.parametrize("proxy", ["http://proxy.invalid:3128", "gopher://nonsense"])
    def test_names_no_proxy_for_loopback(self, host, proxy):
        assert environment_proxy(f"http://{host}:11434", {"http_proxy": proxy, "ALL_PROXY": proxy}) is None

    def test_names_one_for_everything_else_but_what_is_exempt(self):
        assert environment_proxy("http://example.com", ENV) == Proxy("http://proxy.invalid:3128", "http_proxy")
        assert environment_proxy("https://example.com", ENV) == Proxy("http://proxy.invalid:3128", "ALL_PROXY")
        assert environment_proxy("https://example.com", ENV | {"NO_PROXY": "example.com"}) is None

    def test_that_names_one_out_of_use_is_named(self):
        with pytest.raises(UsageError, match="http_proxy is not the URL of"):
            environment_proxy("http://example.com", {"http_proxy": "gopher://nonsense"})


class TestProxyFor:
    CLEAR = Endpoint("http://host", Credential("bearer", "secret-key"))

    def test_a_key_is_not_handed_in_clear_to_another_machine(self, monkeypatch):
        monkeypatch.setenv("http_proxy", "http://proxy.example:8080")
        with pytest.raises(UsageError, match=r"^http_proxy uses plain http to proxy\.example, where the key"):
            proxy_for(self.CLEAR)
        assert proxy_for(self.CLEAR, allow_http=True)
        assert proxy_for(Endpoint("http://host", None))
        assert proxy_for(self.CLEAR, named="localhost:1") == Proxy("http://localhost:1", "--proxy")

    def test_one_that_is_named_is_asked_for_loopback_too(self):
        endpoint = Endpoint("http://127.0.0.1:1", Credential("x-api-key", "sk-1"))
        assert proxy_for(endpoint, named="127.0.0.1:3128") == Proxy("http://127.0.0.1:3128", "--proxy")
