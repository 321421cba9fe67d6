"""How many of an API server's requests the cache answered, and how many it had something for."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from reprise.retrieval.api.tier_url import tier_behind

if TYPE_CHECKING:
    from reprise.engine_ext.frontend.near_answers import NearAnswers
    from reprise.engine_ext.frontend.shared_exact import SharedExact


def hit_rates(
    counts: Counter[str], *, shared: "SharedExact | None", near: "NearAnswers | None", url: str
) -> dict[str, Any]:
    """Return shares of all requests: `exact` (followers included, which `followed` is of),
    `exact_by_tier`; of searches that found something: `near`; and of generated requests with near
    answers at their first token: `semantic`, `clause`.

    Args:
        counts: Requests that were exact, followed and miss.
        shared: Exact hits from the tier; None: there are none.
        near: Near answers that are searched for here; None: there are none.
        url: Of the tier.
    """
    followed = counts["followed"]
    num_saved = counts["exact"] + followed
    total = num_saved + counts["miss"]
    rates: dict[str, Any] = {
        "exact": _share(num_saved, total),
        "followed": _share(followed, total),
        "exact_by_tier": {"memory": _share(counts["exact"], total)},
    }
    if shared is not None:
        from_tier = min(shared.stats().get("hit", 0), counts["exact"])
        rates["exact_by_tier"] = {
            "memory": _share(counts["exact"] - from_tier, total),
            tier_behind(url): _share(from_tier, total),
        }
    if near is not None:
        found = near.stats()
        rates["near"] = _share(found["found"], found["submitted"] - found["abandoned"])
        for kind in ("semantic", "clause"):
            rates[kind] = _share(near.kinds[kind], near.kinds.total())
    return rates


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
