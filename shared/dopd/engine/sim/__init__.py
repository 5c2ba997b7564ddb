"""The emulated engine: real scheduling, real block accounting, step times from a GPU profile, tokens from a hash.

`core.py` decides (pure), `engine.py` keeps the time, `blocks.py` counts memory, `store.py` is the shared KV store.
"""
