"""An artifact is adapted with embeddings made once; it is only written when it helps, and is what was trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from imagekin.cli.main import run
from imagekin.encoder import artifact
from imagekin.encoder.metadata import Metadata, Preprocess
from imagekin.encoder.runtime.session import Encoder
from imagekin.errors import FailedPreconditionError, InvalidArgumentError
from imagekin.training.adaptation import adapt as adaptation
from imagekin.training.adaptation import view_embeddings
from imagekin.training.adaptation.adapt import adapt
from imagekin.training.adaptation.graft import graft
from imagekin.training.adaptation.residual_head import ResidualHead, train_head
from imagekin.training.adaptation.settings import AdaptSettings
from imagekin.training.adaptation.view_embeddings import embed_views
from imagekin.training.data.images import ImageSet, load_images
from imagekin.training.export.artifact_head import held_out_rows
from imagekin.training.export.export import export, space_of
from imagekin.training.export.linear_head import fit_head
from imagekin.training.models.encoders import IMAGENET_NORMALISATION, build_encoder

SIDE = Preprocess(16, 16)


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_images("digits", split="train", preprocess=SIDE, limit=30)


@pytest.fixture(scope="module")
def model(digits: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an artifact of random weights with a linear head."""
    torch.manual_seed(0)
    encoder = build_encoder("tiny", 16).eval()
    out = tmp_path_factory.mktemp("model") / "tiny.onnx"
    head, _ = fit_head(np.random.default_rng(0).normal(size=(300, encoder.feature_dim)), digits.labels)
    space = space_of(encoder, IMAGENET_NORMALISATION)
    metadata = Metadata(space, encoder.feature_dim, SIDE, class_names=digits.class_names, objective="none")
    export(encoder, IMAGENET_NORMALISATION, metadata, digits.pixels[:64], digits.labels[:64], out, head=head)
    return out


@pytest.fixture
def settings(tmp_path: Path) -> AdaptSettings:
    return AdaptSettings(epochs=20, batch_size=100, views=1, cache_dir=tmp_path / "cache", device="cpu")


def test_an_adapted_model_is_better_and_of_another_space(
    model: Path, digits: ImageSet, settings: AdaptSettings, tmp_path: Path
) -> None:
    before = model.read_bytes()
    report = adapt(model, digits, tmp_path / "new.onnx", settings)
    assert report.knn_after > report.knn_before
    assert (report.image_count, report.held_out_count) == (300, 60)
    old, new = artifact.read_metadata(model), artifact.read_metadata(tmp_path / "new.onnx")
    assert new.space == report.space != old.space
    assert (new.dim, new.preprocess, new.class_names, new.objective) == (old.dim, old.preprocess, (), "supcon")
    assert new.training["adapted_from"]["space"] == old.space  # type: ignore[index, call-overload]
    assert str(tmp_path) not in new.to_json()
    assert model.read_bytes() == before


def test_adapting_twice_alike_gives_the_same_space_and_an_adapted_model_can_be_adapted(
    model: Path, digits: ImageSet, settings: AdaptSettings, tmp_path: Path
) -> None:
    one, two = (adapt(model, digits, tmp_path / name, settings).space for name in ("1.onnx", "2.onnx"))
    assert one == two
    again = AdaptSettings(epochs=1, views=0, head="mlp", anyway=True, cache_dir=settings.cache_dir, device="cpu")
    assert adapt(tmp_path / "1.onnx", digits, tmp_path / "3.onnx", again).space != one


