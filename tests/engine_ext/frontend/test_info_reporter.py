"""What a client asks to know comes with the last output, and with the HTTP reply."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.sampling_params import SamplingParams

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.frontend.info_reporter import InfoReporter, current_info
from reprise.engine_ext.request import draft_counts_fetcher
from reprise.engine_ext.request.http_context import HttpRequestContext, current_http_context
from reprise.engine_ext.request.request_info import DraftCountsStore, counts_id
from reprise.spec.api.recorded_steps import RecordedRequest, RecordedStep


def reporter(errors: ErrorCounter | None = None) -> InfoReporter:
    async def ask(request_ids: Sequence[str]) -> list[Any]:
        return [{id_: {"steps": 3, "by_source": {}} for id_ in request_ids}]

    return InfoReporter(ask, errors=errors or ErrorCounter())


def test_the_client_asks_by_header_or_argument() -> None:
    one, said, silent = reporter(), {"reprise_info": "on"}, SamplingParams()
    assert not one.is_wanted(silent)
    assert one.is_wanted(SamplingParams(extra_args=said))
    token = current_http_context.set(HttpRequestContext({"x-reprise-info": "on"}, None))
    try:
        assert one.is_wanted(silent)
        assert not one.is_wanted(SamplingParams(extra_args={"reprise_info": "off"}))
    finally:
        current_http_context.reset(token)


async def test_the_last_output_carries_it_and_the_reply_is_given_it() -> None:
    errors = ErrorCounter()
    generating: list[Any] = []

    async def outputs() -> AsyncGenerator[Any, None]:
        collector = current_info.get()
        assert collector is not None
        collector.generates("r")
        for finished in (False, True):
            generating.append(current_info.get())
            yield SimpleNamespace(finished=finished)

    context = HttpRequestContext({}, None)
    token = current_http_context.set(context)
    try:
        given = [output async for output in reporter(errors).add_to(outputs())]
    finally:
        current_http_context.reset(token)
    assert not hasattr(given[0], "reprise_info")
    assert given[1].reprise_info.drafts.steps == 3
    assert context.take_info() == given[1].reprise_info.as_json().encode()
    # Only the request itself is added under it, not what its caller asks afterwards.
    assert [each is not None for each in generating] == [True, False]
    assert errors.counts() == {}


@pytest.mark.parametrize("leaves_at_last_output", [False, True])
async def test_workers_keep_nothing_of_a_request_whose_client_left(
    leaves_at_last_output: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_counts_fetcher, "_LEFT_TIMEOUT_S", 60.0)  # machines stand still
    monkeypatch.setattr(draft_counts_fetcher, "_LEFT_PAUSE_S", 0.02)
    worker, asked, errors = DraftCountsStore(), asyncio.Event(), ErrorCounter()
    nonces: list[str] = []

    async def ask(request_ids: Sequence[str]) -> list[Any]:
        asked.set()
        return [worker.take(request_ids)]

    async def outputs() -> AsyncGenerator[Any, None]:
        collector = current_info.get()
        assert collector is not None
        collector.generates("r")
        nonces.append(collector.nonce)
        while True:
            yield SimpleNamespace(finished=leaves_at_last_output, outputs=[])

    given = InfoReporter(ask, errors=errors).add_to(outputs())
    if leaves_at_last_output:
        client = asyncio.create_task(anext(given))  # type: ignore[arg-type]
        await asked.wait()
        client.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client
    else:
        await anext(given)
        await given.aclose()
    # The worker hears of it a step later.
    worker.put(counts_id(nonces[0], "r"), None, RecordedRequest([RecordedStep(1, 0)]))
    async with asyncio.timeout(60.0):
        while worker._stored:
            await asyncio.sleep(0.01)
    assert errors.counts() == {}


async def test_a_stream_without_outputs_ends() -> None:
    async def none() -> AsyncGenerator[Any, None]:
        for output in ():
            yield output

    assert [output async for output in reporter().add_to(none())] == []
    assert current_info.get() is None
