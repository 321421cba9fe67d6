"""Blocks that could not be loaded, on vLLM's own scheduler: whatever is preempted, aborted or
shared in between, no token is emitted by a request that read what was never computed."""

import random
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import RequestStatus

from reprise.engine_ext.compat.patches import Feature, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.core.identity import PROPOSER_PATH
from reprise.engine_ext.scheduling import failed_loads
from reprise.tests.engine_ext.kv_connectors.folder_connector import Folder, Transfers, names_of
from reprise.tests.engine_ext.kv_connectors.transfer_config import transfer_config
from reprise.tests.engine_ext.kv_pins.real_scheduler import BLOCK_TOKENS, RealScheduler
from reprise.tests.engine_ext.model_runner import engine_config

PREFIX = list(range(100, 100 + 6 * BLOCK_TOKENS))
NUM_BLOCKS = 24
WRONG = 0


def prefixes_of(token_ids: Iterable[int]) -> list[int]:
    """Return a number for each token that stands for it and all before it."""
    return list(accumulate(token_ids, lambda one, other: hash((one, other)), initial=1))[1:]


class WrittenBlocks(RealScheduler):
    """A scheduler with a model that knows, for each place in a block, which tokens it holds."""

    def __init__(self, config: Any, folder: Folder) -> None:
        super().__init__(config, NUM_BLOCKS, None)
        self._folder = folder
        self._written: dict[tuple[int, int], int] = {}
        self._loading: list[Any] = []
        self.num_failed = 0
        self.wrong: list[str] = []
        """Requests that emitted a token although they had read what was never computed."""

    def store(self, token_ids: list[int]) -> None:
        """Have all full blocks of these tokens in the connector's folder."""
        for name in names_of(token_ids, BLOCK_TOKENS, None):
            self._folder.block(name).touch()

    def running(self, name: str) -> Any:
        """Return a request's place in the queue of those that run."""
        return next((each for each in self.scheduler.running if each.request_id == name), None)

    def abort(self, name: str) -> None:
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def preempt(self) -> None:
        """Have the last of those that run give way, as for lack of blocks."""
        self.scheduler._preempt_request(self.scheduler.running.pop(), 0.0)

    def _load(self, load: Any, failed: set[int]) -> None:
        request = self.scheduler.requests.get(load.request_id)
        tokens = [] if request is None else request.all_token_ids
        names = names_of(tokens, BLOCK_TOKENS, None)
        starts = {name: number * BLOCK_TOKENS for number, name in enumerate(names)}
        prefixes = prefixes_of(tokens)
        broken = len(load.names) // 2 if self._folder.take_failure() else None
        for number, (name, block) in enumerate(zip(load.names, load.block_ids, strict=True)):
            if number == broken:
                failed.add(block)
            good = number != broken and name in starts
            for place in range(BLOCK_TOKENS):
                self._written[block, place] = prefixes[starts[name] + place] if good else WRONG

    def _compute(self, step: Any) -> set[str]:
        """Write what a step computes; return the requests that read what is wrong."""
        wrong: set[str] = set()
        for name, number in step.num_scheduled_tokens.items():
            request = self.scheduler.requests[name]
            prefixes = prefixes_of(request.all_token_ids)
            (blocks,) = self.scheduler.kv_cache_manager.get_block_ids(name)
            end = min(request.num_computed_tokens, len(prefixes))
            first = request.num_computed_tokens - number
            places = [(blocks[at // BLOCK_TOKENS], at % BLOCK_TOKENS) for at in range(end)]
            good = [self._written.get(place) for place in places[:first]] == prefixes[:first]
            if not good:
                wrong.add(name)
            for at in range(first, end):
                self._written[places[at]] = prefixes[at] if good else WRONG
        return wrong

    def _take(self, step: Any) -> None:
        meta = step.kv_connector_metadata
        assert isinstance(meta, Transfers)
        failed: set[int] = set()
        received = {load.request_id for load in self._loading}
        for load in [*self._loading, *(load for load in meta.loads if not load.is_async)]:
            self._load(load, failed)
        self._loading = [load for load in meta.loads if load.is_async]
        wrong = self._compute(step)
        names = list(step.num_scheduled_tokens)
        before, sampled = {}, []
        for name in names:
            request = self.scheduler.requests[name]
            before[name] = request.num_output_tokens
            sampled.append([7] if request.num_computed_tokens >= request.num_tokens else [])
        requests = {name: self.scheduler.requests[name] for name in names}
        self.num_failed += len(failed)
        outputs = self.scheduler.update_from_output(
            step,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: index for index, name in enumerate(names)},
                sampled_token_ids=sampled,
                kv_connector_output=KVConnectorOutput(
                    finished_recving=received & set(self.scheduler.requests),
                    invalid_block_ids=failed,
                ),
            ),
        )
        for name in wrong:
            if requests[name].num_output_tokens > before[name]:
                self.wrong.append(name)
        for each in outputs.values():
            self.finished += [one.request_id for one in each.outputs if one.finished]


@pytest.fixture(scope="module")
def configs(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("store")
    return {
        drafter: engine_config(
            demo_model,
            block_size=BLOCK_TOKENS,
            max_model_len=512,
            max_num_batched_tokens=3 * BLOCK_TOKENS,
            speculative_config={
                "model": drafter,
                "method": "custom_class" if drafter == PROPOSER_PATH else "ngram",
                "num_speculative_tokens": 4,
                **({} if drafter == PROPOSER_PATH else {"prompt_lookup_max": 3}),
            },
            kv_transfer_config=transfer_config(folder),
        )
        for drafter in (PROPOSER_PATH, "ngram")
    }


@pytest.fixture(params=[PROPOSER_PATH, "ngram"], ids=["ours", "other"])
def engine(
    configs: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> WrittenBlocks:
    assert registry.apply(Feature.FAILED_LOADS, failed_loads, role=Role.ENGINE_CORE)
    config = configs[request.param]
    config.kv_transfer_config.kv_connector_extra_config["folder"] = str(tmp_path)
    return WrittenBlocks(config, Folder(tmp_path))


def is_ours(engine: WrittenBlocks) -> bool:
    return bool(engine.scheduler.vllm_config.speculative_config.model == PROPOSER_PATH)


def fail_one(engine: WrittenBlocks, *names: str) -> None:
    """Have these requests begin in one step, whose load fails."""
    engine.store(PREFIX)
    engine._folder.fail_loads(1)
    for name in names:
        engine.add(name, [*PREFIX, 5, 6], max_tokens=4)
    engine.step()
    assert engine.num_failed == 1


def test_a_preempted_request_does_not_find_its_own_failed_blocks(engine: WrittenBlocks) -> None:
    """An engine that is not ours is left as vLLM has it, and shows that this test can fail."""
    fail_one(engine, "a")
    engine._folder.fail_loads(100)  # nothing comes from there either
    engine.preempt()
    engine.run()
    assert engine.finished == ["a"]
    assert bool(engine.wrong) is not is_ours(engine)
    engine.check_pool()


def test_a_request_that_shares_failed_blocks_outlives_the_one_that_would_compute_them(
    engine: WrittenBlocks,
) -> None:
    fail_one(engine, "a", "b")
    assert engine.running("b") is not None
    engine.abort("a")
    engine.run()
    assert engine.finished == ["b"]
    assert bool(engine.wrong) is not is_ours(engine)
    engine.check_pool()


def test_no_token_comes_from_blocks_that_were_never_computed(engine: WrittenBlocks) -> None:
    """Hundreds of requests with few prefixes, on few blocks, some aborted; most loads fail."""
    chance = random.Random(4)
    prefixes = [[*PREFIX[: 16 * n], *[n] * 16, *PREFIX[16 * n :]] for n in range(5)]
    for prefix in prefixes:
        engine.store(prefix)
    for number in range(300):
        engine._folder.fail_loads(chance.choice([0, 3, 3]))
        prefix = chance.choice(prefixes)[: 16 * chance.randint(2, 7)]
        engine.add(str(number), [*prefix, number], max_tokens=chance.randint(1, 60))
        for _ in range(chance.randint(0, 4)):
            engine.step()
        if chance.random() < 0.2 and engine.scheduler.running:
            engine.abort(chance.choice(engine.scheduler.running).request_id)
    engine.run()
    assert engine.num_failed > 30
    assert engine.num_preempted > 20, "nothing had to give way: the test could not fail"
    assert bool(engine.wrong) is not is_ours(engine)
    engine.check_pool()
