"""SGLang as a rollout engine: in process, in an environment of its own, or behind its server."""
