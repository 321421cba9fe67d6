"""Draft tokens and verify drafts on the device: definitions in torch, and Triton kernels.

Importing this package imports nothing else: from a checkout's root the folder is visible as a
top-level `kernels`, and transformers imports a package of that name when it probes for its optional
dependencies. The public functions are `kernels.draft.draft_tokens`,
`kernels.verify.verify_drafts`, and, beside the last, `coupled.verify_coupled` and
`greedy_cpu.verify_drafts_greedy`.
"""
