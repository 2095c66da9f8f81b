"""A rollout engine in a package of its own."""
