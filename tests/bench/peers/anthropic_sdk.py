"""The official Python SDK, as its README uses it.

Usage: anthropic_sdk.py text BASE_URL            the answer's text to stdout, each delta as it comes
       anthropic_sdk.py tool BASE_URL            seconds to the final message
       anthropic_sdk.py streams BASE_URL COUNT   CPU seconds of COUNT concurrent streams after their first event
       anthropic_sdk.py decode N                 seconds to decode N tiny events in reads of 64 KiB
"""

import asyncio
import sys
import time

import anthropic

ASK = {"model": "claude-sonnet-5-5", "max_tokens": 8192, "messages": [{"role": "user", "content": "hi"}]}


def text(base_url):
    client = anthropic.Anthropic(api_key="bench", base_url=base_url)
    with client.messages.stream(**ASK) as stream:
        for piece in stream.text_stream:
            sys.stdout.write(piece)
            sys.stdout.flush()


def tool(base_url):
    client = anthropic.Anthropic(api_key="bench", base_url=base_url)
    begin = time.perf_counter()
    with client.messages.stream(**ASK) as stream:
        message = stream.get_final_message()
    seconds = time.perf_counter() - begin
    if not message.content[0].input["rows"]:
        sys.exit("no rows")
    sys.stdout.write(f"{seconds}\n")


def streams(base_url, count):
    from concurrently import measure  # noqa: PLC0415

    client = anthropic.AsyncAnthropic(api_key="bench", base_url=base_url, max_retries=0)
    asyncio.run(measure(lambda: client.messages.stream(**ASK), int(count)))


def count_events(reads):
    from anthropic._streaming import SSEDecoder  # noqa: PLC0415 - the decoder has no public name

    return sum(1 for _ in SSEDecoder().iter_bytes(iter(reads)))


def decode(count):
    from timing import time_decoder  # noqa: PLC0415

    time_decoder(count_events, int(count))


{"text": text, "tool": tool, "streams": streams, "decode": decode}[sys.argv[1]](*sys.argv[2:])
