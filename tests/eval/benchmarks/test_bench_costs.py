"""The benchmark of measured costs: its machines, and that measuring works on a quiet one."""

import statistics

import numpy as np
import pytest

from reprise.eval.benchmarks.bench_costs import DISTURBANCES, MAX_DRAFT_TOKENS, STEP_S, serve
from reprise.spec import DraftConfig, DraftProvider


@pytest.mark.parametrize("name", DISTURBANCES)
def test_disturbed_steps_take_longer_and_quiet_ones_as_long(name: str) -> None:
    step_s = DISTURBANCES[name](np.random.default_rng(0))
    next(step_s)
    taken = [step_s.send(STEP_S) for _ in range(3000)]
    slower = statistics.mean(taken) / STEP_S
    assert slower == pytest.approx(1.0, abs=0.01) if name == "quiet" else 1.3 < slower < 2.5


def test_measured_costs_are_nearly_as_good_as_given_ones() -> None:
    config = DraftConfig(num_speculative_tokens=MAX_DRAFT_TOKENS, num_threads=1)
    given = config.model_copy(update={"verify_cost": 0.04})
    DraftProvider(given).warm_up()
    told = serve(DraftProvider(given), 8, 0.04, DISTURBANCES["quiet"], 0)
    measured = serve(DraftProvider(config), 8, 0.04, DISTURBANCES["quiet"], 0)
    assert measured > 0.8 * told
