"""The one place that puts hooks into vLLM's classes, and says which are in place and why not.

    registry.apply(Feature.STEP_EXCHANGE, step_exchange, role=Role.ENGINE_CORE)

The version of vLLM is checked first, then all that a feature expects of it, and then all of the
feature's patches are applied, or none. What calls a hook knows nothing of the feature behind it:
hooks are looked up by name in a module or object that the top modules hand over.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

from vllm.logger import init_logger
from vllm.platforms import current_platform

from reprise.engine_ext.compat import versions
from reprise.engine_ext.compat.guarded import guarded
from reprise.engine_ext.compat.patches import Feature, Kind, Patch, Role, Table, Tables
from reprise.engine_ext.compat.signatures import difference, find
from reprise.engine_ext.compat.source_signatures import UndecidedError, difference_in_source

logger = init_logger(__name__)

_MARK = "_reprise_patches"


class Status(NamedTuple):
    """What has become of a feature in this process."""

    feature: Feature
    is_applied: bool
    reason: str | None
    """Why it is not applied; None where nothing stands against it."""

    def __str__(self) -> str:
        if self.is_applied:
            return f"{self.feature.value}: applied"
        return f"{self.feature.value}: {self.reason or 'can be applied'}"


class _Wrapped(NamedTuple):
    """One attribute with hooks around it."""

    owner: Any
    attribute: str
    own: Any
    """vLLM's: what the owner itself had; None: it inherits it, or has none."""
    hooks: tuple[tuple[Patch, Any], ...]
    """From the inmost on."""
    installed: Any


