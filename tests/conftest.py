"""What the tests share: the loopback server, a certificate authority, and an environment that says nothing.

Two variables say how they run: HYPOTHESIS_PROFILE=thorough draws a thousand examples where there are thirty else, and
with TRUE_STARTS=1 each start of the command is that of a new Python, not a fork of one (tests/starter.py), as in
`make e2e`.
"""

import gc
import os
import signal
import ssl

import keeper
import pytest
import trustme
from driver import Asynchronous, Synchronous
from hypothesis import HealthCheck, settings
from server import Proxy, Server

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
settings.register_profile("quick", max_examples=30, **_COMMON)
settings.register_profile("thorough", max_examples=1000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# What a shell starts in the background, or nohup, ignores these, and so would whatever the tests start.
_USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGQUIT: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
for _number, _handler in _USUAL.items():
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

_AMBIENT = ("ANTHROPIC_", "STREAMCLI_", "XDG_CONFIG_HOME", "SSL_CERT_", "SSLKEYLOGFILE", "HTTP_", "HTTPS_", "NO_PROXY")
_AMBIENT += keeper.AT_START  # of Python, the locale, the time zone


# What is collected stays to the end: to look for garbage in it takes a tenth of the time.
gc.disable()


def pytest_collection_finish():
    """From now on look for garbage, but only in what the tests make, and not too often."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch, tmp_path_factory):
    for name in os.environ:
        if name.upper().startswith(_AMBIENT) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def without_sync(monkeypatch):
    """For tests that write hundreds of times and switch nothing off."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def server():
    """A server that answers as `server.answers` say."""
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def authority():
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(authority, tmp_path_factory):
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture(scope="session")
def tls(authority):
    """What a server needs to speak TLS as 127.0.0.1 and localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@pytest.fixture
def tls_server(tls):
    with Server(tls=tls) as server:
        yield server


@pytest.fixture
def proxy():
    with Proxy() as proxy:
        yield proxy


@pytest.fixture(params=[Synchronous, Asynchronous], ids=lambda kind: kind.name)
def driver(request, monkeypatch):
    """Both halves of the library, one after the other, each used as the synchronous one is."""
    driver = request.param()
    driver.patch(monkeypatch)
    yield driver
    driver.close()
