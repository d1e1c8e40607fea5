"""asyncio alone: the least that any client on it can cost. It reads, cuts each event's data out and parses it.

Usage: asyncio_raw.py streams BASE_URL COUNT   CPU seconds of COUNT concurrent streams after their first event
"""

import asyncio
import contextlib
import sys
from urllib.parse import urlsplit

import orjson
from concurrently import measure

REQUEST = b"POST %s/v1/messages HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 2\r\n\r\n{}"


async def events(reader):
    while True:
        data = await reader.read(65536)
        for part in data.split(b"\n\n"):
            _, found, payload = part.partition(b"\ndata: ")
            if found:
                event = orjson.loads(payload)
                yield event
                if event["type"] == "message_stop":
                    return


@contextlib.asynccontextmanager
async def stream(base_url):
    parts = urlsplit(base_url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(REQUEST % parts.path.encode())
    yield events(reader)
    writer.close()


def streams(base_url, count):
    asyncio.run(measure(lambda: stream(base_url), int(count)))


{"streams": streams}[sys.argv[1]](*sys.argv[2:])
