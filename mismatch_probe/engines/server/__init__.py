"""Rollout engines behind HTTP: vLLM's own server, and any OpenAI-compatible one that takes token ids."""
