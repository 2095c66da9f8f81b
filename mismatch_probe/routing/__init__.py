"""Which experts each side chose, and how far they agree. Arrays in, results out."""
