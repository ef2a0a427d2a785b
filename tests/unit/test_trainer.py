"""The trainer: descent, schedule, the last good state, early ends, bit-exact resuming."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import plssm as ps
from plssm.errors import PlssmError
from plssm.inference.trainer import Problem, Trainer, Training


class Quadratic(Problem):
    """A noisy bowl around (1, 2, 3), in two parameters of different shape."""

    def __init__(self, *, broken_at=()):
        self.a = nn.Parameter(torch.zeros(2, 1, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.calls, self.broken_at, self.seen = 0, set(broken_at), 0.0

    def parameters(self):
        return [self.a, self.b]

    def loss(self, progress, generator):
        self.calls += 1
        noise = 0.1 * torch.randn(2, generator=generator, dtype=torch.float64)
        self.seen += float(noise[0])
        value = (self.a[:, 0] - torch.tensor([1.0, 2.0]) - noise).square().sum()
        value = value + (self.b - 3.0).square()
        return value * float("nan") if self.calls in self.broken_at else value

    def measures(self):
        return {"score": self.distance()}

    def distance(self):
        a = (self.a[:, 0] - torch.tensor([1.0, 2.0])).square().sum()
        return float((a + (self.b - 3.0).square()).detach())

    def state(self):
        return {"seen": self.seen}

    def restore(self, state):
        self.seen = state["seen"]


TRAINING = Training(steps=2000, learning_rate=(0.05, 1e-3), checks=10)


def test_descends_and_keeps_the_best():
    problem = Quadratic()
    rows = Trainer(problem, TRAINING, seed=0).run()
    assert problem.distance() < 1e-2
    assert problem.distance() == rows["score"].min()
    assert rows["step"].tolist() == list(range(0, 2001, 200))
    assert rows["learning_rate"].iloc[-1] == pytest.approx(1e-3, rel=0.15)
    assert rows["loss"].iloc[-1] < rows["loss"].iloc[1]


def test_the_same_seed_gives_the_same_parameters():
    one, two, other = Quadratic(), Quadratic(), Quadratic()
    for problem, seed in ((one, 1), (two, 1), (other, 2)):
        Trainer(problem, TRAINING, seed=seed).run()
    assert torch.equal(one.a, two.a)
    assert torch.equal(one.b, two.b)
    assert not torch.equal(one.a, other.a)


def test_a_loss_that_is_not_finite_goes_back_and_slows_down():
    problem = Quadratic(broken_at=(700, 900))
    with pytest.warns(RuntimeWarning, match="last good"):
        rows = Trainer(problem, TRAINING, seed=0).run()
    assert problem.distance() < 1e-2
    assert torch.isfinite(problem.a).all()
    assert rows["learning_rate"].iloc[-1] == pytest.approx(0.25e-3, rel=0.15)


@pytest.mark.parametrize("raw", [True, False])
def test_first_updates_can_be_held_back(raw):
    """From a good start on a steep slope, where a step along the gradient goes far too far."""

    class Steep(Quadratic):
        def loss(self, progress, generator):
            return 1e4 * super().loss(progress, generator)

    training = Training(steps=60, learning_rate=(1e-3, 1e-3), checks=60, clip=1e9, raw_start=raw)
    problem = Steep(broken_at=(40,))
    with torch.no_grad():
        problem.a.copy_(torch.tensor([[1.01], [2.01]]))
        problem.b.fill_(3.01)
    began = problem.distance()
    with pytest.warns(RuntimeWarning, match="last good"):
        score = Trainer(problem, training, seed=0).run()["score"].to_numpy()
    if raw:
        assert score[1] > 1e3 * began
        return
    assert (score[:6] == began).all() and score[6] != began
    assert (score[39:45] == score[39]).all() and score[45] != score[39]  # after the return
    assert score.max() < 2 * began


def test_ends_after_too_many_failures_with_the_best_state():
    problem = Quadratic(broken_at=range(500, 5000))
    with pytest.warns(RuntimeWarning) as told:
        rows = Trainer(problem, TRAINING, seed=0).run()
    assert "training ends" in str(told[-1].message)
    assert rows["step"].iloc[-1] == 400
    assert problem.distance() == rows["score"].min()


def test_patience_ends_early():
    problem = Quadratic()
    training = Training(steps=100_000, learning_rate=(0.05, 0.05), checks=1000, patience=3)
    rows = Trainer(problem, training, seed=0).run()
    assert rows["step"].iloc[-1] < 100_000
    assert (rows["score"].iloc[-3:] >= rows["score"].min()).all()


def test_an_interruption_keeps_the_best_state():
    problem = Quadratic()

    def stop(step, row):
        if step >= 600:
            raise KeyboardInterrupt

    with pytest.warns(RuntimeWarning, match="interrupted"):
        rows = Trainer(problem, TRAINING, seed=0).run(stop)
    assert rows["step"].iloc[-1] == 600
    assert problem.distance() == rows["score"].min()


def test_reports_every_check_and_the_first_update():
    told = []
    rows = Trainer(Quadratic(), TRAINING, seed=0).run(lambda *what: told.append(what))
    assert [step for step, _ in told] == [0, 1, *range(200, 2001, 200)]
    assert list(told[1][1]) == ["loss"] and told[-1][1]["score"] == rows["score"].iloc[-1]


def test_an_interruption_leaves_the_checkpoint(tmp_path):
    file = tmp_path / "run.safetensors"
    training = Training(**{**vars(TRAINING), "checkpoint": str(file), "seconds_between": 0.0})

    def stop(step, row):
        if step >= 600:
            raise KeyboardInterrupt

    whole, again = Quadratic(), Quadratic()
    Trainer(whole, TRAINING, seed=0).run()
    with pytest.warns(RuntimeWarning, match="interrupted"):
        Trainer(Quadratic(), training, seed=0).run(stop)
    assert file.exists()
    rows = Trainer(again, training, seed=0).run()
    assert torch.equal(again.a, whole.a)
    assert rows["step"].tolist() == list(range(0, 2001, 200))


@pytest.mark.parametrize("stop_at", [200, 1000, 1800])
def test_resuming_is_exact_to_the_bit(tmp_path, stop_at):
    whole = Quadratic()
    Trainer(whole, TRAINING, seed=3, identity="a").run()
    file = tmp_path / "run.safetensors"
    training = Training(**{**vars(TRAINING), "checkpoint": str(file), "seconds_between": 0.0})

    class Killed(Exception):
        pass

    def kill(step, row):
        if step > stop_at:
            raise Killed

    broken = Quadratic()
    with pytest.raises(Killed):
        Trainer(broken, training, seed=3, identity="a").run(kill)
    again = Quadratic()
    rows = Trainer(again, training, seed=3, identity="a").run()
    assert torch.equal(again.a, whole.a)
    assert torch.equal(again.b, whole.b)
    assert again.seen == whole.seen
    assert rows["step"].tolist() == list(range(0, 2001, 200))
    after = Quadratic()  # the end is in the file, too: what follows may be killed
    Trainer(after, training, seed=3, identity="a").run()
    assert torch.equal(after.a, whole.a)


def test_checkpoints_of_something_else_are_refused(tmp_path):
    file = tmp_path / "run.safetensors"
    training = Training(**{**vars(TRAINING), "checkpoint": str(file), "seconds_between": 0.0})

    class Killed(Exception):
        pass

    def kill(step, row):
        if step > 400:
            raise Killed

    with pytest.raises(Killed):
        Trainer(Quadratic(), training, seed=3, identity="a").run(kill)
    with pytest.raises(PlssmError, match="other settings"):
        Trainer(Quadratic(), training, seed=3, identity="b").run()
    file.write_bytes(b"no checkpoint")
    with pytest.raises(PlssmError, match="not a checkpoint"):
        Trainer(Quadratic(), training, seed=3, identity="a").run()


SCRIPT = """
import sys
import numpy as np, torch
import plssm as ps
torch.set_num_threads(1)
x = np.random.default_rng(0).standard_normal((400, 2)).cumsum(0) / 10
data = ps.Dataset.from_arrays({"x": x})
model = ps.StateSpaceModel(
    ps.dynamics.ShallowPLRNN(2, 6), {"x": ps.observations.Gaussian(2, readout="identity")}
)
engine = ps.inference.TeacherForcing(
    seed=1, steps=1500, sequence=20, checks=30, checkpoint=sys.argv[1] or None, fit_noise=False,
    scheme=ps.inference.GTF(0.5, adaptive_by="product"), checkpoint_seconds=0.0,
)
engine.fit(model, data, progress=False).save(sys.argv[2])
"""


def test_a_killed_training_resumes_to_the_same_bits(tmp_path):
    """The process is killed for good at an arbitrary moment, then started again."""
    file, out = tmp_path / "checkpoint", tmp_path / "parameters"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SCRIPT, str(file), str(out)]
    process = subprocess.Popen(command, env=environment)
    while not file.exists() and process.poll() is None:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert file.exists()
    assert not out.exists()
    subprocess.run(command, env=environment, check=True)
    command[-2:] = ["", str(tmp_path / "whole")]
    subprocess.run(command, env=environment, check=True)
    resumed, whole = (
        ps.Fit.load(folder).model.state_dict() for folder in (out, tmp_path / "whole")
    )
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
