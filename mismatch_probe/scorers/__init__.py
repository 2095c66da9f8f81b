"""The training side: what differentiates the same tokens."""
