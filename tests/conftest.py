"""Set-up of all tests: import paths, JAX's devices and compilation cache, the order of the files, fixtures."""

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

#: The slowest files, slowest first. If one of them came last, one process would be busy and the other idle.
LONGEST = (
    "test_kill",  # these three with the slow tests only
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
    "test_onnx",
    "test_explain",
    "test_benchmark",
    "test_records",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the slowest files first."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture
def float64() -> Iterator[None]:
    """JAX with 64 bits, for comparisons with small tolerances."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def fast_compilation() -> Iterator[None]:
    """XLA without optimizations, for programs that run only a few times: compiling takes longer than computing."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def release_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Frees the memory of slow tests: full-size programs take gigabytes."""
    yield
    if request.node.get_closest_marker("slow"):
        jax.clear_caches()
        gc.collect()
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # otherwise glibc keeps most of it
            libc.malloc_trim(0)
