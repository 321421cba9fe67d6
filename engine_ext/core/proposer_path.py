"""The import path that users name in vLLM's speculative config. Imports nothing."""

PROPOSER_PATH = "reprise.engine_ext.proposer.CacheHitProposer"
