"""The prefill worker: the one worker core, started in the prefill role."""
