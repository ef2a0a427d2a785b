"""What is installed, what importing costs, and the public names."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest

import plssm

PUBLIC = [
    "Dataset",
    "Events",
    "Fit",
    "Recording",
    "Signal",
    "StateSpaceModel",
    "__version__",
    "analysis",
    "compare",
    "data",
    "default_model",
    "default_observations",
    "dynamics",
    "inference",
    "metrics",
    "observations",
    "plot",
    "report",
    "smooth",
    "testing",
]

# What a package is asked for by users and notebooks; more may be there, these must be.
PROMISED = {
    "data": {"Batch", "Dataset", "Events", "Recording", "Signal", "Trial", "synthetic",
             "load_recording", "recordings"},
    "dynamics": {"AlmostLinearRNN", "DendriticPLRNN", "LatentDynamics", "LinearDynamics", "PLRNN",
                 "PiecewiseLinear", "ShallowPLRNN"},
    "observations": {"BOLD", "Bernoulli", "Categorical", "DoubleGamma", "Gaussian",
                     "NegativeBinomial", "ObservationModel", "Ordinal", "Poisson",
                     "RaisedCosine", "ZeroInflatedPoisson"},
    "inference": {"GTF", "LaplaceEM", "SparseTF", "TeacherForcing", "smooth"},
    "metrics": {"state_space_divergence", "power_spectrum_distance", "prediction_error",
                "accuracy", "balanced_accuracy", "brier_score", "ranked_probability_score",
                "bits_per_spike", "pit_values", "coverage", "reliability"},
    "analysis": {"Cycle", "Cycles", "VisitedRegions", "cycles", "fixed_points",
                 "lyapunov_spectrum", "time_scales", "visited_regions"},
    "testing": {"DynamicsContract", "EngineContract", "ObservationContract"},
}  # fmt: skip


@pytest.fixture(scope="module")
def setup(root):
    parser = configparser.ConfigParser()
    parser.read(root / "setup.cfg", encoding="utf-8")
    return parser


def python(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- public names --------------------------------------------------------------------------


def test_public_names():
    assert dir(plssm) == PUBLIC
    assert all(getattr(plssm, name) is not None for name in PUBLIC)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'Datasets'"):
        _ = plssm.Datasets


@pytest.mark.parametrize("module", sorted(PROMISED))
def test_promised_names(module):
    part = getattr(plssm, module)
    assert PROMISED[module] <= set(part.__all__)
    for name in part.__all__:
        assert hasattr(part, name), name


def test_every_module_lists_its_public_names(root):
    for path in (root / "plssm").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if len(tree.body) <= 2 or path.name == "__main__.py":  # a docstring and nothing else
            continue
        targets = [t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets
                   if isinstance(t, ast.Name)]  # fmt: skip
        assert "__all__" in targets, f"{path} has no __all__"


# ---- importing -----------------------------------------------------------------------------


def test_importing_plssm_is_cheap():
    code = (
        "import plssm, sys; print([m for m in ('torch', 'numba', 'pandas') if m in sys.modules])"
    )
    assert python(code) == "[]"


def test_asking_for_help_is_cheap():
    code = (
        "import sys\nfrom plssm.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules, 'pyro' in sys.modules)"
    )
    assert python(code).splitlines()[-1] == "False False", "plssm --help imports torch or pyro"


# ---- metadata ------------------------------------------------------------------------------


def test_version_is_stated_once(root):
    assert metadata.version("plssm") == plssm.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", plssm.__version__)
    assert f"## {plssm.__version__}" in (root / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version: {plssm.__version__}" in (root / "CITATION.cff").read_text(encoding="utf-8")


def test_metadata(setup):
    assert setup["metadata"]["license"] == "MIT"
    assert setup["options"]["python_requires"] == ">=3.11"
    extras = set(setup["options.extras_require"])
    assert extras == {"data", "io", "fmri", "sweeps", "bench", "dev", "all"}
    assert set(re.findall(r"\w+", setup["options.extras_require"]["all"])) == (
        extras - {"all"} | {"plssm"}
    )
    assert "pyro-ppl>=1.9.2" in setup["options"]["install_requires"]


def test_ruff_is_one_version(root, setup):
    pinned = re.search(r"ruff==([\d.]+)", setup["options.extras_require"]["dev"])[1]
    hooks = (root / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert f"ruff-pre-commit\n    rev: v{pinned}" in hooks


def test_distribution_contains_the_package_and_nothing_else(root, setup):
    from setuptools import find_packages

    include = setup["options.packages.find"]["include"].split()
    found = find_packages(str(root), include=include)
    on_disk = {
        ".".join(path.parent.relative_to(root).parts)
        for path in (root / "plssm").rglob("__init__.py")
    }
    assert set(found) == on_disk
    assert all(name.split(".")[0] == "plssm" for name in found)
    without = [
        p for p in (root / "plssm").rglob("*.py") if not (p.parent / "__init__.py").exists()
    ]
    assert not without, f"modules outside of any package: {without}"
    data = setup["options.package_data"]
    assert (root / "plssm" / data["plssm"]).is_file()
    assert len(list((root / "plssm" / "data").glob(data["plssm.data"]))) == 3
    assert (root / "plssm" / "reporting" / data["plssm.reporting"]).is_file()
    other = {p for p in (root / "plssm").rglob("*") if p.is_file()
             and p.suffix not in {".py", ".pyc", ".nbi", ".nbc"}
             and p.name not in {"py.typed", "page.html"}
             and not {"simulated", "__pycache__"} & set(p.parts)}  # fmt: skip
    assert not other, f"files that would not be installed: {other}"


def test_command_line_is_installed():
    entries = metadata.entry_points(group="console_scripts", name="plssm")
    assert [entry.value for entry in entries] == ["plssm.cli:main"]


def test_warnings_are_errors(root):
    with (root / "pyproject.toml").open("rb") as file:
        options = tomllib.load(file)["tool"]["pytest"]["ini_options"]
    assert options["filterwarnings"][0] == "error"


# ---- house rules a machine can check -------------------------------------------------------


def sources(root):
    for path in sorted((root / "plssm").rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def test_no_pickle(root):
    banned = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for path, tree in sources(root):
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module.split(".")[0]]
            assert not banned & set(names), f"{path}:{node.lineno} imports {names}"
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                where = f"{path}:{node.lineno}"
                if path.parent.name != "testing":  # a contract may copy through memory
                    assert call not in {"torch.save", "torch.load"}, f"{where}: {call} pickles"
                pickles = [k for k in node.keywords if k.arg == "allow_pickle"]
                assert all(ast.unparse(k.value) == "False" for k in pickles), where
                if call in {"np.load", "numpy.load"}:
                    assert pickles, f"{where}: np.load without allow_pickle=False"


def test_no_global_state(root):
    banned = {"torch.set_default_dtype", "torch.manual_seed", "np.random.seed",
              "pyro.clear_param_store", "torch.set_default_device"}  # fmt: skip
    for path, tree in sources(root):
        if path.parent.name == "testing":  # a contract checks that engines leave it alone
            continue
        for node in outside_of_forks(tree):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in banned, f"{path}:{node.lineno}"


def outside_of_forks(tree):
    """All nodes but those in a block that restores the global generator at its end."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.With) and "fork_rng" in " ".join(map(ast.unparse, node.items)):
            continue
        yield node
        yield from outside_of_forks(node)


def test_modules_and_functions_stay_small(root):
    for path, tree in sources(root):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 450, f"{path} has {lines} lines"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                start = first.end_lineno if documented else node.lineno
                length = node.end_lineno - start
                assert length <= 60, f"{path}:{node.lineno} {node.name} has {length} lines"


def test_nothing_points_outside_of_the_repository(root):
    texts = [*root.glob("*.md"), *root.glob("*.cfg"), *root.glob("*.toml"), root / "Makefile"]
    for folder in ("plssm", "tests", "datasets", "benchmarks", "notebooks"):
        texts += [p for p in (root / folder).rglob("*") if p.suffix in {".py", ".md", ".toml"}]
    for path in texts:
        if path.name == "test_packaging.py":
            continue
        text = path.read_text(encoding="utf-8")
        found = re.search(r"/(work|tmp|root|home)/|\bTODO\b|\bFIXME\b|NotImplementedError", text)
        assert not found, f"{path}: {found}"
