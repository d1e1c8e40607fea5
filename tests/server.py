"""A loopback server of real sockets, which answers as a test's script says: the other end of every test.

An answer is what is sent over one connection: bytes, or a sequence of steps that are

* bytes, sent at once;
* a number, so many seconds of silence (a test that needs order waits on an event instead);
* a `threading.Event`, waited for;
* `RESET`, which breaks the connection off; `HANG`, which keeps it open until the client closes it; `UNREAD` as the
  first step, which leaves the request unread.

Where an answer ends the server closes the connection. `server.answers` are used up one a connection, the last of them
for all that follow; a function there is given the request and returns the answer. Every thread and socket is gone when
the server is closed.
"""

import contextlib
import gzip  # noqa: F401 - for the words of the documents
import itertools
import json
import select
import socket
import struct
import threading
from dataclasses import dataclass, field

RESET, HANG, UNREAD = object(), object(), object()
PATIENCE = 10  # seconds after which a test that waits for something fails instead


# Answers


def head(status=200, *, type="text/event-stream; charset=utf-8", length=None, chunked=False, **headers):  # noqa: A002
    """The head of an answer; without `length` or `chunked` its body goes on until the connection is closed."""
    fields = {"content-type": type, "request-id": "req_1", "content-length": length}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    if chunked:
        fields["transfer-encoding"] = "chunked"
    lines = [f"{name}: {value}\r\n" for name, value in fields.items() if value is not None]
    return f"HTTP/1.1 {status} Status\r\n{''.join(lines)}\r\n".encode("latin-1")


