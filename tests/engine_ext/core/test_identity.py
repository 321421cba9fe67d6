"""Which KV connectors hand requests to other engines, and how an engine must not be started."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

from reprise.engine_ext.core.identity import _HAND_OVER, hand_over, unsupported_start


def engine(connector: str | None, role: Any = "kv_both", **extra: Any) -> Any:
    config = KVTransferConfig(kv_connector=connector, kv_role=role, kv_connector_extra_config=extra)
    return SimpleNamespace(kv_transfer_config=config)


def test_without_a_connector_nothing_is_handed_over() -> None:
    assert hand_over(SimpleNamespace(kv_transfer_config=None)) is None
    assert hand_over(engine(None, None)) is None


@pytest.mark.parametrize(
    "connector",
    ["OffloadingConnector", "LMCacheMPConnector", "SimpleCPUOffloadConnector", "MyOwn"],
)
def test_what_keeps_blocks_hands_over_none(connector: str) -> None:
    assert hand_over(engine(connector)) is None
    for role in ("kv_producer", "kv_consumer"):
        assert role in str(hand_over(engine(connector, role)))


def test_connectors_of_disaggregated_prefill_do_whatever_their_role() -> None:
    for connector in _HAND_OVER:
        assert connector in str(hand_over(engine(connector)))
    known = set(KVConnectorFactory._registry)
    assert _HAND_OVER - known <= {"P2pNcclConnector"}, "vLLM has renamed one"


def test_one_of_several_is_enough() -> None:
    keeps = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}
    assert hand_over(engine("MultiConnector", connectors=[keeps, keeps])) is None
    for other in (
        {"kv_connector": "NixlConnector", "kv_role": "kv_both"},
        {"kv_connector": "MyOwn", "kv_role": "kv_producer"},
        {
            "kv_connector": "MultiConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"connectors": [{"kv_connector": "NixlConnector"}]},
        },
    ):
        assert hand_over(engine("MultiConnector", connectors=[keeps, other])) is not None


@pytest.mark.parametrize(("backend", "tp", "pp"), [("external_launcher", 2, 1), ("mp", 2, 2)])
def test_ranks_that_schedule_by_themselves_are_refused(backend: str, tp: int, pp: int) -> None:
    parallel = SimpleNamespace(
        distributed_executor_backend=backend, tensor_parallel_size=tp, pipeline_parallel_size=pp
    )
    refused = unsupported_start(SimpleNamespace(parallel_config=parallel))
    assert ("schedule each by itself" in str(refused)) == (backend == "external_launcher")
    parallel.tensor_parallel_size = parallel.pipeline_parallel_size = 1
    assert unsupported_start(SimpleNamespace(parallel_config=parallel)) is None
