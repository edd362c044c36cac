"""Each attack is one function: it does one thing, to one target, until its time is over.

Run one alone against a stack of its own: `python -m tests.siege.run --only tiny_fields`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from fedcombiner.wire.chunks import encode_request
from fedcombiner.wire.pb import fedn_pb2 as fedn
from tests.siege.http2 import PREFACE, Raw, message_of
from tests.siege.target import Spending, Target, at_once, calls_to, within

MIB: Final = 1 << 20
MESSAGE: Final = 4 * MIB  # what gRPC lets through
COMBINER: Final = "/grpc.Combiner/"
UPLOAD: Final = "/grpc.ModelService/Upload"
DOWNLOAD: Final = "/grpc.ModelService/Download"
STREAM: Final = COMBINER + "TaskStream"

Attack = Callable[[Target, Spending], Awaitable[None]]


async def many_submessages(target: Target, spending: Spending) -> None:
    """Telemetry of two million empty values: 4 MiB that decode to a hundred."""
    sender = fedn.TelemetryMessage(sender=target.sender).SerializeToString()
    content = sender + b"\x12\x00" * ((MESSAGE - len(sender)) // 2)
    async with calls_to(target.combiner, target.token) as calls:

        async def attempt(index: int) -> None:
            await spending.spend(len(content))
            await calls.unary(COMBINER + "SendTelemetryMessage", content)

        await at_once(60, attempt, spending)


async def made_up_names(target: Target, spending: Spending) -> None:
    """Attributes of clients that do not exist, and new ones of this client each time."""
    async with calls_to(target.combiner, target.token) as calls:

        async def attempt(index: int) -> None:
            mark = uuid.uuid4().hex
            sender = target.sender if index % 2 else fedn.Client(name=f"nobody-{mark}", role=fedn.CLIENT)
            message = fedn.AttributeMessage(
                sender=sender,
                attributes=[
                    fedn.AttributeElem(key=f"{mark}{number:032}", value="v" * 256) for number in range(32)
                ],
            )
            content = message.SerializeToString()
            await spending.spend(len(content))
            await calls.unary(COMBINER + "SendAttributeMessage", content)

        await at_once(100, attempt, spending)


async def tiny_fields(target: Target, spending: Spending) -> None:
    """Requests and chunks of a million fields that nobody needs, each of two bytes."""
    content = b"\x08\x01" * MIB
    async with calls_to(target.modelstore, target.token) as calls:

        async def attempt(index: int) -> None:
            await spending.spend(len(content))
            if index % 2:
                await calls.unary_stream(DOWNLOAD, content).read()
            else:
                upload = calls.stream_unary(UPLOAD)
                await upload.write(content)
                await upload

        await at_once(16, attempt, spending)


async def silent_uploads(target: Target, spending: Spending) -> None:
    """Uploads that begin, and say no more."""
    async with calls_to(target.modelstore, target.token) as calls:

        async def attempt(index: int) -> None:
            upload = calls.stream_unary(UPLOAD)
            await upload.write(encode_request(str(uuid.uuid4()), fedn.IN_PROGRESS))
            await spending.spend(50)
            await upload

        await at_once(256, attempt, spending)


async def slow_uploads(target: Target, spending: Spending) -> None:
    """Uploads of a kilobyte each second."""
    async with calls_to(target.modelstore, target.token) as calls:

        async def attempt(index: int) -> None:
            model_id, upload = str(uuid.uuid4()), calls.stream_unary(UPLOAD)
            while spending.goes_on and not upload.done():
                await spending.spend(1024)
                await upload.write(encode_request(model_id, fedn.IN_PROGRESS, b"x" * 1024))
                await asyncio.sleep(1)
            upload.cancel()

        await at_once(64, attempt, spending)


async def waiting_uploads(target: Target, spending: Spending) -> None:
    """Hundreds of uploads at once, each with as much data as the server takes in before it is their turn."""
    content = message_of(encode_request(str(uuid.uuid4()), fedn.IN_PROGRESS, b"x" * MIB))

    async def connection(index: int) -> None:
        async with Raw(target.modelstore, target.token) as raw:
            streams = [await raw.open(UPLOAD) for _ in range(50)]
            sent = dict.fromkeys(streams, 0)
            while not raw.gone and spending.goes_on:
                for stream in streams:
                    number = await raw.send(stream, content[sent[stream] % len(content) :])
                    sent[stream] += number
                    await spending.spend(number)
                await raw.moved(1.0)

    await at_once(16, connection, spending)


async def slow_downloads(target: Target, spending: Spending) -> None:
    """Downloads by readers that take a kilobyte each second."""
    request = message_of(encode_request(target.model_id, fedn.OK))

    async def connection(index: int) -> None:
        async with Raw(target.modelstore, target.token) as raw:
            streams = [await raw.open(DOWNLOAD) for _ in range(16)]
            for stream in streams:
                await raw.send(stream, request, end=True)
            while not raw.gone and spending.goes_on:
                for stream in streams:
                    await raw.allow(stream, 1024)
                await asyncio.sleep(1)

    await at_once(8, connection, spending)


async def unfinished_messages(target: Target, spending: Spending) -> None:
    """Calls whose message never ends: the server holds what came of each."""
    content = message_of(b"\0" * MESSAGE)[:-1024]

    async def connection(index: int) -> None:
        async with Raw(target.combiner, target.token) as raw:
            streams = [await raw.open(COMBINER + "SendModelUpdate") for _ in range(10)]
            sent = dict.fromkeys(streams, 0)
            while not raw.gone and spending.goes_on:
                for stream in streams:
                    number = await raw.send(stream, content[sent[stream] :])
                    sent[stream] += number
                    await spending.spend(number)
                await raw.moved(1.0)

    await at_once(16, connection, spending)


async def streams_of_one_name(target: Target, spending: Spending) -> None:
    """Thousands of streams of tasks that are all the same client's."""
    request = message_of(fedn.ClientAvailableMessage(sender=target.sender).SerializeToString())

    async def connection(index: int) -> None:
        async with Raw(target.combiner, target.token) as raw:
            for _ in range(1000):
                stream = await raw.open(STREAM)
                await raw.send(stream, request, end=True)
                await spending.spend(len(request) + 200)
            while not raw.gone and spending.goes_on:
                await raw.moved(1.0)

    await at_once(4, connection, spending)


