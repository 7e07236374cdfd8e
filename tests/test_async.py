"""The asyncio interface: tasks share passes, do not block their loop, and free everything when they are cancelled."""

import asyncio
import gc
from typing import Any

import pytest
from passes import OPTIONS, SECONDS, Caller, Passes, passing, request, settle, until

from dpad.runtime.errors import EngineError, InvalidRequest, ModelClosed, QueueFull
from dpad.runtime.model import DiffusionModel


@pytest.fixture
def engine(make_bundle: Any) -> Any:
    """A recording engine in torch; batches of 4."""
    return passing(make_bundle("llada"))


async def reached(condition: Any) -> None:
    """Let the event loop run until another thread has made `condition` true."""
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(1e-3)


def listeners(model: DiffusionModel, count: int) -> Any:
    """A condition: whether `count` sequences wait or run."""
    return lambda: len(model._worker._listeners) == count


def test_gathered_tasks_share_passes(model: DiffusionModel, engine: Passes) -> None:
    """Fails if tasks take turns, or one gets the text of another."""
    asked = [request(seed) for seed in range(4)]
    alone = [model.generate(each, **OPTIONS).canvas.tolist() for each in asked]
    engine.passes.clear()
    engine.hold()

    async def gather() -> list[Any]:
        tasks = [asyncio.ensure_future(model.agenerate(each, **OPTIONS)) for each in asked]
        await reached(listeners(model, 4))
        engine.gate.set()
        return [each.canvas.tolist() for each in await asyncio.gather(*tasks)]

    assert asyncio.run(gather()) == alone
    assert len(engine.passes) < 4 * 32 / 2 and max(engine.sizes) >= 3


def test_a_stream_yields_while_others_run(model: DiffusionModel, engine: Passes) -> None:
    """Fails if a pass blocks the loop, or a stream yields its events only at its end."""
    alone = [(event.positions.tolist(), event.tokens.tolist()) for event in model.stream(request(1), **OPTIONS)]

    async def stream() -> tuple[list[Any], Any]:
        other = asyncio.ensure_future(model.agenerate(request(2, 40), **OPTIONS))
        events, finished = [], []
        async for event in model.astream(request(1), **OPTIONS):
            events.append((event.positions.tolist(), event.tokens.tolist()))
            finished.append(event.generation is not None)
            assert not other.done() or len(events) > 16
        assert finished == [False] * 31 + [True]
        return events, await other

    events, other = asyncio.run(stream())
    assert events == alone
    assert other.canvas.tolist() == model.generate(request(2, 40), **OPTIONS).canvas.tolist()


def test_the_loop_goes_on_in_a_pass(model: DiffusionModel, engine: Passes) -> None:
    """Fails if waiting for a pass, or tokenizing a long prompt, blocks other tasks."""
    engine.hold()

    async def tick() -> int:
        task = asyncio.ensure_future(model.agenerate(request(1), **OPTIONS))
        await reached(engine.entered.is_set)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done()
        engine.gate.set()
        return (await task).nfe

    assert asyncio.run(tick()) == 32


@pytest.mark.parametrize("face", ["agenerate", "astream"])
def test_cancelling_a_task_frees_its_slots(model: DiffusionModel, engine: Passes, face: str) -> None:
    """Fails if passes continue for a cancelled task, or if another task is affected."""
    alone = model.generate(request(2), **OPTIONS).canvas.tolist()
    engine.passes.clear()
    engine.hold()

    async def consume() -> None:
        if face == "agenerate":
            await model.agenerate(request(1, 40), **OPTIONS)
        async for _ in model.astream(request(1, 40), **OPTIONS):
            pass

    async def cancel() -> Any:
        task = asyncio.ensure_future(consume())
        await reached(engine.entered.is_set)
        other = asyncio.ensure_future(model.agenerate(request(2), **OPTIONS))
        await reached(listeners(model, 2))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert listeners(model, 1)()
        engine.gate.set()
        return (await other).canvas.tolist()

    assert asyncio.run(cancel()) == alone
    assert len(engine.passes) == 1 + 32


