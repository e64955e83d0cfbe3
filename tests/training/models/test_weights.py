"""Weights load in the forms that people have them, say what became of them, and never run a file's own code."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from imagekin.errors import DataLossError, InvalidArgumentError, NotFoundError
from imagekin.training.models.weights import load_part, part_for, read_state

State = dict[str, Tensor]


def small(seed: int) -> nn.Module:
    """Return a network with a BatchNorm and nested names."""
    torch.manual_seed(seed)
    return nn.ModuleDict(
        {
            "stem": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
            "blocks": nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)) for _ in range(4))),
        }
    )


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def doubled(state: State) -> State:
    return {name: value * 2 for name, value in state.items()}


FORMS: dict[str, Callable[[State], Any]] = {
    "state dict": lambda state: state,
    "with a classifier": lambda state: state | {"fc.weight": torch.zeros(7, 4), "fc.bias": torch.zeros(7)},
    "model": lambda state: {"model": state, "epoch": 3, "args": {"lr": 0.1}},
    "state_dict of DataParallel": lambda state: {"state_dict": prefixed(state, "module."), "best": 0.5},
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled and parallel": lambda state: {"model": prefixed(state, "module._orig_mod.")},
    "backbone and neck": lambda state: (
        prefixed(state, "backbone.") | {"neck.weight": torch.zeros(4, 4), "backbone.fc.weight": torch.zeros(9, 4)}
    ),
    "MoCo": lambda state: {
        "state_dict": prefixed(doubled(state), "module.encoder_k.") | prefixed(state, "module.encoder_q.")
    },
    "DINO": lambda state: {
        "student": prefixed(doubled(state), "module.backbone."),
        "teacher": prefixed(state, "backbone.") | {"head.last.weight": torch.zeros(4, 4)},
    },
    "timm with a running mean": lambda state: {"state_dict": doubled(state), "state_dict_ema": state},
    "Lightning": lambda state: {
        "state_dict": prefixed(state, "net.encoder."),
        "optimizer_states": [{"state": {}}],
        "pytorch-lightning_version": "2.0",
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_checkpoint_gives_the_very_weights(form: str, tmp_path: Path) -> None:
    given, taken = small(1), small(2)
    torch.save(FORMS[form](given.state_dict()), tmp_path / "w.pth")
    report = load_part(taken, read_state(tmp_path / "w.pth"), "w.pth")
    assert all(torch.equal(value, taken.state_dict()[name]) for name, value in given.state_dict().items())
    assert (report.loaded, report.missing) == (len(given.state_dict()), ())


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_safetensors_load(prefix: str, tmp_path: Path) -> None:
    given, taken = small(1), small(2)
    save_file(prefixed(given.state_dict(), prefix), tmp_path / "w.safetensors")
    load_part(taken, read_state(tmp_path / "w.safetensors"), "w.safetensors")
    assert all(torch.equal(value, taken.state_dict()[name]) for name, value in given.state_dict().items())


def test_the_report_is_one_line_with_what_was_loaded_missing_and_ignored() -> None:
    given = small(1).state_dict() | {"fc.weight": torch.zeros(7, 4)}
    del given["blocks.3.1.bias"]
    report = load_part(small(2), given, "w.pth")
    assert str(report) == "w.pth: 34 tensors loaded, 1 missing (blocks.3.1.bias), 1 ignored (fc.weight)"


def test_files_of_old_without_batchnorm_counters_lack_nothing() -> None:
    given = {name: value for name, value in small(1).state_dict().items() if not name.endswith("num_batches_tracked")}
    assert load_part(small(2), given, "w.pth").missing == ()


def test_another_networks_weights_are_refused_and_change_nothing() -> None:
    taken = small(2)
    before = {name: value.clone() for name, value in taken.state_dict().items()}
    with pytest.raises(InvalidArgumentError, match=r"do not fit this encoder: w\.pth: 0 tensors loaded"):
        load_part(taken, {"other.weight": torch.zeros(2, 2)}, "w.pth")
    assert all(torch.equal(value, before[name]) for name, value in taken.state_dict().items())


def test_a_tensor_of_another_shape_counts_as_missing() -> None:
    given = small(1).state_dict()
    given["blocks.3.0.bias"] = torch.zeros(9)
    report = load_part(small(2), given, "w.pth")
    assert (report.missing, report.ignored) == (("blocks.3.0.bias",), ("blocks.3.0.bias",))


def test_the_part_is_taken_by_right_shapes_first() -> None:
    wanted = small(1).state_dict()
    wrong = {name: torch.zeros(*value.shape, 2) for name, value in wanted.items()}
    state = prefixed(wrong, "a.") | prefixed(dict(wanted), "longer.name.")
    assert part_for(state, wanted).keys() == wanted.keys()
    assert all(value.shape == wanted[name].shape for name, value in part_for(state, wanted).items())


class Runs:
    """What a hostile file holds: unpickling it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.pth").write_bytes(pickle.dumps({"model": Runs()}))
    torch.save({"model": Runs()}, "new.pth")
    for name in ("w.pth", "new.pth"):
        with pytest.raises(DataLossError, match="cannot be read as weights"):
            read_state(Path(name))
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.bin"])
def test_damaged_files_and_files_without_weights_are_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(NotFoundError, match=name):
        read_state(path)
    path.write_bytes(b"\x80nothing of the kind")
    with pytest.raises(DataLossError) as caught:
        read_state(path)
    assert "\n" not in str(caught.value)
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(InvalidArgumentError, match=r"none\.pth holds no weights"):
        read_state(tmp_path / "none.pth")
