"""asyncio alone: the least that any client on it can cost. It reads, cuts each event's data out and parses it.

Usage: asyncio_raw.py streams BASE_URL COUNT      CPU seconds of COUNT concurrent streams after their first event
       asyncio_raw.py asked BASE_URL COUNT JOBS   CPU seconds of COUNT requests, JOBS at once, nothing of them parsed
       asyncio_raw.py parsed BASE_URL COUNT JOBS  the same with each event parsed
"""

import asyncio
import contextlib
import sys
import time
from functools import partial
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


async def ask(reader):
    while await reader.read(65536):
        pass


async def parse(reader):
    async for _ in events(reader):
        pass


def many(read, base_url, count, jobs):
    parts, left = urlsplit(base_url), iter(range(int(count)))

    async def work():
        for _ in left:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(REQUEST % parts.path.encode())
            await read(reader)
            writer.close()

    async def work_all():
        await asyncio.gather(*(work() for _ in range(int(jobs))))

    begin = time.process_time()
    asyncio.run(work_all())
    sys.stdout.write(f"{time.process_time() - begin}\n")


MODES = {"streams": streams, "asked": partial(many, ask), "parsed": partial(many, parse)}
MODES[sys.argv[1]](*sys.argv[2:])
