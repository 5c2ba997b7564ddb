"""`dopd up`, `down`, `status` and `clean`: the processes of one machine, started in order and watched.

Consumes a config; produces running services, and state under `.dopd/` (broker storage, logs, pids).
"""
