"""Verify drafts against target logits: a reference in torch, compiled code and Triton kernels.

Importing this package imports nothing else: from a checkout's root the folder is visible as a
top-level `kernels`, and transformers imports a package of that name when it probes for its optional
dependencies. The public function is `kernels.verify.verify_drafts`.
"""
