"""Prompt sets: built-in, jsonl, parquet, plain text; always ending as token ids."""