def event(name, **data):
    """One event of a Messages stream."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"


def message_start(**fields):
    usage = {"input_tokens": 3, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None}
    return event("message_start", message=message | {"stop_sequence": None, "usage": usage} | fields)


def block_start(index=0, **block):
    return event("content_block_start", index=index, content_block=block or {"type": "text", "text": ""})


def delta(type_, index=0, **fields):
    return event("content_block_delta", index=index, delta={"type": type_, **fields})


def text_delta(text, index=0):
    return delta("text_delta", index, text=text)


def block_stop(index=0):
    return event("content_block_stop", index=index)


def message_delta(stop_reason="end_turn", output_tokens=7):
    changed = {"stop_reason": stop_reason, "stop_sequence": None}
    return event("message_delta", delta=changed, usage={"output_tokens": output_tokens})


MESSAGE_STOP = event("message_stop")


def text_events(*texts, stop_reason="end_turn"):
    """The events of an answer of one text block."""
    deltas = [text_delta(text) for text in texts]
    return [message_start(), block_start(), *deltas, block_stop(), message_delta(stop_reason), MESSAGE_STOP]


def text_stream(*texts, **fields):
    """The events of an answer of one text block, joined."""
    return b"".join(text_events(*texts, **fields))


def refused(text, **details):
    """The events of an answer that the model refused, joined; `details` say why."""
    changed = {"stop_reason": "refusal", "stop_details": {"type": "refusal", **details}}
    ending = event("message_delta", delta=changed, usage={"output_tokens": 7}), MESSAGE_STOP
    return b"".join([opening(text), block_stop(), *ending])


def opening(*texts):
    """The first events of an answer of one text block: what came before a fault."""
    return b"".join([message_start(), block_start(), *map(text_delta, texts)])


def ok(*parts, framing="chunked"):
    """A whole answer 200 with the event stream `parts`, in the given framing: "chunked", "length" or "close"."""
    parts = [part for part in parts if part]
    if framing == "chunked":
        return head(chunked=True) + b"".join(map(chunk, parts)) + LAST_CHUNK
    body = b"".join(parts)
    return head(length=len(body) if framing == "length" else None) + body


def error_response(status, type_="invalid_request_error", message="no", **headers):
    body = json.dumps({"type": "error", "error": {"type": type_, "message": message}}).encode()
    return head(status, type="application/json", length=len(body), **headers) + body


def json_response(value, status=200, **headers):
    body = json.dumps(value).encode()
    return head(status, type="application/json", length=len(body), **headers) + body


def caching():
    """The answers of a server with a prompt cache; a token is a word of a block's JSON, marks left out.

    What is marked is kept, and read by the next request that begins alike. As the API does, it takes four marks, a
    longer one first, and none on thinking, on blank text or on a tool that is loaded later.
    """
    kept = set()

    def answer(request):
        blocks = [*_in_order(request.json)]
        marks = [block.get("cache_control") for block in blocks]
        lives = [mark.get("ttl", "5m") for mark in marks if mark]
        if len(lives) > 4 or lives != sorted(lives) or any(map(_unmarkable, blocks)):
            return error_response(400, message="cache_control")
        words = [json.dumps({**block, "cache_control": None}).split() for block in blocks]
        ends = [*itertools.accumulate(words)]
        last = max((len(end) for end, mark in zip(ends, marks, strict=True) if mark), default=0)
        read = max((len(end) for end in ends if len(end) <= last and tuple(end) in kept), default=0)
        kept.update(tuple(end) for end, mark in zip(ends, marks, strict=True) if mark)
        usage = {"input_tokens": len(ends[-1]) - last, "output_tokens": 1}
        usage |= {"cache_creation_input_tokens": last - read, "cache_read_input_tokens": read}
        return ok(message_start(usage=usage), *text_events("Yes.")[1:])

    return answer


def _in_order(body):
    """The blocks of a request in the order in which they are read."""
    for value in (body.get("tools"), body.get("system"), *(message["content"] for message in body["messages"])):
        yield from [{"type": "text", "text": value}] if isinstance(value, str) else value or []


def _unmarkable(block):
    blank = block.get("type") == "text" and not block["text"].strip()
    return block.get("cache_control") and (blank or "thinking" in block.get("type", "") or block.get("defer_loading"))


# The server


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    # Set when the client has closed the connection, or reset it.
    closed: threading.Event = field(default_factory=threading.Event)

    @property
    def json(self):
        return json.loads(self.body)


class Listener:
    """Accepts connections and handles each in a thread of its own; `close` ends them all and waits for them."""

    def __init__(self, host="127.0.0.1", tls=None):
        self._tls = tls
        self.connections = 0
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family, backlog=1024)
        self.host, self.port = self._socket.getsockname()[:2]
        self._lock = threading.Lock()
        self._open = set()
        self._awaited = set()
        self._threads = []
        self._closing = threading.Event()
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def _accept(self):
        while True:
            connection, _ = self._socket.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a RESET drops what still waits
            with self._lock:
                if self._closing.is_set():
                    connection.close()
                    return
                self._open.add(connection)
                self.connections += 1
                thread = threading.Thread(target=self._serve, args=[connection, self.connections - 1])
                self._threads.append(thread)
            thread.start()

    @property
    def url(self):
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    def _serve(self, connection, number):
        if self._tls:
            with self._lock:
                self._open.discard(connection)
                connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                self._open.add(connection)
        try:
            with contextlib.suppress(OSError):  # the client went away, or the server was closed
                if self._tls:
                    connection.do_handshake()
                self.handle(connection, number)
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def handle(self, connection, number):
        raise NotImplementedError

    def wait(self, awaited):
        """Wait for an event that the test, or the end of it, sets."""
        with self._lock:
            self._awaited.add(awaited)
        if not self._closing.is_set():
            awaited.wait(PATIENCE)

    def close(self):
        with self._lock:
            self._closing.set()
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)  # wakes who reads or writes
            for awaited in self._awaited:
                awaited.set()
        socket.create_connection((self.host, self.port)).close()  # wakes who accepts
        for thread in [self._acceptor, *self._threads]:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()


class Server(Listener):
    """Answers each request as `answers` say and keeps what was asked in `requests`."""

    def __init__(self, *answers, tls=None, host="127.0.0.1"):
        self.responses = list(answers)
        self.requests = []
        # The seconds to wait before each further part of a body is read.
        self.pause = 0
        self._came = threading.Condition()
        super().__init__(host, tls)

    def forget(self):
        """Keep nothing of what is over, for who runs it for long."""
        with self._lock:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
        self.requests.clear()

    def request(self, number=0):
        """The request of that number, waited for."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.requests) > number, PATIENCE)
        return self.requests[number]

    def hung_up(self, number=0):
        """Whether the client closed the connection of that request, waited for."""
        return self.request(number).closed.wait(PATIENCE)

    def handle(self, connection, number):
        answer = self.responses[min(number, len(self.responses) - 1)]
        request = None
        if not (isinstance(answer, tuple) and answer[0] is UNREAD):
            request = read_request(connection, lambda: self._closing.wait(self.pause))
            with self._came:
                self.requests.append(request)
                self._came.notify_all()
        if callable(answer):
            answer = answer(request)
        try:
            self._play([answer] if isinstance(answer, bytes) else answer, connection)
        except OSError:
            if request:
                request.closed.set()

    def _play(self, steps, connection):
        for step in steps:
            if isinstance(step, bytes):
                connection.sendall(step)
            elif isinstance(step, int | float):
                self._closing.wait(step)
            elif isinstance(step, threading.Event):
                self.wait(step)
            elif step is RESET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                socket.close(connection.detach())
            elif step is HANG:
                while connection.recv(65536):
                    pass
                raise ConnectionResetError


