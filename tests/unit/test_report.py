"""The report: one page that stands alone, whole, and shows nothing as markup that is data."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

import plssm as ps
from plssm import plot
from plssm.comparison import evidence
from plssm.errors import DataError, PlssmError
from plssm.inference import smoothers
from plssm.reporting import about_data, about_fit, document, markup

HEADINGS = ["Configuration", "Convergence", "Scores", "Latent paths", "Posterior predictive",
            "Free run", "Dynamics"]  # fmt: skip
NASTY = '<script>alert("x")</script>&$made'


class Page(HTMLParser):
    """What is on a page: tags in order, headings, text, and whether tags are balanced."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.headings, self.words, self.ids = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append((self.open[-1], data))

    @property
    def text(self):
        return " ".join(self.words)

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def exact(model, data, **options):
    made = smoothers.smooth(model, data)
    made.evidence_error = 0.1 * made.log_evidence**0
    return made


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(evidence, "smooth", exact)


def model(dim=2, name="x"):
    return ps.StateSpaceModel(ps.dynamics.PLRNN(dim), {name: ps.observations.Gaussian(3)})


@pytest.fixture(scope="module")
def parts():
    A, W = [0.9, 0.8], [[0.0, -0.4], [0.5, 0.0]]
    truth = ps.StateSpaceModel(
        ps.dynamics.PLRNN.from_parameters(A=A, W=W, h=[0.3, -0.2], process_noise=[0.05, 0.05]),
        {"x": ps.observations.Gaussian.from_parameters(np.eye(3, 2) + 0.3, noise=[0.1] * 3)},
    )
    return truth.simulate(50, trials=4, dt=0.5, seed=1).split(by="trial", fractions=(0.5, 0.5))


@pytest.fixture(scope="module")
def fits(parts):
    engine = ps.inference.LaplaceEM(iterations=3)
    return {"em": engine.fit(model(), parts[0]), NASTY: ps.Fit(model())}


