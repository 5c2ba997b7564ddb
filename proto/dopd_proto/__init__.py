"""Every message that crosses a process border, its subject and its bytes.

Consumes nothing of the project; everything else may import it.
"""
