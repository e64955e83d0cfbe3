"""Read weights from files of all common forms, and load those that fit into a module.

A file is a state dict, or a checkpoint that holds one somewhere inside (`model`, `state_dict`, `teacher` …), as
safetensors or as PyTorch writes it; names may carry prefixes (`module.`, `backbone.`, `encoder_q.`, `_orig_mod.` …).
Both are found by searching for the module's own names. No code of a file is ever run: PyTorch's files are read with
`weights_only=True`.
"""

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagekin.errors import DataLossError, InvalidArgumentError, NotFoundError

State = dict[str, Tensor]

MAX_DEPTH = 8
LEAST_SHARE = 0.9
"""A file that lacks more than a tenth of a module's tensors is another module's."""

# Parts of a checkpoint in order of preference, among those that fit equally well.
_PREFERRED = ("teacher", "ema", "encoder_q", "online", "query", "student")


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """Result of loading a file of weights.

    Attributes:
        file: name of the file.
        loaded: number of tensors that were loaded.
        missing: names of the module's tensors that the file lacks, or has in another shape.
        ignored: names in the file that the module does not have.
    """

    file: str
    loaded: int
    missing: tuple[str, ...]
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors loaded"]
        parts += [f"{len(names)} {word}{_some(names)}" for word, names in self._others()]
        return f"{self.file}: {', '.join(parts)}"

    def _others(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return ("missing", self.missing), ("ignored", self.ignored)


def read_file(path: Path) -> object:
    """Read a file of weights with PyTorch or safetensors; no code of the file is run.

    Raises:
        NotFoundError: there is no such file.
        DataLossError: it is damaged, or cannot be read without running code of its own.
    """
    if not path.is_file():
        raise NotFoundError(f"there is no file of weights {path}", field="weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise whatever their parsers stumble over
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds more than weights, which only running its code could read"
        raise DataLossError(f"{path.name} cannot be read as weights: {reason}") from error


def read_state(path: Path) -> State:
    """Return all tensors of a file by dotted name, those of mappings inside mappings included.

    Raises:
        NotFoundError: there is no such file.
        DataLossError: it is damaged, or cannot be read without running code of its own.
        InvalidArgumentError: it holds no tensors.
    """
    state = dict(_tensors(read_file(path)))
    if not state:
        raise InvalidArgumentError(f"{path.name} holds no weights", field="weights")
    return state


def part_for(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> State:
    """Return the part of a file under the prefix where most of the wanted tensors are, without that prefix.

    A tensor counts fully when its shape is the wanted one. Ties go to a prefix named like a part that is meant to be
    used (`teacher`, `ema`, `encoder_q` …), then to the shortest.
    """
    scores: dict[str, float] = {}
    ends: dict[str, list[str]] = {}
    for name in wanted:
        ends.setdefault(name.rpartition(".")[2], []).append(name)
    for name, tensor in state.items():
        for own in ends.get(name.rpartition(".")[2], ()):
            if name == own or name.endswith("." + own):
                prefix = name[: len(name) - len(own)]
                # The right name with another shape also indicates where the weights are, though less.
                scores[prefix] = scores.get(prefix, 0) + (1 if tensor.shape == wanted[own].shape else 0.01)
    if not scores:
        return dict(state)
    best = min(scores, key=lambda prefix: (-scores[prefix], _preference(prefix), len(prefix), prefix))
    return {name.removeprefix(best): tensor for name, tensor in state.items() if name.startswith(best)}


def load_part(module: nn.Module, state: Mapping[str, Tensor], file: str) -> LoadedWeights:
    """Load those of a file's tensors that fit into a module.

    Raises:
        InvalidArgumentError: more than a tenth of the module's tensors are not in the file.
    """
    own = module.state_dict()
    part = part_for(state, own)
    fitting = {name: value for name, value in part.items() if name in own and own[name].shape == value.shape}
    # BatchNorm's counters only matter for a cumulative average, and old files lack them.
    wanted = [name for name in own if not name.endswith("num_batches_tracked")]
    missing = tuple(name for name in wanted if name not in fitting)
    ignored = tuple(name for name in part if name not in fitting)
    report = LoadedWeights(file, len(fitting), missing, ignored)
    if len(missing) > (1 - LEAST_SHARE) * len(wanted):
        raise InvalidArgumentError(f"the weights do not fit this encoder: {report}", field="weights")
    module.load_state_dict(fitting, strict=False)
    return report


def _tensors(value: object, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in mappings inside mappings with its dotted name."""
    if isinstance(value, Tensor):
        yield prefix, value
    elif isinstance(value, Mapping) and depth < MAX_DEPTH:
        for key, part in value.items():
            yield from _tensors(part, f"{prefix}.{key}" if prefix else str(key), depth + 1)


def _preference(prefix: str) -> int:
    return next((place for place, word in enumerate(_PREFERRED) if word in prefix), len(_PREFERRED))


def _some(names: tuple[Any, ...]) -> str:
    if not names:
        return ""
    return f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
