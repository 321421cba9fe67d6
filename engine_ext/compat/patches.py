"""What a patch of vLLM is: one row of a table, and the words it is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """The process in which a patched attribute is used."""

    API_SERVER = "API server"
    ENGINE_CORE = "engine core"
    WORKER = "worker"


class Kind(Enum):
    """How a hook is put in place of an attribute of vLLM's."""

    STEP = "step"
    """Wraps a method that vLLM runs in a step: `hook(original, *args, **kwargs)` with an `Original`
    (`guarded.py`). Where the hook raises, vLLM's own method answers."""
    WRAP = "wrap"
    """Wraps a function that runs outside of steps: `hook(original, *args, **kwargs)` with vLLM's
    own, unbound. What the hook raises reaches vLLM."""
    REPLACE = "replace"
    """Takes the place of vLLM's own: `hook(*args, **kwargs)`."""
    ADD = "add"
    """Adds a method that vLLM does not have, under a name of ours."""
    RELY = "rely"
    """Sets nothing: the feature calls it, or reads its fields, and is off where it differs."""


class Feature(Enum):
    """What belongs together: all of a feature's rows are applied in a process, or none."""

    TENANTS = "tenants of requests"
    REQUESTS = "requests by id"
    FRONT_END = "front end"
    HTTP = "HTTP middleware"
    SINGLE_FLIGHT = "single flight"
    VERIFIED_REPLAY = "verified replay"
    ONE_TOKEN_OUTPUTS = "one token per output"
    UNDRAFTED_SETTINGS = "min_p and logit_bias"
    DRAFT_PADDING = "no padding of drafts"
    FAILED_LOADS = "blocks that could not be loaded"
    STEP_EXCHANGE = "one exchange per step"
    ASYNC_SCHEDULING = "async scheduling"
    CPU_PLACEMENT = "engine core off the workers' cores"
    RUNNER = "choice of the model runner"
    SPECULATOR = "speculator of V2"
    DRAFT_SLOTS = "draft slots by request"
    DRAFT_LENGTHS = "draft lengths by batch"
    VERIFICATION = "verification"
    VERIFICATION_V2 = "verification on model runner V2"
    DRAFT_METADATA = "draft metadata in one copy"
    FULL_GRAPHS = "full CUDA graphs"
    SAMPLING_FIX = "sampling parameters of drafted rows"
    UNFINISHED_PROMPTS = "seeds of prompts that take several steps"
    BATCH_INVARIANCE = "batch invariance"
    LONE_TOKENS = "no token computed alone"
    PROMPT_RANKS = "ranks of prompt tokens"
    KV_PINS = "pinned prefixes"
    SYSTEM_PREFIX = "prefix of the system role"

    @property
    def isolates(self) -> bool:
        """Return whether it keeps tenants apart: an engine does not start without, unless its
        table leaves it out on purpose. All other features only make engines faster, and are left
        out with a warning."""
        return self in (Feature.TENANTS, Feature.REQUESTS, Feature.SPECULATOR)


@dataclass(frozen=True)
class Patch:
    """One attribute of vLLM's, and what is expected of it.

    Example:
        >>> Patch("vllm.v1.engine.core:EngineCore.step_with_batch_queue",
        ...       Feature.ASYNC_SCHEDULING, (Role.ENGINE_CORE,), parameters=("self",)).attribute
        'step_with_batch_queue'
    """

    target: str
    """`module:Class.method`, `module:function` or `module:Class`."""
    feature: Feature
    roles: tuple[Role, ...]
    """Processes in which it is applied."""
    kind: Kind = Kind.STEP
    parameters: tuple[str, ...] | None = None
    """Names of the parameters, in order; `...` at the end: others may follow. None: not checked."""
    fields: tuple[str, ...] | None = None
    """Names of a class's fields, in any order; `...` at the end: these are among them."""
    hook: str = ""
    """Name of the hook; by default that of the attribute."""
    fallback: str | None = None
    """Of `Kind.STEP`: name of the hook that is called where the first one failed before vLLM's
    own was called, if calling that is not enough."""
    per_object: bool = False
    """Applied to one engine's object at a time, by `Registry.apply_to`, not to the class."""
    optional: bool = False
    """May be absent: the row is left out then, and the feature is applied without it."""
    only_if_loaded: bool = False
    """Left out where the module is not loaded, or has no such function of vLLM's."""
    only_on: str | None = None
    """`cpu`: left out on other platforms."""

    @property
    def module(self) -> str:
        """Return the module of the target."""
        return self.target.partition(":")[0]

    @property
    def path(self) -> str:
        """Return the target inside its module: `Class.method`."""
        return self.target.partition(":")[2]

    @property
    def attribute(self) -> str:
        """Return the last name of the target."""
        return self.path.rpartition(".")[2]

    @property
    def hook_name(self) -> str:
        """Return the name of the hook."""
        return self.hook or self.attribute


@dataclass(frozen=True)
class Table:
    """All patches for one minor version of vLLM, with both of its model runners."""

    version: str
    """`0.32`: of all its patch releases."""
    patches: tuple[Patch, ...]

    def of(self, feature: Feature) -> tuple[Patch, ...]:
        """Return the rows of a feature, in the order in which they are applied."""
        return tuple(patch for patch in self.patches if patch.feature is feature)


Tables = Mapping[str, Table]
"""By minor version."""
