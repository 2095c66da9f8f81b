"""Many workers on one run: a crew that shares a stage's parts, Ray actors that hold engines, shards without Ray."""
