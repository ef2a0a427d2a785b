"""``plssm compare`` and ``plssm report``: what they read, print, write and refuse."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import plssm as ps
from plssm import cli
from plssm.cli import runs
from plssm.comparison import evidence
from plssm.comparison.measures import column_names
from plssm.inference import smoothers

CONFIG = """
[dynamics]
class = "LinearDynamics"
dim = {dim}
[observations.x]
class = "Gaussian"
[engine]
iterations = 2
[split]
fractions = {fractions}
"""


def exact(model, data, **options):
    made = smoothers.smooth(model, data)
    made.evidence_error = 0.1 * made.log_evidence**0
    return made


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(evidence, "smooth", exact)
    monkeypatch.setenv("COLUMNS", "200")


def make_run(folder, name, dim=1, fractions="[0.6, 0.4]", data="d.npz"):
    (folder / f"{name}.toml").write_text(CONFIG.format(dim=dim, fractions=fractions), "utf-8")
    argv = ["fit", f"{folder}/{data}", "--config", f"{folder}/{name}.toml", "--out",
            f"{folder}/runs/{name}", "--no-pictures"]  # fmt: skip
    assert cli.main(argv) == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data and the runs a, b (same split) and c (another one)."""
    folder = tmp_path_factory.mktemp("place")
    rng = np.random.default_rng(0)
    for seed, name in enumerate(("d.npz", "new.npz")):
        x = np.cumsum(rng.normal(size=(2, 60, 3)), axis=1) * 0.1 + seed
        ps.Dataset.from_arrays({"x": x}, dt=0.5).save(folder / name)
    make_run(folder, "a")
    make_run(folder, "b", dim=2)
    make_run(folder, "c", fractions="[0.5, 0.2, 0.3]")
    return folder


def refused(capsys, *argv):
    """The one line that a refusal prints."""
    capsys.readouterr()
    assert cli.main([str(a) for a in argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("plssm: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_compare_uses_the_held_out_part(place, tmp_path, capsys):
    csv = tmp_path / "deep" / "t.csv"
    argv = ["compare", f"{place}/runs/a", f"{place}/runs/b", "--csv", str(csv), "--steps", "1",
            "3"]  # fmt: skip
    assert cli.main(argv) == 0
    screen = capsys.readouterr().out
    _, test = ps.Dataset.load(place / "d.npz").split(by="time", fractions=(0.6, 0.4))
    fits = {name: ps.Fit.load(place / "runs" / name / "fit") for name in "ab"}
    wanted = ps.compare(fits, test, steps=(1, 3))
    found = pd.read_csv(csv, index_col="fit")
    assert list(found.columns) == column_names((1, 3), 0.95)
    pd.testing.assert_frame_equal(found, wanted, check_dtype=False)
    for words in ("the test part of d.npz", "error 3 ahead", "VAR(1)", "data against data",
                  "its standard error", f"{wanted.loc['a', 'error_3']:.3f}", "exact"):  # fmt: skip
        assert words in screen, words


@pytest.mark.parametrize(
    ("options", "words", "steps"),
    [
        (["--split", "train"], "the train part of d.npz", 36),
        (["--split", "all"], "TRAINING data among them", 60),
        (["--data", "new.npz"], "all of new.npz", 60),
        (["--data", "new.npz", "--split", "test"], "the test part of new.npz", 24),
    ],
)
def test_other_parts_and_other_data(place, capsys, options, words, steps):
    options = [f"{place}/{o}" if o.endswith("npz") else o for o in options]
    assert cli.main(["compare", f"{place}/runs/a", *options, "--steps", "1"]) == 0
    screen = capsys.readouterr().out
    assert words in screen and f"{steps} steps" in screen


def test_runs_that_hold_out_different_data(place, capsys):
    both = f"{place}/runs/a", f"{place}/runs/c"
    err = refused(capsys, "compare", *both)
    assert "a and c hold out different data" in err and "--data" in err
    assert cli.main(["compare", *both, "--data", f"{place}/new.npz", "--steps", "1"]) == 0
    argv = ["compare", f"{place}/runs/c", "--split", "validation", "--steps", "1"]
    assert cli.main(argv) == 0
    assert "the validation part" in capsys.readouterr().out
    assert "no such part" in refused(capsys, *argv[:1], f"{place}/runs/a", *argv[2:])


def test_a_fit_alone_needs_data(place, capsys):
    fit = f"{place}/runs/a/fit"
    assert "--data FILE" in refused(capsys, "compare", fit)
    options = ["--data", f"{place}/new.npz", "--steps", "1"]
    assert cli.main(["compare", fit, f"{place}/runs/b", *options]) == 0
    assert "--split test" in refused(capsys, "compare", fit, *options, "--split", "test")


def test_training_data_are_called_so(place, tmp_path, capsys):
    text = CONFIG.format(dim=1, fractions="[0.6, 0.4]").replace("fractions", 'by = "none"\n#')
    (tmp_path / "n.toml").write_text(text, encoding="utf-8")
    argv = ["fit", f"{place}/d.npz", "--config", f"{tmp_path}/n.toml", "--out", f"{tmp_path}/n"]
    assert cli.main([*argv, "--no-pictures"]) == 0
    assert cli.main(["compare", f"{tmp_path}/n", "--steps", "1"]) == 0
    assert "TRAINING data: nothing was held out" in capsys.readouterr().out


def test_refusals(place, tmp_path, capsys):
    run = f"{place}/runs/a"
    for command in ("compare", "report"):
        assert "there is no such folder" in refused(capsys, command, f"{place}/absent")
        assert "is no run" in refused(capsys, command, run, place)
        assert "named twice" in refused(capsys, command, run, f"{run}/../a")
        assert "there is no file" in refused(capsys, command, run, "--data", tmp_path / "x.npz")
    assert "--csv" in refused(capsys, "compare", run, "--csv", tmp_path)
    assert "is a folder" in refused(capsys, "report", run, "--out", tmp_path)
    assert "wanted 1 to 2" in refused(capsys, "report", run, "--trial", "0")
    assert not list(tmp_path.iterdir())


def test_names_tell_runs_apart(tmp_path):
    folders = [tmp_path / p for p in ("x/em", "y/em", "y/vi")]
    assert runs._names(folders) == ["x/em", "y/em", "y/vi"]
    assert runs._names(folders[1:]) == ["em", "vi"]


def test_report_writes_a_page(place, tmp_path, capsys):
    out = tmp_path / "page.html"
    argv = ["report", f"{place}/runs/a", f"{place}/runs/b", "--out", str(out), "--steps", "1"]
    assert cli.main([*argv, "--title", "Two <fits>", "--trial", "2"]) == 0
    assert "page.html" in "".join(capsys.readouterr().out.split())
    text = out.read_text(encoding="utf-8")
    assert "<title>Two &lt;fits&gt;</title>" in text
    assert "Fit: a" in text and "Fit: b" in text and "no picture" not in text


@pytest.mark.parametrize("command", ["compare", "report"])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    assert f"example: plssm {command} runs/em runs/vi" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main([command])
