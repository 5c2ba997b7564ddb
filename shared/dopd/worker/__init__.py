"""The worker: takes segments of requests, drives one engine, says how it is, changes role on command.

`host.py` wires; `role.py`, `credit.py`, `health.py` and `segment.py` decide (pure); `outbox.py` sends tokens;
`process.py` is the entry of both worker services.
"""
