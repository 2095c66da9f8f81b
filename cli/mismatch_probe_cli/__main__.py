"""`python -m mismatch_probe_cli`."""

from mismatch_probe_cli.app import main

main()
