"""`dopd top`: the cluster live in a terminal.

`listen.py` hears, `sight.py` folds it (pure), `frame.py` draws it (pure), `command.py` refreshes. The gateway's live
page hears and folds in the same way.
"""
