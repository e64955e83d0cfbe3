"""Train on Omniglot's 30 background alphabets as configs/omniglot.toml says, and test on its 20 evaluation alphabets.

    python bench/omniglot.py [--data omniglot.tar.gz] [--out runs/omniglot] [--seeds 0,1,2] [--threads N]

Each seed is one `imagekin train` in a process of its own; one that is finished is not trained again, one that was
stopped goes on. The exported model.onnx is judged through ONNX Runtime: 20-way 1-shot by nearest neighbour, classes
drawn over all evaluation characters, and within one alphabet. Expected, mean of 3 seeds: ≥ 97 % and ≥ 88 %, each
training in ≤ 25 minutes of two threads (3,000 CPU seconds). Nothing is chosen by the evaluation alphabets; the last
epoch is what counts.
"""

import argparse
import json
import os
import statistics
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness import Target, report
from imagekin import files

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "omniglot.toml"
DATA = Path(os.environ.get("IMAGEKIN_DATA") or ROOT.parent / "shared" / "data") / "omniglot.tar.gz"
BACKGROUND, EVALUATION = "images_background", "images_evaluation"
COST = "cost.json"
EPISODES, QUERIES = 10_000, 5
WAY, SHOT = 20, 1
LEAST_ALL, LEAST_WITHIN, MOST_CPU_SECONDS = 97.0, 88.0, 3000.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a training, with loading, exporting and checking the export.

    Attributes:
        cpu_seconds: of all threads.
        wall_seconds: on a machine that may have been doing other things.
        pieces: processes that it took, more than one when it was stopped and went on.
    """

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    pieces: int = 0


@dataclass(frozen=True, slots=True)
class Judged:
    """One seed's figures.

    Attributes:
        seed: of the training.
        cost: of the training.
        over_all: accuracy in percent, classes drawn over all evaluation characters.
        within: likewise, all classes of an episode from one alphabet.
        errors: standard errors of the two, of the episodes drawn, in percent.
        images_per_second: training speed by the wall clock.
    """

    seed: int
    cost: Cost
    over_all: float
    within: float
    errors: tuple[float, float]
    images_per_second: float


def unpack(archive: Path, out: Path) -> Path:
    """Unpack the archive below `out`, once, and return the folder that holds both parts."""
    folder = out / "data"
    if not folder.exists():
        out.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as source, files.new_folder(out) as made:
            source.extractall(made, filter="data")
            files.put_folder(made, folder)
    return folder


def train(data: Path, run: Path, seed: int, options: Sequence[str]) -> None:
    """Train one seed with the product, or resume it; do nothing when it is finished.

    Raises:
        RuntimeError: the training failed; it has said why.
    """
    if (run / "model.onnx").exists():
        return
    before = read_cost(run)
    command = [sys.executable, "-m", "imagekin", "--config", str(CONFIG), "train", str(data), "--out", str(run)]
    started = time.monotonic()
    arguments = [*command, "--seed", str(seed), "--resume", "--json", *options]
    child = os.posix_spawn(sys.executable, arguments, os.environ | {"PYTHONPATH": str(ROOT)})
    _, status, usage = os.wait4(child, 0)
    cost = Cost(
        before.cpu_seconds + usage.ru_utime + usage.ru_stime,
        before.wall_seconds + time.monotonic() - started,
        before.pieces + 1,
    )
    if run.exists():
        (run / COST).write_text(json.dumps(asdict(cost)) + "\n")
    if status:
        raise RuntimeError(f"the training of seed {seed} failed")


def read_cost(run: Path) -> Cost:
    """Return the cost of a run so far."""
    path = run / COST
    return Cost(**json.loads(path.read_text())) if path.exists() else Cost()


def judge(data: Path, run: Path, seed: int, *, episodes: int = EPISODES, way: int = WAY) -> Judged:
    """Judge a run's exported file on the characters below `data`, alphabet/character/file."""
    import numpy as np

    from imagekin.encoder.runtime.session import Encoder
    from imagekin.training.data.images import load_images
    from imagekin.training.evaluation.few_shot import few_shot_accuracy

    encoder = Encoder.open(run / "model.onnx", device="cpu")
    images = load_images(str(data), preprocess=encoder.metadata.preprocess)
    embeddings = np.concatenate([encoder.embed_pixels(part) for part in np.array_split(images.pixels, 64)])
    alphabets = np.array([name.split("/")[0] for name in images.class_names])
    groups = np.unique(alphabets, return_inverse=True)[1][images.labels]
    over_all, within = (
        few_shot_accuracy(
            embeddings,
            images.labels,
            way=way,
            shot=SHOT,
            queries=QUERIES,
            episodes=episodes,
            groups=drawn_from,
            method="nearest",
        )
        for drawn_from in (None, groups)
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return Judged(
        seed,
        read_cost(run),
        100 * over_all.accuracy,
        100 * within.accuracy,
        (100 * over_all.standard_error, 100 * within.standard_error),
        statistics.median(line["images_per_second"] for line in lines),
    )


def main() -> None:
    """Train, judge and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="omniglot.tar.gz with both parts")
    parser.add_argument("--out", type=Path, default=Path("runs/omniglot"), help="folder of the runs")
    parser.add_argument("--seeds", default="0,1,2", help="seeds to train and judge")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of a training; 0: as the config says")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = unpack(options.data, options.out)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    threads = ["--threads", str(options.threads)] if options.threads else []
    for seed in seeds:
        train(data / BACKGROUND, options.out / f"seed-{seed}", seed, threads)
    judged = [judge(data / EVALUATION, options.out / f"seed-{seed}", seed) for seed in seeds]
    show(judged)


def show(judged: Sequence[Judged]) -> None:
    """Print the table, the targets and the JSON line."""
    rows = [
        (
            f"seed {one.seed}",
            f"{one.over_all:.2f} % ± {one.errors[0]:.2f}",
            f"{one.within:.2f} % ± {one.errors[1]:.2f}",
            f"{one.cost.cpu_seconds:,.0f} s",
            f"{one.cost.wall_seconds:,.0f} s",
        )
        for one in judged
    ]
    over_all, within = [one.over_all for one in judged], [one.within for one in judged]
    cpu = [one.cost.cpu_seconds for one in judged]
    if len(judged) > 1:
        rows.append(("mean ± std", spread(over_all), spread(within), f"{statistics.mean(cpu):,.0f} s", ""))
    targets = [
        Target("20-way 1-shot over all, %", statistics.mean(over_all), LEAST_ALL, True),
        Target("20-way 1-shot within alphabet, %", statistics.mean(within), LEAST_WITHIN, True),
        Target("CPU seconds of a training", max(cpu), MOST_CPU_SECONDS, False),
    ]
    figures = {"episodes": EPISODES, "queries": QUERIES, "seeds": [asdict(one) for one in judged]}
    columns = ("", "over all characters", "within alphabet", "training, CPU", "wall")
    report("Omniglot, 20-way 1-shot on 20 unseen alphabets", columns, rows, targets, figures, ["torch", "onnxruntime"])


def spread(values: Sequence[float]) -> str:
    """Return mean ± sample deviation, in percent, of two values or more."""
    return f"{statistics.mean(values):.2f} % ± {statistics.stdev(values):.2f}"


if __name__ == "__main__":
    main()
