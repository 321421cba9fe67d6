"""A proposer, and as much of a model runner as it looks at."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm import SamplingParams

from reprise.engine_ext import proposer as proposer_module
from reprise.engine_ext.core.request_hints import RequestHints, attach_hints

PROMPT = [5, 6, 7, 8, 9]
SONG = [11, 12, 13, 14, 15, 16, 17, 18]  # sung again and again: what comes next is known


class World:
    """A proposer, and a model runner's rows as far as it looks at them."""

    def __init__(self, vllm_config: Any) -> None:
        self.proposer: Any = proposer_module.CacheHitProposer(vllm_config)
        self.outputs: dict[str, list[int]] = {}
        self.observed: dict[str, list[int]] = defaultdict(list)
        step = self.proposer._provider.step

        def observed_step(request_ids: Any, emitted: Any, **given: Any) -> Any:
            for request_id, tokens in zip(request_ids, emitted, strict=True):
                self.observed[request_id] += tokens
            return step(request_ids, emitted, **given)

        self.proposer._provider.step = observed_step

    def runner(self) -> Any:
        names = list(self.outputs)
        tokens = np.zeros((8, 64), np.int32)
        for row, outputs in enumerate(self.outputs.values()):
            tokens[row, : len(PROMPT) + len(outputs)] = PROMPT + outputs
        return SimpleNamespace(
            requests={
                name: SimpleNamespace(output_token_ids=outputs)
                for name, outputs in self.outputs.items()
            },
            input_batch=SimpleNamespace(
                req_ids=names,
                num_prompt_tokens=np.full(8, len(PROMPT), np.int32),
                token_ids_cpu=tokens,
                num_tokens_no_spec=np.array(
                    [len(PROMPT) + len(outputs) for outputs in self.outputs.values()]
                    + [0] * (8 - len(names)),
                    np.int32,
                ),
            ),
        )

    def step(
        self,
        *,
        new: tuple[str, ...] = (),
        finished: tuple[str, ...] = (),
        resumed: tuple[str, ...] = (),
        hints: RequestHints | None = None,
    ) -> dict[str, Any]:
        """Requests end, begin and are back from being preempted, then each emits two more tokens of
        the song."""
        params = SamplingParams(temperature=0.0, max_tokens=50)
        if hints is not None:
            attach_hints(params, hints)
        decided = SimpleNamespace(
            finished_req_ids=set(finished),
            scheduled_new_reqs=[
                SimpleNamespace(
                    req_id=name,
                    prompt_token_ids=list(PROMPT),
                    sampling_params=params,
                )
                for name in new
            ],
            scheduled_cached_reqs=SimpleNamespace(resumed_req_ids=set(resumed)),
            scheduled_spec_decode_tokens={},
            num_scheduled_tokens={},
            total_num_scheduled_tokens=1,  # a prompt is among them: its time teaches nothing
        )
        self.proposer.before_step(self.runner(), decided)
        for name in finished:
            del self.outputs[name]
        self.outputs |= {name: [] for name in new}
        emitted = []
        for outputs in self.outputs.values():
            sung = len(outputs)
            outputs += [SONG[(sung + i) % len(SONG)] for i in range(2)]
            emitted.append(outputs[-2:])
        runner = self.runner()
        self.proposer.before_propose(runner, decided)
        batch = runner.input_batch
        drafts = self.proposer.propose(emitted, batch.num_tokens_no_spec, batch.token_ids_cpu)
        return dict(zip(self.outputs, drafts, strict=True))

    @property
    def errors(self) -> dict[str, int]:
        return dict(self.proposer._errors.counts())