@pytest.mark.parametrize("how", ["break", "aclose", "timeout"])
def test_streams_that_are_left(model: DiffusionModel, engine: Passes, how: str) -> None:
    """Fails if decoding continues after a stream was left, closed, or timed out."""

    async def leave() -> None:
        events = model.astream(request(1), **OPTIONS)
        await anext(events)
        if how == "break":
            async for _ in events:
                break
            del events
            gc.collect()
            await reached(listeners(model, 0))
        elif how == "aclose":
            await events.aclose()
        else:
            engine.hold()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    async for _ in events:
                        pass
            await events.aclose()
        assert listeners(model, 0)()

    asyncio.run(leave())
    engine.gate.set()
    settle(engine)
    assert len(engine.passes) < 32


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of asyncio, whose loop is closed
@pytest.mark.parametrize("face", ["agenerate", "astream"])
@pytest.mark.parametrize("shut", [True, False], ids=["run", "closed"])
def test_a_loop_that_ends_early_leaves_no_thread(model: DiffusionModel, engine: Passes, face: str, shut: bool) -> None:
    """Fails if decoding continues after its event loop was closed."""

    async def consume() -> None:
        if face == "agenerate":
            await model.agenerate(request(1), **OPTIONS)
        async for _ in model.astream(request(1), **OPTIONS):
            pass

    async def begin() -> Any:
        task = asyncio.ensure_future(consume())
        await reached(engine.entered.is_set)
        return task

    engine.hold()
    loop = asyncio.new_event_loop()
    task = asyncio.run(begin()) if shut else loop.run_until_complete(begin())
    loop.close()
    engine.gate.set()
    settle(engine)
    assert len(engine.passes) <= 3
    task._log_destroy_pending = False
    del task
    gc.collect()


def test_errors_come_as_they_do_without_a_loop(engine: Passes) -> None:
    """Fails if a refusal, a full queue, a failed pass or a closed model hangs, or raises another error with asyncio."""

    async def ask() -> None:
        with pytest.raises(InvalidRequest, match="decoder 'x'"):
            await model.agenerate(request(1), decoder="x")
        with pytest.raises(InvalidRequest, match="decoder 'x'"):
            await anext(model.astream(request(1), decoder="x"))
        engine.before = lambda inputs: 1 / 0
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            await model.agenerate(request(1), **OPTIONS)
        engine.before = None
        engine.hold()
        task = asyncio.ensure_future(model.agenerate(request(1), **OPTIONS))
        await reached(engine.entered.is_set)
        with pytest.raises(QueueFull):
            await model.agenerate(request(1), **OPTIONS)
        closing = asyncio.ensure_future(asyncio.to_thread(model.close))
        with pytest.raises(ModelClosed):
            await task
        engine.gate.set()
        await closing
        with pytest.raises(ModelClosed):
            await model.agenerate(request(1), **OPTIONS)

    model = DiffusionModel(engine, None, max_running=1, max_waiting=0)
    asyncio.run(ask())
    settle(engine)


def test_loops_and_threads_share_a_model(model: DiffusionModel) -> None:
    """Fails if two loops, or a loop and a thread, get each other's events."""
    asked = [request(seed, 3 + seed) for seed in range(6)]
    alone = [model.generate(each, **OPTIONS).canvas.tolist() for each in asked]

    async def gather(numbers: range) -> list[Any]:
        return await asyncio.gather(*(model.agenerate(asked[number], **OPTIONS) for number in numbers))

    callers = [Caller(lambda part=part: asyncio.run(gather(part))) for part in (range(2), range(2, 4))]
    threads = [Caller(lambda number=number: model.generate(asked[number], **OPTIONS)) for number in (4, 5)]
    found = [*callers[0].result(), *callers[1].result(), *(thread.result() for thread in threads)]
    assert [each.canvas.tolist() for each in found] == alone
    until(listeners(model, 0))
