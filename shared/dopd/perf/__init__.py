"""Performance: how long a step takes and what fits, from published or measured GPU profiles. Pure."""
