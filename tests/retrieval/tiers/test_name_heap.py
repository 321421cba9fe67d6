"""The heap of names, against a dictionary that is searched."""

from hypothesis import given
from hypothesis import strategies as st

from reprise.retrieval.tiers.name_heap import NameHeap

NAMES = st.sampled_from("abcdefghijklmnop")
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["set", "set", "discard"]), NAMES, st.integers(-8, 8)), max_size=200
)


@given(operations=OPERATIONS, but=NAMES)
def test_the_lowest_is_at_hand_whatever_was_set_and_removed(operations, but):
    heap, model = NameHeap(), {}
    for operation, name, number in operations:
        if operation == "set":
            heap.set(name, number)
            model[name] = number
        else:
            heap.discard(name)
            model.pop(name, None)
        assert len(heap) == len(model)
        lowest = heap.lowest()
        assert (lowest is None) == (not model)
        assert lowest is None or heap.get(lowest) == min(model.values())
        others = {key: value for key, value in model.items() if key != but}
        other = heap.lowest(but=but)
        assert (other is None) == (not others)
        assert other is None or (other != but and model[other] == min(others.values()))
    heap.clear()
    assert (len(heap), heap.lowest(), heap.get("a")) == (0, None, None)