async def rapid_reset(target: Target, spending: Spending) -> None:
    """Calls that are begun and reset at once."""
    request = message_of(fedn.ClientAvailableMessage(sender=target.sender).SerializeToString())

    async def connection(index: int) -> None:
        async with Raw(target.combiner, target.token) as raw:
            for number in range(100_000):
                stream = await raw.open(STREAM)
                await raw.send(stream, request, end=True)
                await raw.reset(stream)
                await spending.spend(len(request) + 220)
                if number % 100 == 0:
                    await asyncio.sleep(0)

    await at_once(4, connection, spending)


async def half_open_http(target: Target, spending: Spending) -> None:
    """Connections on which the head of a request never ends."""
    await _hold_connections(target.http, b"GET /readyz HTTP/1.1\r\nHost: siege\r\nX-Slow: ", 1500, spending)


async def idle_connections(target: Target, spending: Spending) -> None:
    """Connections on which nothing is ever asked."""
    await _hold_connections(target.combiner, PREFACE[:20], 1500, spending)


async def _hold_connections(address: str, said: bytes, number: int, spending: Spending) -> None:
    host, _, port = address.rpartition(":")

    async def connection(index: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(said)
            await spending.spend(len(said) + 100)
            while await reader.read(65536):
                pass
        finally:
            writer.transport.abort()

    await at_once(number, connection, spending)


async def large_answers(target: Target, spending: Spending) -> None:
    """Updates of this client's with all the text that one may have."""
    async with calls_to(target.combiner, target.token) as calls:

        async def attempt(index: int) -> None:
            update = fedn.ModelUpdate(
                sender=target.sender,
                model_id=target.model_id,
                model_update_id=str(uuid.uuid4()),
                correlation_id=str(uuid.uuid4()),
                meta="x" * 65_000,
            )
            content = update.SerializeToString()
            await spending.spend(len(content))
            await calls.unary(COMBINER + "SendModelUpdate", content)

        await at_once(1024, attempt, spending)


async def takes_part(target: Target, spending: Spending) -> None:
    """Nothing beside the rounds: the harm is in the updates themselves."""
    await within(spending, [asyncio.sleep(spending.seconds)])


ATTACKS: Final[Mapping[str, Attack]] = {
    attack.__name__: attack
    for attack in (
        many_submessages,
        made_up_names,
        tiny_fields,
        silent_uploads,
        slow_uploads,
        waiting_uploads,
        slow_downloads,
        unfinished_messages,
        streams_of_one_name,
        rapid_reset,
        half_open_http,
        idle_connections,
        large_answers,
        takes_part,
    )
}
