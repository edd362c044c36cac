"""Places for transfers are given in order, and given back however a transfer ends."""

import asyncio

from fedcombiner.modelstorage.slots import Slots


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_first_come_first_served() -> None:
    slots = Slots(1)
    order: list[int] = []
    gate = asyncio.Event()

    async def transfer(number: int) -> None:
        async with slots:
            order.append(number)
            await gate.wait()

    tasks = [asyncio.create_task(transfer(number)) for number in range(4)]
    await settle()
    assert (order, slots.running, slots.waiting) == ([0], 1, 3)
    gate.set()
    await asyncio.gather(*tasks)
    assert (order, slots.running, slots.waiting) == ([0, 1, 2, 3], 0, 0)


async def test_one_that_gives_up_waiting_takes_no_place() -> None:
    slots = Slots(1)
    async with slots:
        waiter = asyncio.create_task(slots.__aenter__())
        await settle()
        assert slots.waiting == 1
        waiter.cancel()
        await asyncio.wait({waiter})
        assert (slots.running, slots.waiting) == (1, 0)
    async with slots:
        assert slots.running == 1
