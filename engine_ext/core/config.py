"""One frozen, typed configuration for everything that runs inside vLLM.

Precedence, lowest first: `REPRISE_*` environment variables, the TOML, YAML or JSON file named by
`REPRISE_CONFIG`, `--additional-config '{"reprise": {...}}'`.
"""

import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from reprise.engine_ext.core.kv_pins_config import KvPinsConfig
from reprise.engine_ext.core.serving_config import ServingConfig
from reprise.kernels.config import VerifyConfig
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.namespace import check_namespace
from reprise.retrieval.api.tier_url import redact
from reprise.spec.api.config import DraftConfig, DraftSettings

if TYPE_CHECKING:
    from vllm.config import VllmConfig

CONFIG_FILE_VARIABLE = "REPRISE_CONFIG"

# Variables with the prefix that are no settings: hand-overs between our own processes.
CHECKED_VARIABLE = "REPRISE_CHECKED_PID"
"""Names the process that `reprise serve` has checked before it became vLLM's server."""
_RESERVED_VARIABLES = frozenset(
    {CONFIG_FILE_VARIABLE, CHECKED_VARIABLE, "REPRISE_RETRIEVAL_ADDRESS"}
)


class FeaturesConfig(BaseModel):
    """What is on; each switch wins over the settings of what it switches off."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    exact: bool = True
    """Exact hits. False: every request is generated, as by `serving.exact_hits=off`."""

    near: bool = True
    """Near answers, by meaning and by shared tokens. False: no prompt is embedded by a model or
    searched for, as by `drafts.max_near_answers=0`; drafts come from the context and the corpus."""

    clauses: bool = True
    """Near answers for the parts of a compound question. False: as by `retrieval.clauses=false`."""

    drafts: bool = True
    """Drafts. False: no token is drafted, and nothing searched for or learned to draft from; exact
    hits stay."""

    monitoring: bool = True
    """Metrics. False: none of ours at `/metrics`, and workers are not asked for their figures every
    `serving.stats_interval_s`; the health and the statistics that somebody asks for stay."""

    def overrides(self) -> Mapping[str, Mapping[str, Any]]:
        """Return by section what the settings are, whatever was set, where something is off."""
        sections: dict[str, dict[str, Any]] = {"drafts": {}, "retrieval": {}, "serving": {}}
        if not self.exact:
            sections["serving"]["exact_hits"] = "off"
        if not (self.near and self.drafts):
            sections["drafts"]["max_near_answers"] = 0
            # Answers are still stored, with an embedding that costs no model.
            sections["retrieval"]["embedding_model"] = "lexical"
        if not (self.clauses and self.near and self.drafts):
            sections["retrieval"]["clauses"] = False
        return sections


class EngineConfig(BaseModel):
    """vLLM's engine core and workers, as far as drafts are not concerned."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    runner: Literal["auto", "v1", "v2"] = "auto"
    """vLLM's model runner. `auto`: V2, with asynchronous scheduling and drafts made on the device,
    wherever vLLM would choose it for an engine without drafts, and V1 otherwise, as on the CPU.
    `v1`: V1 everywhere. `v2`: refuse to start where it cannot be V2."""

    cpu_optimizations: bool = True
    """On the CPU, speed up vLLM's engine itself, with or without drafts: asynchronous scheduling,
    one exchange between engine core and worker per step, sleeping between polls instead of a busy
    loop, the engine core off the worker's cores, and matrix kernels made before the first request.
    Without effect on a GPU."""


class RepriseConfig(BaseModel):
    """All settings of one engine.

    Example:
        >>> load_config({"drafts": {"verify_cost": 0.02}}).drafts.verify_cost
        0.02
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    namespace: Annotated[str, Field(min_length=1), AfterValidator(check_namespace)] | None = None
    """Put every request into this namespace: for a server with a single tenant. By default a
    request's namespace comes from its API key and `cache_salt`."""

    cpu_batch_invariant: bool = False
    """On the CPU, compute a token alike whatever is computed beside it, so that not even where two
    tokens nearly tie an answer depends on drafting, or on the batch: no AMX tiles, in which vLLM
    rounds by the number of tokens, and no sharing out of attention's keys among threads. Where
    there is AMX this costs speed."""

    log_format: Literal["vllm", "json"] = "vllm"
    """Our log lines. `vllm`: as vLLM's, by its handlers; `json`: one JSON object a line on standard
    output. Not by `--additional-config`, which is read too late."""

    features: FeaturesConfig = FeaturesConfig()
    """What is on."""

    drafts: DraftSettings = DraftSettings()
    """Draft construction and draft length."""

    retrieval: RetrievalConfig = RetrievalConfig()
    """Near answers: embedding, search, tiers."""

    verification: VerifyConfig = VerifyConfig()
    """Verification of drafts in one pass over the logits."""

    serving: ServingConfig = ServingConfig()
    """Exact hits, control per request, metrics."""

    engine: EngineConfig = EngineConfig()
    """What is changed in vLLM's engine itself."""

    kv_pins: KvPinsConfig = KvPinsConfig()
    """Prefixes whose KV blocks are evicted from the prefix cache last."""


class _Environment(BaseSettings):
    """`REPRISE_DRAFTS__VERIFY_COST=0.02` and the like, as nested plain values."""

    model_config = SettingsConfigDict(
        env_prefix="REPRISE_",
        env_nested_delimiter="__",
        extra="forbid",
        hide_input_in_errors=True,
    )

    namespace: str | None = None
    cpu_batch_invariant: bool | None = None
    log_format: str | None = None
    features: dict[str, Any] = {}
    drafts: dict[str, Any] = {}
    retrieval: dict[str, Any] = {}
    verification: dict[str, Any] = {}
    serving: dict[str, Any] = {}
    engine: dict[str, Any] = {}
    kv_pins: dict[str, Any] = {}


