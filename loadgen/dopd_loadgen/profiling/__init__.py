"""Measures an engine's step times into a profile file, and checks an emulation by that file against the engine.

`command.py` is `dopd profile`, `check_command.py` is `dopd profile check`. Method: docs/profiles.md.
"""
