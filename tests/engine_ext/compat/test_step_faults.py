"""Real engines in which nothing fails, and then one part of ours after another: no answer is lost
or changed.

The parts are the patches of steps; they fail in the engine core and in the worker, through a
plugin that exists for these tests only.
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import light_processes
import numpy as np
import pytest

pytest.importorskip("vllm")

from reprise.engine_ext.compat.patches import Kind
from reprise.engine_ext.compat.registry import registry
from reprise.eval.campaigns import step_campaign
from reprise.eval.campaigns.step_requests import Question
from reprise.eval.demo_data.demo_trace import make_demo_trace
from reprise.eval.live.settled_report import settled_report
from reprise.eval.replay.token_rows import load_tokenizer

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(2400)]

# The campaign runs the other one by itself: tests/eval/campaigns/test_step_campaign.py.
RUN = [step_campaign.WAYS[number] for number in (0, 2, 3)]

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
    "add_requests": "of model runner V2",
    "finish_requests": "of model runner V2",
    "_verify": "of model runner V2",
    "reset_prefix_cache": "is called by hand",
    "_handle_invalid_blocks": "is called where a KV connector has failed",
}


QUESTIONS = 90
CAMPAIGN = 150


class Asked(NamedTuple):
    """What engines are asked, and what vLLM says to it without speculation."""

    questions: list[Question]
    expected: dict[Question, step_campaign.Said]


@pytest.fixture(scope="module")
def asked(demo_model: Path) -> Asked:
    """The same for all engines here, which differ in nothing that plain vLLM is given."""
    (max_model_len,) = {way.settings["max_model_len"] for way in RUN}
    tokenizer = load_tokenizer(demo_model)
    rows = make_demo_trace(seed=0)[:60]
    texts = [tokenizer.encode(f"{row.prompt} {row.response}").tolist() for row in rows]
    texts = [text for text in texts if len(text) > 60]
    drawn = step_campaign.draw_questions(texts, max_model_len, np.random.default_rng(3), QUESTIONS)
    questions = list(dict.fromkeys(drawn))
    said = step_campaign.plain_answers(str(demo_model), RUN[0].settings, questions)
    return Asked(questions, dict(zip(questions, said, strict=True)))


class Engine:
    """An engine in which a part can be made to fail, and what it is asked."""

    def __init__(self, way: step_campaign.Way, asked: Asked, folder: Path) -> None:
        self.folder = folder
        self.fail("none", "before")
        self.way = way
        self.llm: Any = None
        self.log: Any = None
        """What its processes print."""
        self._asked = asked
        self._runs = 0
        self._campaign: step_campaign.Outcome | None = None

    def fail(self, place: str, when: str) -> None:
        """From now on, in all processes."""
        scratch = self.folder / "fault.new"
        scratch.write_text(json.dumps({"place": place, "when": when}))
        scratch.rename(self.folder / "fault.json")
        time.sleep(0.05)

    def places(self) -> set[str]:
        """The parts that have run so far."""
        return {path.name for path in self.folder.iterdir() if not path.name.startswith("fault.")}

    def complaints(self) -> list[str]:
        """Lines of the log of parts that have failed."""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").splitlines()
        return [line for line in lines if "Reprise: " in line and "failed" in line]

    def ask(self, count: int) -> step_campaign.Outcome:
        """So many requests, compared with what is expected."""
        self._runs += 1
        random = np.random.default_rng(self._runs)
        requests = step_campaign.draw_requests(self._asked.questions, random, count)
        outcome = step_campaign.Outcome()
        step_campaign.run_requests(
            self.llm, requests, self._asked.expected, random, outcome, name=f"{self._runs}"
        )
        assert not outcome.wrong, outcome.wrong[:3]
        assert not outcome.lost
        assert outcome.requests.total() == count
        return outcome

    def campaign(self) -> step_campaign.Outcome:
        """A short campaign before anything has failed, once."""
        if self._campaign is None:
            self._campaign = self.ask(CAMPAIGN)
            report = settled_report(self.llm)
            assert report["errors"] == {}
            assert report["live_requests"] == 0
            assert self.complaints() == []
        return self._campaign


@contextlib.contextmanager
def printing_to(log: Any) -> Iterator[None]:
    """Processes that are started print there for as long as they live."""
    kept = os.dup(2)
    os.dup2(log.fileno(), 2)
    try:
        yield
    except Exception as error:
        log.seek(0)
        error.add_note(log.read().decode(errors="replace")[-6000:])
        raise
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@pytest.fixture(scope="module", params=RUN, ids=["scheduled-ahead", "step-by-step", "run-ahead"])
def engine(
    request: pytest.FixtureRequest,
    demo_model: Path,
    asked: Asked,
    tmp_path_factory: pytest.TempPathFactory,
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
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        contextlib.ExitStack() as stack,
        tempfile.TemporaryFile() as log,
    ):
        from reprise.engine_ext.scheduling import async_scheduling

        monkeypatch.setenv("STEP_FAULTS", str(folder))
        for name, value in light_processes.BY_WORDS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # of the processes it starts
        monkeypatch.setattr(async_scheduling, "num_cores", lambda: 2)
        built = Engine(request.param, asked, folder)
        # Only now: no other engine's processes have it. A forked one has what this process has.
        monkeypatch.setenv("PYTHONPATH", str(plugins), prepend=":")
        monkeypatch.syspath_prepend(str(plugins))
        monkeypatch.setattr("vllm.plugins.plugins_loaded", False)
        with printing_to(log):
            built.llm = stack.enter_context(
                step_campaign.reprise_engine(str(demo_model), built.way)
            )
        built.log = log
        yield built


def test_a_short_campaign_finds_nothing(engine: Engine) -> None:
    outcome = engine.campaign()
    assert outcome.requests["abort"] > 0
    assert outcome.steps > 0
    metrics = {one.name: one.value for one in engine.llm.get_metrics() if hasattr(one, "value")}
    assert metrics["vllm:num_preemptions"] > 0
    assert settled_report(engine.llm)["provider"]["accepted"] > 100


def test_each_part_may_fail_at_every_call(engine: Engine) -> None:
    engine.campaign()  # finds out which parts there are
    places = sorted(engine.places())
    for place in places:
        for when in ("before", "after"):
            engine.fail(place, when)
            engine.ask(10)
    engine.fail("none", "before")
    outcome = engine.ask(24)
    assert outcome.steps > 0
    report = settled_report(engine.llm)
    # Those of the worker are counted there; none of its requests is left behind.
    assert set(report["errors"]) <= set(places)
    assert "GPUModelRunner.execute_model" in report["errors"]
    assert report["live_requests"] == 0
    if not engine.way.runs_ahead:  # else it prints where this process does
        assert engine.complaints(), "nothing is complained of: the campaign could not fail"


def test_all_parts_may_fail_at_once(engine: Engine) -> None:
    engine.campaign()
    for when in ("before", "after"):
        engine.fail("every", when)
        engine.ask(16)
    engine.fail("none", "before")
    engine.ask(16)


def test_no_part_is_left_out(engine: Engine) -> None:
    """Each engine runs all patches of steps, but for those of the other ways to step."""
    engine.campaign()
    ran = {place.rpartition(".")[2] for place in engine.places()}
    missing = wrapped_methods() - ran - set(NOT_IN)
    if engine.way.runs_ahead:
        # There is one process: nothing is exchanged, and nothing filled in.
        missing -= {"take_draft_token_ids"}
        assert {"add_request", "get_output"} <= ran
    if not engine.way.settings.get("async_scheduling", True):
        missing -= {"step_with_batch_queue", "update_from_output"}
    assert not missing
