"""What vLLM's sources say of what we patch is what an import finds."""

import subprocess
import sys
from dataclasses import replace

import pytest

from reprise.engine_ext.compat import source_signatures
from reprise.engine_ext.compat.patches import Feature, Kind, Patch, Role
from reprise.engine_ext.compat.registry import registry
from reprise.engine_ext.compat.signatures import difference
from reprise.engine_ext.compat.source_signatures import UndecidedError, difference_in_source

TABLE = registry.table
assert TABLE is not None
CHECKED = [
    patch
    for patch in TABLE.patches
    if patch.kind is not Kind.ADD and not patch.only_if_loaded and not patch.optional
]


def patch(target: str, **expected: tuple[str, ...]) -> Patch:
    return Patch(target, Feature.TENANTS, (Role.WORKER,), **expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("each", CHECKED, ids=lambda each: each.target)
def test_sources_and_import_agree(each: Patch) -> None:
    assert difference_in_source(each) == difference(each)
    # What is there is named alike, too, down to the last parameter.
    if each.parameters is not None:
        each = replace(each, parameters=("no", "such", "parameters"))
        assert difference_in_source(each) == difference(each) is not None
    if each.fields is not None:
        named, found = (tell(replace(each, fields=("none",))) for tell in _BOTH)
        assert set(str(named).split()) == set(str(found).split())


_BOTH = (difference_in_source, difference)


def test_what_is_not_there_is_said_alike() -> None:
    for target in (
        "vllm.v1.core.sched.scheduler:Scheduler.no_such_method",
        "vllm.v1.core.sched.scheduler:NoSuchClass.schedule",
        "vllm.no_such_module:function",
    ):
        assert difference_in_source(patch(target)) == difference(patch(target)) is not None


def test_what_only_an_import_can_tell_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for target in ("torch:Tensor", "vllm.v1.core.sched.scheduler:logger.info"):
        with pytest.raises(UndecidedError):
            difference_in_source(patch(target))
    expected = registry.report(check=True)

    def undecided(_: Patch) -> None:
        raise UndecidedError

    monkeypatch.setattr("reprise.engine_ext.compat.registry.difference_in_source", undecided)
    assert registry.report(check=True, in_source=True) == expected


def test_reading_imports_nothing() -> None:
    code = (
        "import sys\n"
        "from reprise.engine_ext.compat import v0_32\n"
        "from reprise.engine_ext.compat.source_signatures import difference_in_source\n"
        "rows = [p for p in v0_32.TABLE.patches if p.module != '__main__']\n"
        "print(sum(difference_in_source(p) is None for p in rows), 'vllm' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    num_there, is_imported = done.stdout.split()
    assert int(num_there) > 50
    assert is_imported == "False"


def test_definitions_under_conditions_and_inherited_ones_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ast

    sources = {
        "vllm.a": (
            "from vllm.b import Base as B\nclass C(B):\n    y: int\n    K: ClassVar[int] = 1\n"
        ),
        "vllm.b": (
            "try:\n    import torch\nexcept ImportError:\n    torch = None\n"
            "if torch:\n    class Base:\n        x: int\n"
            "        def f(self, a, /, b, *c, d=1, **e): ...\n"
        ),
    }
    parsed = {module: ast.parse(source) for module, source in sources.items()}
    monkeypatch.setattr(source_signatures, "_parsed", parsed.get)
    all_of_f = ("self", "a", "b", "c", "d", "e")
    assert difference_in_source(patch("vllm.a:C.f", parameters=all_of_f)) is None
    assert difference_in_source(patch("vllm.a:C", fields=("x", "y"))) is None
    assert "has fields ('x', 'y')" in str(difference_in_source(patch("vllm.a:C", fields=("z",))))
