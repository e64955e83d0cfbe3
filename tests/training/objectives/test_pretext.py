"""The pretext tasks show what they say they show, and nothing that would give the answer away."""

import numpy as np
import pytest
import torch
from torch import Tensor

from imagekin.training.models.encoders import Normalisation, build_encoder
from imagekin.training.models.recalibrate_batchnorm import recalibrate_norms
from imagekin.training.objectives.base import DeviceData, TrainingBatch
from imagekin.training.objectives.pretext.context import Context, drop_colours
from imagekin.training.objectives.pretext.deepcluster import DeepCluster, cluster, head_of_means, whiten
from imagekin.training.objectives.pretext.exemplar import Exemplar
from imagekin.training.objectives.pretext.jigsaw import Jigsaw, permutation_set
from imagekin.training.objectives.pretext.patches import CELLS, cut_patches
from imagekin.training.objectives.pretext.rotation import Rotation
from imagekin.training.views.views import Views

PLAIN = Views.named("none", 24, Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))


def batch_of(images: Tensor) -> TrainingBatch:
    count = len(images)
    return TrainingBatch(
        images, torch.zeros(count, dtype=torch.int64), torch.arange(count), torch.Generator().manual_seed(3)
    )


def noise(count: int, side: int = 24) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)


def cells_by_brightness(count: int) -> Tensor:
    """Return images whose nine cells are flat, of brightness 10, 20 … 90."""
    grid = (torch.arange(9, dtype=torch.uint8).view(3, 3) * 10 + 10).repeat_interleave(8, 0).repeat_interleave(8, 1)
    return grid.expand(count, 3, 24, 24).contiguous()


def test_all_four_rotations_of_every_image_are_in_the_batch() -> None:
    images = noise(5)
    objective = Rotation(PLAIN, 6)
    inputs = objective.make_inputs(batch_of(images))
    assert inputs.targets["turns"].tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5
    for turn in range(4):
        expected = images.float().rot90(turn, (2, 3)) / 255
        torch.testing.assert_close(inputs.images[turn * 5 : turn * 5 + 5], expected, atol=1e-5, rtol=0)
    loss = objective.loss(torch.zeros(20, 6), inputs.targets)
    assert objective.chance_loss(5) == pytest.approx(float(loss.detach()), abs=0.5)


def test_patches_come_from_their_cell_with_a_gap_and_a_random_place() -> None:
    images = cells_by_brightness(40)
    cells = torch.arange(CELLS).expand(40, CELLS)
    patches = cut_patches(images, cells, 0.75, 6, torch.Generator().manual_seed(0)).view(40, CELLS, 3, 6, 6)
    # A patch within a flat cell is flat: it crosses no edge of the grid.
    expected = (torch.arange(9.0) * 10 + 10).div(255).view(1, 9, 1, 1, 1).expand_as(patches)
    torch.testing.assert_close(patches, expected, atol=2 / 255, rtol=0)
    ramp = torch.arange(24, dtype=torch.uint8).expand(40, 3, 24, 24).contiguous()
    starts = cut_patches(ramp, cells, 0.75, 6, torch.Generator().manual_seed(0))[:, 0, 0, 0].view(40, CELLS)
    assert (starts.std(0) > 1e-3).all()
    assert (starts[:, 0] != starts[:, 1] - 8 / 255).any()


def test_permutations_are_different_and_far_from_each_other() -> None:
    orders = permutation_set(60, seed=1)
    assert orders.shape == (60, CELLS)
    assert (orders.sort(1).values == torch.arange(CELLS)).all()
    distances = (orders.unsqueeze(0) != orders.unsqueeze(1)).sum(2) + CELLS * torch.eye(60, dtype=torch.int64)
    assert int(distances.min()) >= 7
    # Nine permutations may differ everywhere from each other, and a greedy choice of them does.
    assert int((distances[:9, :9]).min()) == CELLS
    assert torch.equal(orders, permutation_set(60, seed=1))


