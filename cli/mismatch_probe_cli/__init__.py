"""The command line of Mismatch Probe."""