def read_request(connection, pause=lambda: None):
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            raise ConnectionResetError
        data += more
    top, _, body = data.partition(b"\r\n\r\n")
    line, *fields = top.decode("latin-1").split("\r\n")
    method, path, _ = line.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in fields)}
    left = int(headers.get("content-length", 0)) - len(body)
    pieces = [body]
    while left > 0:
        pause()
        pieces.append(connection.recv(min(left, 1 << 20)))
        if not pieces[-1]:
            raise ConnectionResetError
        left -= len(pieces[-1])
    return Request(method, path, headers, b"".join(pieces))


class Proxy(Listener):
    """An HTTP proxy: tunnels for CONNECT, passes on what names its target in full, or refuses with `refusal`."""

    def __init__(self, error_response=None, tls=None):
        self.error_response = error_response
        self.requests = []
        super().__init__(tls=tls)

    def handle(self, connection, number):
        request = read_request(connection)
        self.requests.append(request)
        if self.error_response:
            connection.sendall(self.error_response)
            return
        target = request.path.removeprefix("http://")
        authority, _, path = target.partition("/")
        host, _, port = authority.rpartition(":")
        with socket.create_connection((host.strip("[]"), int(port))) as upstream:
            if request.method == "CONNECT":
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                lines = [f"{request.method} /{path} HTTP/1.1", *(f"{n}: {v}" for n, v in request.headers.items())]
                upstream.sendall("\r\n".join([*lines, "", ""]).encode() + request.body)
            with self._lock:
                self._open.add(upstream)
            try:
                join(connection, upstream)
            finally:
                with self._lock:
                    self._open.discard(upstream)


def join(one, other):
    """Pass bytes both ways until either side ends."""
    ends = {one: other, other: one}
    while True:
        for ready in select.select(list(ends), [], [])[0]:
            data = ready.recv(65536)
            if not data:
                return
            ends[ready].sendall(data)


def cuts(data, count=None):
    """`data` in two pieces, cut at every position, or at some `count` of them."""
    step = max(1, len(data) // count) if count else 1
    return [(data[:cut], data[cut:]) for cut in range(1, len(data), step)]


def bytewise(data):
    return [bytes([byte]) for byte in data]


def cut_at(data, positions):
    """`data` cut at the positions, without empty pieces."""
    edges = [0, *sorted(positions), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]
