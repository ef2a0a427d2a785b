"""A training step under teacher forcing beside the same step as a plain eager torch loop.

A step is forward, loss, backward and a RAdam update (float32, T=200, GTF): that of the engine's
trainer, with the draw of its windows, and a loop over time in torch (over `unbind`, never slices)
on one batch that stays. Both are timed alternately on one thread; `two threads` is the gain of the
trainer's step from a second one, `share` its rate of arithmetic as a share of a matrix product of
512 x 512 on one thread in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import plssm as ps
from plssm.dynamics import AlmostLinearRNN, DendriticPLRNN, LatentDynamics, ShallowPLRNN
from plssm.inference import GTF, TeacherForcing
from plssm.inference.forced_training import ForcedTraining
from plssm.inference.trainer import Trainer
from plssm.kernels.forced_path import forced_path_plain

STEPS, ALPHA = 200, 0.125
COMMAND = "python -m benchmarks forcing_speed --out benchmarks/results"
SETTINGS = {
    "shallow clipped M=3 L=50 B=16": (lambda: ShallowPLRNN(3, 50), 16, 50.0),
    "shallow M=3 L=50 B=16": (lambda: ShallowPLRNN(3, 50, clipped=False), 16, 50.0),
    "shallow clipped M=20 L=100 B=16": (lambda: ShallowPLRNN(20, 100), 16, 12.0),
    "shallow M=20 L=100 B=16": (lambda: ShallowPLRNN(20, 100, clipped=False), 16, 12.0),
    "shallow clipped M=30 L=300 B=32": (lambda: ShallowPLRNN(30, 300), 32, 4.0),
    "shallow M=30 L=300 B=32": (lambda: ShallowPLRNN(30, 300, clipped=False), 32, 4.0),
    "almost linear M=20 P=10 B=16": (lambda: AlmostLinearRNN(20, 10), 16, 25.0),
    "dendritic clipped M=22 bases=20 B=16": (lambda: DendriticPLRNN(22, 20), 16, None),
}


def learned(dynamics: LatentDynamics) -> list[nn.Parameter]:
    """Parameters of the map."""
    rest = ("noise.", "initial.")
    found = [p for n, p in dynamics.named_parameters() if not n.startswith(rest)]
    return [p for p in found if p.numel()]


def trainer(dynamics: LatentDynamics, batch: int) -> Trainer:
    """A training as the engine begins it, after a first update."""
    generator = torch.Generator().manual_seed(1)
    data = ps.Dataset.from_arrays({"x": torch.randn(5000, dynamics.dim, generator=generator)}, 1.0)
    dynamics.draw_start(generator)
    model = ps.StateSpaceModel(
        dynamics, {"x": ps.observations.Gaussian(dynamics.dim, readout="identity")}
    ).float()
    engine = TeacherForcing(
        scheme=GTF(ALPHA), sequence=STEPS, batch_size=batch, steps=10**9,
        learning_rate=(1e-6, 1e-6),
    )  # fmt: skip
    trials = data.batch().to(dtype=torch.float32)
    made = Trainer(
        ForcedTraining(engine, model, trials, trials, seed=0), engine.training(), seed=0
    )
    made.update_some()
    return made


def compiled_milliseconds(training: Trainer, least: int) -> float:
    """Time of a step, over at least so many steps."""
    made, began = 0, time.perf_counter()
    while made < least:
        made += len(training.update_some())
    return 1e3 * (time.perf_counter() - began) / made


def eager_step(dynamics: LatentDynamics, data: tuple[Tensor, ...]) -> Callable[[], None]:
    """The same step as a plain torch loop."""
    start, teacher, target = data
    parameters = learned(dynamics)
    optimiser = torch.optim.RAdam(parameters, lr=1e-6)
    weight = torch.full((), ALPHA)

    def step() -> None:
        optimiser.zero_grad()
        path = forced_path_plain(dynamics.step, start, teacher=teacher, weight=weight)
        nn.functional.mse_loss(path, target).backward()
        optimiser.step()

    return step


def milliseconds(step: Callable[[], None], repeats: int) -> float:
    """Median time of a step."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def product_rate() -> float:
    """Floating-point operations per millisecond of a matrix product on one thread."""
    a, b = torch.randn(2, 512, 512)
    return 2 * 512**3 / milliseconds(lambda: a @ b, 30)


def operations(dynamics: LatentDynamics, batch: int) -> float:
    """Operations of the products with the weights, forward, backward and for their gradients."""
    layer = dynamics.layer()
    weights = layer.outer.numel() + (0 if layer.inner is None else layer.inner.numel())
    return 6.0 * weights * batch * STEPS


def measure(name: str, rounds: int) -> dict:
    """Alternate rounds of both steps of one setting."""
    make, batch, wanted = SETTINGS[name]
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(batch, STEPS, make().dim, generator=generator) for _ in range(2)]
    torch.set_num_threads(1)
    fast = trainer(make(), batch)
    slow = eager_step(make().float(), (draws[0][:, 0], *draws))
    slow(), fast.update_some()
    pairs = [(compiled_milliseconds(fast, 100), milliseconds(slow, 5)) for _ in range(rounds)]
    rate, alone = product_rate(), compiled_milliseconds(fast, 100)
    torch.set_num_threads(2)
    two = trainer(make(), batch)
    two.update_some()
    double = compiled_milliseconds(two, 100)
    torch.set_num_threads(1)
    ours, theirs = (statistics.median(x) for x in zip(*pairs, strict=True))
    return {
        "setting": name, "compiled_ms": ours, "eager_ms": theirs,
        "ratio": statistics.median(t / o for o, t in pairs), "wanted": wanted,
        "two_threads": alone / double, "share": operations(make(), batch) / ours / rate,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Measure all settings, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args(argv)
    rows = []
    for name in SETTINGS:
        rows.append(measure(name, given.rounds))
        print("  ".join(f"{k} {v:.3g}" if isinstance(v, float) else str(v)
                        for k, v in rows[-1].items()), flush=True)  # fmt: skip
    if given.out is not None:
        made = {"command": COMMAND, "steps": STEPS, "rows": rows}
        (given.out / "forcing_speed.json").write_text(json.dumps(made, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
