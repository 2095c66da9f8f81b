"""The run directory: what is on disk, and how it gets there whole or not at all."""
