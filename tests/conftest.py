"""Shared by all tests: numbers of the published code, and compiled programs kept between runs."""

import sys
from pathlib import Path

import jax

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))

jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".jax_cache"))
