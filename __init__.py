"""Cached answers of similar prompts, drafted for speculative decoding, verified by the model."""

__version__ = "0.1.0"
