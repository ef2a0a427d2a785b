"""The code of README.md and CONTRIBUTING.md runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import torch

import plssm as ps
from plssm import testing


def blocks(path):
    """Python blocks of a markdown file, each with its line number kept for error messages."""
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^```python\n(.*?)^```", text, flags=re.M | re.S):
        yield "\n" * text[: match.start()].count("\n") + "\n" + match[1]


def run(path, namespace):
    for block in blocks(path):
        exec(compile(block, str(path), "exec"), namespace)
    return namespace


def worked_examples():
    """The classes that CONTRIBUTING.md adds, as a user's modules would."""
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    contracts = {name: getattr(testing, name) for name in testing.__all__}
    return run(root / "CONTRIBUTING.md", {**contracts, "__name__": __name__})


_EXAMPLES = worked_examples()
StudentT, TestStudentT = _EXAMPLES["StudentT"], _EXAMPLES["TestStudentT"]
LeakyNetwork, TestLeakyNetwork = _EXAMPLES["LeakyNetwork"], _EXAMPLES["TestLeakyNetwork"]


def test_readme_runs(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = run(root / "README.md", {})
    assert made["posterior"].mean.shape == (5, 100, 5)
    assert made["ahead"].mean.shape[-2:] == (20, 10)
    assert (made["low"] < made["high"]).all()
    assert made["path"].shape == (3, 100, 2)
    assert made["alone"].shape == (2000, 3) and np.isfinite(made["alone"]).all()
    for name, value in made["fit"].model.state_dict().items():
        assert torch.equal(value, made["again"].model.state_dict()[name])
    printed = capsys.readouterr().out
    assert "error_10" in printed
    assert "coverage_95" in printed


def test_quickstart_is_short(root):
    first = next(iter(blocks(root / "README.md")))
    code = [line for line in first.splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) <= 20


def test_a_new_observation_model_is_short(root):
    observation, test = list(blocks(root / "CONTRIBUTING.md"))[:2]
    assert len([line for line in observation.splitlines() if line.strip()]) <= 15
    assert len([line for line in test.splitlines() if line.strip()]) <= 4


def test_strangers_files_as_contributing_says(root, tmp_path):
    """Two files of a stranger, nothing else touched: pytest collects and passes the contract."""
    observation, test = (
        block.lstrip("\n") for block in list(blocks(root / "CONTRIBUTING.md"))[:2]
    )
    (tmp_path / "student_t.py").write_text(observation, encoding="utf-8")
    imports = "from student_t import StudentT\nfrom plssm.testing import ObservationContract\n\n"
    (tmp_path / "test_student_t.py").write_text(imports + test, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "log_prob"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout)


def ragged(model, *, lengths=(40, 25, 1)):
    """Simulated trials of unequal length with missing entries and a channel unseen in one."""
    full = model.simulate(max(lengths), trials=len(lengths), seed=3)
    rng = np.random.default_rng(3)
    x = full.values("x")
    x = np.where(rng.random(x.shape) < 0.2, np.nan, x)
    x[1, :, 0] = np.nan
    return ps.Dataset.from_arrays({"x": [x[i, :n] for i, n in enumerate(lengths)]})


def test_engine_takes_the_new_observation_model():
    """Masks and ragged trials; the fit keeps its best state and forecasts."""
    torch.manual_seed(0)
    model = ps.StateSpaceModel(ps.dynamics.PLRNN(2), {"x": StudentT(4)})
    with torch.no_grad():
        model.observations["x"].weight.normal_()
    data = ragged(model)
    fit = ps.inference.LaplaceEM(seed=0, iterations=6).fit(model, data, progress=False)
    posterior = fit.posterior(data)
    assert posterior.mean.shape == (3, 40, 2)
    assert torch.isnan(posterior.mean[1, 25:]).all()
    assert torch.isfinite(posterior.mean[1, :25]).all()
    assert torch.isfinite(posterior.log_evidence).all()
    begin = fit.history.query("stage == 'free'")["evidence"].iloc[0]
    # the Laplace evidence of a heavy-tailed model may dip; the best parameters are kept, and a
    # cold mode search may end in a mode that is a little lower than the one of the fit
    assert float(posterior.log_evidence.sum()) > begin - 0.5
    ahead = fit.forecast(data, steps=3, samples=20)["x"]
    assert np.isfinite(np.asarray(ahead.samples)).all()


def test_smooth_takes_the_new_dynamics():
    """The mode of the new map: the gradient of the log-joint vanishes there, trial by trial."""
    dynamics = LeakyNetwork(2)
    model = ps.StateSpaceModel(dynamics, {"x": ps.observations.Gaussian(4)})
    torch.manual_seed(0)
    with torch.no_grad():
        model.observations["x"].weight.normal_()
    data = ragged(model)
    batch = data.batch()
    mean = ps.smooth(model, data, method="laplace").mean
    z = torch.nan_to_num(mean).requires_grad_()
    (slope,) = torch.autograd.grad(model.log_joint(batch, z).sum(), z)
    pinned = z.abs() < 1e-6  # a unit on its kink has a slope on either side
    free = batch.time_mask[..., None] & ~pinned
    assert slope[free].abs().max() < 1e-5
