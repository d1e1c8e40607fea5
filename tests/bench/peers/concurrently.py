"""What the bench of many streams shares: open them all, and count CPU only from when each has had its first event."""

import asyncio
import sys
import time


async def measure(open_stream, count):
    """Print the CPU seconds of `count` streams, from the moment all are open to the end of the last.

    `open_stream` returns an asynchronous context manager of an asynchronous iterator over events.
    """
    ready = asyncio.Barrier(count + 1)
    tasks = [asyncio.create_task(read(open_stream, ready)) for _ in range(count)]
    await ready.wait()
    begin = time.process_time()
    await asyncio.gather(*tasks)
    sys.stdout.write(f"{time.process_time() - begin}\n")


async def read(open_stream, ready):
    async with open_stream() as stream:
        events = aiter(stream)
        await anext(events)
        await ready.wait()
        async for _ in events:
            pass
