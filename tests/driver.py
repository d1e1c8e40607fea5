"""One way to use both halves of the library, so that every scenario is written once and run through each."""

import asyncio
import contextlib
import gc
import inspect

import httpx

import streamcli.client.async_client
import streamcli.client.client
from streamcli import AsyncClient, Client
from streamcli.network import async_transport, transport

ASK = {"model": "m", "max_tokens": 1024, "messages": [{"role": "user", "content": "hi"}]}


class Driver:
    """Makes clients and hands out what they do as the synchronous half does it."""

    def __init__(self):
        gc.collect()
        gc.freeze()  # what there is by now is not looked through in `close`
        self._open = contextlib.ExitStack()
        # The seconds slept between attempts, which the tests do not wait for.
        self.waits = []

    def client(self, server=None, **settings):
        """A client of `server`, closed when the test ends."""
        if server:
            settings = {"base_url": server.url} | settings
        return self._open.enter_context(self.made({"api_key": "sk-secret"} | settings))

    def routed(self, server, *, url=None, settings=None, **options):
        """A client of `server` with a transport of our own, of these options."""
        url = url or server.url
        http_client = self.own_http_client(**options)
        return self.client(base_url=url, http_client=http_client, **settings or {})

    def mocked(self, handler, **settings):
        """A client that sends through httpx.MockTransport."""
        http_client = self.http_client(httpx.MockTransport(handler))
        return self.client(base_url="http://localhost", http_client=http_client, **settings)

    def close(self):
        self._open.close()
        gc.collect()  # what was left open warns now, not in another test


class Synchronous(Driver):
    name = "sync"

    def made(self, settings):
        return Client(**settings)

    def http_client(self, transport):
        return self._open.enter_context(httpx.Client(transport=transport))

    def own_http_client(self, **options):
        return self._open.enter_context(transport.own_client(**options))

    def patch(self, monkeypatch):
        monkeypatch.setattr(streamcli.client.client, "sleep", self.waits.append)

    def body(self, pieces):
        """A body that comes in these pieces; an exception among them is raised in its turn."""
        return SyncPieces(pieces)


class Asynchronous(Driver):
    name = "async"

    def __init__(self):
        super().__init__()
        self._runner = asyncio.Runner()
        self._faults = []
        self._runner.get_loop().set_exception_handler(lambda loop, context: self._faults.append(context))

    def run(self, awaitable):
        async def awaited():
            return await awaitable

        # Not by the runner, which takes SIGINT over and gives it back each time: a third of a test of many steps.
        return self._runner.get_loop().run_until_complete(awaited())

    def made(self, settings):
        return Blocking(AsyncClient(**settings), self.run)

    def http_client(self, transport):
        client = httpx.AsyncClient(transport=transport)
        self._open.callback(lambda: self.run(client.aclose()))
        return client

    def own_http_client(self, **options):
        client = async_transport.own_client(**options)
        self._open.callback(lambda: self.run(client.aclose()))
        return client

    def patch(self, monkeypatch):
        async def sleep(seconds):
            self.waits.append(seconds)

        monkeypatch.setattr(streamcli.client.async_client, "sleep", sleep)

    def body(self, pieces):
        return AsyncPieces(pieces)

    def close(self):
        if self._runner is None:
            return
        super().close()
        self.run(asyncio.sleep(0))
        assert not asyncio.all_tasks(self._runner.get_loop())
        self._runner.close()
        self._runner = None
        gc.collect()
        assert not self._faults


class Blocking:
    """An asynchronous object that is used as its synchronous twin: what must be awaited is, what is async is not."""

    def __init__(self, it, run):
        self._it = it
        self._run = run

    def _made(self, value):
        if inspect.isawaitable(value):
            return self._made(self._run(value))
        if inspect.ismethod(value):
            return lambda *args, **kwargs: self._made(value(*args, **kwargs))
        if "Async" in type(value).__name__ or inspect.isasyncgen(value):
            return Blocking(value, self._run)
        return value

    def __getattr__(self, name):
        return self._made(getattr(self._it, name))

    def __enter__(self):
        return self._made(self._it.__aenter__())

    def __exit__(self, *exc_info):
        return self._run(self._it.__aexit__(*exc_info))

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return self._made(self._it.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None


class SyncPieces(httpx.SyncByteStream):
    def __init__(self, pieces):
        self.pieces = pieces

    def __iter__(self):
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece


class AsyncPieces(httpx.AsyncByteStream):
    def __init__(self, pieces):
        self.pieces = pieces

    async def __aiter__(self):
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece
