"""Searching on a GPU is measured only where there is one; the comparison runs anywhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import gpu_search
from bench.searching.common import Result
from imagekin.index.vectors.brute_force import Products
from tests.index.limited import LimitedDevice, LimitedVectors, install


def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> LimitedDevice:
        raise RuntimeError("FAISS sees no GPU")

    monkeypatch.setattr("imagekin.index.search.gpu.faiss_gpu.open_gpu", none)
    gpu_search.main([])
    said = capsys.readouterr().out
    assert "not measured" in said
    assert json.loads(said.splitlines()[-1])["figures"] is None


def test_the_small_form_compares_and_measures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = install(monkeypatch)
    monkeypatch.setattr(gpu_search, "_SECONDS", 0.01)
    gpu_search.main(["--rows", "12000", "--dims", "16", "--rounds", "1"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert figures["12,000 × 16, 64 at a time: GPU"] > 0
    assert not any(device.strangers for device in opened)


def test_a_device_that_forgets_a_neighbour_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = install(monkeypatch)

    def forgetful(held: Any, queries: Any, k: int) -> tuple[Products, Any]:
        products, rows = whole(held, queries, k + 1)
        return products[:, 1:], rows[:, 1:]

    whole = LimitedVectors.top_k
    monkeypatch.setattr(LimitedVectors, "top_k", forgetful)
    gpu_search.make(tmp_path, 12_000, 16)
    with pytest.raises(AssertionError, match="differ"):
        gpu_search.measure(tmp_path, 12_000, 16, 1, Result())
    assert opened
