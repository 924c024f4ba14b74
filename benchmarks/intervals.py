"""What intervals and verdicts cover, by simulation on features whose moments are known.

    python benchmarks/intervals.py [bias|coverage|infinity|wide|verdict ...] [--repeats 600]

Features are drawn from populations of 40,000 vectors, so that their moments are known exactly:
normal ones, those of a normal distribution with a heavy scale per image, pooled and nonnegative
ones as Inception's (a random linear map, ReLU, and the mean over four places), and log-normal ones.
``bias`` holds the bias of the Fréchet distance to its formula; ``coverage`` counts how often
intervals cover the expected distance, ``infinity`` how often those of the extrapolated distance
cover the true one; ``wide`` is ``coverage`` in 2048 dimensions; ``verdict`` counts how often a
sweep calls a length worse that is not, and one that is. ``--seed`` repeats it with other numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np

from edm2lite.metrics.extractors import Extractor
from edm2lite.metrics.extrapolation import FrechetInfinity
from edm2lite.metrics.feature_stats import FeatureStats
from edm2lite.metrics.frechet import distance_of, frechet_influences, square_root
from edm2lite.metrics.influence import cautious_covariance, covariance
from edm2lite.metrics.interval import alike, normal_limits
from edm2lite.metrics.measurement import ImageRows
from edm2lite.metrics.moments import Array, RunningMoments
from edm2lite.metrics.tails import Tails

POPULATION = 40_000
KINDS = ("normal", "pooled", "t of 10", "pooled, t of 8", "t of 5", "log-normal")


def population(kind: str, dim: int, shift: float, seed: int = 7) -> np.ndarray:
    """[POPULATION, dim] features; ``shift`` moves and widens their distribution."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    scale = np.arange(1, dim + 1) ** -0.5
    if kind == "log-normal":
        return np.exp(rng.standard_normal((POPULATION, dim))) * scale * (1 + shift)
    if kind.startswith("pooled"):
        heavy = "t of" in kind
        inner = max(8, dim // 2)
        weights = rng.standard_normal((inner, dim)) / np.sqrt(inner)
        gains = np.exp(0.7 * rng.standard_normal(dim))
        features = np.zeros((POPULATION, dim))
        shared = rng.standard_normal((POPULATION, inner))
        for _ in range(4):  # places
            place = 0.6**0.5 * shared + 0.4**0.5 * rng.standard_normal((POPULATION, inner))
            features += np.maximum(place @ weights - (1.0 if heavy else 0.7) + 0.3 * shift, 0) / 4
        features *= gains * (1 + shift)
    else:
        features = rng.standard_normal((POPULATION, dim)) * scale * (1 + shift) + shift * scale
    if "t of" in kind:
        degrees = int(kind.split()[-1])
        features *= np.sqrt(degrees / rng.chisquare(degrees, POPULATION))[:, None]
    return features


def moments(rows: np.ndarray) -> RunningMoments:
    found = RunningMoments()
    found.add(rows)
    return found


def kurtosis(rows: np.ndarray) -> float:
    """Mean over features of the excess kurtosis."""
    offsets = rows - rows.mean(0)
    return float(((offsets**4).mean(0) / (offsets**2).mean(0) ** 2).mean() - 3)


def limits(value: float, influences: np.ndarray) -> tuple[float, float, bool]:
    """Interval of a distance as a sweep has it, and whether a warning comes with it."""
    tails = Tails.of(influences)
    deviation = cautious_covariance([influences])[0, 0] ** 0.5
    low, high = normal_limits(value, deviation)
    far = normal_limits(value, deviation * tails.stretch)
    return (low, far[1], tails.are_heavy) if tails.skewness > 0 else (far[0], high, tails.are_heavy)


def bias(repeats: int, seed: int) -> None:
    """Mean distance of normal images, less the true one, against the formula of docs/sweep.md."""
    print("| features | spectrum | deviation | images | bias | formula | F / n |")
    print("|---|---|---|---|---|---|---|")
    cases = [(16, 0, 1.0, 500), (64, 0, 1.0, 1000), (256, 0, 1.0, 1000), (64, 0, 0.8, 1000),
             (64, 1, 1.0, 1000), (256, 1, 1.0, 2000)]  # fmt: skip
    for dim, power, deviation, num in cases:
        spread = np.arange(1, dim + 1) ** -float(power)
        mean, root = np.zeros(dim), np.diag(spread**0.5)
        rng = np.random.default_rng([seed, dim, num])
        exact = (1 - deviation) ** 2 * spread.sum()
        found = [
            distance_of(
                moments(rng.standard_normal((num, dim)) * spread**0.5 * deviation), mean, root
            )
            for _ in range(max(20, repeats // 10))
        ]
        roots = spread * deviation  # of (root cov root)**(1/2)
        pairs = roots[:, None] * roots / (roots[:, None] + roots)
        formula = (spread.sum() * deviation**2 + pairs.sum() / 2 + roots.sum() / 4) / num
        print(
            f"| {dim} | 1 / i**{power} | {deviation} | {num} | {np.mean(found) - exact:.3f} |"
            f" {formula:.3f} | {dim / num:.3f} |",
            flush=True,
        )


def line(rows: np.ndarray, mean: np.ndarray, root: np.ndarray, rng: np.random.Generator) -> float:
    """A straight line in 1 / n through the distances of 15 random subsets, n / 10 to n, at 0."""
    sizes = np.linspace(len(rows) / 10, len(rows), 15).astype(int)
    found = [distance_of(moments(rows[rng.permutation(len(rows))[:n]]), mean, root) for n in sizes]
    return float(np.polyfit(1 / sizes, found, 1)[1])


def cases(kinds: Sequence[str], dim: int) -> Iterator[tuple[str, np.ndarray, Array, Array]]:
    """Rows to draw from, and the moments of their reference: itself, or the same less a shift."""
    for kind in kinds:
        own = population(kind, dim, 0.0)
        mean, root = own.mean(0), square_root(np.cov(own.T, bias=True))
        for shift in (0.0, 0.15):
            drawn = population(kind, dim, shift)
            exact = abs(distance_of(whole(drawn), mean, root))
            yield f"| {kind} | {abs(kurtosis(drawn)):.0f} | {exact:.2f} |", drawn, mean, root


def draws(drawn: np.ndarray, num: int, repeats: int, seed: int) -> Iterator[ImageRows]:
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, num, repeat])
        yield ImageRows.of(drawn[rng.integers(len(drawn), size=num)])


def coverage(
    repeats: int, seed: int, dim: int = 64, ratios: Sequence[float] = (1.3, 2.7, 7.8, 26),
    kinds: Sequence[str] = KINDS,
) -> None:  # fmt: skip
    """Coverage of the intervals of a distance."""
    head = ["features", "kurtosis", "distance", "images / features", "predicted / actual deviation"]
    head += ["covered", "if tails are ignored", "noted"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for words, drawn, mean, root in cases(kinds, dim):
        for ratio in ratios:
            times = repeats if ratio < 10 else repeats // 2
            values, ends, plain = [], [], []
            for rows in draws(drawn, int(ratio * dim), times, seed):
                influences = frechet_influences(rows, mean, root)
                values.append(distance_of(rows.moments[0], mean, root))
                ends.append(limits(values[-1], influences))
                plain.append(covariance([influences])[0, 0] ** 0.5)
            found, middle = np.array(values), np.mean(values)
            cells = [
                f"{np.mean(np.square(plain)) ** 0.5 / found.std():.2f}",
                f"{np.mean([low < middle < high for low, high, _ in ends]):.3f}",
                f"{np.mean(np.abs(found - middle) < 1.96 * np.array(plain)):.3f}",
                f"{np.mean([heavy for *_, heavy in ends]):.2f}",
            ]
            print(f"{words} {ratio:.3g} | {' | '.join(cells)} |", flush=True)


def infinity(repeats: int, seed: int, dim: int = 64) -> None:
    """Coverage of the intervals of the extrapolated distance, and its error beside a line's."""
    head = ["features", "kurtosis", "distance", "images / features", "covered"]
    head += ["mean error / deviation", "that of a straight line"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for words, drawn, mean, root in cases(KINDS, dim):
        exact = distance_of(whole(drawn), mean, root)
        metric = FrechetInfinity(reference_of(mean, root), Extractor("x", None, None, ""))
        for ratio in (2.7, 7.8, 26):
            values, inside, lines = [], 0, []
            times = repeats if ratio < 10 else repeats // 2
            for i, rows in enumerate(draws(drawn, int(ratio * dim), times, seed)):
                measured = metric.measure(rows)
                variance = float(metric.covariance([measured.influences])[0, 0])
                low, high = metric.limits(measured.value, variance, measured.influences)
                values.append(measured.value)
                inside += low < exact < high
                if i < 50:
                    lines.append(line(rows.array(), mean, root, np.random.default_rng(i)))
            errors = [f"{(np.mean(x) - exact) / np.std(values):+.2f}" for x in (values, lines)]
            print(f"{words} {ratio} | {inside / times:.3f} | {' | '.join(errors)} |", flush=True)


def reference_of(mean: Array, root: Array) -> FeatureStats:
    return FeatureStats(0, mean, root @ root, "x", "", "", "made up")


def whole(rows: np.ndarray) -> RunningMoments:
    """Moments whose covariance is that of the population: divisor N."""
    found = moments(np.concatenate([rows, rows]))
    found.count, found._total, found._outer = 2**40, rows.mean(0) * 2**40, None  # type: ignore
    second = rows.T @ rows / len(rows)
    found._outer = second * 2**40
    return found


def wide(repeats: int, seed: int) -> None:
    """Pooled features in 2048 dimensions, 3000 images."""
    coverage(max(8, repeats // 40), seed, 2048, (3000 / 2048,), ("pooled",))


def correlations(num: int) -> dict[str, np.ndarray]:
    """Correlation of the values of ``num`` lengths: independent, rough, and smooth as in sweeps."""
    place = np.linspace(0, 1, num)
    apart = np.abs(place[:, None] - place)
    return {
        "independent": np.eye(num),
        "rough": np.exp(-2 * apart),
        "smooth": np.exp(-0.5 * (apart / 0.4) ** 2),
    }


def verdict(repeats: int, seed: int) -> None:
    """How often flat curves have a worse length, and a worse length is found."""
    head = [
        "curve",
        "lengths",
        "called worse on a flat curve",
        "the one that is worse, others flat",
    ]
    print(f"| {' | '.join([*head, 'worse by the curve of a parabola'])} |\n|---|---|---|---|---|")
    for num in (8, 25):
        for name, joint in correlations(num).items():
            print(row_of_curve(name, joint, 3 * repeats, seed), flush=True)
        print(row_of_features(num, repeats, seed), flush=True)


def row_of_curve(name: str, joint: np.ndarray, repeats: int, seed: int) -> str:
    num = len(joint)
    values, vectors = np.linalg.eigh(joint)
    factor = vectors * np.sqrt(np.maximum(values, 0))
    apart = np.sqrt(2 - 2 * joint[0, num // 2])  # of the first length from the middle one
    single = np.zeros(num)
    single[0] = 3 * apart
    parabola = 3 * apart * np.linspace(-1, 1, num) ** 2
    counts = np.zeros(3)
    for repeat in range(repeats):
        noise = factor @ np.random.default_rng([seed, num, repeat]).standard_normal(num)
        counts += [
            len(alike(noise, joint)) < num,
            0 not in alike(noise + single, joint),
            0 not in alike(noise + parabola, joint),
        ]
    shares = " | ".join(f"{share:.3f}" for share in counts / repeats)
    return f"| {name}, known covariance | {num} | {shares} |"


def row_of_features(num: int, repeats: int, seed: int, dim: int = 16, images: int = 400) -> str:
    """Distances of lengths whose features share their noise; all of one distribution."""
    mixing = np.linalg.cholesky(correlations(num)["smooth"] + 1e-9 * np.eye(num))[:, :8]
    mixing /= np.linalg.norm(mixing, axis=1, keepdims=True)
    mean, root = np.full(dim, 0.3), np.eye(dim)
    counts = np.zeros(2)
    offset = 0.0
    for repeat in range(-20, repeats):  # the first ones only say what three deviations are
        rng = np.random.default_rng([seed, num, repeat + 20])
        noise = rng.standard_normal((mixing.shape[1], images, dim))
        rows = [ImageRows.of(np.tensordot(weights, noise, 1)) for weights in mixing]
        influences = [frechet_influences(r, mean, root) for r in rows]
        values = np.array([distance_of(r.moments[0], mean, root) for r in rows])
        joint = cautious_covariance(influences)
        middle = num // 2
        if repeat < 0:
            apart = joint[0, 0] + joint[middle, middle] - 2 * joint[0, middle]
            offset += 3 * apart**0.5 / 20
            continue
        worse = values.copy()
        worse[0] += offset
        counts += [len(alike(values, joint)) < num, 0 not in alike(worse, joint)]
    shares = " | ".join(f"{share:.3f}" for share in counts / repeats)
    return f"| smooth, {images} images in {dim} features | {num} | {shares} | |"


def main() -> None:
    parts = {
        "bias": bias,
        "coverage": coverage,
        "infinity": infinity,
        "wide": wide,
        "verdict": verdict,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=list(parts))
    parser.add_argument("--repeats", type=int, default=600)
    parser.add_argument("--seed", type=int, default=32)
    args = parser.parse_args()
    for name in args.parts:
        print(f"\n## {name}\n")
        parts[name](args.repeats, args.seed)


if __name__ == "__main__":
    main()
