"""Which answers are to be forgotten: a description that every store applies to what it holds."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Iterable, Sequence

import msgspec

from reprise.retrieval.api.answer import Answer, digest
from reprise.retrieval.api.namespace import check_namespace, is_encodable
from reprise.retrieval.host import steady_clock
from reprise.retrieval.query.turns import clip

logger = logging.getLogger(__name__)

CONDITIONS = (
    "namespace",
    "tenant",
    "answer_id",
    "prompt",
    "older_than_s",
    "model_key",
    "everything",
)
"""What `Invalidation.create` takes, by name."""

# An invalidation that arrives later than this, after an outage say, spares answers made since.
_ARRIVES_WITHIN_S = 5.0
CLOCK_SKEW_S = 2.0
"""By how much the clocks of machines may differ."""
# A last turn that is stored with the one before it has fewer than ten words.
_MAX_FIRST_LINES = 10


class Invalidation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Conditions, all of which an answer must meet; make it with `Invalidation.create`.

    It is written to the tier, where replicas read it, and so holds no prompt but its digest.

    Example:
        >>> Invalidation.create(namespace="acme", older_than_s=3600).covers("acme")
        True
    """

    invalidation_id: str
    made_s: float
    namespace: str | None = None
    tenant: str | None = None
    """This namespace and those below it, as `key-1f.salt-x` is below `key-1f`."""
    answer_id: str | None = None
    prompt_digest: bytes | None = None
    created_before_s: float | None = None
    model_key: str | None = None
    everything: bool = False
    stands_in: bool = False
    """For what is not known: for answers on their way to a tier, which has carried that out."""

    @classmethod
    def create(
        cls,
        *,
        namespace: str | None = None,
        tenant: str | None = None,
        answer_id: str | None = None,
        prompt: str | None = None,
        older_than_s: float | None = None,
        model_key: str | None = None,
        everything: bool = False,
    ) -> Invalidation:
        """Return an invalidation made now.

        Args:
            namespace: Answers of exactly this namespace.
            tenant: Answers of this namespace and of those below it.
            answer_id: The answer of this id.
            prompt: Answers to this text, as a person types it: the last user turn.
            older_than_s: Answers made so many seconds ago, or earlier; 0 for all until now.
            model_key: Answers of the model of this key.
            everything: All answers; goes with no other condition.

        Raises:
            ValueError: No condition, one that makes no sense, or `everything` and another.
        """
        conditions = (namespace, tenant, answer_id, prompt, older_than_s, model_key)
        given = [condition for condition in conditions if condition is not None]
        if everything and given:
            raise ValueError("everything goes with no other condition")
        if not everything and not given:
            raise ValueError(f"expected at least one condition of {', '.join(CONDITIONS)}")
        if namespace is not None and tenant is not None:
            raise ValueError("namespace and tenant exclude each other")
        for name, value in (("answer_id", answer_id), ("prompt", prompt), ("model_key", model_key)):
            if value is not None and not value.strip():
                raise ValueError(f"{name} must not be empty")
            if value is not None and not is_encodable(value):  # it would never leave this process
                raise ValueError(f"{name} must be text that UTF-8 can encode")
        if tenant == "":
            raise ValueError("tenant must not be empty")
        if older_than_s is not None and not 0.0 <= older_than_s < math.inf:
            raise ValueError(f"older_than_s must be seconds, 0 or more, got {older_than_s}")
        for isolated in (namespace, tenant):
            if isolated is not None:
                check_namespace(isolated)
        now_s = steady_clock.now_s()
        return cls(
            invalidation_id=uuid.uuid4().hex,
            made_s=now_s,
            namespace=namespace,
            tenant=tenant,
            answer_id=answer_id,
            prompt_digest=None if prompt is None else _prompt_digest(clip(prompt)),
            created_before_s=None if older_than_s is None else now_s - older_than_s,
            model_key=model_key,
            everything=everything,
        )

    @property
    def needs_contents(self) -> bool:
        """Whether it takes more than an answer's namespace and id to say if it is meant."""
        conditions = (self.prompt_digest, self.created_before_s, self.model_key)
        return any(condition is not None for condition in conditions)

    @property
    def names_namespaces(self) -> bool:
        """Whether it may mean all that there is of some namespaces."""
        return self.stands_in or (self.answer_id is None and not self.needs_contents)

    @property
    def needs_text(self) -> bool:
        """Whether it asks for a prompt."""
        return self.prompt_digest is not None

    def covers(self, namespace: str) -> bool:
        """Return whether answers of this namespace may be meant."""
        if self.namespace is not None:
            return namespace == self.namespace
        if self.tenant is not None:
            return namespace == self.tenant or namespace.startswith(self.tenant + ".")
        return True

    def names(self, namespace: str, answer_id: str) -> bool:
        """Return whether namespace and id meet the conditions on them."""
        return self.covers(namespace) and self.answer_id in (None, answer_id)

    def matches(self, answer: Answer, text: str | None = None) -> bool:
        """Return whether the answer meets every condition.

        `text` is its query (see `turns`), where `answer.prompt_text` is not.
        """
        if not self.names(answer.namespace, answer.answer_id):
            return False
        if self.model_key is not None and answer.model_key != self.model_key:
            return False
        if self.created_before_s is not None and answer.created_s > self.created_before_s:
            return False
        if self.prompt_digest is None:
            return True
        return self.prompt_digest in prompt_digests(answer.prompt_text if text is None else text)

    @property
    def is_late(self) -> bool:
        """Whether so much time has passed since it was made, in an outage say, that answers made
        meanwhile have to be distinguished."""
        return steady_clock.now_s() - self.made_s > _ARRIVES_WITHIN_S

    def means(self, answer: Answer, text: str | None = None) -> bool:
        """Return whether the answer is to go: it matches, and was not made long after this."""
        if self.is_late and answer.created_s > self.made_s + CLOCK_SKEW_S:
            return False
        return self.matches(answer, text)

    def moved(self, by_s: float) -> Invalidation:
        """Return it as dated by a clock that is so many seconds ahead of this process's."""
        if not by_s:
            return self
        before_s = self.created_before_s
        return msgspec.structs.replace(
            self,
            # To the millisecond: there and back it stays the same.
            made_s=round(self.made_s + by_s, 3),
            created_before_s=None if before_s is None else round(before_s + by_s, 3),
        )


