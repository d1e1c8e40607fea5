"""streamcli as a library, doing what the peers beside it do.

Usage: streamcli_library.py tool BASE_URL            seconds to the final message
       streamcli_library.py streams BASE_URL COUNT   CPU seconds of COUNT concurrent streams after their first event
       streamcli_library.py decode N                 seconds to decode N tiny events in reads of 64 KiB
"""

import asyncio
import sys
import time

from streamcli import AsyncClient, Client
from streamcli.protocol.sse import Decoder

ASK = {"model": "claude-sonnet-5-5", "max_tokens": 8192, "messages": [{"role": "user", "content": "hi"}]}


def tool(base_url):
    client = Client(api_key="bench", base_url=base_url)
    begin = time.perf_counter()
    with client.messages.stream(**ASK) as stream:
        message = stream.get_final_message()
    seconds = time.perf_counter() - begin
    if not message.content[0].input["rows"]:
        sys.exit("no rows")
    sys.stdout.write(f"{seconds}\n")


def streams(base_url, count):
    from concurrently import measure  # noqa: PLC0415

    client = AsyncClient(api_key="bench", base_url=base_url, max_retries=0)
    asyncio.run(measure(lambda: client.messages.stream(**ASK), int(count)))


def count_events(reads):
    decoder = Decoder()
    return sum(len(decoder.feed(data)) for data in reads)


def decode(count):
    from timing import time_decoder  # noqa: PLC0415

    time_decoder(count_events, int(count))


{"tool": tool, "streams": streams, "decode": decode}[sys.argv[1]](*sys.argv[2:])
