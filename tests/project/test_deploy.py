"""What deploy/ holds is valid by the schemas and tools of those who will read it, and fits to what the server does."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.settings import Settings
from tests.e2e.processes import run

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
SYSTEMD = ROOT / "deploy" / "systemd"
KUBERNETES_VERSION = "1.34.0"


def manifests() -> dict[str, Any]:
    """Return the manifests that the kustomization names, by kind."""
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    assert {path.name for path in KUBERNETES.glob("*.yaml")} == {*kustomization["resources"], "kustomization.yaml"}
    found = [yaml.safe_load((KUBERNETES / name).read_text()) for name in kustomization["resources"]]
    return {each["kind"]: each for each in found}


def container() -> Any:
    (only,) = manifests()["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    return only


@pytest.mark.parametrize("kind", manifests())
def test_a_manifest_is_valid_by_the_schema_of_kubernetes(kind: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is one of the dev extras")
    assert validator.validate(manifests()[kind], KUBERNETES_VERSION, strict=True)


def test_kustomize_builds_them() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not here")
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES)], capture_output=True, text=True, check=True, timeout=60
    )
    built = {each["kind"] for each in yaml.safe_load_all(done.stdout)}
    assert built == set(manifests())


def test_the_pod_is_probed_drained_and_restricted() -> None:
    pod = manifests()["StatefulSet"]["spec"]["template"]["spec"]
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container()[probe]["grpc"]["port"] == ports["grpc"]
    drain = int(next(each for each in container()["args"] if "drain-seconds" in each).partition("=")[2])
    assert pod["terminationGracePeriodSeconds"] > drain + container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    own = container()["securityContext"]
    assert (own["readOnlyRootFilesystem"], own["allowPrivilegeEscalation"]) == (True, False)
    assert own["capabilities"] == {"drop": ["ALL"]}
    # No other bits than those that the server lets pass for a file of secrets.
    assert not pod["volumes"][0]["secret"]["defaultMode"] & 0o027


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
    assert {"/data", "/etc/kindred"} <= mounted
    assert found["StatefulSet"]["spec"]["replicas"] == 1, "a collection has one writer"


def test_the_containers_arguments_are_ones_that_the_command_takes() -> None:
    done = run(*container()["args"], "--print-config")
    assert done.returncode == 0, done.stderr
    assert 'tokens-file = "/etc/kindred/tokens.toml"  # command line' in done.stdout


def test_the_settings_file_of_the_unit_is_one_that_the_command_takes() -> None:
    done = run("--config", str(SYSTEMD / "kindred.toml"), "serve", "--print-config")
    assert done.returncode == 0, done.stderr
    assert 'tls-cert = "/etc/kindred/tls.crt"  # file' in done.stdout


def test_what_print_config_shows_is_a_settings_file(tmp_path: Path) -> None:
    first = run("--config", str(SYSTEMD / "kindred.toml"), "serve", "--print-config").stdout
    (tmp_path / "kindred.toml").write_text(first)
    again = run("--config", str(tmp_path / "kindred.toml"), "serve", "--print-config").stdout
    assert re.sub("# .*", "", again) == re.sub("# .*", "", first)


def test_the_unit_is_valid_and_hardened(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    text = (SYSTEMD / "kindred.service").read_text()
    assert "/opt/kindred/bin/kindred --config /etc/kindred/kindred.toml serve" in text
    unit = tmp_path / "kindred.service"
    # The tool asks whether the program exists.
    unit.write_text(text.replace("/opt/kindred/bin/kindred", "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    security = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(unit)]
    judged = subprocess.run(security, capture_output=True, text=True, timeout=60)
    assert judged.returncode == 0, judged.stdout[-300:]


def test_the_unit_gives_the_drain_its_time(tmp_path: Path) -> None:
    stop = re.search(r"^TimeoutStopSec=(\d+)$", (SYSTEMD / "kindred.service").read_text(), re.M)
    assert stop is not None
    assert int(stop[1]) > Settings(data_dir=tmp_path).drain_seconds
