"""Run as a process of its own: one vLLM engine that does what it is told, line by line, as JSON.

What decides the model runner is decided while modules are imported, so an engine on V2 cannot be
built in the process of the tests, which has imported vLLM for V1.

The first line on standard input has the engine's settings. Each further line is a list: the name of
a function below and its keyword arguments; one line with `REPLY` and the result answers it.
"""

import json
import sys
import time
from importlib import import_module
from typing import Any

_ENDS_WITHIN_S = 60.0
_LEARNS_WITHIN_S = 200.0  # what learns may have to be compiled first


def settings_of(llm: Any) -> dict[str, Any]:
    """What vLLM made of the settings, in the worker and here."""
    config = llm.llm_engine.vllm_config
    return {
        "runners": llm.collective_rpc(_runner),
        "async": config.scheduler_config.async_scheduling,
        "method": config.speculative_config and config.speculative_config.method,
        "max_model_len": config.model_config.max_model_len,
    }


def _runner(worker: Any) -> str:
    return type(worker.model_runner).__module__


def in_workers(llm: Any, function: str, **arguments: Any) -> list[Any]:
    """What a function of `in_worker.py` returns on each worker."""
    module = import_module("reprise.tests.engine_ext.speculator.in_worker")
    replies: list[Any] = llm.collective_rpc(getattr(module, function), kwargs=arguments)
    return replies


def generate(
    llm: Any, prompts: list[list[int]], samplings: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Answer prompts, which take turns with the ways to sample."""
    params = [_params(samplings[i % len(samplings)]) for i in range(len(prompts))]
    outputs = llm.generate(
        [{"prompt_token_ids": prompt[0], **prompt[1]} for prompt in map(_with_extras, prompts)],
        params,
        use_tqdm=False,
    )
    return [_said(output.outputs[0]) for output in outputs]


def _params(sampling: dict[str, Any]) -> Any:
    """Sampling params from JSON, whose keys are text; `hints`: those of the front end."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    from reprise.engine_ext.core.request_hints import RequestHints, with_hints

    if "structured_outputs" in sampling:
        wanted = StructuredOutputsParams(**sampling["structured_outputs"])
        sampling = {**sampling, "structured_outputs": wanted}
    biases = sampling.get("logit_bias")
    if biases is not None:
        biases = {int(token): bias for token, bias in biases.items()}
    hints = sampling.get("hints")
    sampling = {key: value for key, value in sampling.items() if key != "hints"}
    params = SamplingParams(**{**sampling, "logit_bias": biases})
    return params if hints is None else with_hints(params, RequestHints(**hints))


def _with_extras(prompt: Any) -> tuple[list[int], dict[str, Any]]:
    """A prompt is its token ids, or a dictionary with them and a `cache_salt`."""
    if isinstance(prompt, dict):
        return prompt["tokens"], {"cache_salt": prompt["cache_salt"]}
    return prompt, {}


def _said(completion: Any) -> dict[str, Any]:
    return {"tokens": list(completion.token_ids), "finish": completion.finish_reason}


def generate_with_aborts(
    llm: Any, prompts: list[list[int]], sampling: dict[str, Any], every: int, run: str
) -> dict[str, list[int]]:
    """Answer prompts, of which one in three is aborted on the way; return the others' answers."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(**sampling, output_kind=RequestOutputKind.FINAL_ONLY)
    engine = llm.llm_engine
    for number, prompt in enumerate(prompts):
        engine.add_request(f"{run}-{number}", {"prompt_token_ids": prompt}, params)
    found: dict[str, list[int]] = {}
    steps = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            found[output.request_id.split("-")[1]] = list(output.outputs[0].token_ids)
        victim = 3 * (steps // every)
        if steps % every == every - 1 and victim < len(prompts):
            engine.abort_request([f"{run}-{victim}"])
        steps += 1
    return {number: tokens for number, tokens in found.items() if int(number) % 3}


def generate_as(
    llm: Any, names: list[str], prompts: list[Any], samplings: list[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Answer prompts under these request ids, which begin in this order; the answers by id."""
    engine = llm.llm_engine
    for name, prompt, sampling in zip(names, prompts, samplings, strict=True):
        tokens, extras = _with_extras(prompt)
        engine.add_request(name, {"prompt_token_ids": tokens, **extras}, _params(sampling))
    found: dict[str, dict[str, Any]] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                found[output.request_id] = _said(output.outputs[0])
    return found


def report(llm: Any) -> dict[str, Any]:
    """The first worker's figures, once all that is finished has been learned."""
    import msgspec

    deadline = time.monotonic() + _ENDS_WITHIN_S
    while llm.collective_rpc("reprise_stats")[0]["live_requests"]:
        assert time.monotonic() < deadline, "requests have not ended"
        time.sleep(0.02)
    assert all(llm.collective_rpc("reprise_flush", args=(_LEARNS_WITHIN_S,)))
    figures: dict[str, Any] = msgspec.to_builtins(llm.collective_rpc("reprise_stats")[0])
    return figures


def metrics(llm: Any) -> dict[str, float]:
    """vLLM's own counters."""
    return {each.name: each.value for each in llm.get_metrics() if hasattr(each, "value")}


def pins(llm: Any) -> dict[str, Any] | None:
    """Figures of pinned prefixes; None: the engine pins none."""
    stats: dict[str, Any] | None = llm.llm_engine.engine_core.call_utility(
        "reprise_kv_pins", "stats"
    )
    return stats


def main() -> None:
    """Build the engine and answer lines until there are no more."""
    settings = json.loads(sys.stdin.readline())
    from vllm import LLM

    llm = LLM(**settings)
    functions = (
        settings_of, generate, generate_as, generate_with_aborts, in_workers, report, metrics, pins,
    )  # fmt: skip
    known = {function.__name__: function for function in functions}
    print("REPLY null", flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print("REPLY " + json.dumps(known[name](llm, **arguments)), flush=True)
    llm.llm_engine.engine_core.shutdown(timeout=2.0)


if __name__ == "__main__":
    main()
