"""Load and measurement: the whole cluster in one process, and what is driven against it."""
