"""What is patched in vLLM 0.32 to verify drafts on its model runner V2."""

from reprise.engine_ext.compat.patches import Feature, Kind, Patch, Role

_WORKER = (Role.WORKER,)
_SAMPLE = "vllm.v1.worker.gpu.sample"
_FEATURE = Feature.VERIFICATION_V2

PATCHES = (
    Patch(
        "vllm.v1.worker.gpu.spec_decode.rejection_sampler:RejectionSampler.__init__",
        _FEATURE,
        _WORKER,
        Kind.WRAP,
        parameters=("self", "sampler", "spec_config", "..."),
        hook="init_sampler",
    ),
    Patch(
        "vllm.v1.worker.gpu.spec_decode.rejection_sampler:RejectionSampler._verify",
        _FEATURE,
        _WORKER,
        parameters=(
            "self", "logits", "draft_logits", "draft_sampled", "pos", "cu_num_logits",
            "idx_mapping", "idx_mapping_np", "expanded_idx_mapping", "expanded_local_pos",
            "seq_lens_upper_bound_np", "verify_draft_sampled",
        ),
        hook="verify",
        fallback="verify_by_vllm",
    ),
    Patch(
        f"{_SAMPLE}.sampler:Sampler.apply_sampling_params",
        _FEATURE,
        _WORKER,
        Kind.RELY,
        parameters=(
            "self", "logits", "expanded_idx_mapping", "idx_mapping", "idx_mapping_np", "pos",
            "input_ids", "expanded_local_pos", "seq_lens_upper_bound_np", "skip_top_k_top_p",
        ),
    ),
    # What can change logits, in which order: another one might be left out here.
    Patch(
        f"{_SAMPLE}.sampler:Sampler.add_request",
        _FEATURE,
        _WORKER,
        Kind.RELY,
        parameters=("self", "req_idx", "sampling_params"),
    ),
    # Its noise is what ours is compared with before the first batch.
    Patch(
        f"{_SAMPLE}.gumbel:gumbel_sample",
        _FEATURE,
        _WORKER,
        Kind.RELY,
        parameters=(
            "logits", "expanded_idx_mapping", "temperature", "seed", "pos", "apply_temperature",
            "is_drafting", "...",
        ),
    ),
)  # fmt: skip
