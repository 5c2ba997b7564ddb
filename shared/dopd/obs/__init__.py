"""What people see of a running service: logs, traces, numbers, and what the planner decided."""
