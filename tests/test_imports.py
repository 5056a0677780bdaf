"""Who may know whom: the model's side works without TensorFlow, the input pipeline without JAX."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

from paths import ROOT

import input_pipeline


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)


def test_the_model_needs_no_tensorflow() -> None:
    modules = (
        "lbdt_jax.models.lbdt",
        "lbdt_jax.step",
        "lbdt_jax.inference.predictor",
        "lbdt_jax.checkpoint",
        "lbdt_jax.inference.explain",
        "lbdt_jax.export",
        "lbdt_jax.predict",
        "lbdt_jax.inference.results",
        "lbdt_jax.benchmark.__main__",
        "lbdt_jax.benchmark.measure",
        "lbdt_jax.benchmark.report",
        "lbdt_jax.convert.__main__",
        "lbdt_jax.convert.initial",
        "lbdt_jax.visualization.attention",
        "lbdt_jax.visualization.video_strip",
        "lbdt_jax.metrics.paper",
        "lbdt_jax.metrics.standard",
    )
    done = run_python(
        "import sys\n"
        "sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"  # makes `import` raise ImportError
        f"import {', '.join(modules)}\n"
        "assert sys.modules['tensorflow'] is None and sys.modules['tensorflow_datasets'] is None"
    )
    assert done.returncode == 0, done.stderr


def test_the_input_pipeline_needs_no_jax() -> None:
    modules = [module.name for module in pkgutil.walk_packages(input_pipeline.__path__, "input_pipeline.")]
    assert {"input_pipeline.pipeline", "input_pipeline.readers.a2d_sentences"} <= set(modules)
    # Made unimportable, not looked for afterwards: TensorFlow itself loads JAX where it finds it.
    done = run_python(f"import sys\nsys.modules['jax'] = sys.modules['flax'] = None\nimport {', '.join(modules)}")
    assert done.returncode == 0, done.stderr
