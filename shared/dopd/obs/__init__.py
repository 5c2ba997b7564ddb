"""What people see of a running service: logs and traces."""
