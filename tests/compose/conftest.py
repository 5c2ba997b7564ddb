"""One Docker engine and one stack for all tests of this folder."""

import time
from collections.abc import Iterator

import pytest

from tests.compose.docker import Docker, engine
from tests.compose.stack import UP_S, Stack


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    with engine(tmp_path_factory.mktemp("docker")) as found:
        yield found


@pytest.fixture(scope="session")
def stack(docker: Docker, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """Built from this checkout and up, with one container of each service."""
    stack = Stack(docker, tmp_path_factory.mktemp("stack"))
    try:
        began_s = time.monotonic()
        stack.compose("--profile=load", "--profile=operator", "build", "-q", timeout_s=900.0)
        built_s = time.monotonic()
        stack.compose("up", "-d", "--wait", timeout_s=UP_S)
        print(f"\nimages built in {built_s - began_s:.1f} s, up and healthy {time.monotonic() - built_s:.1f} s later")
        yield stack
    finally:
        if request.session.testsfailed:
            print(stack.compose("logs", "--no-color", "--tail=20"))
        stack.compose("down", "--volumes", "--timeout=5", "--remove-orphans")
