"""One Docker engine and one stack for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.compose.docker import Docker, engine
from tests.compose.stack import Stack


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    with engine(tmp_path_factory.mktemp("docker")) as found:
        yield found


@pytest.fixture(scope="session")
def stack(docker: Docker, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """Built from this checkout and up, with one container of each service."""
    stack = Stack(docker, tmp_path_factory.mktemp("stack"))
    try:
        stack.build_and_up("load", "operator")
        yield stack
    finally:
        if request.session.testsfailed:
            print(stack.compose("logs", "--no-color", "--tail=20"))
        stack.compose("down", "--volumes", "--timeout=5", "--remove-orphans")
