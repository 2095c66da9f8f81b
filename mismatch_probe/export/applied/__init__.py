"""What each framework does with the keys that were written for it, as methods of `mismatch_probe.weights`.

One module a framework. Its `methods(entries)` reads the keys and their values, not the plan they came from, and falls
back on the framework's own defaults for keys that were not written; the product of the methods' phi is the coefficient on
A * grad log pi that the framework's loss has then.
"""
