"""Serving systems as pure functions, one file each. `POLICIES` is the list."""
