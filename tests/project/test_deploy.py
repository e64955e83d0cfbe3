"""What deploy/ holds is valid by the schemas and tools of those who will read it, and fits to what the server does."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from imagekin.index.milvus.connection import TOKEN_VARIABLE
from imagekin.serving.settings import Settings
from tests.e2e.processes import run

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
MANY = ROOT / "deploy" / "kubernetes-many"
SYSTEMD = ROOT / "deploy" / "systemd"
KUBERNETES_VERSION = "1.34.0"


def manifests(folder: Path = KUBERNETES) -> dict[str, Any]:
    """Return the manifests that the kustomization names, by kind."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert {path.name for path in folder.glob("*.yaml")} == {*kustomization["resources"], "kustomization.yaml"}
    found = [yaml.safe_load((folder / name).read_text()) for name in kustomization["resources"]]
    return {each["kind"]: each for each in found}


def pod(folder: Path = KUBERNETES) -> Any:
    kind = "StatefulSet" if folder == KUBERNETES else "Deployment"
    return manifests(folder)[kind]["spec"]["template"]


def container(folder: Path = KUBERNETES) -> Any:
    (only,) = pod(folder)["spec"]["containers"]
    return only


EVERY = [(folder, kind) for folder in (KUBERNETES, MANY) for kind in manifests(folder)]


@pytest.mark.parametrize(("folder", "kind"), EVERY, ids=[f"{folder.name}-{kind}" for folder, kind in EVERY])
def test_a_manifest_is_valid_by_the_schema_of_kubernetes(folder: Path, kind: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is one of the dev extras")
    assert validator.validate(manifests(folder)[kind], KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("folder", [KUBERNETES, MANY], ids=lambda folder: folder.name)
def test_kustomize_builds_them(folder: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not here")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True, timeout=60)
    built = {each["kind"] for each in yaml.safe_load_all(done.stdout)}
    assert built == set(manifests(folder))


@pytest.mark.parametrize("folder", [KUBERNETES, MANY], ids=lambda folder: folder.name)
def test_the_pod_is_probed_drained_and_restricted(folder: Path) -> None:
    spec, only = pod(folder)["spec"], container(folder)
    ports = {port["name"]: port["containerPort"] for port in only["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert only[probe]["grpc"]["port"] == ports["grpc"]
    drain = int(next(each for each in only["args"] if "drain-seconds" in each).partition("=")[2])
    assert spec["terminationGracePeriodSeconds"] > drain + only["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["automountServiceAccountToken"] is False
    own = only["securityContext"]
    assert (own["readOnlyRootFilesystem"], own["allowPrivilegeEscalation"]) == (True, False)
    assert own["capabilities"] == {"drop": ["ALL"]}
    # No other bits than those that the server lets pass for a file of secrets.
    assert not spec["volumes"][0]["secret"]["defaultMode"] & 0o027


def test_names_labels_and_ports_fit_together() -> None:
    found = manifests()
    labels = found["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        found["StatefulSet"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert found["Service"]["spec"]["ports"][0]["targetPort"] in ports
    opened = {rule["ports"][0]["port"] for rule in found["NetworkPolicy"]["spec"]["ingress"]}
    assert opened == set(ports.values())
    annotations = found["StatefulSet"]["spec"]["template"]["metadata"]["annotations"]
    assert int(annotations["prometheus.io/port"]) == ports["metrics"]
    mounted = {each["mountPath"] for each in container()["volumeMounts"]}
    assert {"/data", "/etc/imagekin"} <= mounted
    assert found["StatefulSet"]["spec"]["replicas"] == 1, "a collection has one writer"


def test_many_pods_keep_nothing_and_fit_together() -> None:
    found = manifests(MANY)
    deployment = found["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        pod(MANY)["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert {next(iter(volume.keys() - {"name"})) for volume in pod(MANY)["spec"]["volumes"]} == {"secret", "emptyDir"}
    scaler = found["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert 1 < scaler["minReplicas"] < scaler["maxReplicas"]
    assert "replicas" not in deployment["spec"], "the autoscaler says how many"
    # The autoscaler measures against what is asked for.
    assert container(MANY)["resources"]["requests"]["cpu"]
    assert found["Service"]["spec"]["clusterIP"] == "None", "a virtual address would keep a client at one pod"
    (store,) = [each for each in container(MANY)["args"] if each.startswith("--store=")]
    address = urlsplit(store.partition("=")[2])
    way_out = found["NetworkPolicy"]["spec"]["egress"][0]
    assert way_out["ports"] == [{"port": address.port}]
    assert way_out["to"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] in str(address.hostname)
    (token,) = container(MANY)["env"]
    assert token["name"] == TOKEN_VARIABLE


@pytest.mark.parametrize("folder", [KUBERNETES, MANY], ids=lambda folder: folder.name)
def test_the_containers_arguments_are_ones_that_the_command_takes(folder: Path) -> None:
    done = run(*container(folder)["args"], "--print-config")
    assert done.returncode == 0, done.stderr
    assert 'tokens-file = "/etc/imagekin/tokens.toml"  # command line' in done.stdout


def test_the_settings_file_of_the_unit_is_one_that_the_command_takes() -> None:
    done = run("--config", str(SYSTEMD / "imagekin.toml"), "serve", "--print-config")
    assert done.returncode == 0, done.stderr
    assert 'tls-cert = "/etc/imagekin/tls.crt"  # file' in done.stdout


def test_what_print_config_shows_is_a_settings_file(tmp_path: Path) -> None:
    first = run("--config", str(SYSTEMD / "imagekin.toml"), "serve", "--print-config").stdout
    (tmp_path / "imagekin.toml").write_text(first)
    again = run("--config", str(tmp_path / "imagekin.toml"), "serve", "--print-config").stdout
    assert re.sub("# .*", "", again) == re.sub("# .*", "", first)


def test_the_unit_is_valid_and_hardened(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    text = (SYSTEMD / "imagekin.service").read_text()
    assert "/opt/imagekin/bin/imagekin --config /etc/imagekin/imagekin.toml serve" in text
    unit = tmp_path / "imagekin.service"
    # The tool asks whether the program exists.
    unit.write_text(text.replace("/opt/imagekin/bin/imagekin", "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    security = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(unit)]
    judged = subprocess.run(security, capture_output=True, text=True, timeout=60)
    assert judged.returncode == 0, judged.stdout[-300:]


def test_the_unit_gives_the_drain_its_time(tmp_path: Path) -> None:
    stop = re.search(r"^TimeoutStopSec=(\d+)$", (SYSTEMD / "imagekin.service").read_text(), re.M)
    assert stop is not None
    assert int(stop[1]) > Settings(data_dir=tmp_path).drain_seconds
