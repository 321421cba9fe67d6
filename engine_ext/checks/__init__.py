"""What can be known before an engine starts, without vLLM."""
