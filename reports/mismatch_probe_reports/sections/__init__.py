"""The parts of the report, each built from result.json alone."""
