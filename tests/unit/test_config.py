"""Configurations: TOML to objects and back, and what is refused."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest

from plssm.cli.example import EXAMPLE
from plssm.config import ConfigError, DataSection, RunConfig, SplitSection
from plssm.data import Dataset
from plssm.dynamics import PLRNN, LinearDynamics, ManifoldAttractor
from plssm.errors import DataError
from plssm.inference import (
    GTF,
    GaussNewton,
    LaplaceEM,
    SparseTF,
    Stage,
    TeacherForcing,
    VariationalInference,
)
from plssm.observations import Gaussian

SMALL = {
    "dynamics": {"class": "PLRNN", "dim": 3},
    "observations": {"x": {"class": "Gaussian"}},
}


def data(steps=30, channels=4, **options):
    x = np.random.default_rng(0).normal(size=(2, steps, channels))
    return Dataset.from_arrays({"x": x}, dt=0.5, **options)


def small(**tables):
    return RunConfig.from_dict({**SMALL, **tables})


# ---- what is built -------------------------------------------------------------------------


def test_the_example_is_a_configuration():
    config = RunConfig.from_toml(EXAMPLE)
    model, engine = config.make_model(data()), config.make_engine()
    assert isinstance(model.dynamics, PLRNN) and model.dim == 5
    assert model.observations["x"].channels == 4
    assert engine == LaplaceEM(seed=0, iterations=50, restarts=3)
    assert config.split == SplitSection("time", (0.8, 0.2), 0)


def test_what_the_example_shows_in_comments_works_too():
    lines = EXAMPLE.partition("# Or, for chaotic systems")[0].splitlines()
    shown = [k for k, line in enumerate(lines) if line.startswith("# ") and "=" in line]
    assert len(shown) == 10
    for k in shown:
        lines[k] = lines[k].removeprefix("# ")
    config = RunConfig.from_toml("\n".join(lines))
    assert config.data.columns == {"x": ["lfp_1", "lfp_2"]}
    assert config.data.dt == 0.05 and config.data.inputs == ["stimulus"]
    latent = config.make_model(Dataset.from_arrays({"x": np.eye(5)})).dynamics
    assert latent.regularizer == ManifoldAttractor(10.0)


@pytest.mark.parametrize(
    ("mark", "wanted"),
    [
        ("# Or, for chaotic systems", TeacherForcing(checkpoint="")),
        ("# Or, for variational inference", VariationalInference()),
    ],
)
def test_the_other_engines_of_the_example_work_too(mark, wanted):
    """What is shown of them are their defaults."""
    before, _, after = EXAMPLE.partition('class = "LaplaceEM"')
    engine, _, rest = after.partition("\n\n")
    lines = engine.partition(mark)[2].partition("# Or,")[0].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("# class"))
    shown = [line.removeprefix("# ") for line in lines[first:]]
    assert RunConfig.from_toml("\n".join([before, *shown, rest])).make_engine() == wanted


def test_an_optimiser_of_teacher_forcing_there_and_back():
    text = '[engine]\nclass = "TeacherForcing"\noptimiser = { class = "GaussNewton", updates = 7 }'
    config = small(**tomllib.loads(text))
    assert config.make_engine() == TeacherForcing(optimiser=GaussNewton(updates=7))
    again = RunConfig.from_toml(config.resolved(data()).to_toml())
    assert again.make_engine() == config.make_engine()


@pytest.mark.parametrize(
    ("toml", "wanted"),
    [
        ('scheme = { class = "GTF", alpha = 0.25, final_alpha = 0.01 }', GTF(0.25, 0.01)),
        ('[engine.scheme]\nclass = "SparseTF"\ninterval = 16', SparseTF(16)),
        ('[engine.scheme]\nclass = "SparseTF"\nannealed = true', SparseTF(annealed=True)),
        ('scheme = { class = "plssm.inference.forcing:GTF", alpha = 1 }', GTF(1.0)),
    ],
)
def test_schemes_of_teacher_forcing_there_and_back(toml, wanted):
    text = '[engine]\nclass = "TeacherForcing"\nlearning_rate = [0.01, 0.001]\nsteps = 7\n' + toml
    config = small(**tomllib.loads(text))
    engine = config.make_engine()
    assert engine == TeacherForcing(scheme=wanted, learning_rate=(0.01, 0.001), steps=7)
    resolved = config.resolved(data())
    table = resolved.to_dict()["engine"]
    assert table["scheme"]["class"] == type(wanted).__name__
    assert table["sequence"] == TeacherForcing().sequence and "checkpoint" not in table
    assert RunConfig.from_toml(resolved.to_toml()).make_engine() == engine


def test_defaults():
    config = small()
    assert config.make_engine() == LaplaceEM()
    assert config.data == DataSection() and config.split == SplitSection()


def test_sizes_come_from_the_data():
    steps = np.zeros((2, 30, 2))
    regressors = {"x": np.random.default_rng(1).normal(size=(30, 3))}
    model = small().make_model(data(inputs=steps, nuisance=regressors))
    assert model.dynamics.n_inputs == 2
    assert model.observations["x"].channels == 4
    assert model.observations["x"].nuisance == 3


def test_nested_objects_with_and_without_a_class():
    wanted = ManifoldAttractor(2.0, units=1)
    for table in ({"tau": 2.0, "units": 1}, {"class": "ManifoldAttractor", "tau": 2, "units": 1}):
        config = small(dynamics={"class": "PLRNN", "dim": 3, "regularizer": table})
        assert config.make_model(data()).dynamics.regularizer == wanted


def test_stages_are_tables():
    stages = [{"name": "a", "iterations": 2}, {"name": "b", "iterations": 3, "process_noise": 1}]
    engine = small(engine={"class": "LaplaceEM", "stages": stages}).make_engine()
    assert engine.stages == (Stage("a", 2), Stage("b", 3, process_noise=1.0))


def test_a_class_of_ones_own():
    name = "plssm.dynamics.linear:LinearDynamics"
    model = small(dynamics={"class": name, "dim": 2}).make_model(data())
    assert isinstance(model.dynamics, LinearDynamics)


MIXED = """
[dynamics]
class = "PLRNN"
dim = 4
[observations.spikes]
class = "Poisson"
bin_seconds = 0.5
link = "softplus"
[observations.choice]
class = "Categorical"
classes = 3
[observations.mood]
class = "Ordinal"
levels = 5
[observations.licks]
class = "Bernoulli"
[observations.bold]
class = "BOLD"
tr_seconds = 2
"""


def mixed():
    rng = np.random.default_rng(0)
    return Dataset.from_arrays(
        {
            "spikes": rng.poisson(1.0, size=(80, 6)),
            "choice": rng.integers(0, 3, size=(80, 1)),
            "mood": rng.integers(0, 5, size=(80, 2)),
            "licks": rng.integers(0, 2, size=(80, 3)),
            "bold": rng.normal(size=(20, 7)),
        },
        dt=0.5,
        kinds={"spikes": "count", "choice": "label", "mood": "ordinal", "licks": "label",
               "bold": "bold"},
        times={"bold": np.arange(20) * 2.0},
        nuisance={"bold": rng.normal(size=(20, 6))},
    )  # fmt: skip


def test_every_observation_model_has_its_own_sizes():
    """Channels and nuisance regressors come from the data; classes and levels are stated."""
    model = RunConfig.from_toml(MIXED).make_model(mixed())
    found = model.observations
    assert [type(o).__name__ for o in found.values()] == [
        "Poisson", "Categorical", "Ordinal", "Bernoulli", "BOLD"
    ]  # fmt: skip
    assert found["spikes"].channels == 6 and found["spikes"].bin_seconds == 0.5
    assert found["choice"].classes == 3 and found["choice"].predictors == 2
    assert (found["mood"].channels, found["mood"].levels) == (2, 5)
    assert found["licks"].channels == 3
    bold = found["bold"]
    assert (bold.channels, bold.tr_seconds, bold.nuisance) == (7, 2.0, 6)
    model.check(mixed())


def test_observation_models_come_back_from_the_resolved_configuration():
    toml = MIXED + 'hrf = { class = "DoubleGamma", time_to_peak = 6.0 }\n'
    toml = toml.replace(
        'link = "softplus"',
        'history = { class = "RaisedCosine", functions = 3, longest_seconds = 5.0 }',
    )
    config = RunConfig.from_toml(toml)
    model = config.make_model(mixed())
    assert model.observations["spikes"].history.functions == 3
    resolved = config.resolved(mixed())
    assert RunConfig.from_toml(resolved.to_toml()) == resolved
    again = RunConfig.from_toml(resolved.to_toml()).make_model(mixed())
    for name, one in model.observations.items():
        assert one.config() == again.observations[name].config()
    assert "channels" not in resolved.to_dict()["observations"]["mood"]
    assert resolved.to_dict()["observations"]["mood"]["levels"] == 5


# ---- there and back ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"split": {"by": "trial", "fractions": [0.5, 0.25, 0.25], "seed": 3}},
        {"engine": {"stages": [{"name": "a", "iterations": 2, "learn": ["dynamics"]}]}},
        {"dynamics": {"class": "PLRNN", "dim": 3, "regularizer": {"tau": 2.0, "units": [0, 2]}}},
        {"data": {"dt": 0.5, "columns": {"x": ["a", "b"]}, "time": "t"}},
    ],
)
def test_round_trip(tables):
    config = small(**tables)
    assert RunConfig.from_toml(config.to_toml()) == config
    resolved = config.resolved(data(), "recording.npz")
    again = RunConfig.from_toml(resolved.to_toml())
    assert again == resolved
    assert again.make_engine() == config.make_engine()
    one, other = (c.make_model(data()).dynamics for c in (config, again))
    assert one.config() == other.config()


def test_the_resolved_configuration_hides_no_default():
    tables = tomllib.loads(small().resolved(data(), "recording.npz").to_toml())
    assert tables["data"] == {
        "file": "recording.npz", "dt": 0.5, "kinds": {"x": "continuous"}, "inputs": []
    }  # fmt: skip
    assert tables["dynamics"]["noise"] == "diagonal"
    assert tables["observations"]["x"] == {"class": "Gaussian", "readout": "linear", "bias": True}
    assert tables["engine"]["iterations"] == LaplaceEM().iterations


@pytest.mark.parametrize(
    "part",
    [
        {"class": "AlmostLinearRNN", "relu_units": 1},
        {"class": "ShallowPLRNN", "hidden": 4, "clipped": False},
        {"class": "DendriticPLRNN", "bases": 2, "mean_centered": True},
    ],
)
def test_members_of_the_family_by_name(part):
    config = small(dynamics={**part, "dim": 3, "noise": "full"})
    dynamics = config.make_model(data()).dynamics
    found = dynamics.config()
    assert {k: found[k] for k in part if k != "class"}.items() <= part.items()
    assert (type(dynamics).__name__, dynamics.noise.kind) == (part["class"], "full")
    resolved = config.resolved(data())
    assert resolved.to_dict()["dynamics"]["initial"] == "shared"
    assert RunConfig.from_toml(resolved.to_toml()).make_model(data()).dynamics.config() == found


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"spilt": {}}, r"unknown key 'spilt'; allowed are data, .*Did you mean 'split'"),
        ({"data": {"colums": {}}}, r"\[data\]: unknown key 'colums'.*'columns'"),
        ({"split": {"by": "day"}}, r"\[split\] by: got 'day'"),
        ({"split": {"fractions": [0.5, "a"]}}, r"\[split\] fractions\[1\]: got 'a'"),
        ({"engine": {"iteration": 5}}, r"\[engine\]: unknown key 'iteration'.*'iterations'"),
        ({"engine": {"iterations": 2.5}}, r"\[engine\] iterations: got 2.5"),
        ({"engine": {"iterations": "5"}}, r"\[engine\] iterations: got '5'"),
        ({"engine": {"iterations": True}}, r"\[engine\] iterations: got True"),
        ({"engine": {"restarts": 0}}, r"\[engine\].*restarts is 0"),
        ({"engine": {"class": "PLRNN"}}, r"\[engine\] class: got 'PLRNN', wanted .*LaplaceEM"),
        ({"engine": {"class": "Engine"}}, r"\[engine\] class: got 'Engine'"),
        ({"engine": {"stages": [{"name": "a", "iterations": 1, "lern": []}]}},
         r"stages\[0\]: unknown key 'lern'.*'learn'"),
        ({"engine": {"stages": [{"name": "a", "iterations": -1}]}}, r"stages\[0\].*wanted >= 0"),
        *(({"engine": {"class": "TeacherForcing", **engine}}, message) for engine, message in [
            ({"scheme": {"class": "GTV"}}, r"class: got 'GTV', wanted GTF, MTF, SparseTF, or"),
            ({"scheme": {"class": "LaplaceEM"}}, r"got 'LaplaceEM', wanted GTF, MTF, SparseTF"),
            ({"scheme": {"class": 3}}, r"scheme class: got 3, wanted GTF"),
            ({"scheme": {"alpha": 0.1}}, r"scheme: got .*'class': one of GTF, MTF, SparseTF"),
            ({"scheme": "GTF"}, r"\[engine\] scheme: got 'GTF', wanted a table"),
            ({"scheme": {"class": "GTF", "alfa": 0.1}}, r"unknown key 'alfa'.*'alpha'"),
            ({"scheme": {"class": "GTF", "alpha": 2.0}}, r"scheme: GTF: alpha is 2.0"),
            ({"scheme": {"class": "GTF", "alpha": "a"}}, r"scheme alpha: got 'a'"),
            ({"scheme": {"class": "SparseTF", "interval": -1}}, r"interval is -1"),
            ({"step": 10}, r"\[engine\]: unknown key 'step'.*'steps'"),
            ({"steps": 0}, r"\[engine\].*at least one step"),
            ({"learning_rate": [0.1]}, r"\[engine\] learning_rate"),
            ({"restarts": 2, "checkpoint": "c"}, r"\[engine\].*set restarts=1"),
        ]),
        ({"dynamics": {}}, r"\[dynamics\] is missing"),
        ({"dynamics": {"dim": 3}}, r"\[dynamics\]: the key 'class' is missing"),
        ({"dynamics": {"class": "PLRNN"}}, r"\[dynamics\]: PLRNN needs dim"),
        ({"dynamics": {"class": "PLRNN", "dim": 0}}, r"\[dynamics\].*dim=0"),
        ({"dynamics": {"class": "PLRNN", "dim": 3, "inputs": 1}}, r"inputs: comes from the data"),
        ({"dynamics": {"class": "PLRNN", "dim": 3, "regularizer": {"class": "No", "tau": 1}}},
         r"\[dynamics\] regularizer class: got 'No'"),
        ({"dynamics": {"class": "PLRNN", "dim": 3, "regularizer": {"tou": 1}}},
         r"regularizer: unknown key 'tou'.*'tau'"),
        ({"dynamics": {"class": "nowhere:Mine", "dim": 3}}, r"cannot find the class"),
        ({"dynamics": [{"class": "PLRNN"}]}, r"\[dynamics\] is missing"),
        ({"observations": {"x": "Gaussian"}}, r"\[observations.x\]: got 'Gaussian'"),
        ({"observations": {"x": {"class": "Gaussian", "channels": 3}}}, r"channels: comes from"),
        ({"observations": {"x": {"class": "Gaussian", "readout": "cubic"}}}, r"cubic"),
        ({"split": "time"}, r"\[split\]: got 'time', wanted a table"),
        ({"observations": {"c": {"class": "Categorical"}}}, r"c\]: Categorical needs classes"),
        ({"observations": {"c": {"class": "Categorical", "classes": 1}}}, r"c\].*classes is 1"),
        ({"observations": {"c": {"class": "Categorical", "classes": 2.5}}}, r"classes: got 2.5"),
        ({"observations": {"c": {"class": "Ordinal"}}}, r"c\]: Ordinal needs levels"),
        ({"observations": {"b": {"class": "BOLD"}}}, r"b\]: BOLD needs tr_seconds"),
        ({"observations": {"b": {"class": "BOLD", "tr_seconds": -1}}}, r"b\].*tr_seconds"),
        ({"observations": {"b": {"class": "BOLD", "tr": 2.0}}}, r"unknown key 'tr'"),
        ({"observations": {"n": {"class": "Poisson", "link": "log"}}}, r"n\].*log"),
        ({"observations": {"n": {"class": "Poison"}}}, r"got 'Poison', wanted .*Poisson"),
    ],
)  # fmt: skip
def test_refusals_name_the_key(tables, message):
    with pytest.raises(ConfigError, match=message):
        small(**tables)


def test_text_that_is_not_toml_and_dates(tmp_path):
    with pytest.raises(ConfigError, match="not TOML.*line 2"):
        RunConfig.from_toml("[data]\ndt = \n")
    with pytest.raises(ConfigError, match=r"\[engine\] iterations: got .*1979"):
        RunConfig.from_toml(EXAMPLE.replace("iterations = 50", "iterations = 1979-05-27"))
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        RunConfig.read(tmp_path / "absent.toml")


def test_a_modality_that_is_not_in_the_data():
    config = small(observations={"y": {"class": "Gaussian"}})
    with pytest.raises(ConfigError, match=r"\[observations.y\].*they have x"):
        config.make_model(data())


# ---- data ----------------------------------------------------------------------------------


def test_npz(tmp_path):
    path = tmp_path / "d.npz"
    data().save(path)
    loaded = DataSection().load(path)
    np.testing.assert_array_equal(loaded.values("x"), data().values("x"))
    assert loaded.dt == 0.5
    assert DataSection(file=str(path), dt=2.0).load().dt == 2.0
    with pytest.raises(ConfigError, match="columns: is for tables"):
        DataSection(columns={"x": ["a"]}).load(path)


def test_bare_npz_with_kinds(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, counts=np.arange(12).reshape(6, 2))
    loaded = DataSection(dt=0.1, kinds={"counts": "count"}).load(path)
    assert loaded.kinds == {"counts": "count"} and loaded.dt == 0.1


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_tables(tmp_path, suffix, separator):
    path = tmp_path / f"d{suffix}"
    rows = ["t,k,a,b,u", "0,1,1,,0", "0.5,1,2,3,1", "0,2,4,5,0", "0.5,2,6,7,1", "1.0,2,8,9,1"]
    path.write_text("\n".join(row.replace(",", separator) for row in rows), encoding="utf-8")
    section = DataSection(columns={"x": ["a", "b"]}, time="t", trial="k", inputs=["u"])
    loaded = section.load(path)
    assert loaded.lengths.tolist() == [2, 3] and loaded.dt == 0.5 and loaded.n_inputs == 1
    np.testing.assert_array_equal(loaded.trials[0].values["x"], [[1, np.nan], [2, 3]])
    with pytest.raises(DataError, match="lacks columns"):
        DataSection(columns={"x": ["c"]}).load(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match="no file is named"):
        DataSection().load()
    with pytest.raises(ConfigError, match="there is no file"):
        DataSection().load(tmp_path / "absent.npz")
    other = tmp_path / "d.mat"
    other.write_bytes(b"x")
    with pytest.raises(ConfigError, match="wanted a .npz, .csv or .tsv"):
        DataSection().load(other)
    ragged = tmp_path / "d.csv"
    ragged.write_text("a,b\n1,2\n1,2,3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="as a table"):
        DataSection().load(ragged)


@pytest.mark.parametrize(
    ("split", "sizes"),
    [
        (SplitSection("time", (0.8, 0.2)), [24, None, 6]),
        (SplitSection("time", (0.6, 0.2, 0.2)), [18, 6, 6]),
        (SplitSection("none"), [30, None, None]),
    ],
)
def test_split(split, sizes):
    parts = split.apply(data())
    assert [None if p is None else int(p.lengths[0]) for p in parts] == sizes


def test_split_into_one_part_is_refused():
    with pytest.raises(ConfigError, match=r"\[split\] fractions: got 1 numbers"):
        SplitSection("time", (1.0,)).apply(data())


def test_an_observation_model_takes_what_the_table_says():
    config = small(observations={"x": {"class": "Gaussian", "readout": "relu", "bias": False}})
    observation = config.make_model(data()).observations["x"]
    assert isinstance(observation, Gaussian) and not observation.has_bias
    assert observation.config()["readout"] == "relu"
