"""What can be known before an engine is started: packages, models, the pair."""