def test_nothing_is_written_when_it_does_not_help(
    model: Path, digits: ImageSet, settings: AdaptSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dim = artifact.read_metadata(model).dim
    monkeypatch.setattr(adaptation, "train_head", lambda *_: ResidualHead(torch.zeros(dim)))
    with pytest.raises(FailedPreconditionError, match="does not help: kNN accuracy"):
        adapt(model, digits, tmp_path / "new.onnx", settings)
    assert not (tmp_path / "new.onnx").exists()
    asked = AdaptSettings(views=1, anyway=True, cache_dir=settings.cache_dir, device="cpu")
    report = adapt(model, digits, tmp_path / "new.onnx", asked)
    assert report.knn_after == report.knn_before


class Counted:
    """Count the images that an encoder embeds, and stop it after some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 10**9) -> None:
        self.count = 0
        plain = Encoder.embed_pixels

        def embed(encoder: Encoder, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            if self.count + len(pixels) > most:
                raise KeyboardInterrupt
            self.count += len(pixels)
            return plain(encoder, pixels)

        monkeypatch.setattr(Encoder, "embed_pixels", embed)


def test_embeddings_are_made_once_and_go_on_where_they_stopped(
    model: Path, digits: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_embeddings, "PIECE", 70)
    encoder = Encoder.open(model, device="cpu")
    whole = embed_views(encoder, digits, 1, cache_dir=tmp_path / "whole")
    assert whole.shape == (2, 300, encoder.metadata.dim)
    assert not np.allclose(whole[0], whole[1])
    with monkeypatch.context() as patch:
        stopped = Counted(patch, most=400)
        with pytest.raises(KeyboardInterrupt):
            embed_views(encoder, digits, 1, cache_dir=tmp_path / "cache")
    with monkeypatch.context() as patch:
        rest = Counted(patch)
        assert np.array_equal(embed_views(encoder, digits, 1, cache_dir=tmp_path / "cache"), whole)
        assert stopped.count + rest.count == 600
        embed_views(encoder, digits, 1, cache_dir=tmp_path / "cache")
        assert stopped.count + rest.count == 600
        # Other crops of the same images leave the images' own embeddings as they are.
        embed_views(encoder, digits, 1, seed=1, cache_dir=tmp_path / "cache")
        assert stopped.count + rest.count == 900


def test_a_damaged_or_foreign_piece_is_made_again(
    model: Path, digits: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder.open(model, device="cpu")
    whole = embed_views(encoder, digits, 0, cache_dir=tmp_path)
    for damage in (b"", b"\x93NUMPY", b"not an array"):
        piece = sorted(tmp_path.rglob("images-*.npy"))[0]
        piece.write_bytes(damage)
        assert np.array_equal(embed_views(encoder, digits, 0, cache_dir=tmp_path), whole)
    np.save(piece, np.full_like(np.load(piece), np.nan))
    assert np.array_equal(embed_views(encoder, digits, 0, cache_dir=tmp_path), whole)
    counted = Counted(monkeypatch)
    embed_views(encoder, digits.take(np.arange(10)), 0, cache_dir=tmp_path)
    assert counted.count == 10


@pytest.mark.parametrize("hidden", [0, 24])
def test_the_grafted_graph_computes_what_the_head_computes(
    model: Path, digits: ImageSet, hidden: int, tmp_path: Path
) -> None:
    old = artifact.read_metadata(model)
    torch.manual_seed(1)
    head = ResidualHead(torch.randn(old.dim) / 50, hidden)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    path, metadata = tmp_path / "new.onnx", Metadata("other", old.dim, SIDE)
    for _ in range(2):  # onto itself as well: names must not clash
        source = path if path.exists() else model
        reference = head.apply_to(Encoder.open(source, device="cpu").embed_pixels(digits.pixels))
        artifact.write(graft(artifact.load_graph(source), head), metadata, path)
        given = Encoder.open(path, device="cpu").run(digits.pixels)
        assert np.abs(given.embeddings - reference).max() < 1e-5
        assert given.logits is None


@pytest.mark.parametrize("objective", ["supcon", "joint", "cross-entropy", "triplet"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_every_objective_brings_classes_together(objective: str, head: str) -> None:
    draws = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 25)
    noise = draws.normal(size=(1, 100, 32))
    x = noise + 2 * np.eye(4, 32)[labels]
    x = (x / np.linalg.norm(x, axis=2, keepdims=True)).astype(np.float32)

    def gap(points: NDArray[np.float32]) -> float:
        cosines, same = points @ points.T, labels[:, None] == labels
        return float(cosines[same].mean() - cosines[~same].mean())

    given = AdaptSettings(objective=objective, head=head, epochs=60, batch_size=50, learning_rate=1e-2)  # type: ignore[arg-type]
    trained = train_head(x, labels, given).apply_to(x[0])
    assert gap(trained) > 1.2 * gap(x[0])
    assert np.allclose(np.linalg.norm(trained, axis=1), 1, atol=1e-5)


def test_a_fifth_of_every_class_is_held_out_and_never_all_of_it() -> None:
    labels = np.array([0] * 10 + [1] * 2 + [2] + [3] * 3)
    rows = held_out_rows(labels, 0)
    assert np.bincount(labels[rows], minlength=4).tolist() == [2, 1, 0, 1]
    assert np.array_equal(rows, held_out_rows(labels, 0))
    assert len(set(rows)) == len(rows)
    assert len(held_out_rows(np.arange(5), 0)) == 0


def test_images_of_which_no_class_has_two_are_refused(
    model: Path, digits: ImageSet, settings: AdaptSettings, tmp_path: Path
) -> None:
    _, first = np.unique(digits.labels, return_index=True)
    with pytest.raises(InvalidArgumentError, match="no class has two images"):
        adapt(model, digits.take(first), tmp_path / "new.onnx", settings)


def test_the_command_answers_in_json_and_wrong_use_in_a_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "new.onnx"
    assert run(["adapt", str(model), "digits", "--out", str(out), "--views", "0", "--epochs", "5", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["model"] == str(out)
    assert figures["knn_after"] > figures["knn_before"]
    assert run(["adapt", str(tmp_path / "none.onnx"), "digits", "--out", str(out)]) == 1
    assert "no model file" in capsys.readouterr().err
    assert run(["adapt", str(model), "digits", "--out", str(out), "--head", "deep"]) == 2
    assert "--head" in capsys.readouterr().err
