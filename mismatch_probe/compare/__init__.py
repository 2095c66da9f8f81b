"""Two runs against each other: what changed, and whether it is more than the draw of prompts explains."""
