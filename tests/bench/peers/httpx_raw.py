"""httpx alone: the least that any client on it can cost. Usage: httpx_raw.py BASE_URL; the stream goes to stdout."""

import sys

import httpx

BODY = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 8192,
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
}

with httpx.Client() as client, client.stream("POST", sys.argv[1] + "/v1/messages", json=BODY) as response:
    for data in response.iter_raw():
        sys.stdout.buffer.write(data)
