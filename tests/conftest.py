"""Shared by all tests: the golden numbers' modules, devices, and a cache of compiled programs."""

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from paths import GOLDEN

sys.path.insert(0, str(GOLDEN))

# PyTorch's CUDA build brings triton, which crashes when it is imported after TensorFlow.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401

jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".jax_cache"))
# For the tests of several devices; all others run on the first of them.
jax.config.update("jax_num_cpu_devices", 8)

#: The files that take longest, longest first: taken last, one of them would keep one process busy and the other idle.
LONGEST = (
    "test_kill",  # this one and the next two among the slow tests only
    "test_processes",
    "test_page",
    "test_text_features",
    "test_main",
    "test_forward",
    "test_training",
    "test_parallel",
    "test_predict",
    "test_command",
    "test_compatibility",
    "test_export",
    "test_explain",
    "test_benchmark",
    "test_records",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture
def float64() -> Iterator[None]:
    """JAX with 64 bits, for comparisons down to rounding."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def fast_compilation() -> Iterator[None]:
    """For steps that run only a few times: compiling takes longer than computing."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def memory_given_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """Full-size programs take gigabytes; each gives them back before the next."""
    yield
    if request.node.get_closest_marker("slow"):
        jax.clear_caches()
        gc.collect()
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc would keep most of it for itself
            libc.malloc_trim(0)
