"""Derive every random draw from the run's seed, its purpose, and its place in the run.

No state passes from one step to the next, so a run resumed from a checkpoint draws exactly what it would have drawn
without the interruption.
"""

import hashlib

import torch

_SEED_BITS = 63


def derived_seed(seed: int, purpose: str, place: int = 0) -> int:
    """Return a seed below 2**63 for one `purpose` at one `place` (a step, an epoch) of the run seeded with `seed`."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{place}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - _SEED_BITS)


def generator(seed: int, purpose: str, place: int = 0, *, device: torch.device | None = None) -> torch.Generator:
    """Return a generator seeded with `derived_seed`, on `device` (the CPU when None)."""
    return torch.Generator(device or "cpu").manual_seed(derived_seed(seed, purpose, place))
