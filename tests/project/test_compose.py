"""What deploy/compose holds is valid for those who will read it, and asks only for metrics that the server has."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import Metric

from imagekin.serving.observability.metrics import Metrics
from tests.e2e.processes import run

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy" / "compose"
DASHBOARD = COMPOSE / "grafana" / "dashboards" / "imagekin.json"
OF_EVERY_TARGET = {"up", "process_resident_memory_bytes", "process_cpu_seconds_total"}
SERIES = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    return found


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((COMPOSE / "prometheus" / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard_queries() -> list[str]:
    """Return the dashboard's queries with values where Grafana has variables."""
    found = [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]
    return [each.replace("$__rate_interval", "5m").replace("$__range", "1h") for each in found]


def served() -> set[str]:
    """Return the names of all time series that a server's scrape may hold."""
    metrics = Metrics()
    metrics.watch(lambda: (), lambda: (), lambda: 0)
    families: list[Metric] = list(metrics.registry.collect())
    return {family.name + end for family in families for end in SERIES[family.type]}


def selectors(query: str) -> Iterator[Any]:
    found: list[Any] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql.MatrixSelector):
            found.append(node.vector_selector)
        elif isinstance(node, promql.VectorSelector):
            found.append(node)
        return True

    promql.walk(promql.parse(query), pre_visit=visit)
    yield from found


def test_the_compose_file_is_valid_by_its_schema() -> None:
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema is one of the dev extras")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(COMPOSE / "compose.yaml")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_it_mounts_from_here_is_here() -> None:
    for service in services().values():
        for volume in service["volumes"]:
            if isinstance(volume, str) and volume.startswith("./"):
                assert (COMPOSE / volume.partition(":")[0]).is_dir()
    assert (COMPOSE / services()["imagekin"]["build"]["context"] / "Dockerfile").resolve() == ROOT / "Dockerfile"


def test_every_port_is_published_on_loopback_only() -> None:
    for service in services().values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_images_of_others_are_pinned_to_a_version() -> None:
    images = [service["image"] for service in services().values() if "build" not in service]
    assert images
    assert all(re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", image) for image in images)


@pytest.mark.parametrize("name", ["imagekin", "imagekin-milvus"])
def test_the_services_arguments_are_ones_that_the_command_takes(name: str) -> None:
    service = services()[name]
    done = run(*service["command"], "--print-config")
    assert done.returncode == 0, done.stderr
    drain = int(next(each for each in service["command"] if "drain" in each).partition("=")[2])
    assert int(service["stop_grace_period"].removesuffix("s")) > drain
    assert f" AS {service['build']['target']}\n" in (ROOT / "Dockerfile").read_text()


def test_milvus_is_a_profile_of_its_own_and_waited_for() -> None:
    assert {name for name, service in services().items() if service.get("profiles") == ["milvus"]} == {
        "milvus",
        "imagekin-milvus",
    }
    service, milvus = services()["imagekin-milvus"], services()["milvus"]
    assert "--store=milvus://milvus:19530" in service["command"]
    assert service["depends_on"]["milvus"]["condition"] == "service_healthy"
    assert milvus["healthcheck"]["test"][-1] == "http://localhost:9091/healthz"
    # What the metadata store reads is what is mounted.
    folder, config = "/milvus/configs/imagekin", milvus["environment"]["ETCD_CONFIG_PATH"]
    assert f"./milvus:{folder}:ro" in milvus["volumes"]
    assert yaml.safe_load((COMPOSE / "milvus" / Path(config).relative_to(folder)).read_text())["quota-backend-bytes"]


def test_prometheus_scrapes_the_port_that_the_service_opens() -> None:
    settings = yaml.safe_load((COMPOSE / "prometheus" / "prometheus.yml").read_text())
    (target,) = settings["scrape_configs"][0]["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    assert f"--metrics-address=0.0.0.0:{port}" in services()[host]["command"]
    assert all((COMPOSE / "prometheus" / name).is_file() for name in settings["rule_files"])
    source = yaml.safe_load((COMPOSE / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_is_a_query_over_what_the_server_measures(rule: dict[str, Any]) -> None:
    recorded = {each["record"] for each in rules() if "record" in each}
    names = [each.name for each in selectors(rule["expr"])]
    assert names
    assert set(names) <= served() | recorded | OF_EVERY_TARGET
    if "alert" in rule:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert "for" not in rule or promql.parse_duration(rule["for"])


@pytest.mark.parametrize("query", dashboard_queries())
def test_a_panels_query_is_over_what_the_server_measures(query: str) -> None:
    found = list(selectors(query))
    assert found
    assert {each.name for each in found} <= served() | OF_EVERY_TARGET


def test_grafana_loads_the_dashboard() -> None:
    document = json.loads(DASHBOARD.read_text())
    loaded = Dashboard.from_json(document)
    assert loaded.uid == "imagekin"
    assert len(loaded.panels or ()) == len(document["panels"])
    source = yaml.safe_load((COMPOSE / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert {panel["datasource"]["uid"] for panel in document["panels"]} == {source["datasources"][0]["uid"]}


def test_no_two_panels_overlap() -> None:
    cells = [
        (x, y)
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
