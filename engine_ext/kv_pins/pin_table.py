"""Which prefixes are pinned: those worth most, within a bound on blocks."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

_HALF_LIFE_S = 3600.0
_MAX_KNOWN = 4096


class Origin(IntEnum):
    """Who wanted a prefix pinned; a higher one takes over from a lower one."""

    SHARED = 0
    """Enough requests have begun with it."""
    SYSTEM = 1
    """It is what a chat template makes of the `system` role."""
    REQUEST = 2
    """A request asked for it."""
    OPERATOR = 3
    """It is named in the settings, or pinned by an admin route: never given up for another's."""


@dataclass(slots=True)
class Pin:
    """A prefix that is pinned, or would be if there were room."""

    pin_id: str
    namespace: str
    origin: Origin
    block_hashes: tuple[bytes, ...]
    head_token_ids: tuple[int, ...]
    """The first few tokens, to be shown to the operator."""
    num_requests: int = 0
    weight: float = 0.0
    """Requests, those of an hour ago counted half."""
    seen_s: float = 0.0
    hit_tokens: int = 0
    is_held: bool = field(default=False)
    """Whether its blocks count as pinned."""

    def count_request(self, now_s: float) -> None:
        """Count one request that begins with the prefix."""
        self.weight = self.requests_an_hour(now_s) + 1.0
        self.seen_s = now_s
        self.num_requests += 1

    def requests_an_hour(self, now_s: float) -> float:
        """Return its value: tokens saved per block and hour, in units of a block's tokens.

        Each request that begins with the prefix is saved the tokens of each of its blocks, so the
        number of blocks cancels out.
        """
        return float(self.weight * 0.5 ** ((now_s - self.seen_s) / _HALF_LIFE_S))

    def rank(self, now_s: float) -> tuple[bool, float, int]:
        """Order pins: what is given up first is least. Of equal value, the longest."""
        is_operators = self.origin is Origin.OPERATOR
        return is_operators, self.requests_an_hour(now_s), -len(self.block_hashes)


class PinTable:
    """Decides which prefixes are pinned. Knows blocks by their hashes, and no block itself.

    Args:
        max_blocks: hashes of blocks that may be pinned at a time.
    """

    def __init__(self, max_blocks: int) -> None:
        self.max_blocks = max_blocks
        self._pins: dict[tuple[str, bytes], Pin] = {}  # by namespace and the hash of the last block
        self._depths: dict[str, Counter[int]] = {}  # by namespace: where its pins end
        self._blocks: Counter[bytes] = Counter()  # pinned, with the number of pins that have them

    def __len__(self) -> int:
        return len(self._pins)

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._blocks

    @property
    def num_blocks(self) -> int:
        """Count hashes of blocks that are pinned."""
        return len(self._blocks)

    def block_hashes(self) -> Iterator[bytes]:
        """Iterate over the hashes of blocks that are pinned."""
        return iter(self._blocks)

    def pins(self, *, held: bool = False) -> list[Pin]:
        """List all pins that are known, or those that are held."""
        return [pin for pin in self._pins.values() if pin.is_held or not held]

    def path(self, namespace: str, block_hashes: Sequence[bytes]) -> list[Pin]:
        """Return the known pins that a prompt begins with, the shortest first."""
        found = []
        for depth in sorted(self._depths.get(namespace, ())):
            if depth > len(block_hashes):
                break
            pin = self._pins.get((namespace, block_hashes[depth - 1]))
            if pin is not None:
                found.append(pin)
        return found

    def want(
        self,
        namespace: str,
        block_hashes: Sequence[bytes],
        origin: Origin,
        *,
        head_token_ids: Sequence[int] = (),
    ) -> Pin | None:
        """Make a prefix known, so that it is pinned with the next request that has it.

        Args:
            namespace: whose it is.
            block_hashes: of its blocks, from the first on; what is too long is shortened.
            origin: who wants it.
            head_token_ids: its first tokens.

        Returns:
            The pin; None: there is no block to pin.
        """
        hashes = tuple(block_hashes[: self.max_blocks])
        if not hashes:
            return None
        key = namespace, hashes[-1]
        pin = self._pins.get(key)
        if pin is None:
            pin_id = hashlib.blake2b(namespace.encode() + b"\0" + hashes[-1], digest_size=8)
            pin = Pin(pin_id.hexdigest(), namespace, origin, hashes, tuple(head_token_ids))
            self._pins[key] = pin
            self._depths.setdefault(namespace, Counter())[len(hashes)] += 1
        pin.origin = max(pin.origin, origin)
        return pin

    def note_request(self, pins: Sequence[Pin], now_s: float) -> None:
        """Count a request for the pins on its path, and pin those that there is room for."""
        for pin in pins:
            pin.count_request(now_s)
        for pin in pins:
            if not pin.is_held:
                self._hold(pin, now_s)
        if len(self._pins) > _MAX_KNOWN:
            waiting = [pin for pin in self._pins.values() if not pin.is_held]
            self._remove(min(waiting or self.pins(), key=lambda pin: pin.rank(now_s)))

    def remove(self, is_meant: Callable[[Pin], bool] = lambda _: True) -> list[Pin]:
        """Forget the pins for which `is_meant` holds, and return them."""
        gone = [pin for pin in self._pins.values() if is_meant(pin)]
        for pin in gone:
            self._remove(pin)
        return gone

    def let_go_least(self, free: Collection[bytes], now_s: float) -> bool:
        """Let go of the pin that is worth least, of those with blocks among `free`; the next
        request that begins with it takes it back.

        Returns:
            False: there is none.
        """
        able = [pin for pin in self.pins(held=True) if any(h in free for h in pin.block_hashes)]
        if not able:
            return False
        self._let_go(min(able, key=lambda pin: pin.rank(now_s)))
        return True

    def _hold(self, pin: Pin, now_s: float) -> None:
        """Pin its blocks, in place of pins that are worth less if need be."""
        while self._num_new(pin) > self.max_blocks - len(self._blocks):
            victim = min(self.pins(held=True), key=lambda each: each.rank(now_s), default=None)
            if victim is None or victim.rank(now_s) >= pin.rank(now_s):
                return
            self._let_go(victim)
        self._blocks.update(pin.block_hashes)
        pin.is_held = True

    def _num_new(self, pin: Pin) -> int:
        return sum(block_hash not in self._blocks for block_hash in pin.block_hashes)

    def _let_go(self, pin: Pin) -> None:
        pin.is_held = False
        for block_hash in pin.block_hashes:
            self._blocks[block_hash] -= 1
            if not self._blocks[block_hash]:
                del self._blocks[block_hash]

    def _remove(self, pin: Pin) -> None:
        if pin.is_held:
            self._let_go(pin)
        del self._pins[pin.namespace, pin.block_hashes[-1]]
        depths = self._depths[pin.namespace]
        depths[len(pin.block_hashes)] -= 1
        if not depths[len(pin.block_hashes)]:
            del depths[len(pin.block_hashes)]
        if not depths:
            del self._depths[pin.namespace]
