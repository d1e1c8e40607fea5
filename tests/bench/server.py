"""The server that every row of the bench talks to: raw sockets on 127.0.0.1, one thread a connection.

It must never be what is measured. So every answer is built once, before it is first timed, and goes out in as few
writes as its row allows; each event is an HTTP chunk of its own, as real servers send it. The path says which answer:

    /instant          a short answer, all at once
    /text/N           N text deltas, as fast as the reader takes them
    /paced/N/US       N text deltas, one every US microseconds; each delta's text is the time it was written at, in
                      nanoseconds of the monotonic clock, which is the same for all processes of a machine
    /tool/N           N bytes of tool input, an array of small objects, in deltas of 20 bytes
    /bulk/N           N bytes of stream made of text deltas
    /streams/C/N/US   waits until C requests are there, then N text deltas on each, one every US microseconds

It prints its port and serves until its standard input ends. `server.py HOST CERTIFICATE` serves there, inside TLS.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import socket
import ssl
import sys
import threading
import time

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"request-id: req_bench\r\ntransfer-encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"
WORDS = [
    "The",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    "while",
    "seven",
    "wizards",
    "box",
    "two",
]
FRAGMENT = 20


def chunk(event: dict) -> bytes:
    data = b"event: %s\ndata: %s\n\n" % (event["type"].encode(), json.dumps(event, separators=(",", ":")).encode())
    return b"%x\r\n%s\r\n" % (len(data), data)


def opening(block: dict) -> bytes:
    message = {"id": "msg_bench", "type": "message", "role": "assistant", "model": "claude-sonnet-5-5", "content": []}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 9, "output_tokens": 1}}
    return (
        chunk({"type": "message_start", "message": message})
        + chunk({"type": "content_block_start", "index": 0, "content_block": block})
        + chunk({"type": "ping"})
    )


def closing(stop_reason: str) -> bytes:
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    return (
        chunk({"type": "content_block_stop", "index": 0})
        + chunk({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 99}})
        + chunk({"type": "message_stop"})
        + LAST_CHUNK
    )


def delta(kind: str, field: str, text: str) -> bytes:
    return chunk({"type": "content_block_delta", "index": 0, "delta": {"type": kind, field: text}})


def text_delta(text: str) -> bytes:
    return delta("text_delta", "text", text)


TEXT_OPENING = HEAD + opening({"type": "text", "text": ""})
TEXT_CLOSING = closing("end_turn")


@functools.cache
def text_deltas(count: int) -> bytes:
    cycle = [text_delta(word + " ") for word in WORDS]
    return b"".join(itertools.islice(itertools.cycle(cycle), count))


@functools.cache
def text_answer(count: int) -> bytes:
    return TEXT_OPENING + text_deltas(count) + TEXT_CLOSING


@functools.cache
def tool_answer(size: int) -> bytes:
    rows = [{"n": n, "name": WORDS[n % len(WORDS)]} for n in range(size // 20)]
    text = json.dumps({"rows": rows}, separators=(",", ":"))[: size - 4]
    text = text[: text.rindex("}") + 1] + "]}"
    fragments = (text[at : at + FRAGMENT] for at in range(0, len(text), FRAGMENT))
    block = {"type": "tool_use", "id": "toolu_bench", "name": "store", "input": {}}
    deltas = b"".join(delta("input_json_delta", "partial_json", fragment) for fragment in fragments)
    return HEAD + opening(block) + deltas + closing("tool_use")


def send_instant(connection: socket.socket) -> None:
    connection.sendall(text_answer(20))


def send_text(connection: socket.socket, count: int) -> None:
    connection.sendall(text_answer(count))


def send_tool(connection: socket.socket, size: int) -> None:
    connection.sendall(tool_answer(size))


def send_bulk(connection: socket.socket, size: int) -> None:
    piece = text_deltas(8192)
    connection.sendall(TEXT_OPENING)
    for _ in range(size // len(piece) + 1):
        connection.sendall(piece)
    connection.sendall(TEXT_CLOSING)


def send_paced(connection: socket.socket, count: int, interval: int) -> None:
    connection.sendall(TEXT_OPENING)
    begin = time.monotonic()
    for step in range(count):
        sleep_until(begin + (step + 1) * interval / 1e6)
        connection.sendall(text_delta(f"{time.monotonic_ns()}\n"))
    connection.sendall(TEXT_CLOSING)


def sleep_until(due: float) -> None:
    left = due - time.monotonic()
    if left > 0:
        time.sleep(left)


class Streams:
    """Many connections fed by one thread: the one whose request makes them complete. The others wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[socket.socket, threading.Event]] = []

    def send(self, connection: socket.socket, total: int, count: int, interval: int) -> None:
        connection.sendall(TEXT_OPENING)
        sent = threading.Event()
        with self._lock:
            self._waiting.append((connection, sent))
            group = self._waiting if len(self._waiting) == total else None
            if group:
                self._waiting = []
        if group:
            time.sleep(1)  # the readers get ready
            feed([connection for connection, _ in group], count, interval / 1e6)
            for _, each in group:
                each.set()
        sent.wait()


def feed(connections: list[socket.socket], count: int, interval: float) -> None:
    piece = text_delta("word ")
    begin = time.monotonic()
    for step in range(count):
        for number, connection in enumerate(connections):
            sleep_until(begin + (step + number / len(connections)) * interval)
            connection.sendall(piece)
    for connection in connections:
        connection.sendall(TEXT_CLOSING)


ANSWERS = {
    "instant": send_instant,
    "text": send_text,
    "tool": send_tool,
    "bulk": send_bulk,
    "paced": send_paced,
    "streams": Streams().send,
}


def receive_request(connection: socket.socket) -> str:
    """The path of the next request, "" where the connection ends; its body is read and forgotten."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return ""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines[1:])
    left = int(fields.get("content-length", "0")) - len(body)
    while left > 0:
        left -= len(connection.recv(min(left, 1 << 20))) or left
    return lines[0].split(" ")[1]


def serve(accepted: socket.socket, context: ssl.SSLContext | None) -> None:
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        with context.wrap_socket(accepted, server_side=True) if context else accepted as connection:
            while path := receive_request(connection):
                name, *numbers = path.partition("/v1/")[0].strip("/").split("/")
                ANSWERS[name](connection, *map(int, numbers))
    except (ConnectionError, ssl.SSLError):
        pass  # a reader may leave at message_stop


def accept(listener: socket.socket, context: ssl.SSLContext | None) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=[connection, context], daemon=True).start()


def main(host: str = "127.0.0.1", certificate: str = "") -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if certificate else None
    if context:
        context.load_cert_chain(certificate)
    listener = socket.create_server((host, 0), backlog=1024)
    threading.Thread(target=accept, args=[listener, context], daemon=True).start()
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
