"""`plssm demo`, on the real recording and without it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from plssm import cli
from plssm.cli import demo as module
from plssm.cli.results import forecast_errors
from plssm.data import Dataset
from plssm.errors import DataError
from plssm.fit import Fit

PICTURES = {"latents", "observed", "forecast", "free_run", "convergence"}


def test_demo_on_the_real_recording(tmp_path, capsys):
    pytest.importorskip("nitime")
    assert cli.main(["demo", "--quick", "--dim", "3", "--out", str(tmp_path / "d")]) == 0
    screen = capsys.readouterr().out
    for words in ("28 regions", "persistence", "VAR(1)", "mean", "coverage of the 95 % band",
                  "log evidence", "seconds of fitting", "better than"):  # fmt: skip
        assert words in screen, words
    assert {p.stem for p in (tmp_path / "d").glob("*.png")} == PICTURES
    scores = pd.read_csv(tmp_path / "d" / "scores.csv", index_col="modality")
    assert f"{scores.loc['bold', 'error_5']:.3f}" in screen
    fit = Fit.load(tmp_path / "d" / "fit")
    assert fit.model.dim == 3 and len(fit.history) > 0


def test_the_held_out_stretch_is_never_seen(monkeypatch):
    pytest.importorskip("nitime")
    recording = module.load_recording(module.RECORDING)
    first = module._real(recording)
    values = np.array(recording.signals["bold"].values)
    values[200:] += 100.0
    object.__setattr__(recording.signals["bold"], "values", values)
    second = module._real(recording)
    assert first.train.lengths.tolist() == [200] and first.test.lengths.tolist() == [50]
    np.testing.assert_array_equal(first.train.values("bold"), second.train.values("bold"))
    assert not np.allclose(first.test.values("bold"), second.test.values("bold"))
    trained = first.train.values("bold")[0]
    np.testing.assert_allclose(trained.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(trained.std(0), 1, atol=1e-12)


def test_without_nitime_a_simulated_set_serves_and_says_so(tmp_path, capsys, monkeypatch):
    real = module.load_recording

    def absent(name, **options):
        if name == module.RECORDING:
            raise DataError("comes with nitime, which is absent", fix="pip install plssm[data]")
        return real(name, **options)

    monkeypatch.setattr(module, "load_recording", absent)
    small = ["--quick", "--dim", "3", "--iterations", "2"]
    assert cli.main(["demo", *small, "--out", str(tmp_path / "d")]) == 0
    screen = capsys.readouterr().out
    assert "SIMULATED" in screen and "pip install plssm[data]" in screen
    assert {p.stem for p in (tmp_path / "d").glob("*.png")} == PICTURES


def test_forecast_errors_of_the_mean():
    """By hand: two trials, targets from step warmup + n on, missing entries left out."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 20, 2))
    x[0, 15, 1] = np.nan
    train = Dataset.from_arrays({"x": 3 * rng.normal(size=(2, 40, 2)) + 1})
    test = Dataset.from_arrays({"x": x})
    columns = {f"{k}_{n}": 0.1 * n for n in (1, 4) for k in ("error", "persistence", "var1")}
    scores = pd.DataFrame([columns], index=["x"])
    errors = forecast_errors(scores, "x", steps=(1, 4), train=train, test=test)
    seen = train.values("x").reshape(-1, 2)
    for n in (1, 4):
        z = [(x[b, t, c] - seen[:, c].mean()) / seen[:, c].std()
             for b in range(2) for t in range(10 + n, 20) for c in range(2)
             if np.isfinite(x[b, t, c])]  # fmt: skip
        assert errors.loc[n, "mean"] == pytest.approx(np.mean(np.square(z)), rel=1e-12)
        assert errors.loc[n, "model"] == pytest.approx(0.1 * n)


@pytest.mark.parametrize(
    ("model", "coverage", "words", "absent"),
    [
        ([0.5, 0.6], 0.95, ["persistence at 1, 5 of 1, 5 steps"], ["out of reach", "Coverage"]),
        ([1.5, 1.6], 0.90, ["persistence nowhere", "out of reach", "Coverage"], []),
        ([0.5, 1.6], 0.95, ["mean at 1 of 1, 5 steps", "out of reach"], ["Coverage"]),
    ],
)
def test_the_reading_says_what_the_numbers_say(model, coverage, words, absent):
    errors = pd.DataFrame({"model": model}, index=[1, 5])
    for rival in ("persistence", "VAR(1)", "mean"):
        errors[rival] = 1.0
    text = module._reading(errors, coverage)
    assert all(w in text for w in words) and not any(w in text for w in absent)
    assert max(map(len, text.splitlines())) < 80
