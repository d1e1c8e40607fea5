"""The script that a careful user writes on httpx, httpx-sse and orjson.

Usage: httpx_sse_orjson.py text BASE_URL     the answer's text to stdout, each delta as it comes
       httpx_sse_orjson.py decode N          seconds to decode N tiny events in reads of 64 KiB
"""

import sys

import httpx
import httpx_sse
import orjson

BODY = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 8192,
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
}
HEADERS = {"x-api-key": "bench", "anthropic-version": "2023-06-01"}


def text(base_url):
    with (
        httpx.Client(headers=HEADERS) as client,
        httpx_sse.connect_sse(client, "POST", base_url + "/v1/messages", json=BODY) as source,
    ):
        source.response.raise_for_status()
        for event in source.iter_sse():
            message = orjson.loads(event.data)
            if message["type"] == "content_block_delta" and message["delta"]["type"] == "text_delta":
                sys.stdout.write(message["delta"]["text"])
                sys.stdout.flush()


class Reads(httpx.SyncByteStream):
    def __init__(self, reads):
        self.reads = reads

    def __iter__(self):
        yield from self.reads


def count_events(reads):
    headers = {"content-type": "text/event-stream"}
    source = httpx_sse.EventSource(httpx.Response(200, headers=headers, stream=Reads(reads)))
    return sum(1 for _ in source.iter_sse())


def decode(count):
    from timing import time_decoder  # noqa: PLC0415 - not part of the script that `text` stands for

    time_decoder(count_events, int(count))


{"text": text, "decode": decode}[sys.argv[1]](sys.argv[2])
