"""`dopd top`: the cluster live in a terminal.

`sight.py` folds what is heard (pure), `frame.py` draws it (pure), `command.py` listens and refreshes.
"""
