"""Which steps have a graph is known before they are sent: by the same rule as vLLM's own."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.config import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

from reprise.engine_ext.scheduling.graph_lengths import GraphLengths, graph_lengths
from reprise.spec.lengths.batch_length import LENGTHS, capture_schedule

DEFAULT_SIZES = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
"""vLLM's on most devices, from 512 tokens in a batch."""
LONGEST = 16


def vllms_graphs(
    sizes: tuple[int, ...], schedule: list[tuple[int, int, int]], seqs: int, mode: CUDAGraphMode
) -> Any:
    """vLLM's own manager, as if it had captured what it wants to."""
    made: Any = CudaGraphManager.__new__(CudaGraphManager)
    made.compilation_config = SimpleNamespace(
        cudagraph_capture_sizes=list(sizes), max_cudagraph_capture_size=max(sizes)
    )
    made.vllm_config = SimpleNamespace(
        compilation_config=made.compilation_config,
        num_speculative_tokens=LONGEST,
        speculative_config=SimpleNamespace(
            uses_dynamic_speculative_decoding=lambda: True,
            num_speculative_tokens_per_batch_size=schedule,
        ),
        cache_config=SimpleNamespace(use_kda_recoverssm=False),
    )
    made.max_num_reqs, made.cudagraph_mode = seqs, mode
    made.decode_query_len, made.varlen_decode, made.ubatch_runner = LONGEST + 1, False, None
    made.lora_capture_cases, made._lora_dispatch_map, made._max_lora_case = [0], {}, 0
    made._candidates, made._capture_descs = {}, {}
    made._init_candidates()
    made._graphs_captured = True
    return made


@pytest.mark.parametrize("mode", [CUDAGraphMode.FULL_AND_PIECEWISE, CUDAGraphMode.FULL])
@pytest.mark.parametrize(
    ("choices", "sizes", "seqs"),
    [
        (LENGTHS, DEFAULT_SIZES, 128),
        (LENGTHS, DEFAULT_SIZES, 100),
        (LENGTHS, (1, 2, 3, 12, 20, 100, 333), 64),
        ((1, 2, 4, 8, 16), DEFAULT_SIZES, 128),
    ],
    ids=["default", "100 requests", "odd sizes", "other lengths"],
)
def test_it_is_as_vllm_decides(
    mode: CUDAGraphMode, choices: tuple[int, ...], sizes: tuple[int, ...], seqs: int
) -> None:
    schedule = capture_schedule(choices, seqs, longest=LONGEST)
    theirs = vllms_graphs(sizes, schedule, seqs, mode)
    lengths = [length for _, _, length in schedule]
    ours = graph_lengths(config(mode, sizes, seqs), lengths)
    assert ours is not None
    for batch in range(1, seqs + 1):
        for length in lengths:
            tokens = batch * (length + 1)
            found = theirs.dispatch(batch, tokens, length + 1, 0).cg_mode
            assert ours.covers(batch, length) == (found == CUDAGraphMode.FULL), (batch, length)
            mixed = theirs.dispatch(batch, tokens, None, 0).cg_mode
            covers = ours.covers(batch, length, is_uniform=False)
            assert covers == (mixed == CUDAGraphMode.FULL), (batch, length)


def config(mode: CUDAGraphMode | None, sizes: tuple[int, ...], seqs: int) -> Any:
    return SimpleNamespace(
        compilation_config=SimpleNamespace(
            cudagraph_mode=mode, cudagraph_capture_sizes=list(sizes)
        ),
        scheduler_config=SimpleNamespace(max_num_seqs=seqs),
    )


def test_every_batch_has_a_graph_of_every_length_that_fits() -> None:
    """And of none, above all: without drafts no step is slower than vLLM's own."""
    lengths = [length for length in (0, *LENGTHS) if length <= LONGEST]
    ours = GraphLengths(DEFAULT_SIZES, lengths, max_num_seqs=512)
    for length in lengths:
        for batch in range(1, 512 // (length + 1) + 1):
            assert ours.covers(batch, length), (batch, length)
        assert not ours.covers(512 // (length + 1) + 1, length)


def test_lengths_that_are_no_multiples_of_each_other_leave_half_without() -> None:
    ours = GraphLengths(DEFAULT_SIZES, (0, 1, 2, 4, 8, 16), max_num_seqs=128)
    assert sum(not ours.covers(batch, 0) for batch in range(1, 129)) > 50


@pytest.mark.parametrize("mode", [None, CUDAGraphMode.NONE, CUDAGraphMode.PIECEWISE])
def test_without_full_graphs_all_lengths_are_alike(mode: CUDAGraphMode | None) -> None:
    assert graph_lengths(config(mode, DEFAULT_SIZES, 8), (1, 3)) is None
    assert graph_lengths(config(CUDAGraphMode.FULL, (), 8), (1, 3)) is None
