"""Training dumps of other frameworks, read into ordinary runs."""
