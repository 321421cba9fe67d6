"""Verification of drafts against target logits, and draft look-up: references and kernels.

Importing this package imports nothing else: from a checkout's root the folder is visible as a
top-level `kernels`, and transformers imports a package of that name when it probes for its optional
dependencies. The public functions are `kernels.verify.verify_drafts` and
`kernels.lookup.lookup_drafts`.
"""
