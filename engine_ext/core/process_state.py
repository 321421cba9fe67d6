"""Lists what changes in a process as a whole, not in one engine or request of it.

A process may hold several engines. What can be is kept by engine or by task; the rest is here, with
the reason why one value for all of them is right, or what follows where it is not.
"""

BY_ENGINE_OR_TASK = {
    "compat.model_runner._drafters": "by drafter, with its engine's config; weak",
    "engine_client.answering._current_policy": "of the task that adds a request",
    "engine_client.answering._is_admitted": "of the task that adds a request",
    "frontend.info_reporter.current_info": "of the task that generates a request",
    "request.http_context.current_http_context": "of the task that answers an HTTP request",
}

OF_THE_PROCESS = {
    "checks.start_up._checked_pids": "a process has one command line, which is checked once",
    "compat.guarded.step_errors": "counts of errors in hooks, which are of vLLM's classes",
    "compat.registry.registry": "what is patched in vLLM's classes, which a process has once",
    "instances._running": "the engines themselves; weak",
    "kv_pins.system_prefix.errors": "counts of errors in hooks, which are of vLLM's classes",
    "outputs.one_token_outputs._parsers_built": "a server is one per process",
    "request.tenants._warned": "one log line each",
    "worker.prompt_ranks._compiled_for": "what torch.compile has made, which a process has once",
}
"""Variables of modules of `engine_ext`."""

ELSEWHERE = {
    "ONEDNN_MAX_CPU_ISA, VLLM_CPU_ATTN_SPLIT_KV": "in a worker's environment, for batch invariance",
    "REPRISE_RETRIEVAL_ADDRESS": "in the environment while a front end starts its workers",
    "cores that threads may run on": "of an engine core on the CPU, away from its workers'",
    "faiss.omp_set_num_threads": "of the retrieval process",
    "sys.setswitchinterval": "of a worker on V2, whose threads share one interpreter",
    "collectors of prometheus_client": "a process has one registry of metrics",
}
"""What the operating system or another library keeps for the process."""
