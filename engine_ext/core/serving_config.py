"""The one configuration of the front end."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr


def check_admin_token(token: str) -> str:
    """Return a token as it is, if a header can carry it to all servers and from all clients alike.

    Raises:
        ValueError: it cannot; the token is not shown.
    """
    if not (token.isascii() and token.isprintable() and token == token.strip()):
        raise ValueError(
            "the admin token must be printable ASCII without blanks at its ends (nor a line's end, "
            "as of a file's)"
        )
    return token


def _off(given: Any) -> Any:
    """Return the word that YAML reads as False."""
    return "off" if given is False else given


def _checked(token: SecretStr) -> SecretStr:
    check_admin_token(token.get_secret_value())
    return token


class ServingConfig(BaseModel):
    """Exact hits, control per request, metrics and admin routes of one API server process."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    enabled: bool = True
    """False leaves vLLM's front end alone: drafts stay, everything in this section goes."""

    exact_hits: Annotated[Literal["off", "deterministic", "always"], BeforeValidator(_off)] = (
        "deterministic"
    )
    """`deterministic`: a repeated request is answered from the cache where its settings determine
    the answer (temperature 0, or a seed). `always`: sampled requests without a seed as well, which
    then get one and the same sample each time. `off`: every request is generated."""

    exact_hits_from_others: Annotated[
        Literal["off", "verified", "trusted"], BeforeValidator(_off)
    ] = "verified"
    """Where the section `retrieval` names a tier, answers for exact hits are kept there too: they
    outlive a restart, and other servers find them. `verified`: greedy ones are repeated as far as
    the model agrees with them, which takes one prefill, and generated from there. `trusted`: also,
    servers with the same fingerprint repeat them unseen, and those of seeded requests; whoever may
    write to the tier decides what they say. `off`: each process repeats what it has generated."""

    exact_budget_s: Annotated[float, Field(gt=0, le=1.0)] = 0.005
    """Seconds that a request waits for the tier to give an exact hit; then it is generated."""

    single_flight_lease_s: Annotated[float, Field(gt=0, le=600.0)] | None = None
    """Seconds that a request waits for another server on the same Redis that generates the same
    answer, where exact hits are kept there; afterwards it is generated. None: servers do not wait
    for each other."""

    exact_memory_bytes: Annotated[int, Field(ge=1 << 16)] = 256 << 20
    """Bound on the answers kept for exact hits, per API server process."""

    ttl_s: Annotated[float, Field(gt=0)] | None = None
    """Age in seconds from which an answer is no exact hit any more; None: that of the section
    `retrieval`, which holds here too where it is shorter."""

    replay_chunk_tokens: Annotated[int, Field(ge=1, le=4096)] = 16
    """Tokens in one streamed piece of an exact hit."""

    client_namespaces: bool = False
    """Whether a namespace that a client names is honoured. Otherwise it is ignored, unless it
    makes no sense (400), and the namespace comes from the request's API key and `cache_salt`."""

    admin_token: Annotated[SecretStr, Field(min_length=1), AfterValidator(_checked)] | None = None
    """Opens the admin routes to whoever sends it as `x-reprise-admin-token`. Without it they are
    open to callers on the same machine where the server has no API keys, else to nobody. Not by
    `--additional-config`, which vLLM writes into its log."""

    stats_interval_s: Annotated[float, Field(gt=0)] = 5.0
    """How often the workers' figures are fetched for the metrics, while there is traffic."""
