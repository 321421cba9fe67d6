"""Patches are applied feature by feature, whole or not at all, once, and can be taken out again."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from reprise.engine_ext.compat import v0_26, v0_32, versions
from reprise.engine_ext.compat.patches import Feature, Kind, Patch, Role, Table
from reprise.engine_ext.compat.registry import Registry, patch_names

CORE = (Role.ENGINE_CORE,)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of an engine that was never heard of."""

    class Core:
        def step(self, number: int) -> int:
            return number

        def start(self) -> str:
            return "started"

        @classmethod
        def build(cls, config: str) -> tuple[type, str]:
            return cls, config

    module = ModuleType("an_engine")
    module.Core = Core  # type: ignore[attr-defined]
    Core.__module__, Core.__qualname__ = "an_engine", "Core"
    monkeypatch.setitem(sys.modules, "an_engine", module)
    return Core


class Hooks:
    """Of all patches here."""

    @staticmethod
    def step(original: Any, *_: Any, **__: Any) -> int:
        return int(original()) + 100

    @staticmethod
    def start(original: Any, core: Any) -> str:
        return "hook, " + str(original(core))

    @staticmethod
    def build(original: Any, cls: type, config: str) -> Any:
        return original(cls, config + " with a hook")

    @staticmethod
    def added(core: Any) -> str:
        return f"added to {type(core).__name__}"


def registry_of(*patches: Patch, version: str = "0.32.1") -> Registry:
    return Registry({"0.32": Table("0.32", patches)}, version=version)


def patch(attribute: str, kind: Kind = Kind.STEP, **others: Any) -> Patch:
    given = {"feature": Feature.STEP_EXCHANGE, "roles": CORE} | others
    return Patch(f"an_engine:Core.{attribute}", kind=kind, **given)


def apply(registry: Registry, feature: Feature = Feature.STEP_EXCHANGE) -> bool:
    return registry.apply(feature, Hooks, role=Role.ENGINE_CORE)


ALL = (
    patch("step", parameters=("self", "number")),
    patch("start", Kind.WRAP, parameters=("self",)),
    patch("build", Kind.WRAP, parameters=("cls", "...")),
    patch("added", Kind.ADD),
)


def test_all_kinds_of_hooks_and_back_again(engine: Any) -> None:
    registry = registry_of(*ALL)
    before = dict(vars(engine))
    for _ in range(2):  # the second time changes nothing
        assert apply(registry)
        core = engine()
        assert core.step(number=1) == 101
        assert core.start() == "hook, started"
        assert engine.build("it") == (engine, "it with a hook")
        assert core.added() == "added to Core"
    assert registry.num_patched(Feature.STEP_EXCHANGE) == 4
    registry.revert()
    assert dict(vars(engine)) == before
    assert registry.report() == []


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (patch("start", Kind.WRAP, parameters=("self", "more")), "Core.start has parameters"),
        (patch("gone", Kind.WRAP), "Core.gone is not there"),
        (patch("gone", Kind.RELY), "Core.gone is not there"),
    ],
)
def test_what_is_not_as_expected_keeps_all_of_a_feature_out(
    engine: Any, changed: Patch, problem: str
) -> None:
    registry = registry_of(ALL[0], changed, patch("start", Kind.WRAP, feature=Feature.HTTP))
    before = vars(engine)["step"]
    assert not apply(registry)
    assert vars(engine)["step"] is before
    (status,) = registry.report()
    assert not status.is_applied
    assert problem in str(status.reason)
    # Another feature is none of that.
    assert apply(registry, Feature.HTTP)
    assert not registry.is_applied(Feature.STEP_EXCHANGE, Role.ENGINE_CORE)
    assert problem in registry.summary()


@pytest.mark.parametrize("version", ["0.31.0", "0.99.0", "1.0"])
def test_another_version_is_left_alone_in_one_line(engine: Any, version: str) -> None:
    registry = registry_of(*ALL, version=version)
    before = dict(vars(engine))
    assert not apply(registry)
    assert dict(vars(engine)) == before
    assert registry.summary() == f"this is vLLM {version}, known are 0.32; vLLM is left as it is"
    with pytest.raises(RuntimeError, match=f"this is vLLM {version}"):
        registry.apply_to(engine(), Feature.STEP_EXCHANGE, Hooks)


def test_a_process_gets_the_patches_of_its_role(engine: Any) -> None:
    registry = registry_of(ALL[0], patch("start", Kind.WRAP, roles=(Role.WORKER,)))
    before = vars(engine)["start"]
    assert apply(registry)
    assert vars(engine)["start"] is before
    assert registry.is_applied(Feature.STEP_EXCHANGE, Role.ENGINE_CORE)
    assert not registry.is_applied(Feature.STEP_EXCHANGE, Role.WORKER)


