"""The command line: what is printed, written and refused."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import plssm
from plssm import cli
from plssm.cli import results
from plssm.cli.example import EXAMPLE
from plssm.config import RunConfig
from plssm.data import Dataset
from plssm.dynamics import LinearDynamics
from plssm.errors import PlssmError
from plssm.fit import Fit
from plssm.inference import GTF, LaplaceEM
from plssm.inference.training_progress import TrainingProgress

CONFIG = """
[dynamics]
class = "LinearDynamics"
dim = 2
[observations.x]
class = "Gaussian"
[engine]
iterations = 3
[split]
fractions = [0.7, 0.3]
"""


@pytest.fixture
def run(tmp_path):
    """Arguments of `plssm fit` for a small run that works."""
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.normal(size=(2, 60, 3)), axis=1) * 0.1
    Dataset.from_arrays({"x": x}, dt=0.5).save(tmp_path / "d.npz")
    (tmp_path / "fit.toml").write_text(CONFIG, encoding="utf-8")
    return ["fit", f"{tmp_path}/d.npz", "--config", f"{tmp_path}/fit.toml",
            "--out", f"{tmp_path}/runs/a"]  # fmt: skip


def refused(capsys, *argv):
    """The one line that a refusal prints."""
    assert cli.main(list(argv)) == 2
    out, err = capsys.readouterr()
    assert err.startswith("plssm: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


# ---- the parser ----------------------------------------------------------------------------


def test_only_the_parser_is_loaded_at_the_top():
    tree = ast.parse(Path(cli.__file__).read_text(encoding="utf-8"))
    top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {a.name for n in top if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in top if isinstance(n, ast.ImportFrom)}
    assert names == {"__future__", "argparse", "sys", "collections.abc"}


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["demo", "--help"],
        ["fit", "--help"],
        ["compare", "--help"],
        ["report", "--help"],
        ["fit", "--example-config"],
    ],
)
def test_answers_that_need_no_torch(argv):
    code = (
        "import sys\nfrom plssm.cli import main\n"
        f"try: main({argv!r})\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'rich', 'pyro', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "plssm.cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"plssm {plssm.__version__}\n"


def test_no_command_prints_help(capsys):
    assert cli.main([]) == 2
    assert "demo" in capsys.readouterr().out


def test_example_configuration(capsys):
    assert cli.main(["fit", "--example-config"]) == 0
    assert capsys.readouterr().out == EXAMPLE


@pytest.mark.parametrize("argv", [["demo", "--dim", "0"], ["fit", "a", "--steps", "-1"], ["no"]])
def test_wrong_arguments(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert "usage: plssm" in capsys.readouterr().err


# ---- fit -----------------------------------------------------------------------------------


def test_fit_leaves_everything_behind(run, tmp_path, capsys):
    assert cli.main([*run, "--steps", "1", "3"]) == 0
    out = tmp_path / "runs" / "a"
    screen = capsys.readouterr().out
    for words in ("error 3 steps ahead", "persistence", "VAR(1)", "coverage", "log evidence"):
        assert words in screen
    fit = Fit.load(out / "fit")
    data = Dataset.load(tmp_path / "d.npz")
    train, test = data.split(by="time", fractions=(0.7, 0.3))
    assert isinstance(fit.model.dynamics, LinearDynamics) and fit.engine.iterations == 3
    scores = pd.read_csv(out / "scores.csv", index_col="modality")
    again = fit.score(test, steps=(1, 3))
    for column in ("error_3", "persistence_3", "var1_3", "coverage_95", "evidence"):
        assert scores.loc["x", column] == pytest.approx(again.loc["x", column], rel=1e-9)
        if column != "evidence":
            assert f"{again.loc['x', column]:.3f}" in screen
    one = LaplaceEM(iterations=3).fit(RunConfig.from_toml(CONFIG).make_model(data), train)
    assert one.score(test, steps=(3,)).loc["x", "error_3"] == pytest.approx(
        scores.loc["x", "error_3"], rel=1e-9
    )
    pictures = {p.stem for p in out.glob("*.png")}
    assert pictures == {"latents", "convergence", "observed_x", "free_run_x"}
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in out.glob("*.png"))


def test_the_resolved_configuration_repeats_the_run(run, tmp_path, capsys):
    assert cli.main([*run, "--no-pictures"]) == 0
    first = tmp_path / "runs" / "a"
    written = tomllib.loads((first / "config.toml").read_text(encoding="utf-8"))
    assert written["data"]["file"] == str(tmp_path / "d.npz")
    assert written["engine"]["restarts"] == 1
    second = tmp_path / "runs" / "b"
    again = ["fit", "--config", f"{first}/config.toml", "--out", str(second), "--no-pictures"]
    assert cli.main(again) == 0
    same = [(r / "fit" / "model.safetensors").read_bytes() for r in (first, second)]
    assert same[0] == same[1]
    assert not list(second.glob("*.png"))


def test_fit_of_a_table_with_validation_by_trials(run, tmp_path, capsys):
    rng = np.random.default_rng(1)
    rows = [(k, 0.5 * t, *rng.normal(size=2)) for k in range(6) for t in range(20)]
    pd.DataFrame(rows, columns=["k", "t", "a", "b"]).to_csv(tmp_path / "d.csv", index=False)
    toml = CONFIG.replace("fractions = [0.7, 0.3]", 'by = "trial"\nfractions = [0.5, 0.25, 0.25]')
    toml += '[data]\ntrial = "k"\ntime = "t"\n'
    (tmp_path / "fit.toml").write_text(toml, encoding="utf-8")
    run[1] = f"{tmp_path}/d.csv"
    assert cli.main([*run, "--no-pictures"]) == 0
    assert "Held-out data: x, 2 trials" in capsys.readouterr().out


def test_nothing_held_out_is_said(run, tmp_path, capsys):
    (tmp_path / "fit.toml").write_text(
        CONFIG.replace("fractions = [0.7, 0.3]", 'by = "none"'), encoding="utf-8"
    )
    assert cli.main([*run, "--no-pictures"]) == 0
    assert "nothing is held out" in capsys.readouterr().out


# ---- refusals ------------------------------------------------------------------------------


def test_refusals_are_one_line_and_write_nothing(run, tmp_path, capsys):
    config = Path(run[3])
    wrong = {
        "unknown key": CONFIG.replace("dim = 2", "dims = 2"),
        "no modality of this name": CONFIG.replace("observations.x", "observations.y"),
        "not TOML": "[dynamics",
        "do not make a whole": CONFIG.replace("0.7, 0.3", "0.7, 0.7"),
    }
    for words, text in wrong.items():
        config.write_text(text, encoding="utf-8")
        assert words in refused(capsys, *run), words
    config.write_text(CONFIG, encoding="utf-8")
    assert "there is no file" in refused(capsys, "fit", f"{tmp_path}/absent.npz", *run[2:])
    truncated = tmp_path / "truncated.npz"
    truncated.write_bytes((tmp_path / "d.npz").read_bytes()[:200])
    assert "truncated" in refused(capsys, "fit", str(truncated), *run[2:])
    assert "--out is missing" in refused(capsys, *run[:4])
    assert "--config is missing" in refused(capsys, "fit", run[1])
    assert not (tmp_path / "runs").exists()


def test_a_folder_with_other_things_is_left_alone(run, tmp_path, capsys):
    out = tmp_path / "runs" / "a"
    out.mkdir(parents=True)
    (out / "thesis.txt").write_text("mine", encoding="utf-8")
    assert "something other than an earlier run" in refused(capsys, *run)
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    assert "is a file" in refused(capsys, *run[:-1], str(file))


def test_an_earlier_run_may_be_replaced(run, capsys):
    assert cli.main([*run, "--no-pictures"]) == 0
    assert cli.main([*run, "--no-pictures"]) == 0


def test_traceback_on_request(run):
    with pytest.raises(PlssmError, match="--out is missing"):
        cli.main([*run[:4], "--traceback"])
    with pytest.raises(PlssmError, match="--out is missing"):
        cli.main(["--traceback", *run[:4]])


def test_errors_that_are_not_ours_are_not_hidden(run, monkeypatch):
    def broken(*args, **options):
        raise ValueError("a mistake in the code")

    monkeypatch.setattr(LaplaceEM, "fit", broken)
    with pytest.raises(ValueError, match="a mistake in the code"):
        cli.main(run)


def test_interruption(run, tmp_path, capsys, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(LaplaceEM, "fit", interrupted)
    assert cli.main(run) == 130
    assert capsys.readouterr().err == "plssm: interrupted; nothing more is written\n"
    assert not (tmp_path / "runs" / "a" / "fit").exists()


# ---- fit by teacher forcing ------------------------------------------------------------------

FORCED = """
[dynamics]
class = "ShallowPLRNN"
dim = 3
hidden = 4
[observations.x]
class = "Gaussian"
readout = "identity"
[engine]
class = "TeacherForcing"
steps = 60
sequence = 8
batch_size = 4
checks = 6
fit_noise = false
checkpoint_seconds = 0.0
[engine.scheme]
class = "GTF"
alpha = 0.3
"""


@pytest.fixture
def forced(run, tmp_path):
    """Arguments of `plssm fit` for a short training by gradients."""
    (tmp_path / "fit.toml").write_text(FORCED, encoding="utf-8")
    return [*run, "--no-pictures", "--steps", "1"]


def stopped(monkeypatch, kind, at):
    """Make the training end with an error after a check."""
    real = TrainingProgress.advance

    def advance(self, restart, step, row):
        real(self, restart, step, row)
        if step >= at and "score" in row:
            raise kind

    monkeypatch.setattr(TrainingProgress, "advance", advance)


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", [Killed, KeyboardInterrupt])
def test_an_interrupted_training_goes_on_where_it_was(forced, tmp_path, capsys, monkeypatch, kind):
    """The same command again ends with the parameters of a run that nothing interrupted."""
    out = tmp_path / "runs" / "a"
    file = out / results.CHECKPOINT
    with monkeypatch.context() as patch:
        stopped(patch, kind, 30)
        if kind is Killed:
            with pytest.raises(Killed):
                cli.main(forced)
        else:
            with pytest.warns(RuntimeWarning, match="interrupted"):
                assert cli.main(forced) == 0
    told = "".join(capsys.readouterr().out.split())
    assert f"checkpoint:{file};afteraninterruptionthesamecommand" in told and file.exists()
    assert ("thetrainingisnotatitsend" in told) == (kind is KeyboardInterrupt)
    assert cli.main(forced) == 0
    assert "goingonfromthecheckpoint" in "".join(capsys.readouterr().out.split())
    assert not file.exists()
    assert cli.main([*forced, "--out", f"{tmp_path}/runs/b"]) == 0
    whole = Fit.load(tmp_path / "runs/b/fit")
    again = Fit.load(out / "fit")
    for name, value in whole.model.state_dict().items():
        assert value.equal(again.model.state_dict()[name]), name
    assert again.engine == whole.engine and again.engine.checkpoint is None
    assert again.engine.scheme == GTF(0.3)
    resolved = tomllib.loads((out / "config.toml").read_text(encoding="utf-8"))
    assert resolved["engine"]["scheme"]["class"] == "GTF"
    assert RunConfig.read(out / "config.toml").make_engine() == again.engine


def test_checkpoints_that_are_not_wanted_or_belong_to_others(
    forced, tmp_path, capsys, monkeypatch
):
    file, toml = tmp_path / "runs" / "a" / results.CHECKPOINT, tmp_path / "fit.toml"
    stopped(monkeypatch, Killed, 30)
    elsewhere = tmp_path / "mine.safetensors"
    for line, kept in (('checkpoint = ""', None), (f'checkpoint = "{elsewhere}"', elsewhere),
                       ("restarts = 2", None), ("", file)):  # fmt: skip
        toml.write_text(FORCED.replace("steps = 60", f"steps = 60\n{line}"), encoding="utf-8")
        with pytest.raises(Killed):
            cli.main(forced)
        assert [f for f in (file, elsewhere) if f.exists()] == ([kept] if kept else [])
        elsewhere.unlink(missing_ok=True)
    assert "no checkpoint, as it serves one start only and restarts = 2" in capsys.readouterr().out
    toml.write_text(FORCED.replace("0.3", "0.4"), encoding="utf-8")
    err = refused(capsys, *forced)
    assert "other settings or data" in err and "delete it" in err and file.exists()


# ---- doctor, table -------------------------------------------------------------------------


def test_doctor(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    import numba
    import torch

    for words in (
        f"torch {torch.__version__}", f"numba {numba.__version__}", "cores", "BLAS",
        "compile cache", "teacher forcing", "PLSSM_DATA", "simulated_plrnn",
    ):  # fmt: skip
        assert words in out, words


def test_doctor_finds_recordings(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("PLSSM_DATA", str(tmp_path))
    (tmp_path / "eeg").mkdir()
    (tmp_path / "eeg" / "eeg.npz").write_bytes(b"")
    assert cli.main(["doctor"]) == 0
    there = [r for r in capsys.readouterr().out.splitlines() if "recordings there" in r]
    assert "eeg" in there[0] and "linear_track" not in there[0]


def test_doctor_says_what_is_missing(capsys, monkeypatch):
    from plssm.cli import doctor

    monkeypatch.setattr(doctor, "NEEDED", (*doctor.NEEDED, "no-such-package"))
    assert cli.main(["doctor"]) == 2
    assert "pip install no-such-package" in capsys.readouterr().out


def test_the_smallest_error_is_marked_and_absent_ones_are_dashes():
    assert results._marked([0.5, 0.25, np.nan]) == ["0.500", "[bold green]0.250[/]", "–"]
    assert results._marked([np.nan] * 3) == ["–"] * 3
    assert results._marked([2e-4, 0.0, 2e-3]) == ["2.0e-04", "[bold green]0.000[/]", "0.002"]
    assert results._marked([1657818.4, 999.5, np.inf]) == [
        "1.7e+06",
        "[bold green]999.500[/]",
        "inf",
    ]


def test_a_picture_that_cannot_be_drawn_costs_nothing_else(tmp_path, capsys):
    from matplotlib.figure import Figure
    from rich.console import Console

    def broken():
        raise PlssmError("the free run left the finite numbers")

    pictures = {"free_run": broken, "latents": Figure}
    results.write_pictures(pictures, tmp_path, Console())
    assert [p.name for p in tmp_path.iterdir()] == ["latents.png"]
    assert "no free_run.png: the free run left the finite numbers" in capsys.readouterr().out


def test_saved_fits_name_their_engine(run, tmp_path, capsys):
    assert cli.main([*run, "--no-pictures"]) == 0
    saved = json.loads((tmp_path / "runs/a/fit/fit.json").read_text(encoding="utf-8"))
    assert saved["engine"]["settings"]["iterations"] == 3
