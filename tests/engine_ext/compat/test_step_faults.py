"""Real engines in which one part of ours after another fails, and no answer is lost or changed.

The parts are the patches of steps; they fail in the engine core and in the worker, through a
plugin that exists for these tests only.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from reprise.engine_ext.compat.patches import Kind
from reprise.engine_ext.compat.registry import registry
from reprise.eval.campaigns import step_campaign
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.live.settled_report import settled_report
from reprise.eval.replay.token_rows import load_tokenizer

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1200)]

PLUGIN = '''
import json
import os
from pathlib import Path


class InjectedError(Exception):
    pass


def register():
    from reprise.engine_ext.compat import guarded

    if hasattr(guarded, "_run_part_of_ours"):
        return
    guarded._run_part_of_ours = run = guarded._run_part

    def failing(place, part, theirs, args, kwargs):
        """The first part of a call fails, where it is to; what stands in for it does not."""
        if "STEP_FAULTS" not in os.environ:  # another test's engine
            return run(place, part, theirs, args, kwargs)
        folder = Path(os.environ["STEP_FAULTS"])
        (folder / place).touch()
        if hasattr(theirs, "injected"):
            return run(place, part, theirs, args, kwargs)
        fault = json.loads((folder / "fault.json").read_text())
        theirs.injected = fault["place"] in (place, "every")
        if theirs.injected and fault["when"] == "before":
            raise InjectedError(place)
        result = run(place, part, theirs, args, kwargs)
        if theirs.injected:
            raise InjectedError(place)
        return result

    guarded._run_part = failing
'''


def wrapped_methods() -> set[str]:
    """Names of the methods that are patched in steps."""
    assert registry.table is not None
    return {patch.attribute for patch in registry.table.patches if patch.kind is Kind.STEP}


# Those that no step of an engine on the CPU comes by, or none of these ways.
NOT_IN = {
    "_check_and_update_cudagraph_mode": "runs while an engine starts",
    "compile_or_warm_up_model": "runs while an engine starts",
    "add_request": "tells a drafter in the engine core's process: only where steps run ahead",
    "get_output": "of outputs that come later: only where steps run ahead",
}


class Engine:
    """An engine in which a part can be made to fail, and what it is asked."""

    def __init__(self, way: step_campaign.Way, model: Path, folder: Path) -> None:
        self.folder = folder
        self.fail("none", "before")
        tokenizer = load_tokenizer(model)
        rows = make_demo_trace(seed=0)[:60]
        texts = [tokenizer.encode(f"{row.prompt} {row.response}").tolist() for row in rows]
        texts = [text for text in texts if len(text) > 60]
        random = np.random.default_rng(3)
        max_model_len = way.settings["max_model_len"]
        drawn = step_campaign.draw_questions(texts, max_model_len, random, 60)
        self.questions = list(dict.fromkeys(drawn))
        said = step_campaign.plain_answers(str(model), way.settings, self.questions)
        self.expected = dict(zip(self.questions, said, strict=True))
        self.way = way
        self.llm: Any = None
        self._runs = 0

    def fail(self, place: str, when: str) -> None:
        """From now on, in all processes."""
        scratch = self.folder / "fault.new"
        scratch.write_text(json.dumps({"place": place, "when": when}))
        scratch.rename(self.folder / "fault.json")
        time.sleep(0.05)

    def places(self) -> set[str]:
        """The parts that have run so far."""
        return {path.name for path in self.folder.iterdir() if not path.name.startswith("fault.")}

    def ask(self, count: int) -> step_campaign.Outcome:
        """So many requests, compared with what is expected."""
        self._runs += 1
        random = np.random.default_rng(self._runs)
        requests = step_campaign.draw_requests(self.questions, random, count)
        outcome = step_campaign.Outcome()
        step_campaign.run_requests(
            self.llm, requests, self.expected, random, outcome, name=f"{self._runs}"
        )
        assert not outcome.wrong, outcome.wrong[:3]
        assert not outcome.lost
        assert outcome.requests.total() == count
        return outcome


@pytest.fixture(
    scope="module", params=[0, 2, 3], ids=["scheduled-ahead", "step-by-step", "run-ahead"]
)
def engine(
    request: pytest.FixtureRequest, demo_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("faults")
    plugins = tmp_path_factory.mktemp("plugins")
    (plugins / "reprise_test_faults.py").write_text(PLUGIN)
    about = plugins / "reprise_test_faults-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: reprise-test-faults\nVersion: 1.0\n"
    )
    (about / "entry_points.txt").write_text(
        "[vllm.general_plugins]\nreprise_test_faults = reprise_test_faults:register\n"
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        from reprise.engine_ext.scheduling import async_scheduling

        monkeypatch.setenv("STEP_FAULTS", str(folder))
        monkeypatch.setattr(async_scheduling, "num_cores", lambda: 2)
        built = Engine(step_campaign.WAYS[request.param], demo_model, folder)
        # Only now: no other engine's processes have it. A forked one has what this process has.
        monkeypatch.setenv("PYTHONPATH", str(plugins), prepend=":")
        monkeypatch.syspath_prepend(str(plugins))
        monkeypatch.setattr("vllm.plugins.plugins_loaded", False)
        with step_campaign.reprise_engine(str(demo_model), built.way) as built.llm:
            yield built


def report_of(engine: Engine) -> dict[str, Any]:
    return settled_report(engine.llm)


def test_each_part_may_fail_at_every_call(engine: Engine) -> None:
    engine.ask(24)  # finds out which parts there are
    assert report_of(engine)["errors"] == {}
    places = sorted(engine.places())
    for place in places:
        for when in ("before", "after"):
            engine.fail(place, when)
            engine.ask(10)
    engine.fail("none", "before")
    outcome = engine.ask(24)
    assert outcome.steps > 0
    report = report_of(engine)
    # Those of the worker are counted there; none of its requests is left behind.
    assert set(report["errors"]) <= set(places)
    assert "GPUModelRunner.execute_model" in report["errors"]
    assert report["live_requests"] == 0


def test_all_parts_may_fail_at_once(engine: Engine) -> None:
    for when in ("before", "after"):
        engine.fail("every", when)
        engine.ask(16)
    engine.fail("none", "before")
    engine.ask(16)


def test_no_part_is_left_out(engine: Engine) -> None:
    """Each engine runs all patches of steps, but for those of the other ways to step."""
    ran = {place.rpartition(".")[2] for place in engine.places()}
    missing = wrapped_methods() - ran - set(NOT_IN)
    if engine.way.runs_ahead:
        # There is one process: nothing is exchanged, and nothing filled in.
        missing -= {"take_draft_token_ids"}
        assert {"add_request", "get_output"} <= ran
    if not engine.way.settings.get("async_scheduling", True):
        missing -= {"step_with_batch_queue", "update_from_output"}
    assert not missing
