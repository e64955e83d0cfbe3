"""Measure the tiled contrastive loss beside the plain one: peak memory, time and gradient.

    python bench/tiled_loss.py [COUNT]

COUNT embeddings (16,384) of 128 components in 1,000 classes, value and gradient, each in a fresh process.
Expected: ≤ 1/10 of the plain loss's peak memory, ≤ 1.5× its time, gradients within 1e-5 (relative norm). Some 5 GB of
memory for the plain one.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness import Target, interleave, ratio, report

ROUNDS = 3
DIM = 128
CLASSES = 1000
TEMPERATURE = 0.1


def measure(kind: str, count: int, out: Path) -> None:
    """Run one loss forward and backward; print its seconds and the growth of peak memory in MB, save the gradient."""
    import torch

    from imagekin.training.objectives.contrastive import attraction, positive_pairs
    from imagekin.training.objectives.tiled import tiled_loss

    def loss_of(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        draws = torch.Generator().manual_seed(0)
        vectors = torch.nn.functional.normalize(torch.randn(size, DIM, generator=draws), dim=1).requires_grad_()
        groups = torch.randint(CLASSES, (size,), generator=draws)
        if kind == "tiled":
            return tiled_loss(vectors, groups, TEMPERATURE), vectors
        similarities = (vectors @ vectors.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        return attraction(similarities, positive_pairs(groups)), vectors

    loss, vectors = loss_of(256)
    torch.autograd.grad(loss, vectors)  # warm-up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    loss, vectors = loss_of(count)
    (gradient,) = torch.autograd.grad(loss, vectors)
    seconds = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    torch.save(gradient, out)
    print(seconds, grown)


def main() -> None:
    """Measure and report."""
    if len(sys.argv) == 4:
        measure(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 16_384
    memory: dict[str, list[float]] = {"plain": [], "tiled": []}
    with tempfile.TemporaryDirectory() as temporary:

        def seconds(kind: str) -> float:
            script = [sys.executable, str(Path(__file__).resolve()), kind, str(count), f"{temporary}/{kind}.pt"]
            done = subprocess.run(script, check=True, capture_output=True, text=True)
            elapsed, grown = map(float, done.stdout.split())
            memory[kind].append(grown)
            return elapsed

        times = interleave({"plain": lambda: seconds("plain"), "tiled": lambda: seconds("tiled")}, ROUNDS)
        import torch

        plain, tiled = (torch.load(f"{temporary}/{kind}.pt", weights_only=True) for kind in ("plain", "tiled"))
        difference = float((plain - tiled).norm() / plain.norm())
    peak = {kind: statistics.median(values) for kind, values in memory.items()}
    targets = [
        Target("memory, tiled/plain", peak["tiled"] / peak["plain"], 0.1, False),
        Target("time, tiled/plain", ratio(times["tiled"], times["plain"]), 1.5, False),
        Target("gradient, relative difference", difference, 1e-5, False),
    ]
    rows = [(kind, f"{peak[kind]:.0f} MB", f"{statistics.median(times[kind]):.2f} s") for kind in ("plain", "tiled")]
    figures = {"count": count, "dim": DIM, "peak_megabytes": peak, "seconds": times, "gradient_difference": difference}
    report(
        f"contrastive loss of {count:,} embeddings", ("loss", "peak memory", "time"), rows, targets, figures, ["torch"]
    )


if __name__ == "__main__":
    main()
