"""Where drift comes from: the catalogue of causes, evidence, diagnosis, knobs."""
