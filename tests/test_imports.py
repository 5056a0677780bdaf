"""Imports: no circles, one direction, the model works without TensorFlow and the input pipeline without JAX.

Also: no processor is mentioned in lbdt_jax/models, and everything public has a docstring.
"""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

import input_pipeline

PACKAGES = ("configs", "input_pipeline", "lbdt_jax")
FILES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

#: Package -> what its modules may import of GUARDED.
ALLOWED = {
    "configs": {"configs"},
    "input_pipeline": {"input_pipeline", "tensorflow", "tensorflow_datasets"},
    "lbdt_jax/models": {"lbdt_jax.models", "lbdt_jax.ops", "jax", "flax"},
}
#: Our packages and the large libraries.
GUARDED = (*PACKAGES, "jax", "flax", "tensorflow", "tensorflow_datasets")


def module_name(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def parse(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def module_level(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes outside of functions; those under `if TYPE_CHECKING` are among them."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if not isinstance(node, FUNCTIONS):
            yield from module_level(node)


def imports(file: Path, nodes: Iterator[ast.AST]) -> set[str]:
    """The modules that are imported, by their full names."""
    imported = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{file}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            # `from package import module` is an import of the module.
            imported.update(name if name in MODULES else node.module for name in names)
    return imported


def test_no_two_modules_import_each_other() -> None:
    graph = {name: imports(file, module_level(parse(file))) & MODULES.keys() for name, file in MODULES.items()}
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in finished:
            for imported in sorted(graph[name]):
                visit(imported, (*path, name))
            finished.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_in_one_direction(package: str) -> None:
    def inside(name: str, packages: set[str] | tuple[str, ...]) -> bool:
        return any(f"{name}.".startswith(f"{package}.") for package in packages)

    wrong = [
        f"{file} imports {name}"
        for file in FILES
        if file.is_relative_to(package)
        # Imports inside functions too.
        for name in sorted(imports(file, ast.walk(parse(file))))
        if inside(name, GUARDED) and not inside(name, ALLOWED[package])
    ]
    assert not wrong, "\n".join(wrong)


def test_the_model_does_not_mention_a_processor() -> None:
    files = [file for file in FILES if file.is_relative_to("lbdt_jax/models")]
    assert len(files) > 5
    mentions = [
        f"{file}:{line_number}: {line.strip()}"
        for file in files
        for line_number, line in enumerate((ROOT / file).read_text().splitlines(), start=1)
        if re.search("cpu|onednn|xla", line, re.IGNORECASE)
    ]
    assert not mentions, "\n".join(mentions)


def public(node: ast.AST) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The public classes and functions of a module, or the public methods of a class."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, *FUNCTIONS)) and not child.name.startswith("_"):
            yield child


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_public_has_a_docstring(package: str) -> None:
    trees = {name: parse(file) for name, file in MODULES.items() if file.is_relative_to(package)}
    classes = {
        f"{module}.{node.name}": node
        for module, tree in trees.items()
        for node in public(tree)
        if isinstance(node, ast.ClassDef)
    }
    # The methods of an interface are documented once, `setup` by flax, and `main` in the docstring of its module.
    documented = {method.name for node in classes.values() for method in public(node) if ast.get_docstring(method)}
    documented |= {"setup"}
    missing = [name for name, tree in trees.items() if tree.body and not ast.get_docstring(tree)]
    for name, tree in trees.items():
        functions = (node for node in public(tree) if not ast.get_docstring(node) and node.name != "main")
        missing += [f"{name}.{node.name}" for node in functions]
    for name, node in classes.items():
        attributes = ast.get_docstring(node) or ""  # a property may be documented as an attribute of its class
        missing += [
            f"{name}.{method.name}"
            for method in public(node)
            if method.name not in documented
            and not (method.decorator_list and re.search(rf"\b{method.name}\b", attributes))
        ]
    assert not missing, f"{len(missing)} without a docstring:\n" + "\n".join(missing)


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
    # JAX is made unimportable, instead of checking sys.modules afterwards: TensorFlow imports JAX if it is installed.
    done = run_python(f"import sys\nsys.modules['jax'] = sys.modules['flax'] = None\nimport {', '.join(modules)}")
    assert done.returncode == 0, done.stderr


def test_prediction_imports_transformers_only_for_a_transformer() -> None:
    done = run_python("import sys\nsys.modules['transformers'] = sys.modules['torch'] = None\nimport lbdt_jax.predict")
    assert done.returncode == 0, done.stderr
