"""`plssm demo --lorenz`: a chaotic system is learned, compared and explained."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from plssm import cli
from plssm.cli import lorenz as module
from plssm.data.synthetic import lorenz63
from plssm.fit import Fit
from plssm.inference import TeacherForcing


def test_quick_demo_leaves_everything_behind(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(module, "STEPS", 4000)
    monkeypatch.setattr(module, "QUICK_STEPS", 30)
    out = tmp_path / "d"
    assert cli.main(["demo", "--lorenz", "--quick", "--out", str(out)]) == 0
    screen = capsys.readouterr().out
    for words in ("SIMULATED, Lorenz-63", "TeacherForcing, 30 steps", "another true orbit",
                  "white noise", "0.9056", "(8.5, 8.5, 27.0) saddle", "where the orbit spends",
                  "of 3 are there", "VAR(1)", "coverage of the 95 % band", "better than",
                  "fitted noise"):  # fmt: skip
        assert words in screen, words
    assert {p.stem for p in out.glob("*.png")} == {"attractors", "spectra", "convergence"}
    fit = Fit.load(out / "fit")
    assert isinstance(fit.engine, TeacherForcing) and fit.engine.steps == 30
    assert fit.model.dim == 3 and fit.history["step"].iloc[-1] == 30
    table = pd.read_csv(out / "reconstruction.csv", index_col=0)
    assert list(table.index) == ["D_stsp", "D_H"]
    assert f"{table.loc['D_stsp', 'model']:.3f}" in screen
    scores = pd.read_csv(out / "scores.csv", index_col="modality")
    assert f"{scores.loc['x', 'error_10']:.3f}" in screen
    assert cli.main(["demo", "--lorenz", "--dim", "3", "--out", str(out)]) == 2  # an earlier run
    assert "do not go with --lorenz" in capsys.readouterr().err


def test_options_that_contradict_each_other(capsys):
    with pytest.raises(SystemExit):
        cli.main(["demo", "--lorenz", "--recording", "eeg"])
    assert "not allowed with" in capsys.readouterr().err


def test_the_places_it_compares_with_are_the_fixed_points_of_the_equations():
    x, y, z = module.POINTS.T
    drift = [10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z]
    np.testing.assert_allclose(drift, 0, atol=1e-12)
    system = module._System.simulated(0)
    np.testing.assert_allclose(system.fitted.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(system.fitted.std(0), 1, atol=1e-9)
    truth = lorenz63(1, module.DT, trials=3, seed=0)[1]
    np.testing.assert_allclose(system.original(system.truth[:1]), truth, atol=1e-9)


def test_points_are_matched_one_to_one():
    wanted = np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
    found = np.array([[5.0, 6.0], [0.4, 0.0], [-0.3, 0.0], [90.0, 90.0]])
    partners, distances = zip(*module.nearest(found, wanted), strict=True)
    assert partners == (2, 1, 0)
    np.testing.assert_allclose(distances, [0.3, 0.6, 1.0])
    assert module.nearest(found[:1], wanted) == [(None, math.inf), (None, math.inf), (0, 1.0)]
    assert module.nearest(np.zeros((0, 2)), wanted) == [(None, math.inf)] * 3


def test_a_true_orbit_scores_as_another_and_a_lost_one_does_not():
    truth, run, other = lorenz63(20_000, module.DT, trials=3, seed=5)
    table = module.compare(truth, run, other)
    assert list(table.columns) == ["model", "true orbit", "fixed point", "white noise"]
    assert (table["model"] < 2 * table["true orbit"]).all()
    assert (table["model"] < 0.5 * table[["fixed point", "white noise"]].min(axis=1)).all()
    text = module.words(table, 0.88, [0.01, 0.05, 0.02])
    assert text.count("about as a true orbit would") == 2 and "3% slower" in text
    assert "3 of 3 are there, off by up to 0.05 sd" in text and "WORSE" not in text
    lost = run.copy()
    lost[1000:] = np.inf
    table = module.compare(truth, lost, other)
    text = module.words(table, math.nan, [0.01, math.inf, 0.7])
    assert text.count("WORSE") == 2 and "DIVERGES" in text and "1 of 3" in text
    middle = pd.DataFrame(
        {"model": [0.5], "true orbit": [0.1], "fixed point": [9.0], "white noise": [3.0]},
        index=["D_stsp"],
    )
    text = module.words(middle, -0.1, [0.0])
    assert "5.0 times what a true orbit scores" in text and "NOT chaotic" in text
    assert "10% faster" in module.words(middle, 0.9056 * 1.1, [0.0])
    assert max(map(len, text.splitlines())) < 80
