"""Stored answers of other weights on model runner V2, in Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reprise.eval.demo_data.demo_model import demo_tokenizer_path
from reprise.eval.demo_data.demo_trace import make_demo_trace

pytest.importorskip("vllm")

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

PROGRAM = Path(__file__).with_name("replay_program.py")
NUM_PROMPTS = 3


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Token ids of questions of the demo trace."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(demo_tokenizer_path()))
    rows = list(dict.fromkeys(row.prompt for row in make_demo_trace()))[:NUM_PROMPTS]
    return [tokenizer.encode(row).ids for row in rows]


@pytest.fixture(scope="module")
def found(
    prompts: list[list[int]], demo_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What the two models say, see `replay_program.py`."""
    from reprise.tests.engine_ext.frontend.asked_engine import other_weights
    from reprise.tests.engine_ext.speculator.conftest import environment_of_v2

    folder = tmp_path_factory.mktemp("replay")
    other = other_weights(demo_model, folder / "other")
    url = f"sqlite:///{folder}/answers.sqlite"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(demo_model), str(other), url],
        input=json.dumps(prompts),
        env={**environment_of_v2(with_reprise=True), "OMP_NUM_THREADS": "1"},
        cwd=os.fspath(folder),
        capture_output=True,
        text=True,
        timeout=1700,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("REPLY ")]
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    reply: list[dict[str, Any]] = json.loads(lines[-1].removeprefix("REPLY "))
    return reply


def test_an_answer_of_its_own_is_verified_whole(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["again"] == one["first"]
        assert one["own_verified"] == len(one["first"])


def test_of_another_models_answer_as_much_is_verified_as_it_would_say(
    found: list[dict[str, Any]],
) -> None:
    from reprise.tests.engine_ext.frontend.asked_engine import num_common

    parted = 0
    for one in found:
        assert one["FINAL_ONLY"] == one["alone"]
        assert one["DELTA"] == one["alone"]
        common = num_common(one["first"], one["alone"][0])
        assert one["verified"] == [common, common]
        parted += 0 < common < len(one["alone"][0])
        if common:
            assert one["first_piece"] >= common
    assert parted > 0, "the models say the same: the test could not fail"
