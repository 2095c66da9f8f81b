"""The rollout side: what samples tokens."""