def test_features_share_a_method_and_leave_it_one_by_one(engine: Any) -> None:
    """The later one is the outer one, and its going does not take the other along."""

    class Others:
        @staticmethod
        def start(original: Any, core: Any) -> str:
            return "outer, " + str(original(core))

    registry = registry_of(ALL[1], patch("start", Kind.WRAP, feature=Feature.CPU_PLACEMENT))
    before = vars(engine)["start"]
    assert apply(registry)
    assert registry.apply(Feature.CPU_PLACEMENT, Others, role=Role.ENGINE_CORE)
    assert engine().start() == "outer, hook, started"
    assert patch_names(engine.start) == (
        Feature.STEP_EXCHANGE.value,
        Feature.CPU_PLACEMENT.value,
    )
    registry.revert(Feature.STEP_EXCHANGE)
    assert engine().start() == "outer, started"
    registry.revert(Feature.CPU_PLACEMENT)
    assert vars(engine)["start"] is before


def test_one_object_is_patched_once_and_others_are_not(engine: Any) -> None:
    registry = registry_of(patch("step", per_object=True, parameters=("self", "number")))
    assert apply(registry)
    core, another = engine(), engine()
    own = registry.apply_to(core, Feature.STEP_EXCHANGE, _OfOne())
    assert registry.apply_to(core, Feature.STEP_EXCHANGE, _OfOne()) == {}
    assert (core.step(1), another.step(1), own["step"](1)) == (11, 1, 1)
    with pytest.raises(RuntimeError, match="no patch for SimpleNamespace"):
        registry.apply_to(SimpleNamespace(), Feature.STEP_EXCHANGE, _OfOne())


class _OfOne:
    def step(self, original: Any, *_: Any) -> int:
        return int(original()) + 10


def test_a_hook_that_fails_in_a_step_is_counted_and_vllm_answers(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reprise.engine_ext.compat import guarded
    from reprise.engine_ext.core.error_counter import ErrorCounter

    monkeypatch.setattr(guarded, "step_errors", ErrorCounter())
    registry = registry_of(ALL[0])
    assert registry.apply(
        Feature.STEP_EXCHANGE,
        SimpleNamespace(step=lambda *_: 1 / 0),
        role=Role.ENGINE_CORE,
    )
    assert engine().step(7) == 7
    assert guarded.step_errors.counts() == {"Core.step": 1}


def test_a_missing_hook_is_a_mistake_of_ours(engine: Any) -> None:
    registry = registry_of(*ALL)
    before = dict(vars(engine))
    with pytest.raises(AttributeError, match="has no hook step"):
        registry.apply(Feature.STEP_EXCHANGE, object(), role=Role.ENGINE_CORE)
    assert dict(vars(engine)) == before


def test_modules_that_are_not_loaded_and_functions_of_others_are_left_out() -> None:
    rows = (
        Patch("nowhere.to_be_found:f", Feature.HTTP, CORE, Kind.WRAP, only_if_loaded=True),
        Patch("os:getcwd", Feature.HTTP, CORE, Kind.WRAP, only_if_loaded=True),
        Patch("os:nothing_like_it", Feature.HTTP, CORE, Kind.WRAP, optional=True),
        Patch("os:nothing_either", Feature.HTTP, CORE, Kind.WRAP, only_on="abacus"),
    )
    registry = registry_of(*rows)
    hooks = SimpleNamespace(f=len, getcwd=len, nothing_like_it=len, nothing_either=len)
    assert registry.apply(Feature.HTTP, hooks, role=Role.ENGINE_CORE)
    assert registry.num_patched(Feature.HTTP) == 0


def test_this_vllm_is_as_all_features_expect() -> None:
    """Every row of the installed version's table: what a change of vLLM would break."""
    registry = Registry(versions.TABLES)
    assert registry.unknown_version() is None
    assert [str(each) for each in registry.report(check=True) if each.reason] == []
    assert len(registry.report(check=True)) == len(Feature)


@pytest.mark.parametrize("table", versions.TABLES.values(), ids=versions.TABLES)
def test_a_table_names_each_target_once_per_feature_and_role(table: Table) -> None:
    rows = [
        (patch.target, patch.feature, role, patch.per_object, patch.kind is Kind.RELY)
        for patch in table.patches
        for role in patch.roles
    ]
    assert len(rows) == len(set(rows))


def test_what_a_table_leaves_out_is_not_needed() -> None:
    tables = {"0.26": v0_26.TABLE, "0.32": v0_32.TABLE}
    old, new = (Registry(tables, version=version) for version in ("0.26.1", "0.32.0"))
    assert new.is_needed(Feature.SPECULATOR)
    assert not old.is_needed(Feature.SPECULATOR)
    for feature in (Feature.TENANTS, Feature.REQUESTS):
        assert old.is_needed(feature)
        assert new.is_needed(feature)
        assert Registry(tables, version="0.99.0").is_needed(feature)
    assert not new.is_needed(Feature.FULL_GRAPHS)