def load_config(additional: Mapping[str, Any] | None = None) -> RepriseConfig:
    """Load the configuration of this process.

    Args:
        additional: the value of `--additional-config`'s key `reprise`, highest in precedence.

    Raises:
        ValueError: one line that names the setting, what was expected and what came.
    """
    merged: dict[str, Any] = {}
    for layer in (_from_environment(), _from_file(), dict(additional or {})):
        merged = _merge(merged, layer)
    try:
        config = RepriseConfig.model_validate(merged)
        return RepriseConfig.model_validate(_merge(merged, config.features.overrides()))
    except ValidationError as error:
        raise ValueError(f"Reprise configuration: {_first_problem(error)}") from None


def engine_config(vllm_config: "VllmConfig") -> RepriseConfig:
    """Load the configuration of an engine.

    Raises:
        ValueError: as `load_config`.
    """
    config = config_with(vllm_config.additional_config)
    draft_config(config, vllm_config)
    return config


def config_with(additional_config: Any) -> RepriseConfig:
    """Load the configuration of an engine with this `--additional-config`.

    Raises:
        ValueError: as `load_config`.
    """
    ours = additional_config.get("reprise") if isinstance(additional_config, dict) else None
    if _has_admin_token(ours):
        raise ValueError(
            "Reprise configuration: serving.admin_token must come from "
            "REPRISE_SERVING__ADMIN_TOKEN or the settings file, not from --additional-config, "
            "which vLLM writes into its log"
        )
    if isinstance(ours, Mapping) and "log_format" in ours:
        raise ValueError(
            "Reprise configuration: log_format must come from REPRISE_LOG_FORMAT or the settings "
            "file, not from --additional-config, which is read after the first lines"
        )
    if ours is not None and not isinstance(ours, Mapping):
        raise ValueError(
            f"--additional-config: reprise must be an object of settings, got {type(ours).__name__}"
        )
    return load_config(ours)


def draft_config(config: RepriseConfig, vllm_config: "VllmConfig") -> DraftConfig:
    """Resolve how an engine drafts: by our settings, as long as its speculative config says.

    Raises:
        ValueError: it asks for longer drafts than there are.
    """
    num_speculative_tokens = vllm_config.speculative_config.num_speculative_tokens
    settings = {**config.drafts.model_dump(), "num_speculative_tokens": num_speculative_tokens}
    try:
        return DraftConfig.model_validate(settings)
    except ValidationError as error:
        raise ValueError(f"--speculative-config: {_first_problem(error)}") from None


def _has_admin_token(given: Any) -> bool:
    serving = given.get("serving") if isinstance(given, Mapping) else None
    return isinstance(serving, Mapping) and "admin_token" in serving


def _from_environment() -> dict[str, Any]:
    known = tuple(f"REPRISE_{name.upper()}" for name in _Environment.model_fields)
    for variable in os.environ:
        if not variable.startswith("REPRISE_") or variable in _RESERVED_VARIABLES:
            continue
        if variable.split("__", 1)[0] not in known:
            raise ValueError(
                f"Reprise configuration: unknown environment variable {variable}; expected "
                f"{CONFIG_FILE_VARIABLE} or one of {', '.join(known)}, a section followed by __ "
                f"and a setting"
            )
    try:
        return _Environment().model_dump(exclude_unset=True)
    except SettingsError as error:
        section = re.search(r'field "(\w+)"', str(error))
        variable = f"REPRISE_{section[1].upper()}" if section else "a section"
        raise ValueError(
            f"Reprise configuration: {variable} must be a JSON object of settings; a single one is "
            f"{variable}__ and its name"
        ) from None
    except ValidationError as error:
        raise ValueError(f"Reprise configuration (environment): {_first_problem(error)}") from None


_SECRETS = frozenset({"admin_token"})
"""Settings of which an error shows no value, whatever came."""
_PARSERS: dict[str, Callable[[str], Any]] = {
    ".toml": tomllib.loads,
    ".yaml": yaml.safe_load,
    ".yml": yaml.safe_load,
}


def _from_file() -> dict[str, Any]:
    name = os.environ.get(CONFIG_FILE_VARIABLE)
    if not name:
        return {}
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
        values = _PARSERS.get(path.suffix, json.loads)(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{CONFIG_FILE_VARIABLE}={name}: expected a readable TOML, YAML or JSON file: "
            f"{_unreadable(error)}"
        ) from None
    if not isinstance(values, dict):
        raise ValueError(
            f"{CONFIG_FILE_VARIABLE}={name}: expected a table of settings, "
            f"got {type(values).__name__}"
        )
    return values


def _unreadable(error: Exception) -> str:
    """Say why a file cannot be read, without what stands in it: a secret may."""
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark) is not None:
        return f"{type(error).__name__} at line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())


def _merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in layer.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "settings"
    if first["type"] == "extra_forbidden":
        return f"unknown setting {where!r}"
    if first["type"] == "value_error":  # a check of ours, which says what came
        return f"{where}: {first['msg'].removeprefix('Value error, ')}"
    value = first.get("input")
    shown = type(value).__name__ if _SECRETS & {*first["loc"]} else _shown(value)
    return f"{where}: {first['msg']}, got {shown}"


def _shown(value: object) -> str:
    """Render a value as an error may show it: without the password that a URL may hold."""
    if isinstance(value, Mapping | list):
        return type(value).__name__
    return repr(redact(value) if isinstance(value, str) and "://" in value else value)
