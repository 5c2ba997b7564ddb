"""Policies on the same arrivals in virtual time: contenders, their runs, and what separates them."""
