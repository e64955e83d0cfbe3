"""The pages of operations and metrics know every setting and every metric of the server, and no others."""

import re
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from imagekin.cli.main import load_command
from imagekin.serving.observability.metrics import Metrics
from imagekin.serving.transport.access import SCOPES, Scope

ROOT = Path(__file__).resolve().parents[2]
METRICS = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "how-to" / "operations.md").read_text(encoding="utf-8")


def test_every_option_of_serve_is_told_and_no_other() -> None:
    table = OPERATIONS.split("## Protection")[0].split("| option |")[1]
    told = set(re.findall(r"`(--[a-z-]+)", table))
    has = {option for parameter in load_command("serve").params for option in parameter.opts if option.startswith("--")}
    assert told == has - {"--help", "--print-config"}
    assert "serve --print-config" in OPERATIONS


def test_every_metric_is_told_and_no_other() -> None:
    metrics = Metrics()
    metrics.watch(lambda: (), lambda: (), lambda: 0)
    text = generate_latest(metrics.registry).decode()
    names = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in text_string_to_metric_families(text)
        # The library adds to each counter and histogram when it was made.
        if family.name.startswith("imagekin_") and not family.name.endswith("_created")
    }
    table = METRICS.split("| metric |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(imagekin_[a-z_]+)`", table)) == names


def test_the_scopes_are_told_as_they_are() -> None:
    admin = {method.rpartition("/")[2] for method, scope in SCOPES.items() if scope is Scope.ADMIN}
    assert admin == {"DropCollection", "Snapshot", "Reload"}, "docs/how-to/operations.md says otherwise"
