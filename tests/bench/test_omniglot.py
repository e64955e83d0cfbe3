"""The Omniglot recipe in small: the committed config trains, its model is judged as served, its cost is counted."""

import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from bench.omniglot import BACKGROUND, EVALUATION, judge, read_cost, show, train, unpack
from imagekin.training.settings import TrainSettings
from tests.data import shared_data

CHARACTERS, IMAGES = 5, 8


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five characters of each of three background alphabets; two of the alphabets play the unseen ones."""
    path = tmp_path_factory.mktemp("omniglot") / "omniglot.tar.gz"
    taken: dict[str, Counter[str]] = {}
    with tarfile.open(shared_data("omniglot.tar.gz")) as source, tarfile.open(path, "w:gz") as small:
        for member in source:
            parts = member.name.removeprefix("./").split("/")
            if not member.isfile() or len(parts) != 4:
                continue
            _, alphabet, character, file = parts
            if alphabet not in taken and len(taken) == 3:
                break
            kept = taken.setdefault(alphabet, Counter())
            if (character not in kept and len(kept) == CHARACTERS) or kept[character] == IMAGES:
                continue
            kept[character] += 1
            member.name = f"./{BACKGROUND if len(taken) == 1 else EVALUATION}/{alphabet}/{character}/{file}"
            small.addfile(member, source.extractfile(member))
    assert [len(kept) for kept in taken.values()] == [CHARACTERS] * 3
    return path


def test_the_committed_config_trains_and_its_model_tells_unseen_characters_apart(archive: Path, tmp_path: Path) -> None:
    data = unpack(archive, tmp_path)
    assert unpack(archive, tmp_path) == data
    run = tmp_path / "seed-3"
    train(data / BACKGROUND, run, 3, ["--epochs", "2", "--threads", "1"])
    settings = TrainSettings.load(run)
    assert (settings.encoder, settings.seed, settings.projection_dim) == ("strokes", 3, 0)
    assert settings.mirrors_as_classes
    assert settings.rotations_as_classes
    cost = read_cost(run)
    assert cost.pieces == 1
    assert cost.cpu_seconds > 0
    assert cost.wall_seconds > 0

    judged = judge(data / EVALUATION, run, 3, episodes=100, way=5)
    assert judged.cost == cost
    assert judged.over_all > 30  # chance is 20, and these were four steps
    assert judged.within > 30
    again = judge(data / EVALUATION, run, 3, episodes=100, way=5)
    assert (again.over_all, again.within) == (judged.over_all, judged.within)

    # What is finished is not trained again.
    shutil.rmtree(data)
    train(data / BACKGROUND, run, 3, [])
    assert read_cost(run) == cost


def test_a_failed_training_is_said_to_have_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="seed 0"):
        train(tmp_path / "nothing", tmp_path / "run", 0, [])


def test_the_report_has_the_mean_over_seeds_and_says_what_was_missed(capsys: pytest.CaptureFixture[str]) -> None:
    from bench.omniglot import Cost, Judged

    show([Judged(seed, Cost(2000, 2500, 1), 96.0 + seed, 88.0 + seed, (0.05, 0.06), 1000.0) for seed in range(3)])
    printed = capsys.readouterr().out
    assert "97.00 % ± 1.00" in printed
    assert "89.00 % ± 1.00" in printed
    assert "MISSED" not in printed
    show([Judged(0, Cost(3001, 2500, 1), 96.9, 87.9, (0.05, 0.06), 1000.0)])
    assert capsys.readouterr().out.count("MISSED") == 3