class InvalidationPage(msgspec.Struct, frozen=True):
    """What a tier's log of invalidations holds beyond a position."""

    invalidations: tuple[Invalidation, ...] = ()
    position: str | None = None
    """Where to read on; None: this tier keeps no log."""
    complete: bool = True
    """False: some may have been lost from the log, or are not understood."""

    def made_since(self, since_s: float) -> InvalidationPage:
        """Return the page without those that no answer is meant by which was made since then."""
        fresh = (each for each in self.invalidations if each.made_s >= since_s - _ARRIVES_WITHIN_S)
        return InvalidationPage(tuple(fresh), self.position, self.complete)


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Invalidation)


class Forgotten(msgspec.Struct, frozen=True):
    """What a store forgot, or is to forget."""

    invalidations: tuple[Invalidation, ...] = ()
    removed: tuple[tuple[str, str], ...] = ()
    """(namespace, answer id) of answers that were removed one by one."""
    position: str | None = None
    """Of the tier's log of invalidations, once these are applied."""
    complete: bool = True
    """False: more may have been meant, so that only forgetting everything is safe."""
    is_history: bool = False
    """Whether it is all that the log held when it was first read."""


class Forgetting(msgspec.Struct, frozen=True):
    """How far an invalidation got."""

    removed: tuple[tuple[str, str], ...]
    """(namespace, answer id) that were there."""
    done: bool
    """False: the tier is out of reach; it follows once that is over."""


def encode_invalidation(invalidation: Invalidation) -> bytes:
    """Encode as `decode_invalidations` reads it."""
    return _ENCODER.encode(invalidation)


def decode_invalidations(
    encoded: Iterable[bytes], *, position: str, complete: bool, ahead_s: float = 0.0
) -> InvalidationPage:
    """Return a page of encoded invalidations; one that is not understood makes it incomplete.

    They are dated by a clock that is `ahead_s` ahead of this process's.
    """
    found = [_decode(body, ahead_s) for body in encoded]
    understood = tuple(each for each in found if each is not None)
    return InvalidationPage(understood, position, complete and len(understood) == len(found))


def decode_log(
    encoded: Sequence[bytes], *, position: str, is_trimmed: bool, ahead_s: float = 0.0
) -> InvalidationPage:
    """Return a whole log of encoded invalidations, the oldest first.

    What is not understood, and what was trimmed, may mean whatever was made before the one after
    it: so says an invalidation in its place, and the page is complete. Dates are as above.
    """
    found: list[Invalidation] = []
    next_s = steady_clock.now_s()
    for body in reversed(encoded):
        found.append(_decode(body, ahead_s) or all_until(next_s))
        next_s = found[-1].made_s
    if is_trimmed:
        found.append(all_until(next_s))
    return InvalidationPage(tuple(reversed(found)), position)


def _decode(body: bytes, ahead_s: float) -> Invalidation | None:
    """Return an encoded invalidation; None if it is not understood."""
    try:
        return _DECODER.decode(body).moved(-ahead_s)
    except msgspec.MsgspecError as error:
        logger.warning("An invalidation that is not understood counts as everything: %s", error)
        return None


def all_until(made_s: float) -> Invalidation:
    """Return an invalidation of all answers until then, in place of what is not known."""
    return Invalidation(
        invalidation_id=uuid.uuid4().hex, made_s=made_s, created_before_s=made_s, stands_in=True
    )


def prompt_digests(text: str) -> set[bytes]:
    """Return digests of the text and of its first lines: a short last turn is stored together with
    the turn before it, which begins on a new line."""
    lines = text.strip().split("\n")[:_MAX_FIRST_LINES]
    beginnings = {"\n".join(lines[: count + 1]).strip() for count in range(len(lines))}
    beginnings |= {text.strip(), clip(text)}
    return {_prompt_digest(beginning) for beginning in beginnings if beginning}


def _prompt_digest(text: str) -> bytes:
    return digest(text.encode())
