"""Fixtures of the contract suites."""

from tests.nats_server import nats_server

__all__ = ["nats_server"]
