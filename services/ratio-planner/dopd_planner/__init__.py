"""The ratio-planner: compares the wanted roles with the cluster and commands the difference until it is read back."""
