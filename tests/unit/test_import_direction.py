"""Imports inside the package run one way; the picture is in CONTRIBUTING.md."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the bottom to the top. A module may import what stands on a lower line, and its own folder.
LEVELS = (
    ("errors",),
    ("data", "linalg", "kernels"),
    ("dynamics", "observations"),
    ("model",),
    ("posterior", "path_samples", "prediction", "defaults"),
    ("analysis", "metrics"),
    ("scoring", "storage"),
    ("fit",),
    ("inference",),
    ("plot", "comparison"),
    ("reporting", "config", "cli"),
)
RANK = {name: rank for rank, names in enumerate(LEVELS) for name in names}

# Neighbours on one line that may import each other, in the direction given.
SIDEWAYS = {
    ("linalg", "kernels"),
    ("kernels", "linalg"),
    ("prediction", "posterior"),
    ("path_samples", "posterior"),
    ("metrics", "analysis"),
    ("reporting", "config"),
    ("cli", "config"),
    ("cli", "reporting"),
}

# The only imports that point upwards or in a circle, and they stand inside functions: Fit.plot...
# draws, and the uncertainty of a state-space divergence measures one.
UPWARDS_INSIDE_METHODS = {("fit", "plot"), ("analysis", "metrics")}

# What users call to test their own classes may import everything public; nothing imports it.
ANYTHING = {"testing"}


@dataclass(frozen=True)
class Import:
    """One import statement of the package's own modules."""

    file: str
    line: int
    source: str
    target: str
    inside: bool  # stands in a function body


def _components(node, package):
    """First components under plssm that an import statement names ('' is plssm itself)."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        if node.level:
            base = package[: len(package) - node.level + 1]
            module = ".".join([*base, node.module] if node.module else base)
        else:
            module = node.module
        deep = module.count(".") >= 1 or module != "plssm"
        names = [module] if deep else [f"{module}.{alias.name}" for alias in node.names]
    for name in names:
        first, _, rest = name.partition(".")
        if first == "plssm":
            yield rest.split(".")[0]


def _running(tree):
    """All nodes but those that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _running(node)


def _imports(path, root):
    parts = path.relative_to(root).with_suffix("").parts
    package = parts if path.name == "__init__.py" else parts
    package = package[:-1]
    source = parts[1] if len(parts) > 1 else ""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    inside = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
        if isinstance(child, ast.Import | ast.ImportFrom)
    }
    for node in _running(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in _components(node, package):
                yield Import(
                    str(path.relative_to(root)), node.lineno, source, target, node in inside
                )


def _wrong(item):
    """Why an import breaks the rule, or None."""
    source, target = item.source, item.target
    if target == source or target == "__version__" or source in {"__init__", *ANYTHING}:
        return None
    if source.startswith("_"):
        return None if target == "errors" else "a private helper imports errors only"
    if target.startswith("_"):
        return None
    if target == "":
        return "'import plssm' inside the package hides where a name comes from"
    if target in ANYTHING:
        return "the test cases are for tests"
    if source not in RANK:
        return f"{source!r} has no place in the picture: add it to LEVELS and CONTRIBUTING.md"
    if target not in RANK:
        return f"{target!r} has no place in the picture: add it to LEVELS and CONTRIBUTING.md"
    if RANK[target] < RANK[source] or (source, target) in SIDEWAYS:
        return None
    if item.inside and (source, target) in UPWARDS_INSIDE_METHODS:
        return None
    return f"{source} must not import {target}"


def _violations(root):
    found = []
    for path in sorted((root / "plssm").rglob("*.py")):
        for item in _imports(path, root):
            reason = _wrong(item)
            if reason:
                found.append(f"{item.file}:{item.line}: {reason}")
    return found


def test_imports_run_one_way():
    assert not _violations(ROOT), "\n".join(_violations(ROOT))


@pytest.mark.parametrize(
    ("file", "code", "wrong"),
    [
        ("dynamics/linear.py", "from plssm.observations.base import ObservationModel", True),
        ("dynamics/linear.py", "from ..observations import base", True),
        ("dynamics/linear.py", "from plssm.kernels.rollout import rollout", False),
        ("dynamics/linear.py", "from .base import LatentDynamics", False),
        ("data/dataset.py", "from plssm import model", True),
        ("data/dataset.py", "import plssm.fit", True),
        ("data/dataset.py", "def f():\n    from plssm.fit import Fit", True),
        ("metrics/floor.py", "from plssm.fit import Fit", True),
        ("analysis/orbit.py", "from plssm.metrics import measure", True),
        ("analysis/orbit.py", "def f():\n    from plssm.metrics import measure", False),
        ("fit.py", "from plssm.plot import latents", True),
        ("fit.py", "class F:\n def plot(self):\n  import plssm.plot", False),
        ("fit.py", "def f():\n    from plssm.inference import laplace_em", True),
        ("fit.py", "from plssm import __version__", False),
        ("fit.py", "from . import posterior", False),
        ("fit.py", "import plssm as ps", True),
        ("storage.py", "if TYPE_CHECKING:\n    from plssm.fit import Fit", False),
        ("inference/trainer.py", "from plssm.fit import Fit", False),
        ("comparison/table.py", "from plssm.inference import smooth", False),
        ("comparison/table.py", "from plssm.plot import latents", True),
        ("fit.py", "def f():\n    from plssm.comparison import compare", True),
        ("reporting/document.py", "from plssm.config import RunConfig", False),
        ("config/run.py", "from plssm.reporting import report", True),
        ("testing/cases.py", "from plssm.inference import LaplaceEM", False),
        ("model.py", "from plssm.testing import cases", True),
        ("newcomer.py", "import plssm.errors", True),
        ("model.py", "from plssm._arguments import captured", False),
        ("_arguments.py", "from plssm.errors import PlssmError", False),
        ("_arguments.py", "from plssm.data import Dataset", True),
        ("__init__.py", "from plssm.cli import main", False),
    ],
)
def test_the_guard_sees_it(tmp_path, file, code, wrong):
    path = tmp_path / "plssm" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")
    assert bool(_violations(tmp_path)) is wrong


# The modules of plssm/inference that may import Pyro; everything else works without it.
PYRO = {
    "path_bound.py", "path_distribution.py", "path_mixture.py", "pyro_bridge.py", "pyro_priors.py",
}  # fmt: skip


def test_pyro_stays_a_guest():
    """Pyro is imported by a few modules of inference only, and by none that others need."""
    for path in sorted((ROOT / "plssm").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            if any(name.split(".")[0] == "pyro" for name in names):
                assert path.parent == ROOT / "plssm" / "inference", f"{path} imports pyro"
                assert path.name in PYRO, f"{path} imports pyro"
