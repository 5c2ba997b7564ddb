"""The worker: takes segments of requests, drives one engine, says how it is, changes role on command.

`host.py` wires; `role.py`, `credit.py` and `segment.py` decide (pure); `outbox.py` sends tokens. One core, two entry points.
"""