def test_jigsaw_shows_the_tiles_in_the_order_it_asks_for_as_images_are_normalised_some_gray() -> None:
    views = Views.named("none", 24, Normalisation((0.2, 0.3, 0.4), (0.5, 0.25, 0.125)))
    objective = Jigsaw(views, 24, feature_dim=4, permutations=10, seed=0, normalise_tiles=False)
    inputs = objective.make_inputs(batch_of(cells_by_brightness(64)))
    brightness = inputs.images * torch.tensor([0.5, 0.25, 0.125]).view(3, 1, 1)
    brightness += torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    shown = (brightness.mean((1, 2, 3)).view(64, CELLS) * 255 / 10 - 1).round().long()
    assert torch.equal(shown, objective.permutations[inputs.targets["orders"]])
    coloured = Jigsaw(PLAIN, 24, feature_dim=4, permutations=10, seed=0, normalise_tiles=False).make_inputs(
        batch_of(noise(64))
    )
    tiles = coloured.images.reshape(64, CELLS, 3, -1)
    gray = (tiles[:, :, 0] - tiles[:, :, 1]).abs().amax((1, 2)) < 1e-4
    assert 8 < int(gray.sum()) < 32
    loss = objective.loss(torch.randn(64 * CELLS, 4), inputs.targets)
    assert torch.isfinite(loss)


