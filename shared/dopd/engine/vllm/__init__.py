"""The real engine: vLLM computes, LMCache carries KV between workers.

Importing this package imports neither vLLM nor torch; `engine.VllmEngine` does so when it starts.
"""
