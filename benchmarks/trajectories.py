"""Training runs in miniature: sequences of weights [steps, n] on which solvers are compared.

All but the two trained ones are drawn element by element, around initial weights of unit RMS and
with a spread of speeds between elements (log-normal, 0.5), as layers of a network have.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

STEPS = 1920  # divisible by the cadences 8, 30 and 120
ELEMENTS = 2500


def _start(rng: np.random.Generator) -> tuple[Array, Array]:
    """(initial weights, speed of each element)."""
    speed = np.exp(0.5 * rng.standard_normal(ELEMENTS))
    return rng.standard_normal(ELEMENTS), speed / np.sqrt(np.mean(speed**2))


def _noise(rng: np.random.Generator) -> Array:
    return rng.standard_normal((STEPS, ELEMENTS))


def _filtered(noise: Array, keep: float) -> Array:
    """First-order recursion ``y_k = keep y_{k-1} + noise_k``, in place."""
    for k in range(1, len(noise)):
        noise[k] += keep * noise[k - 1]
    return noise


def random_walk(rng: np.random.Generator) -> Array:
    start, speed = _start(rng)
    return start + 0.5 * speed * np.cumsum(_noise(rng), axis=0) / np.sqrt(STEPS)


def momentum_walk(rng: np.random.Generator) -> Array:
    start, speed = _start(rng)
    velocity = _filtered(_noise(rng), 0.98) * 0.02
    return start + 0.5 * speed * np.cumsum(velocity, axis=0) / np.sqrt(STEPS)


def converging(rng: np.random.Generator) -> Array:
    """Exponential approach to an optimum, with noise that falls with the learning rate."""
    start, speed = _start(rng)
    rate = 10 ** rng.uniform(-3, -1, ELEMENTS)
    target = start + 0.5 * rng.standard_normal(ELEMENTS)
    weights = np.empty((STEPS, ELEMENTS))
    w = start
    for k in range(STEPS):
        lr = 1 - k / STEPS
        w = w - lr * rate * (w - target) + 0.01 * lr * speed * rng.standard_normal(ELEMENTS)
        weights[k] = w
    return weights


def constant_lr(rng: np.random.Generator) -> Array:
    """Noise with a memory of 40 steps around a mean that drifts."""
    start, speed = _start(rng)
    around = 0.02 * speed * _filtered(_noise(rng), 0.975)
    drift = 0.5 * rng.standard_normal(ELEMENTS)
    return start + around + drift * np.linspace(0, 1, STEPS)[:, None]


def white_noise(rng: np.random.Generator) -> Array:
    start, speed = _start(rng)
    return start + 0.3 * speed * _noise(rng)


def linear(rng: np.random.Generator) -> Array:
    start, _ = _start(rng)
    return start + rng.standard_normal(ELEMENTS) * np.linspace(0, 1, STEPS)[:, None]


def oscillating(rng: np.random.Generator) -> Array:
    """Every weight swings with one period (83 steps), as at the edge of stability."""
    start, speed = _start(rng)
    phase = rng.uniform(0, 2 * np.pi, ELEMENTS)
    return start + 0.5 * speed * np.cos(2 * np.pi * np.arange(STEPS)[:, None] / 83 + phase)


def cyclic_lr(rng: np.random.Generator) -> Array:
    """Noisy descent with six cosine restarts of the learning rate."""
    start, speed = _start(rng)
    rate = 10 ** rng.uniform(-3, -1, ELEMENTS)
    target = start + 0.5 * rng.standard_normal(ELEMENTS)
    weights = np.empty((STEPS, ELEMENTS))
    w = start
    for k in range(STEPS):
        lr = 0.5 + 0.5 * np.cos(np.pi * (k % (STEPS // 6)) / (STEPS // 6))
        w = w - lr * rate * (w - target) + 0.02 * lr * speed * rng.standard_normal(ELEMENTS)
        weights[k] = w
    return weights


def two_phase(rng: np.random.Generator) -> Array:
    """A walk that becomes 30 times slower at one moment, as when a learning rate is dropped."""
    start, speed = _start(rng)
    drop = int(rng.uniform(0.4, 0.95) * STEPS)
    pace = np.where(np.arange(STEPS) < drop, 1, 1 / 30)[:, None]
    return start + 0.5 * speed * np.cumsum(pace * _noise(rng), axis=0) / np.sqrt(STEPS)


def jump(rng: np.random.Generator) -> Array:
    """A walk with three sudden moves of all weights, as after a spike of the loss."""
    weights = random_walk(rng)
    for at in rng.uniform(0.1, 1, 3):
        weights[int(at * STEPS) :] += 0.1 * rng.standard_normal(ELEMENTS)
    return weights


def levy(rng: np.random.Generator) -> Array:
    """A walk whose step lengths, common to all weights, have no variance (tail exponent 1.5)."""
    start, speed = _start(rng)
    length = rng.pareto(1.5, STEPS) + 1
    steps = (length / np.sqrt(np.sum(length**2)))[:, None] * _noise(rng)
    return start + 0.5 * speed * np.cumsum(steps, axis=0)


def limit_cycle(rng: np.random.Generator) -> Array:
    """All weights run through one closed curve with three harmonics (period 210 to 420 steps)."""
    start, speed = _start(rng)
    angle = 2 * np.pi * np.arange(STEPS)[:, None] / rng.uniform(210, 420)
    weights = start + 1e-3 * _noise(rng)
    for harmonic in (1, 2, 3):
        phase = rng.uniform(0, 2 * np.pi, ELEMENTS)
        weights += 0.3 / harmonic**2 * speed * np.cos(harmonic * angle + phase)
    return weights


def wide_speeds(rng: np.random.Generator) -> Array:
    """Excursions around a fixed mean, of many sizes and with memories of 1 to 1000 steps."""
    start, _ = _start(rng)
    size = np.exp(1.5 * rng.standard_normal(ELEMENTS))
    keep = np.exp(-(10 ** -rng.uniform(0, 3, ELEMENTS)))
    noise = _noise(rng) * np.sqrt(1 - keep**2)
    for k in range(1, STEPS):
        noise[k] += keep * noise[k - 1]
    return start + 0.1 * size / np.sqrt(np.mean(size**2)) * noise


def _train(rng: np.random.Generator, step: Callable[[int, Array], Array]) -> Array:
    """A 64-32-10 perceptron on scikit-learn's digits; ``step`` turns a gradient into a change."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images, onehot = images / 8 - 1, np.eye(10)[labels]
    shapes = [(64, 32), (32,), (32, 10), (10,)]
    ends = np.cumsum([int(np.prod(s)) for s in shapes])
    w = np.concatenate(
        [
            rng.standard_normal(s).ravel() / np.sqrt(s[0]) if len(s) > 1 else np.zeros(s)
            for s in shapes
        ]
    )
    weights = np.empty((STEPS, w.size))
    for k in range(STEPS):
        w1, b1, w2, b2 = (p.reshape(s) for p, s in zip(np.split(w, ends[:-1]), shapes, strict=True))
        pick = rng.integers(len(images), size=64)
        x, y = images[pick], onehot[pick]
        hidden = np.maximum(x @ w1 + b1, 0)
        logits = hidden @ w2 + b2
        p = np.exp(logits - logits.max(1, keepdims=True))
        d = (p / p.sum(1, keepdims=True) - y) / len(x)
        dh = (d @ w2.T) * (hidden > 0)
        grads = (x.T @ dh, dh.sum(0), hidden.T @ d, d.sum(0))
        w = w + step(k, np.concatenate([g.ravel() for g in grads]))
        weights[k] = w
    return weights