def test_jigsaw_can_show_each_tile_at_the_same_brightness_and_contrast() -> None:
    objective = Jigsaw(PLAIN, 24, feature_dim=4, permutations=10, seed=0, normalise_tiles=True)
    tiles = objective.make_inputs(batch_of(noise(16))).images
    torch.testing.assert_close(tiles.mean((2, 3)), torch.zeros(16 * CELLS, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(tiles.std((2, 3)), torch.ones(16 * CELLS, 3), atol=1e-3, rtol=0)


def test_context_shows_every_patch_in_one_colour_and_asks_for_all_eight_places() -> None:
    objective = Context(PLAIN, 24, feature_dim=4)
    inputs = objective.make_inputs(batch_of(cells_by_brightness(50)))
    patches = inputs.images.view(50, CELLS, 3, 8, 8)
    kept = patches.mean((3, 4)).amax(2)  # the other two channels are noise about 0
    assert torch.equal((kept * 255 / 10 - 1).round().long(), torch.arange(CELLS).expand(50, CELLS))


def test_context_compares_each_neighbour_with_the_centre() -> None:
    objective = Context(PLAIN, 24, feature_dim=CELLS)
    first, _, last = objective.head
    assert isinstance(first, torch.nn.Linear)
    assert isinstance(last, torch.nn.Linear)
    for parameter in objective.head.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        # Hidden unit c is 1 where the centre is cell 4 and the neighbour is cell c; place p answers to its cell.
        for cell in range(CELLS):
            first.weight[cell, 4] = first.weight[cell, CELLS + cell] = 1
            first.bias[cell] = -1
        for place, cell in enumerate((0, 1, 2, 3, 5, 6, 7, 8)):
            last.weight[place, cell] = 50
    features = torch.eye(CELLS).repeat(3, 1)  # cell c of each of three images is the c-th unit vector
    assert objective.loss(features, {"rows": torch.arange(3)}).item() < 1e-6
    assert objective.loss(features.flip(0), {"rows": torch.arange(3)}).item() > 10


def test_dropped_colours_are_faint_noise() -> None:
    patches = torch.rand(60, 3, 10, 10)
    dropped = drop_colours(patches, torch.Generator().manual_seed(0))
    same = (dropped == patches).flatten(2).all(2)
    assert (same.sum(1) == 1).all()
    assert same.any(0).all()
    spread = dropped.std((2, 3))[~same]
    assert float(spread.max()) < 0.01
    assert float(spread.min()) > 0


def test_exemplars_are_a_fixed_choice_each_a_class_of_its_own() -> None:
    objective = Exemplar(PLAIN, 4, image_count=50, class_count=12, num_views=2, seed=0)
    rows = objective.pick(torch.arange(50), torch.Generator())
    assert set(rows.tolist()) == set(objective.chosen.tolist())
    assert len(set(rows.tolist())) == 12
    batch = TrainingBatch(noise(50), torch.zeros(50), rows, torch.Generator().manual_seed(0))
    inputs = objective.make_inputs(batch)
    assert inputs.images.shape == (100, 3, 24, 24)
    assert torch.equal(objective.chosen[inputs.targets["classes"]], rows.repeat(2))
    again = Exemplar(PLAIN, 4, image_count=50, class_count=12, num_views=2, seed=0)
    assert torch.equal(again.chosen, objective.chosen)


def test_whitened_features_have_no_correlations_left() -> None:
    random = np.random.default_rng(0)
    features = (random.normal(size=(400, 6)) @ random.normal(size=(6, 10)) + 5).astype(np.float32)
    white = whiten(features, components=4)
    assert white.shape == (400, 4)
    np.testing.assert_allclose(np.linalg.norm(white, axis=1), 1, atol=1e-5)
    correlations = np.corrcoef(white.T)
    assert np.abs(correlations - np.eye(4)).max() < 0.15
    assert whiten(features).shape == (400, 6)  # the other four directions hold nothing
    assert np.isfinite(whiten(np.ones((5, 3), dtype=np.float32))).all()


@pytest.mark.parametrize(("points", "clusters"), [(3, 10), (40, 8), (300, 20)])
def test_no_cluster_is_empty_even_of_equal_points(points: int, clusters: int) -> None:
    random = np.random.default_rng(1)
    for features in (random.normal(size=(points, 4)), np.ones((points, 4))):
        labels = cluster(np.ascontiguousarray(features, dtype=np.float32), clusters, seed=3)
        assert len(np.unique(labels)) == min(points, clusters)


def test_deepcluster_labels_anew_each_epoch_resets_its_head_and_shows_clusters_equally() -> None:
    images = torch.cat((torch.zeros(90, 3, 24, 24), torch.full((10, 3, 24, 24), 255))).to(torch.uint8)
    images[:, :, 0, 0] = torch.arange(100, dtype=torch.uint8).view(-1, 1)
    data = DeviceData(images, torch.full((100,), -1), class_count=0)
    encoder = build_encoder("tiny", 24)
    objective = DeepCluster(PLAIN, encoder.feature_dim, 100, clusters=2, seed=0)
    before = objective.head.weight.clone()
    objective.begin_epoch(encoder, data, 0)
    assert encoder.training
    sizes = torch.bincount(objective.labels)
    assert len(sizes) == 2
    assert not torch.equal(before, objective.head.weight)
    rows = objective.pick(torch.arange(1000) % 100, torch.Generator().manual_seed(0))
    assert 400 < int(objective.labels[rows].sum()) < 600
    first = objective.head.weight.clone()
    objective.begin_epoch(encoder, data, 1)
    assert not torch.equal(first, objective.head.weight)
    assert "labels" in objective.state_dict()


def test_a_new_head_of_deepcluster_knows_the_clusters() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(5, size=400)
    features = (3 * random.normal(size=(5, 12))[labels] + random.normal(size=(400, 12)) + 4).astype(np.float32)
    weight, bias = head_of_means(features, labels, 5)
    assert np.mean(np.argmax(features @ weight.T + bias, axis=1) == labels) > 0.9
    assert np.isfinite(head_of_means(np.ones((9, 3), dtype=np.float32), np.arange(9), 9)[0]).all()


def test_norms_settle_on_whole_images() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("tiny", 24)
    data = DeviceData(noise(300) // 2 + 60, torch.zeros(300, dtype=torch.int64), 1)
    before = [parameter.clone() for parameter in encoder.parameters()]
    encoder.eval()
    recalibrate_norms(encoder, data, PLAIN)
    assert not encoder.training
    assert all(torch.equal(a, b) for a, b in zip(before, encoder.parameters(), strict=True))
    first = next(module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert first.momentum == 0.1
    with torch.no_grad():
        seen = encoder.get_submodule("stem.0")(PLAIN.normalise(data.images / 255))
    assert first.running_mean is not None
    torch.testing.assert_close(first.running_mean, seen.mean((0, 2, 3)), atol=1e-2, rtol=1e-2)
    recalibrate_norms(encoder, data, PLAIN)
    again = first.running_mean.clone()
    recalibrate_norms(encoder, data, PLAIN)
    assert torch.equal(first.running_mean, again)