@pytest.fixture(scope="module")
def text(parts, fits, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "deep" / "r.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "smooth", exact)
        assert ps.report(fits, parts[1], path, title=f"About {NASTY}", steps=(1, 2)) == path
    assert [p.name for p in path.parent.iterdir()] == ["r.html"]
    return path.read_text(encoding="utf-8")


# ---- the page --------------------------------------------------------------------------------


def test_every_section_is_there(text):
    page = Page(text)
    second = [h for kind, h in page.headings if kind == "h2"]
    assert second == ["Data", "Comparison", "Fit: em", f"Fit: {NASTY}"]
    assert [h for kind, h in page.headings if kind == "h3"] == 2 * HEADINGS
    assert ("h1", f"About {NASTY}") in page.headings
    for words in ("missing entries", "evidence_se", "d_stsp_floor", 'class = "LaplaceEM"',
                  "iterations = 3", "exponent per second", "Fixed points", "numpy", "torch",
                  "A known model: nothing was trained"):  # fmt: skip
        assert words in page.text, words
    assert "Not available" not in page.text and "no picture" not in page.text


def test_nothing_comes_from_outside(text):
    page = Page(text)
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed"), tag
        assert not any(name.startswith("on") for name in attrs)
        if "src" in attrs:
            assert attrs["src"].startswith("data:image/png;base64,")
        if "href" in attrs:
            assert attrs["href"].startswith("#") and attrs["href"][1:] in page.ids
    text = re.sub(r"base64,[^\"]*", "", text)  # where letters stand in any order
    assert "http" not in text.lower() and "@import" not in text and "url(" not in text
    pictures = [a["src"].partition(",")[2] for a in page.of("img")]
    assert len(pictures) >= 9
    assert all(base64.b64decode(p)[:4] == b"\x89PNG" for p in pictures)


def test_names_are_text_not_markup(text):
    assert "<script" not in text and "&lt;script&gt;alert(&quot;x&quot;)" in text


def test_modalities_trials_and_subjects_are_escaped(tmp_path):
    made = model(name=NASTY).simulate(30, trials=2, seed=1)
    data = ps.Dataset.from_arrays({NASTY: made.values(NASTY)}, trials=[f"<b>{k}" for k in "12"],
                                  subjects=["<i>a", "<i>b"])  # fmt: skip
    text = ps.report(ps.Fit(model(name=NASTY)), data, tmp_path / "r.html").read_text("utf-8")
    page = Page(text)
    assert not {"script", "b", "i"} & {tag for tag, _ in page.tags}
    assert NASTY in page.text and "<b>1" in page.text and "<i>a" in page.text
    assert ("h2", "Fit: fit") in page.headings


def test_numbers_of_the_comparison_are_on_the_page(text, parts, fits):
    table = ps.compare(fits, parts[1], steps=(1, 2))
    row = re.search(r"<tr><th>own_evidence</th>(.*?)</tr>", text)[1]
    assert re.findall(r"<td>(.*?)</td>", row) == [markup.number(v) for v in table["own_evidence"]]


def test_settings_are_read_back_by_fit(parts, fits):
    """The tables on the page are those of a file for plssm fit."""
    from plssm.config import RunConfig

    config = RunConfig.from_toml(about_fit.settings_text(fits["em"]))
    assert config.make_engine() == fits["em"].engine
    assert config.make_model(parts[0]).dim == 2


def test_a_table_that_was_made_before_is_taken(parts, fits, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("compared again")

    table = pd.DataFrame({"evidence": [1.25]}, index=["em"])
    table.attrs["notes"] = {"em": ["<u>odd</u>"]}
    monkeypatch.setattr(document, "compare", refuse)
    monkeypatch.setattr(document, "PARTS", {})
    path = ps.report({"em": fits["em"]}, parts[1], tmp_path / "r.html", table=table)
    page = Page(path.read_text(encoding="utf-8"))
    assert "1.25" in page.text and "em: <u>odd</u>" in page.text and not page.of("u")


# ---- failures --------------------------------------------------------------------------------


def test_a_part_that_fails_costs_itself_only(parts, fits, tmp_path, monkeypatch):
    def broken(subject):
        raise RuntimeError("out of <order>")

    monkeypatch.setattr(
        document, "PARTS", {"Scores": broken, "Convergence": about_fit.Subject.convergence}
    )
    text = ps.report({"em": fits["em"]}, parts[1], tmp_path / "r.html").read_text("utf-8")
    assert "Not available. RuntimeError: out of &lt;order&gt;" in text
    assert "How the fit converged" in text


def test_a_picture_that_fails_leaves_its_reason():
    def broken():
        raise PlssmError("the run left the finite numbers")

    assert "Free run: no picture. the run left" in markup.picture(broken, "Free run")


def test_a_map_without_an_attractor_is_said(tmp_path, monkeypatch):
    wild = model()
    wild.dynamics.A = [3.0, 3.0]
    data = model().simulate(30, trials=2, seed=1)
    monkeypatch.setattr(document, "PARTS", {"Dynamics": about_fit.Subject.dynamics})
    text = ps.report(ps.Fit(wild), data, tmp_path / "r.html").read_text("utf-8")
    assert "the orbit diverged" in text and "Fixed points" in text


def test_a_page_appears_whole_or_not_at_all(parts, fits, tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr(document, "PARTS", {})

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr(document.os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        ps.report(fits["em"], parts[1], path)
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert path.read_text(encoding="utf-8") == "old"


def test_refusals(parts, fits, tmp_path):
    with pytest.raises(PlssmError, match="is a folder"):
        ps.report(fits, parts[1], tmp_path)
    with pytest.raises(PlssmError, match="got trial 7, wanted 0 to 1"):
        ps.report(fits, parts[1], tmp_path / "r.html", trial=7)
    with pytest.raises(PlssmError, match="pass fits by name"):
        ps.report([fits["em"]], parts[1], tmp_path / "r.html")
    other = ps.Dataset.from_arrays({"y": parts[1].values("x")}, dt=0.5)
    with pytest.raises(DataError, match="the fit 'em' does not fit the data"):
        ps.report(fits, other, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


# ---- pieces ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [(np.nan, "–"), (np.inf, "∞"), (-np.inf, "−∞"), (True, "yes"), (np.int64(12345), "12345"),
     (-12345.67, "-12345.7"), (0.123456, "0.1235"), ("<a>", "<a>"), (None, "None")],
)  # fmt: skip
def test_numbers(value, shown):
    assert markup.number(value) == shown


def test_gaps():
    y = np.zeros((10, 2))
    y[2:5] = np.nan
    y[7:, 0] = np.nan
    assert about_data.longest_gap(y) == 3
    assert about_data.longest_gap(np.zeros((0, 2))) == 0


def test_the_picture_of_the_data_shows_gaps_and_clocks():
    x = np.random.default_rng(0).normal(size=(40, 3))
    x[10:20, 1] = np.nan
    data = ps.Dataset.from_arrays(
        {"x": x, "$y": x[:10, :1]}, dt=0.5, times={"$y": np.arange(10) * 2.0},
        kinds={"x": "continuous", "$y": "continuous"},
    )  # fmt: skip
    figure = plot.recorded(data)
    figure.canvas.draw()
    first, second = (axis.collections[0].get_array() for axis in figure.axes)
    assert first.shape == (3, 40) and second.shape == (1, 10)
    np.testing.assert_array_equal(np.ma.getmaskarray(first), np.isnan(x).T)
    np.testing.assert_allclose(first[0], (x[:, 0] - x[:, 0].mean()) / x[:, 0].std())
    edges = figure.axes[1].collections[0].get_coordinates()[0, :, 0]
    np.testing.assert_allclose(edges, np.arange(11) * 2.0 - 1.0)
    with pytest.raises(PlssmError, match="got trial 3"):
        plot.recorded(data, 3)