class Registry:
    """All patches of one process. Not thread-safe: vLLM loads plugins and builds engines in one.

    Args:
        tables: the known versions of vLLM.
        version: of vLLM; None: the installed one.
    """

    def __init__(self, tables: Tables, *, version: str | None = None) -> None:
        self._tables = tables
        self._version = version
        self._wrapped: dict[tuple[int, str], _Wrapped] = {}
        self._applied: dict[Feature, set[Role]] = {}
        self._problems: dict[Feature, str] = {}
        self._rows_by_class: dict[tuple[type, Feature], tuple[Patch, ...]] = {}

    @property
    def version(self) -> str:
        """Return the version of vLLM, with its patch release."""
        return versions.installed_version() if self._version is None else self._version

    @property
    def table(self) -> Table | None:
        """Return the patches for this vLLM; None: it is not a known one."""
        return self._tables.get(".".join(self.version.split(".")[:2]))

    def unknown_version(self) -> str | None:
        """Say in one line that this vLLM is not known; None: it is."""
        if self.table is not None:
            return None
        return f"this is vLLM {self.version}, known are {', '.join(self._tables)}"

    def problem(
        self, feature: Feature, role: Role | None = None, *, in_source: bool = False
    ) -> str | None:
        """Find out what keeps a feature from being applied; changes nothing.

        Args:
            feature: to be checked.
            role: of the process whose patches are checked; None: of all.
            in_source: read vLLM's sources, and import only what they leave open.
        """
        if (unknown := self.unknown_version()) is not None:
            return unknown
        assert self.table is not None
        rows = [patch for patch in self.table.of(feature) if _concerns(patch, role)]
        if not self.table.of(feature):
            return f"not for vLLM {self.table.version}"
        problem_of = _problem_in_source if in_source else _problem_of
        return next(filter(None, map(problem_of, rows)), None)

    def is_needed(self, feature: Feature) -> bool:
        """Return whether an engine with our proposer does not start without a feature here: it
        keeps tenants apart, and this vLLM's table does not do without it."""
        return feature.isolates and (self.table is None or bool(self.table.of(feature)))

    def apply(self, feature: Feature, hooks: object, *, role: Role) -> bool:
        """Put a feature's hooks in place in this process; what is in place stays as it is.

        Args:
            feature: all of whose patches for `role` are applied, or none.
            hooks: has the hooks by their names: a module, or an object.
            role: of this process.

        Returns:
            False, with the reason in `report`, where this vLLM is not as expected.

        Raises:
            AttributeError: a hook is missing.
        """
        problem = self.problem(feature, role)
        if problem is not None:
            self._problems[feature] = problem
            return False
        assert self.table is not None
        rows = [
            patch
            for patch in self.table.of(feature)
            if role in patch.roles and patch.kind is not Kind.RELY and not patch.per_object
        ]
        for patch in rows:
            _check_hooks(patch, hooks)
        for patch in rows:
            if not _is_left_out(patch):
                self._wrap(patch, hooks)
        self._problems.pop(feature, None)
        self._applied.setdefault(feature, set()).add(role)
        return True

    def apply_to(self, obj: Any, feature: Feature, hooks: object) -> dict[str, Callable[..., Any]]:
        """Put a feature's hooks in place in one object of an engine.

        Only the patches of the object's class are applied, once each.

        Returns:
            vLLM's own methods, by name, of those that now have a hook.

        Raises:
            RuntimeError: this vLLM is not as expected; nothing is changed.
        """
        rows = self._rows_for(type(obj), feature)
        for patch in rows:
            _check_hooks(patch, hooks)
        own: dict[str, Callable[..., Any]] = {}
        for patch in rows:
            if feature.value in patch_names(vars(obj).get(patch.attribute)):
                continue
            own[patch.attribute] = getattr(obj, patch.attribute)
            place = f"{type(obj).__name__}().{patch.attribute}"
            setattr(
                obj, patch.attribute, _with_hook(own[patch.attribute], patch, hooks, place=place)
            )
        self._applied.setdefault(feature, set())
        return own

    def _rows_for(self, kind: type, feature: Feature) -> tuple[Patch, ...]:
        """Return a feature's patches for objects of a class; checked once for each class."""
        rows = self._rows_by_class.get((kind, feature))
        if rows is not None:
            return rows
        if self.table is None:
            raise RuntimeError(self.unknown_version())
        classes = {f"{each.__module__}:{each.__qualname__}" for each in kind.__mro__}
        rows = tuple(
            patch
            for patch in self.table.of(feature)
            if patch.per_object and patch.target.rpartition(".")[0] in classes
        )
        if not rows:
            raise RuntimeError(f"{feature.value} has no patch for {kind.__qualname__}")
        problem = next(filter(None, map(_problem_of, rows)), None)
        if problem is not None:
            raise RuntimeError(f"{feature.value}: {problem}")
        self._rows_by_class[kind, feature] = rows
        return rows

    def is_applied(self, feature: Feature, role: Role) -> bool:
        """Return whether a feature's hooks for this role are in place."""
        return role in self._applied.get(feature, ())

    def num_patched(self, feature: Feature) -> int:
        """Count the attributes that have hooks of a feature."""
        return sum(
            any(patch.feature is feature for patch, _ in each.hooks)
            and vars(each.owner).get(each.attribute) is each.installed
            for each in self._wrapped.values()
        )

    def report(self, *, check: bool = False, in_source: bool = False) -> list[Status]:
        """List what is applied in this process, and what is not and why.

        Args:
            check: find out anew about features that are not applied, also those that nobody has
                asked for in this process; imports what they patch.
            in_source: do so by vLLM's sources, in a fraction of the time.
        """
        statuses = []
        for feature in Feature:
            if feature in self._applied:
                statuses.append(Status(feature, True, None))
            elif check:
                statuses.append(Status(feature, False, self.problem(feature, in_source=in_source)))
            elif feature in self._problems:
                statuses.append(Status(feature, False, self._problems[feature]))
        return statuses

    def states(self) -> dict[str, str]:
        """Return what `report` lists: by feature `applied`, or why it is not."""
        return {
            each.feature.value: "applied" if each.is_applied else each.reason or "not applied"
            for each in self.report()
        }

    def summary(self) -> str:
        """Say in one line what `report` lists."""
        if (unknown := self.unknown_version()) is not None:
            return f"{unknown}; vLLM is left as it is"
        report = self.report()
        applied = ", ".join(each.feature.value for each in report if each.is_applied)
        others = "; ".join(str(each) for each in report if not each.is_applied)
        return f"vLLM {self.version}; applied: {applied or 'nothing'}" + (
            f"; not applied: {others}" if others else ""
        )

    def revert(self, *features: Feature) -> None:
        """Take the hooks of these features, or of all, out of vLLM's classes."""
        gone = set(features or Feature)
        for key, each in list(self._wrapped.items()):
            if vars(each.owner).get(each.attribute) is not each.installed:
                del self._wrapped[key]  # somebody else has replaced it since
                continue
            left = tuple(pair for pair in each.hooks if pair[0].feature not in gone)
            if len(left) != len(each.hooks):
                self._put(key, each._replace(hooks=left))
        for feature in gone:
            self._applied.pop(feature, None)
            self._problems.pop(feature, None)

    def _wrap(self, patch: Patch, hooks: object) -> None:
        owner, _ = find(patch)
        key = id(owner), patch.attribute
        current = vars(owner).get(patch.attribute)
        each = self._wrapped.get(key)
        if each is None or each.installed is not current:
            each = _Wrapped(owner, patch.attribute, current, (), None)
        if any(applied is patch for applied, _ in each.hooks):
            return
        self._put(key, each._replace(hooks=(*each.hooks, (patch, hooks))))

    def _put(self, key: tuple[int, str], each: _Wrapped) -> None:
        """Set the attribute to vLLM's own with these hooks around it."""
        value = each.own
        for patch, hooks in each.hooks:
            inherited = value if value is not None else getattr(each.owner, each.attribute, None)
            value = _with_hook(inherited, patch, hooks)
        if value is None:
            delattr(each.owner, each.attribute)
        else:
            setattr(each.owner, each.attribute, value)
        if each.hooks:
            self._wrapped[key] = each._replace(installed=value)
        else:
            self._wrapped.pop(key, None)


