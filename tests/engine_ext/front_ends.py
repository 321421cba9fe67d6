"""What stands around a front end in tests: an engine's config, requests, and a client of it."""

from types import SimpleNamespace
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import RequestOutputCollector

from reprise.engine_ext.frontend.front_end import FrontEnd
from reprise.engine_ext.request.request_control import RequestControl
from reprise.engine_ext.request.request_policy import RequestPolicy


def vllm_config(**changes: Any) -> Any:
    """As much of vLLM's config as a front end reads, of an engine on model runner V1."""
    model = SimpleNamespace(
        model="m",
        served_model_name="m",
        revision=None,
        quantization=None,
        dtype="d",
        tokenizer="m",
        tokenizer_revision="",
        tokenizer_mode="auto",
        max_model_len=100,
        get_vocab_size=lambda: 1000,
    )
    fields: dict[str, Any] = {
        "model_config": model,
        "kv_transfer_config": None,
        "weight_transfer_config": None,
        "use_v2_model_runner": False,
        "cache_config": SimpleNamespace(),
        "scheduler_config": SimpleNamespace(max_num_batched_tokens=64),
    }
    return SimpleNamespace(**fields | changes)


def wait_longer(front_end: FrontEnd) -> None:
    """Have a front end wait for its tier for longer than a server may, or a request would: the
    machine that tests run on stands still for seconds."""
    if (shared := front_end.exact.shared) is not None:
        shared._budget_s = 60.0


def core_request(
    name: str, params: SamplingParams, prompt: tuple[int, ...] = (1, 2, 3), **fields: Any
) -> EngineCoreRequest:
    """A request as it reaches the engine's client; `fields` beside or in place of those here."""
    given: dict[str, Any] = {
        "request_id": name,
        "external_req_id": name,
        "prompt_token_ids": list(prompt),
        "mm_features": None,
        "sampling_params": params,
        "pooling_params": None,
        "arrival_time": 0.0,
        "lora_request": None,
        "cache_salt": None,
        "data_parallel_rank": None,
    }
    return EngineCoreRequest(**given | fields)


class Client:
    """Sends requests to a front end and plays the engine behind it."""

    def __init__(self, front_end: FrontEnd, namespace: str = "") -> None:
        self.front_end = front_end
        self.reason: FinishReason | None = None
        """Why the last answer ended."""
        self._policy = RequestPolicy(RequestControl(), namespace)
        self._count = 0

    def ask(
        self,
        *,
        policy: RequestPolicy | None = None,
        emits: tuple[int, ...] = (5, 6, 7),
        reason: FinishReason = FinishReason.STOP,
        lora: LoRARequest | None = None,
        prompt: tuple[int, ...] = (1, 2, 3),
        **params: Any,
    ) -> tuple[str, list[int]]:
        """`exact` or `miss`, and the tokens that came back."""
        self._count += 1
        request_id = f"r{self._count}"
        sampling = SamplingParams(
            output_kind=RequestOutputKind.FINAL_ONLY,
            detokenize=False,
            **{"temperature": 0, "max_tokens": 10, **params},
        )
        request = core_request(request_id, sampling, prompt, lora_request=lora)
        queue = RequestOutputCollector(RequestOutputKind.FINAL_ONLY, request_id)
        hit = self.look_up(request, queue, policy or self._policy)
        processor = self.front_end._processor
        if not hit:
            processor.add_request(request, None, None, 0, queue)
            output = EngineCoreOutput(
                request_id=request_id, new_token_ids=list(emits), finish_reason=reason
            )
            processor.process_outputs([output], None, None, "default")
        given = queue.get_nowait()
        assert given is not None
        assert not isinstance(given, Exception)
        ended = given.outputs[0].finish_reason
        self.reason = next((each for each in FinishReason if str(each) == ended), None)
        return "exact" if hit else "miss", list(given.outputs[0].token_ids)

    def look_up(
        self, request: EngineCoreRequest, queue: RequestOutputCollector, policy: RequestPolicy
    ) -> bool:
        """Whether the front end answers a request."""
        return self.front_end.answer(request, None, queue, policy)
