"""Keys that hold what made the answer."""

from reprise.engine_ext.request.exact_hits import ExactKeys
from reprise.engine_ext.request.shared_keys import mixed

ONE = ExactKeys(b"c" * 16, b"l" * 16, b"t" * 16)
OTHER = ExactKeys(b"d" * 16, b"l" * 16, b"t" * 16)


def test_keys_and_state_both_count() -> None:
    assert mixed(ONE, "f") == mixed(ONE, "f")
    assert mixed(ONE, "f").complete != mixed(OTHER, "f").complete
    assert mixed(ONE, "f").limited == mixed(OTHER, "f").limited
    assert set(mixed(ONE, "f")).isdisjoint(mixed(ONE, "g"))
    assert set(mixed(ONE, "f")).isdisjoint(ONE)
    assert {len(key) for key in mixed(ONE, "f")} == {16}
