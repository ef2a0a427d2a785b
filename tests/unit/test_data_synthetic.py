"""Simulators against scipy's integrators, closed forms and published values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

from plssm.data import flows, synthetic
from plssm.errors import DataError

NAMES = sorted(synthetic.__all__)
DIMS = {"bursting_neuron": 3, "duffing": 2, "lorenz63": 3, "lorenz96": 20, "rossler": 3,
        "van_der_pol": 2}  # fmt: skip


def lorenz63_field(t, x, sigma=10.0, rho=28.0, beta=8 / 3):
    return [sigma * (x[1] - x[0]), x[0] * (rho - x[2]) - x[1], x[0] * x[1] - beta * x[2]]


def lorenz96_field(t, x, forcing=8.0):
    return (np.roll(x, -1) - np.roll(x, 2)) * np.roll(x, 1) - x + forcing


def rossler_field(t, x, a=0.2, b=0.2, c=5.7):
    return [-x[1] - x[2], x[0] + a * x[1], b + x[2] * (x[0] - c)]


def van_der_pol_field(t, x, mu=2.0):
    return [x[1], mu * (1 - x[0] ** 2) * x[1] - x[0]]


def duffing_field(t, x):
    return [x[1], 0.5 * np.cos(1.2 * t) - 0.3 * x[1] + x[0] - x[0] ** 3]


def bursting_field(t, x, g_nmda=10.2, current=0.7):
    v, n, h = x

    def gate(half, slope):
        return 1 / (1 + np.exp((half - v) / slope))

    flow = 8 * (v + 80) + 20 * gate(-20, 15) * (v - 60) + 10 * n * (v + 90) + 25 * h * (v + 90)
    flow += g_nmda * v / (1 + 0.33 * np.exp(-0.0625 * v)) - current
    return [-flow / 6, gate(-25, 5) - n, (gate(-15, 5) - h) / 200]


CASES = {
    "lorenz63": (lorenz63_field, [1.0, 2.0, 20.0], {}, 0.01, 1e-6),
    "lorenz96": (
        lorenz96_field,
        8 + np.sin(np.arange(7.0)),
        {"dim": 7, "max_step": 0.001},
        0.02,
        1e-6,
    ),
    "lorenz96 with 10 sites": (
        lorenz96_field,
        8 + np.sin(np.arange(10.0)),
        {"dim": 10, "max_step": 0.002},
        0.01,
        1e-6,
    ),
    "lorenz96 with 20 sites": (
        lorenz96_field,
        8 + np.cos(np.arange(20.0)),
        {"dim": 20, "max_step": 0.002},
        0.01,
        1e-6,
    ),
    "lorenz63 of Rosenstein": (
        lambda t, x: lorenz63_field(t, x, 16.0, 45.92, 4.0),
        [1.0, 2.0, 20.0],
        {"sigma": 16.0, "rho": 45.92, "beta": 4.0, "max_step": 0.002},
        0.01,
        1e-6,
    ),
    "bursting_neuron at its defaults": (
        lambda t, x: bursting_field(t, x, current=0.0),
        [-60.0, 0.04, 0.02],
        {},
        0.05,
        1e-4,
    ),
    "rossler": (rossler_field, [1.0, -4.0, 0.1], {}, 0.05, 1e-6),
    "van_der_pol": (van_der_pol_field, [0.5, 1.0], {}, 0.05, 1e-6),
    "duffing": (
        duffing_field,
        [0.3, -0.2],
        {"damping": 0.3, "cubic": 1.0, "amplitude": 0.5, "frequency": 1.2},
        0.02,
        1e-6,
    ),
    "bursting_neuron": (bursting_field, [-60.0, 0.04, 0.02], {"current": 0.7}, 0.05, 1e-4),
}


@pytest.mark.parametrize("name", CASES)
def test_paths_equal_an_adaptive_integrator(name):
    field, start, options, dt, tolerance = CASES[name]
    path = getattr(synthetic, name.split()[0])(120, dt, start=start, transient=0.0, **options)[0]
    times = np.arange(120) * dt
    exact = solve_ivp(
        field, (0, times[-1]), start, t_eval=times, method="DOP853", rtol=1e-12, atol=1e-12
    ).y.T
    assert np.abs(path - exact).max() < tolerance * (1 + np.abs(exact).max())


def test_the_transient_ends_where_time_zero_begins():
    settings = {"cubic": 1.0, "amplitude": 0.5, "frequency": 1.2, "damping": 0.3}
    path = synthetic.duffing(3, 0.02, start=[0.3, -0.2], transient=4.0, **settings)[0]
    exact = solve_ivp(duffing_field, (-4.0, 0.0), [0.3, -0.2], rtol=1e-12, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(path[0], exact, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_seeds_and_independence_of_the_number_of_trials(name):
    simulate = getattr(synthetic, name)
    a = simulate(50, trials=3, seed=4, transient=1.0, process_noise=0.01)
    assert a.shape == (3, 50, DIMS[name]) and a.dtype == np.float64 and np.isfinite(a).all()
    np.testing.assert_array_equal(a, simulate(50, trials=3, seed=4, transient=1.0,
                                              process_noise=0.01))  # fmt: skip
    np.testing.assert_array_equal(
        a[:2], simulate(50, trials=2, seed=4, transient=1.0, process_noise=0.01)
    )
    assert np.abs(a - simulate(50, trials=3, seed=5, transient=1.0)).max() > 0
    assert np.abs(a[0] - a[1]).max() > 0
    assert simulate(1, transient=0.0).shape == (1, 1, DIMS[name])


def test_fixed_points_stay_fixed():
    s = np.sqrt(8 / 3 * 27)
    equilibria = {
        "lorenz63": ([0.0, 0.0, 0.0], [s, s, 27.0], [-s, -s, 27.0]),
        "lorenz96": (np.full(20, 8.0),),
        "van_der_pol": ([0.0, 0.0],),
        "duffing": ([0.0, 0.0], [np.sqrt(10.0), 0.0], [-np.sqrt(10.0), 0.0]),
    }
    for name, points in equilibria.items():
        for point in points:
            path = getattr(synthetic, name)(20, 0.01, start=point, transient=0.0)[0]
            np.testing.assert_allclose(path, np.broadcast_to(point, path.shape), atol=1e-9)
    x = (5.7 - np.sqrt(5.7**2 - 0.16)) / 2
    point = [x, -x / 0.2, x / 0.2]
    path = synthetic.rossler(20, start=point, transient=0.0)[0]
    np.testing.assert_allclose(path, np.broadcast_to(point, path.shape), atol=1e-9)


def test_largest_lyapunov_exponent_of_lorenz63():
    dt, steps = 0.01, 20_000
    path = synthetic.lorenz63(steps, dt, seed=2)[0]
    identity, tangent, total = np.eye(3), np.array([1.0, 0.3, -0.2]), 0.0
    for x, y, z in path:
        jacobian = np.array([[-10.0, 10.0, 0.0], [28.0 - z, -1.0, -x], [y, x, -8 / 3]])
        half = jacobian * dt
        tangent = (identity + half @ (identity + half @ (identity + half / 3) / 2)) @ tangent
        size = np.linalg.norm(tangent)
        total, tangent = total + np.log(size), tangent / size
    assert total / (steps * dt) == pytest.approx(0.906, abs=0.06)


def test_mean_divergence_of_lorenz63_two_orbits_of_rosensteins_system():
    # Two orbits 1e-8 apart grow by exp(1.5 t) on average in Rosenstein's variant.
    options = {"sigma": 16.0, "rho": 45.92, "beta": 4.0}
    starts = synthetic.lorenz63(1, trials=60, **options)[:, 0]
    near = starts + 1e-8
    a = synthetic.lorenz63(601, 0.01, trials=60, start=starts, transient=0.0, **options)
    b = synthetic.lorenz63(601, 0.01, trials=60, start=near, transient=0.0, **options)
    growth = np.log(np.linalg.norm(a - b, axis=2)).mean(axis=0)
    assert (growth[600] - growth[100]) / 5.0 == pytest.approx(1.50, abs=0.15)


def test_van_der_pol_amplitude_and_period():
    path = synthetic.van_der_pol(20_000, 0.01, trials=2)
    assert np.abs(path[:, :, 0]).max(axis=1) == pytest.approx(2.02, abs=0.005)
    crossings = np.flatnonzero((path[0, :-1, 0] < 0) & (path[0, 1:, 0] >= 0))
    assert np.diff(crossings).mean() * 0.01 == pytest.approx(7.63, abs=0.01)
    circle = synthetic.van_der_pol(1000, 0.02, mu=0.0, start=[1.0, 0.0], transient=0.0)[0]
    np.testing.assert_allclose(circle[:, 0], np.cos(np.arange(1000) * 0.02), atol=1e-8)


def test_undamped_duffing_keeps_its_energy_and_has_its_period():
    x0 = 1.3
    path = synthetic.duffing(
        4000, 0.01, damping=0.0, linear=1.0, cubic=0.5, start=[x0, 0.0]
    )[0]  # fmt: skip
    energy = path[:, 1] ** 2 / 2 + path[:, 0] ** 2 / 2 + 0.5 * path[:, 0] ** 4 / 4
    np.testing.assert_allclose(energy, energy[0], rtol=1e-8)

    def integrand(angle):
        return 1 / np.sqrt(1 + 0.5 * x0**2 * (1 + np.sin(angle) ** 2) / 2)

    period = 4 * quad(integrand, 0, np.pi / 2)[0]
    again = synthetic.duffing(
        2, period, damping=0.0, linear=1.0, cubic=0.5, start=[x0, 0.0]
    )[0, 1]  # fmt: skip
    np.testing.assert_allclose(again, [x0, 0.0], atol=1e-6)


def test_default_duffing_is_bistable():
    ends = synthetic.duffing(2, 40.0, trials=40)[:, 1, 0]
    np.testing.assert_allclose(np.abs(ends), np.sqrt(10.0), atol=0.05)
    assert 5 < (ends > 0).sum() < 35


def test_lorenz96_conserves_energy_apart_from_friction_and_forcing():
    path = synthetic.lorenz96(2001, 0.005, dim=8, transient=5.0)[0]
    energy = (path**2).sum(axis=1) / 2
    power = (8.0 * path - path**2).sum(axis=1)
    change = np.gradient(energy, 0.005)[1:-1]
    np.testing.assert_allclose(change, power[1:-1], atol=2e-3 * np.abs(power).max())


def test_rossler_turns_in_six_units_of_time_and_folds():
    path = synthetic.rossler(20_000, 0.05)[0]
    crossings = np.flatnonzero((path[:-1, 1] < 0) & (path[1:, 1] >= 0))
    assert np.diff(crossings).mean() * 0.05 == pytest.approx(5.87, abs=0.05)
    assert path[:, 2].min() > 0 and path[:, 2].max() > 15


@pytest.mark.parametrize(("g_nmda", "spikes_in_a_burst"), [(3.0, 2), (7.0, 6), (10.0, 14)])
def test_the_bursting_neuron_bursts_longer_with_more_nmda_current(g_nmda, spikes_in_a_burst):
    path = synthetic.bursting_neuron(40_000, 0.05, g_nmda=g_nmda)[0]
    voltage, gates = path[:, 0], path[:, 1:]
    assert -90 < voltage.min() < -60 and -20 < voltage.max() < 40
    assert gates.min() >= 0 and gates.max() <= 1
    spikes = np.flatnonzero((voltage[:-1] < -30) & (voltage[1:] >= -30)) * 0.05
    pauses = np.flatnonzero(np.diff(spikes) > 40.0)
    assert len(pauses) >= 10
    np.testing.assert_array_equal(np.diff(pauses), spikes_in_a_burst)


def test_the_bursting_neuron_rests_without_and_spikes_on_with_much_nmda_current():
    rest = synthetic.bursting_neuron(2_000, 0.05, g_nmda=0.0, transient=5000.0)[0]
    np.testing.assert_allclose(rest, rest[:1].repeat(2_000, axis=0), atol=1e-6)
    voltage = synthetic.bursting_neuron(20_000, 0.05, g_nmda=10.6)[0, :, 0]
    gaps = np.diff(np.flatnonzero((voltage[:-1] < -30) & (voltage[1:] >= -30))) * 0.05
    assert len(gaps) > 50 and gaps.max() < 20.0


@pytest.mark.parametrize(
    ("g_nmda", "start", "bursts"),
    [
        (10.2, [-40.0, 0.1, 0.045], True),
        (10.2, [-52.7, 0.019, 0.062], False),
        (10.1, [-70.0, 0.0, 0.042], False),
    ],
)
def test_bursts_and_tonic_spikes_coexist_as_an_adaptive_integrator_finds(g_nmda, start, bursts):
    path = synthetic.bursting_neuron(8_000, 0.05, g_nmda=g_nmda, start=start, transient=1_500.0)
    exact = solve_ivp(
        lambda t, x: bursting_field(t, x, g_nmda, 0.0), (0, 1_900.0), start, method="LSODA",
        rtol=1e-8, atol=1e-10, t_eval=np.arange(1_500.0, 1_900.0, 0.05),
    ).y  # fmt: skip
    for lowest in (path[0, :, 0].min(), exact[0].min()):
        assert (lowest < -60) == bursts


def test_the_noise_has_the_variance_of_the_diffusion():
    # Lorenz-96 without forcing near 0 is dx = -x dt + sigma dW: variance sigma^2 / 2.
    sigma = np.array([1e-3, 2e-3, 1e-3, 4e-3])
    path = synthetic.lorenz96(
        40_000, 0.5, dim=4, forcing=0.0, process_noise=sigma, start=np.zeros(4), transient=5.0
    )[0]  # fmt: skip
    np.testing.assert_allclose(path.var(axis=0), sigma**2 / 2, rtol=0.04)
    x = path[:, 3]
    assert np.corrcoef(x[:-1], x[1:])[0, 1] == pytest.approx(np.exp(-0.5), abs=0.02)


def test_noise_drawn_in_blocks_is_the_same_noise(monkeypatch):
    whole = synthetic.lorenz63(400, 0.01, process_noise=0.5, transient=0.5)
    monkeypatch.setattr("plssm.data.integration._BLOCK", 50)
    np.testing.assert_array_equal(
        synthetic.lorenz63(400, 0.01, process_noise=0.5, transient=0.5), whole
    )


def test_the_compiled_field_equals_plain_python():
    draw = np.random.default_rng(0)
    for field, plain, dim, p in (
        (flows._lorenz63, lorenz63_field, 3, [10.0, 28.0, 8 / 3]),
        (flows._lorenz96, lorenz96_field, 9, [8.0]),
        (flows._rossler, rossler_field, 3, [0.2, 0.2, 5.7]),
        (flows._van_der_pol, van_der_pol_field, 2, [2.0]),
        (flows._duffing, duffing_field, 2, [0.3, -1.0, 1.0, 0.5, 1.2]),
    ):
        x, out = draw.normal(size=dim), np.empty(dim)
        field(0.7, x, np.array(p), out)
        np.testing.assert_allclose(out, plain(0.7, x), rtol=1e-12)
        field.py_func(0.7, x, np.array(p), out)
        np.testing.assert_allclose(out, plain(0.7, x), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: synthetic.lorenz63(0), "nothing to simulate"),
        (lambda: synthetic.lorenz63(10, 0.0), "dt"),
        (lambda: synthetic.lorenz63(10, trials=0), "nothing to simulate"),
        (lambda: synthetic.lorenz63(10, transient=-1.0), "nothing to simulate"),
        (lambda: synthetic.lorenz63(10, start=[1.0, 2.0]), "start has the wrong shape"),
        (lambda: synthetic.lorenz63(10, process_noise=-1.0), "standard deviation"),
        (lambda: synthetic.lorenz96(10, dim=3), "dim >= 4"),
        (lambda: synthetic.lorenz63(100, 1.0, max_step=1.0), "left the finite numbers"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(DataError, match=message):
        call()
