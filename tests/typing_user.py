"""A user's program. It is never run: mypy checks it strictly, which pins the library's public types."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, assert_type

import httpx

from streamcli import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AsyncClient,
    Client,
    ContentBlock,
    Delta,
    Event,
    IncompleteStreamError,
    Message,
    MessageStream,
    OverloadedError,
    Usage,
)

client = Client(api_key="k", timeout=httpx.Timeout(120.0), max_retries=3, default_headers={"x": "y"})


def show_text() -> None:
    with client.messages.stream(
        model="m", max_tokens=1024, messages=[{"role": "user", "content": "hi"}], system="s", temperature=0.2
    ) as stream:
        assert_type(stream, MessageStream)
        assert_type(stream.text_stream, Iterator[str])
        for text in stream.text_stream:
            print(text.upper(), end="", flush=True)
        message = stream.get_final_message()
    assert_type(message, Message)
    assert_type(message.usage.output_tokens, int)
    assert_type(message.stop_reason, str | None)
    assert_type(stream.get_final_text(), str)
    assert_type(stream.request_id, str | None)
    assert_type(stream.response.headers["request-id"], str)


def show_events() -> int:
    tokens = 0
    with client.beta.messages.stream(betas=["b"], model="m", max_tokens=1, messages=[]) as stream:
        for event in stream:
            assert_type(event, Event)
            match event.type:
                case "content_block_start":
                    assert_type(event.content_block, ContentBlock)
                    print(event.content_block.name)
                case "content_block_delta":
                    assert_type(event.delta, Delta)
                    assert_type(event.delta.text, str)
                    assert_type(event.delta.partial_json, str)
                case "text":
                    assert_type(event.text, str)
                case "message_delta":
                    assert_type(event.usage, Usage)
                    tokens = event.usage.output_tokens
                case "content_block_stop":
                    block = event.content_block
                    city: Any = block.input.city
                    print(city, block.input["city"])
        assert_type(stream.current_message_snapshot, Message)
    return tokens


def converse(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    answer = client.messages.create(model="m", max_tokens=1, messages=messages)
    assert_type(answer.content, list[ContentBlock])
    return [*messages, {"role": answer.role, "content": answer.content}]


def catch() -> str:
    try:
        show_text()
    except OverloadedError as error:
        return f"{error.status_code} {error.type}"
    except APIStatusError as error:
        return str(error.headers.get("retry-after"))
    except APITimeoutError as error:
        return error.message
    except (APIConnectionError, IncompleteStreamError) as error:
        return f"{error.request_id} {error.partial}"
    except APIError as error:
        return str(error.exit_code)
    return ""


async def show_text_asynchronously() -> str:
    async with AsyncClient() as client, client.messages.stream(model="m", max_tokens=1, messages=[]) as stream:
        assert_type(stream.text_stream, AsyncIterator[str])
        async for text in stream.text_stream:
            print(text)
        async for event in stream:
            assert_type(event, Event)
        await stream.close()
        return await stream.get_final_text()


async def show_many() -> list[str]:
    return await asyncio.gather(*(show_text_asynchronously() for _ in range(10)))


def by_hand() -> None:
    manager = client.messages.stream(model="m", max_tokens=1, messages=[], timeout=5.0)
    stream = manager.__enter__()
    try:
        assert_type(next(stream), Event)
    finally:
        manager.__exit__(None, None, None)


def count() -> None:
    print(client.messages.count_tokens(model="m", messages=[]).input_tokens)
    for model in client.models.list():
        print(model.id)
