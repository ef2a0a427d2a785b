r"""Simulated latent paths as plain arrays: the usual chaotic and oscillating systems.

Every function returns an array [trials, steps, dim] whose first row is the state after the
transient. Time has the unit of the system's equations. The drift is advanced by the Runge-Kutta
method of order 4 with inner steps of at most ``max_step``; with ``process_noise`` each inner step
h adds :math:`\sigma \sqrt{h} \varepsilon`, the Euler-Maruyama increment, so the path follows
:math:`dx = f(x) dt + \sigma dW`. Trials start at random states that the seed decides; trial i
does not depend on how many trials are asked for.

``StateSpaceModel.observe(z)`` puts observation models on a path.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plssm.data import flows
from plssm.data.integration import Start, simulate
from plssm.errors import DataError

__all__ = ["bursting_neuron", "duffing", "lorenz63", "lorenz96", "rossler", "van_der_pol"]


def lorenz63(
    steps: int,
    dt: float = 0.01,
    *,
    trials: int = 1,
    seed: int = 0,
    transient: float = 20.0,
    sigma: float = 10.0,
    rho: float = 28.0,
    beta: float = 8.0 / 3.0,
    process_noise: float | Sequence[float] = 0.0,
    start: Start = None,
    max_step: float = 0.005,
) -> np.ndarray:
    r"""Return paths of the Lorenz-63 system; chaotic with the default parameters.

    .. math:: \dot x = \sigma (y - x), \quad \dot y = x (\rho - z) - y, \quad \dot z = xy - \beta z

    The Lyapunov exponents of the defaults are 0.906, 0 and -14.57 per unit of time. Rosenstein's
    variant has sigma = 16, rho = 45.92, beta = 4 and a largest exponent of 1.5.

    Args:
        steps: Rows of each path.
        dt: Time between rows.
        trials: Number of paths.
        seed: Decides initial states and noise.
        transient: Time that passes before the first row.
        sigma: Prandtl number.
        rho: Rayleigh number.
        beta: Geometric factor.
        process_noise: Noise per square root of time, a number or one per dimension.
        start: Initial state [3] or [trials, 3] before the transient.
        max_step: Largest inner step of the integration.

    Returns:
        States (x, y, z) [trials, steps, 3].

    References:
        Lorenz 1963, 10.1175/1520-0469(1963)020<0130:DNF>2.0.CO;2.
        Rosenstein, Collins, De Luca 1993, 10.1016/0167-2789(93)90009-P.
    """
    return simulate(
        flows.lorenz63_path,
        3,
        (sigma, rho, beta),
        steps,
        dt,
        trials,
        seed,
        transient,
        process_noise,
        start,
        max_step,
        lambda draw: draw.normal(size=3) * 5.0 + [0.0, 0.0, 25.0],
    )


def lorenz96(
    steps: int,
    dt: float = 0.01,
    *,
    dim: int = 20,
    forcing: float = 8.0,
    trials: int = 1,
    seed: int = 0,
    transient: float = 20.0,
    process_noise: float | Sequence[float] = 0.0,
    start: Start = None,
    max_step: float = 0.01,
) -> np.ndarray:
    r"""Return paths of the Lorenz-96 ring; chaotic in several directions for forcing 8.

    .. math:: dx_i = [(x_{i+1} - x_{i-2}) x_{i-1} - x_i + F] dt + \sigma dW_i

    Args:
        steps: Rows of each path.
        dt: Time between rows (0.05 is about six hours of weather).
        dim: Sites of the ring, at least 4.
        forcing: F.
        trials: Number of paths.
        seed: Decides initial states and noise.
        transient: Time that passes before the first row.
        process_noise: sigma, noise per square root of time, a number or one per dimension; the
            stochastic version where it is positive.
        start: Initial state [dim] or [trials, dim] before the transient.
        max_step: Largest inner step of the integration.

    Returns:
        States [trials, steps, dim].

    References:
        Lorenz 1996/2006, 10.1017/CBO9780511617652.004.
    """
    if dim < 4:
        raise DataError("the ring is too small", got=f"dim={dim}", wanted="dim >= 4")
    return simulate(
        flows.lorenz96_path,
        dim,
        (forcing,),
        steps,
        dt,
        trials,
        seed,
        transient,
        process_noise,
        start,
        max_step,
        lambda draw: forcing + draw.normal(size=dim),
    )


def rossler(
    steps: int,
    dt: float = 0.05,
    *,
    trials: int = 1,
    seed: int = 0,
    transient: float = 100.0,
    a: float = 0.2,
    b: float = 0.2,
    c: float = 5.7,
    process_noise: float | Sequence[float] = 0.0,
    start: Start = None,
    max_step: float = 0.01,
) -> np.ndarray:
    r"""Return paths of the Roessler system; chaotic with the default parameters.

    .. math:: \dot x = -y - z, \quad \dot y = x + a y, \quad \dot z = b + z (x - c)

    One turn takes about 5.9 units of time; the largest Lyapunov exponent is 0.071.

    Args:
        steps: Rows of each path.
        dt: Time between rows.
        trials: Number of paths.
        seed: Decides initial states and noise.
        transient: Time that passes before the first row.
        a: Growth of the spiral.
        b: Source of z.
        c: Threshold of the fold.
        process_noise: Noise per square root of time, a number or one per dimension.
        start: Initial state [3] or [trials, 3] before the transient.
        max_step: Largest inner step of the integration.

    Returns:
        States (x, y, z) [trials, steps, 3].

    References:
        Roessler 1976, 10.1016/0375-9601(76)90101-8.
    """
    return simulate(
        flows.rossler_path,
        3,
        (a, b, c),
        steps,
        dt,
        trials,
        seed,
        transient,
        process_noise,
        start,
        max_step,
        lambda draw: [*draw.uniform(-4, 4, size=2), 0.0],
    )


def van_der_pol(
    steps: int,
    dt: float = 0.05,
    *,
    trials: int = 1,
    seed: int = 0,
    transient: float = 50.0,
    mu: float = 2.0,
    process_noise: float | Sequence[float] = 0.0,
    start: Start = None,
    max_step: float = 0.01,
) -> np.ndarray:
    r"""Return paths of the van der Pol oscillator, a limit cycle of amplitude about 2.

    .. math:: \dot x = v, \quad \dot v = \mu (1 - x^2) v - x

    Args:
        steps: Rows of each path.
        dt: Time between rows.
        trials: Number of paths.
        seed: Decides initial states and noise.
        transient: Time that passes before the first row.
        mu: Strength of the nonlinear damping; 0 is the harmonic oscillator. Large values are
            stiff: keep mu * max_step below 0.1.
        process_noise: Noise per square root of time, a number or one per dimension.
        start: Initial state [2] or [trials, 2] before the transient.
        max_step: Largest inner step of the integration.

    Returns:
        States (x, v) [trials, steps, 2].

    References:
        van der Pol 1926, 10.1080/14786442608564127.
    """
    return simulate(
        flows.van_der_pol_path,
        2,
        (mu,),
        steps,
        dt,
        trials,
        seed,
        transient,
        process_noise,
        start,
        max_step,
        lambda draw: draw.uniform(-2, 2, size=2),
    )


def duffing(
    steps: int,
    dt: float = 0.01,
    *,
    trials: int = 1,
    seed: int = 0,
    transient: float = 0.0,
    damping: float = 0.5,
    linear: float = -1.0,
    cubic: float = 0.1,
    amplitude: float = 0.0,
    frequency: float = 1.0,
    process_noise: float | Sequence[float] = 0.0,
    start: Start = None,
    max_step: float = 0.01,
) -> np.ndarray:
    r"""Return paths of the Duffing oscillator; the defaults have two basins of attraction.

    .. math:: \dot x = v, \quad \dot v = -\delta v - \alpha x - \beta x^3 + \gamma \cos(\omega t)

    Unforced with linear < 0 < cubic and damping > 0, a path ends in one of the two wells at
    x = +-sqrt(-linear / cubic). damping = 0.3, linear = -1, cubic = 1, amplitude = 0.5,
    frequency = 1.2 is the usual chaotic case; t = 0 at the first row.

    Args:
        steps: Rows of each path.
        dt: Time between rows.
        trials: Number of paths.
        seed: Decides initial states and noise.
        transient: Time that passes before the first row.
        damping: delta.
        linear: alpha.
        cubic: beta.
        amplitude: gamma.
        frequency: omega, radians per unit of time.
        process_noise: Noise per square root of time, a number or one per dimension.
        start: Initial state [2] or [trials, 2] before the transient.
        max_step: Largest inner step of the integration.

    Returns:
        States (x, v) [trials, steps, 2].

    References:
        Guckenheimer, Holmes 1983, 10.1007/978-1-4612-1140-2.
    """
    return simulate(
        flows.duffing_path,
        2,
        (damping, linear, cubic, amplitude, frequency),
        steps,
        dt,
        trials,
        seed,
        transient,
        process_noise,
        start,
        max_step,
        lambda draw: draw.uniform(-4, 4, size=2),
    )


def bursting_neuron(
    steps: int,
    dt: float = 0.05,
    *,
    trials: int = 1,
    seed: int = 0,
    transient: float = 1000.0,
    g_nmda: float = 10.2,
    current: float = 0.0,
    capacitance: float = 6.0,
    leak: tuple[float, float] = (8.0, -80.0),
    sodium: tuple[float, float, float, float] = (20.0, 60.0, -20.0, 15.0),
    potassium: tuple[float, float, float, float, float] = (10.0, -90.0, -25.0, 5.0, 1.0),
    slow_potassium: tuple[float, float, float, float] = (25.0, -15.0, 5.0, 200.0),
    process_noise: float = 0.0,
    start: Start = None,
    max_step: float = 0.02,
) -> np.ndarray:
    r"""Return paths of a three-dimensional biophysical neuron model; time in milliseconds.

    .. math::
        C \dot V = I - g_L (V - E_L) - g_{Na} m_\infty(V) (V - E_{Na}) - g_K n (V - E_K)
                   - g_M h (V - E_K) - g_{NMDA} \sigma(V) V, \quad
        \dot n = \frac{n_\infty(V) - n}{\tau_n}, \quad \dot h = \frac{h_\infty(V) - h}{\tau_h}

    with :math:`\{m, n, h\}_\infty(V) = [1 + \exp((V_h - V) / k)]^{-1}` and
    :math:`\sigma(V) = [1 + 0.33 \exp(-0.0625 V)]^{-1}`. The neuron rests without NMDA current;
    with g_nmda from 3 to 10.2 mS (the default, used in the literature) it fires bursts of 2 to 15
    spikes every 100 to 150 ms; from about 10.5 mS on it only spikes tonically. Up to there tonic
    spiking is a second attractor, to which a seventh of the random starts go at the default (in
    between, as at 10.1 mS, all do): compare orbits of one kind only. In pauses between bursts the
    voltage falls below -60 mV, in tonic spiking it does not.

    Args:
        steps: Rows of each path.
        dt: Milliseconds between rows.
        trials: Number of paths.
        seed: Decides initial states and noise.
        transient: Milliseconds that pass before the first row.
        g_nmda: Conductance of the NMDA current, mS; its reversal potential is 0 mV.
        current: Injected current I, in uA.
        capacitance: C in uF.
        leak: Conductance (mS), reversal potential (mV).
        sodium: Conductance (mS), reversal, half-activation and slope of the gate (mV).
        potassium: Conductance (mS), reversal, half-activation and slope (mV), time constant (ms).
        slow_potassium: Conductance (mS), half-activation and slope (mV), time constant (ms) of
            the M-type current, which has the reversal potential of potassium.
        process_noise: Noise on the voltage, mV per square root of ms.
        start: Initial state (V, n, h) [3] or [trials, 3] before the transient.
        max_step: Largest inner step of the integration in ms.

    Returns:
        Voltage in mV and the gates n and h between 0 and 1 [trials, steps, 3].

    References:
        Durstewitz 2009, 10.1016/j.neunet.2009.07.016.
        Durstewitz 2017, 10.1371/journal.pcbi.1005542.
    """
    parameters = (capacitance, *leak, *sodium, *potassium, *slow_potassium, g_nmda, 0.0, current)
    return simulate(
        flows.bursting_path,
        3,
        parameters,
        steps,
        dt,
        trials,
        seed,
        transient,
        (process_noise, 0.0, 0.0),
        start,
        max_step,
        lambda draw: [draw.uniform(-80, -40), *draw.uniform(0, 0.1, size=2)],
    )
