"""The live page: the cluster now and in the last quarter of an hour, at `/` of the gateway's operator port.

`lanes.py`, `bins.py`, `traffic.py` and `recent.py` remember (pure, bounded), `past.py` has them together, `snapshot.py`
makes the page's document of it (pure), `listeners.py` sends that to browsers, `service.py` is all of it in a gateway.
`page/` are the files of the browser.
"""

KEEP_S = 900.0
"""How far back the page looks."""