def sgd(rng: np.random.Generator) -> Array:
    """Momentum SGD at a constant learning rate on a real problem."""
    velocity = np.zeros(1)

    def step(k: int, gradient: Array) -> Array:
        nonlocal velocity
        velocity = 0.9 * velocity - 0.05 * gradient
        return velocity

    return _train(rng, step)


def adam(rng: np.random.Generator) -> Array:
    """Adam with the inverse square root decay of EDM2 on a real problem."""
    return _adam(rng, lambda k: 0.01 / np.sqrt(max(k / 300, 1)))


def adam_cosine(rng: np.random.Generator) -> Array:
    """Adam whose learning rate falls to 0 along a cosine, on the same problem."""
    return _adam(rng, lambda k: 0.005 + 0.005 * np.cos(np.pi * k / STEPS))


def _adam(rng: np.random.Generator, learning_rate: Callable[[int], float]) -> Array:
    first, second = np.zeros(1), np.zeros(1)

    def step(k: int, gradient: Array) -> Array:
        nonlocal first, second
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient**2
        unbiased = np.sqrt(second / (1 - 0.99 ** (k + 1))) + 1e-8
        lr = learning_rate(k) * min(k / 50, 1)
        return -lr * first / (1 - 0.9 ** (k + 1)) / unbiased

    return _train(rng, step)


TRAJECTORIES: dict[str, Callable[[np.random.Generator], Array]] = {
    "random walk": random_walk,
    "momentum walk": momentum_walk,
    "converging": converging,
    "constant lr": constant_lr,
    "white noise": white_noise,
    "linear": linear,
    "oscillating": oscillating,
    "cyclic lr": cyclic_lr,
    "SGD": sgd,
    "Adam": adam,
    "two-phase": two_phase,
    "jump": jump,
    "Levy": levy,
    "cosine Adam": adam_cosine,
    "limit cycle": limit_cycle,
    "wide speeds": wide_speeds,
}
