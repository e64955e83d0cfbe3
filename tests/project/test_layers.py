"""Imports run down only: the floors, the floors inside the folders, no circles, and one name for every module."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOUSE = ("cli", "client", "encoder", "index", "serving", "sources", "training")

# What each floor may import besides itself and the ground floor (the modules that lie in imagekin/ itself).
FLOORS = {
    "encoder": {"encoder"},
    "sources": {"encoder", "sources"},
    "index": {"encoder", "index", "sources"},
    "serving": {"encoder", "index", "serving", "sources"},
    "training": {"encoder", "sources", "training"},
    "client": {"client"},
    "cli": {"cli", "client", "encoder", "index", "serving", "sources", "training"},
}
# Inside a floor, from the bottom up: a module may import what stands in its own line or in one above it.
# A name without its own line (a file that lies in the folder itself) stands in the line `.` of its folder.
INSIDE = {
    "encoder": (
        ("metadata", "graph_contract"),
        ("decoding",),
        ("runtime",),
        ("artifact",),
        ("adoption.adopt", "adoption.foreign_models", "adoption.inner_values", "adoption.wrap_graph"),
        ("adoption.presets_on_images",),
    ),
    "sources": (
        ("values", "splits", "ignored"),
        ("records", "labels", "suffixes"),
        ("places",),
        ("pieces",),
        ("formats", "patterns"),
        ("remote", "joined"),
        ("containers",),
        ("open",),
    ),
    "index": (
        ("filters.conditions",),
        ("types", "unknown", "validation"),
        ("filters.parser",),
        ("vectors",),
        ("storage",),
        ("filters",),
        ("search",),
        ("classification",),
        ("review",),
        ("maps",),
        ("interface",),
        ("local", "milvus"),
        ("open",),
        ("ingest",),
    ),
    "serving": (
        ("observability.logs", "observability.metrics", "observability.tracing"),
        ("settings",),
        ("observability",),
        ("transport",),
        ("searching.batcher", "embedding"),
        ("collections.open_collections", "messages"),
        ("searching",),
        ("collections",),
        ("reload", "fixed_answers"),
        ("page",),
        ("services", "http"),
        ("server",),
    ),
    "client": (
        ("generate_sync",),
        ("image_inputs", "local", "retries"),
        ("conversions",),
        ("query_inputs",),
        ("calls",),
        ("connection",),
        ("backends",),
        ("sync_transport", "async_transport"),
        ("sync_collections", "async_collections"),
        ("sync_client", "async_client"),
        ("bridges.queries",),
        ("bridges",),
    ),
    "cli": (
        ("shared",),
        ("collection", "demo_run", "review"),
        ("adopt", "classify", "demo", "embed", "health", "index", "map", "models"),
        ("search", "serve", "thumbnails", "tune", "version"),
        ("main",),
    ),
    "training": (
        ("loop.seeds", "loop.process_errors", "loop.lars", "loop.gradient_cache", "loop.distributed"),
        ("data.storage", "data.arrays", "data.cifar", "data.mnist", "data.published"),
        ("settings", "evaluation.settings", "adaptation.settings"),
        ("objective_options",),
        ("views.colour", "views.geometry", "views.worker_threads"),
        ("models.encoders", "models.running_mean", "models.sync_batchnorm"),
        ("views.views",),
        ("data.pixel_cache", "data.decoding", "data.images", "data.sampling"),
        ("objectives",),
        ("models",),
        ("evaluation.linear_probe", "evaluation.per_class", "evaluation.evaluate"),
        ("data",),
        ("views",),
        (
            "evaluation.calibration",
            "evaluation.corruptions",
            "evaluation.few_shot",
            "evaluation.robustness",
            "evaluation.unknown",
            "evaluation.judge",
        ),
        (
            "loop.checkpoint",
            "loop.devices",
            "loop.first_weights",
            "loop.monitoring",
            "loop.optimiser",
            "loop.provenance",
            "loop.run_folder",
            "loop.time_plan",
        ),
        ("report.charts", "report.details", "report.page"),
        ("export",),
        ("adaptation",),
        ("loop.trainer", "loop.sweep", "evaluation.compare", "catalogue", "presets"),
        ("options", "evaluation.options", "report.options", "adaptation.options", "__main__"),
    ),
}

# Files of more than 400 lines that hold one idea all the same: none may join them.
LONG = {
    "index/local/collection.py",
    "index/milvus/collection.py",
    "training/loop/trainer.py",
}


def source_files() -> list[str]:
    """Return every Python file of the project's modules, relative to the root; generated stubs are left out."""
    found = [*(ROOT / "imagekin").glob("*.py")]
    found += [path for folder in HOUSE for path in (ROOT / folder).rglob("*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def module_of(relative: str) -> str:
    """Return the dotted name of a file's module."""
    parts = list(Path(relative).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts if parts[0] == "imagekin" else ["imagekin", *parts])


@cache
def modules() -> dict[str, str]:
    """Return the file of each module."""
    return {module_of(relative): relative for relative in source_files()}


@cache
def imports_of(module: str) -> frozenset[str]:
    """Return the project's modules that a module imports, at any depth of its code, for the type checker only too."""
    found: set[str] = set()
    relative = modules()[module]
    for node in ast.walk(ast.parse((ROOT / relative).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative}: relative imports hide where things come from"
            base = node.module or ""
            # `from imagekin.client import calls` imports a module, `from imagekin.client.calls import Call` a name.
            found.update(whole if (whole := f"{base}.{alias.name}") in modules() else base for alias in node.names)
    return frozenset(name for name in found if name.split(".")[0] == "imagekin")


def floor_of(module: str) -> str:
    """Return the floor of a module, empty for the ground floor."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in HOUSE else ""


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_from_floors_below_it(module: str) -> None:
    floor = floor_of(module)
    # The public face loads the clients when they are first used; `python -m imagekin` runs the command.
    doors = {"imagekin": {"client"}, "imagekin.__main__": {"cli"}}
    allowed = FLOORS[floor] if floor else doors.get(module, set())
    for other in imports_of(module):
        assert floor_of(other) in {"", *allowed}, f"{modules()[module]} imports {other}"


def height_of(module: str, order: tuple[tuple[str, ...], ...], floor: str) -> int | None:
    """Return in which line of an order a module stands, by its longest name there; None for the folder itself."""
    name = module.removeprefix(f"imagekin.{floor}").lstrip(".")
    places = [
        (len(one), height) for height, names in enumerate(order) for one in names if f"{name}.".startswith(f"{one}.")
    ]
    return max(places)[1] if places else None


@pytest.mark.parametrize("module", [name for name in sorted(modules()) if floor_of(name) in INSIDE])
def test_inside_a_floor_imports_run_down_too(module: str) -> None:
    floor = floor_of(module)
    order = INSIDE[floor]
    height = height_of(module, order, floor)
    if height is None:
        assert modules()[module].endswith("__init__.py"), f"{modules()[module]} has no place in INSIDE"
        assert not imports_of(module), f"{modules()[module]}: what a folder's __init__ imports, everybody loads"
        return
    for other in imports_of(module):
        if floor_of(other) == floor:
            below = height_of(other, order, floor)
            assert below is None or below <= height, f"{modules()[module]} imports {other}"


def test_no_modules_import_one_another_in_a_circle() -> None:
    circles = [sorted(circle) for circle in strongly_connected() if len(circle) > 1]
    assert not circles


def strongly_connected() -> list[list[str]]:
    """Return the strongly connected components of the graph of imports (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in imports_of(node) & modules().keys():
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            found.append(stack[at:])
            del stack[at:]

    for module in modules():
        if module not in index:
            visit(module)
    return found


def test_no_folder_holds_more_than_twenty_files_and_no_file_more_than_four_hundred_lines() -> None:
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [Path(name) for name in tracked.splitlines() if "_pb2" not in name]
    full = {str(one.parent) for one in files if sum(other.parent == one.parent for other in files) > 20}
    assert not full
    lengths = {str(one): len((ROOT / one).read_text(encoding="utf-8").splitlines()) for one in files}
    assert {name for name, length in lengths.items() if length > 400 and not name.startswith("tests/")} <= LONG


@pytest.mark.parametrize("folder", HOUSE)
def test_a_folder_cannot_be_imported_under_a_second_name(folder: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert f"import imagekin.{folder}, not {folder}" in done.stderr
    assert (ROOT / "imagekin" / folder).resolve() == ROOT / folder


def loaded_by(statement: str) -> set[str]:
    """Run a statement in a fresh interpreter and return the names of all modules that it loaded."""
    code = f"import sys\n{statement}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.splitlines()[-1].split())


def test_the_client_loads_nothing_of_the_house_but_the_ground_floor() -> None:
    loaded = loaded_by("from imagekin import AsyncClient, Client, Item, Tls")
    assert {floor_of(name) for name in loaded if name.split(".")[0] == "imagekin"} <= {"", "client"}


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("from imagekin import Client, AsyncClient", {"torch", "faiss", "onnxruntime", "sklearn", "onnx", "PIL"}),
        ("import imagekin.cli.main", {"torch", "faiss", "onnxruntime", "sklearn", "onnx", "grpc"}),
        ("import imagekin.serving.server", {"torch", "sklearn", "onnx"}),
        ("import imagekin.index.ingest.pipeline, imagekin.index.open", {"torch", "sklearn", "onnx", "grpc"}),
        ("import imagekin.encoder.decoding.decode", {"torch", "faiss", "onnxruntime", "onnx", "grpc"}),
        ("import imagekin.sources.open", {"torch", "faiss", "onnxruntime", "onnx", "grpc", "pyarrow", "fsspec"}),
        ("import imagekin.index.types", {"faiss", "torch", "onnxruntime"}),
        ("import imagekin.client.bridges.data_sets", {"torch", "datasets", "pyarrow", "PIL"}),
    ],
)
def test_a_light_import_loads_nothing_heavy(statement: str, unwanted: set[str]) -> None:
    assert not {name.split(".")[0] for name in loaded_by(statement)} & unwanted
