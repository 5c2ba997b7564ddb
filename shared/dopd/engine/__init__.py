"""The engine: the thing that computes tokens. One contract (`contract.py`), two engines (`sim/`, `vllm/`)."""
