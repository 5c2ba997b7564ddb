"""DOPD: prefill and decode on different workers, in the ratio that the load asks for. See docs/architecture.md."""
