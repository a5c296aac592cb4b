"""Which tests run where, and memory that shows every value left unwritten."""

import os

import pytest
import torch

from hyperfast import backends


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also the long tests, and the full form of others")


def pytest_collection_modifyitems(config, items):
    """Interpreter tests run in a process of their own (Triton reads its variable at import), and alone there."""

    def wanted(item) -> bool:
        if bool(item.get_closest_marker("interpreter")) != backends.INTERPRETING:
            return False
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            return False
        return config.getoption("--long") or not item.get_closest_marker("long")

    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = [item for item in items if wanted(item)]


@pytest.fixture
def long_run(request) -> bool:
    return request.config.getoption("--long")


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan():
    """Row 12: torch.empty* gives NaN (integers: their maximum), so that a value left unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", "build/hypothesis")
