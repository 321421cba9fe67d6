"""The text of `--kv-tiers`, and that vLLM's own parser and config classes accept what becomes of
it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.kv_offload.factory import OffloadingSpecFactory
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

from reprise.engine_ext.checks.kv_tiers import parse_kv_tiers, transfer_config
from reprise.engine_ext.cli.serve_command import tier_options
from reprise.engine_ext.scheduling.disk_tier import DiskTier


@pytest.fixture
def parsed(demo_model: Path) -> Callable[..., Any]:
    """Return vLLM's `KVTransferConfig` of the command line that `reprise serve` gives to vLLM."""

    def parse(text: str, *options: str) -> Any:
        parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
        arguments = [*tier_options(parse_kv_tiers(text), options), *options]
        given = parser.parse_args(["--model", str(demo_model), *arguments])
        return EngineArgs.from_cli_args(given).kv_transfer_config

    return parse


@pytest.mark.parametrize(
    ("size", "num_bytes"),
    [("8GiB", 8 << 30), ("0.5GiB", 1 << 29), ("64MiB", 64 << 20), ("2TiB", 2 << 40)],
)
def test_host_memory(parsed: Callable[..., Any], size: str, num_bytes: int) -> None:
    config = parsed(f"cpu={size}")
    assert config.kv_connector == "OffloadingConnector"
    assert config.kv_connector_extra_config == {"cpu_bytes_to_use": num_bytes}


@pytest.mark.parametrize("text", ["cpu=8GiB", "cpu=1GiB,disk=/kv:9GiB", "lmcache=localhost:5555"])
def test_a_block_that_cannot_be_loaded_fails_no_request(
    parsed: Callable[..., Any], text: str
) -> None:
    config = parsed(text)
    assert config.kv_load_failure_policy == "recompute"
    assert config.kv_role == "kv_both"
    assert config.is_kv_transfer_instance


def test_files_behind_host_memory_are_of_our_tier(parsed: Callable[..., Any]) -> None:
    config = parsed("disk=/data/kv:100GiB, cpu=8GiB", "--revision", "v1")
    assert KVConnectorFactory.get_connector_class(config).__name__ == "OffloadingConnector"
    extra = config.kv_connector_extra_config
    assert OffloadingSpecFactory.get_spec_cls(extra).__name__ == "TieringOffloadingSpec"
    (tier,) = extra["secondary_tiers"]
    assert SecondaryTierFactory.get_tier_class(tier) is DiskTier
    given = {name: tier[name] for name in ("folder", "max_bytes", "revision")}
    assert given == {"folder": "/data/kv", "max_bytes": 100 << 30, "revision": "v1"}


def test_an_lmcache_server(parsed: Callable[..., Any]) -> None:
    config = parsed("lmcache=cache.example:6555")
    assert config.kv_connector == "LMCacheMPConnector"
    extra = {"lmcache.mp.host": "tcp://cache.example", "lmcache.mp.port": 6555}
    assert config.kv_connector_extra_config == extra
    assert config.kv_connector in KVConnectorFactory._registry


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "takes cpu=8GiB"),
        ("gpu=8GiB", "takes cpu=8GiB"),
        ("cpu", "takes cpu=8GiB"),
        ("cpu=", "takes cpu=8GiB"),
        ("cpu=1GiB,cpu=2GiB", "takes cpu=8GiB"),
        ("cpu=8", "a size is a number and MiB, GiB, TiB, got '8'"),
        ("cpu=8GB", "got '8GB'"),
        ("cpu=-1GiB", "got '-1GiB'"),
        ("cpu=0GiB", "got '0GiB'"),
        ("disk=/kv:1GiB", "add cpu=SIZE"),
        ("cpu=1GiB,disk=/kv", "disk takes PATH:SIZE"),
        ("cpu=1GiB,disk=:1GiB", "disk takes PATH:SIZE"),
        ("lmcache=here", "takes HOST:PORT"),
        ("lmcache=:5555", "takes HOST:PORT"),
        ("lmcache=here:70000", "takes HOST:PORT"),
        ("lmcache=here:1,cpu=1GiB", "name it alone"),
    ],
)
def test_other_texts_are_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="--kv-tiers") as refused:
        parse_kv_tiers(text)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "option",
    [
        *("--kv-transfer-config", "--kv_transfer_config.kv_connector", "--kv-offloading-size"),
        "--kv_offloading_backend",
    ],
)
def test_vllms_own_options_for_the_same_are_refused_beside(option: str) -> None:
    with pytest.raises(ValueError, match="give one of the two"):
        tier_options(parse_kv_tiers("cpu=1GiB"), [option, "1"])


@pytest.mark.parametrize("option", ["--weight-transfer-config", "--weight-transfer-config.backend"])
def test_weights_that_change_are_refused_beside(option: str) -> None:
    with pytest.raises(ValueError, match="weight-transfer-config"):
        tier_options(parse_kv_tiers("cpu=1GiB"), [option, "{}"])


def test_it_is_json() -> None:
    config = transfer_config(parse_kv_tiers("cpu=1GiB,disk=/kv:1GiB"), {})
    assert json.loads(json.dumps(config)) == config