def patch_names(function: Any) -> tuple[str, ...]:
    """Name the features that have a hook in a function, from the inmost on."""
    names: tuple[str, ...] = getattr(getattr(function, "__func__", function), _MARK, ())
    return names


def _concerns(patch: Patch, role: Role | None) -> bool:
    return role is None or role in patch.roles


def _problem_of(patch: Patch) -> str | None:
    if patch.kind is Kind.ADD or _is_left_out(patch):
        return None
    return difference(patch)


def _problem_in_source(patch: Patch) -> str | None:
    """As `_problem_of`, without importing what a patch is for, if that can be told."""
    elsewhere = patch.only_on is not None and patch.only_on != current_platform.device_type
    if patch.kind is Kind.ADD or patch.optional or patch.only_if_loaded or elsewhere:
        return None
    try:
        return difference_in_source(patch)
    except UndecidedError:
        return difference(patch)


def _is_left_out(patch: Patch) -> bool:
    """Return whether a row does not concern this process."""
    if patch.only_on is not None and patch.only_on != current_platform.device_type:
        return True
    if not (patch.optional or patch.only_if_loaded):
        return False
    _, found = find(patch)
    if patch.only_if_loaded:
        return getattr(found, "__module__", "").partition(".")[0] != "vllm"
    return found is None


def _check_hooks(patch: Patch, hooks: object) -> None:
    for name in filter(None, (patch.hook_name, patch.fallback)):
        if not callable(getattr(hooks, name, None)):
            raise AttributeError(f"{hooks!r} has no hook {name} for {patch.target}")


def _with_hook(own: Any, patch: Patch, hooks: object, *, place: str | None = None) -> Any:
    """Wrap a hook around vLLM's own function or classmethod."""
    function: Any = own.__func__ if isinstance(own, classmethod) else own
    hook: Callable[..., Any] = getattr(hooks, patch.hook_name)
    if patch.kind is Kind.STEP:
        fallback = getattr(hooks, patch.fallback) if patch.fallback is not None else None
        wrapped = guarded(function, hook, fallback=fallback, place=place or patch.path)
    elif patch.kind is Kind.WRAP:

        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return hook(function, *args, **kwargs)

    else:

        @wraps(function or hook)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return hook(*args, **kwargs)

    setattr(wrapped, _MARK, (*patch_names(function), patch.feature.value))
    return classmethod(wrapped) if isinstance(own, classmethod) else wrapped


registry = Registry(versions.TABLES)
"""This process's."""
