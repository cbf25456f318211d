"""deploy/: what can be checked of it without systemd as init, a container builder, a cluster or Grafana."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from requires import lacks, require_tool

from auroraedge.serving.settings import ServiceConfig
from auroraedge.serving.sources import load_settings
from service.metrics import GpuCollector, Metrics

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(
    path for path in (DEPLOY / "docker").glob("Dockerfile.*") if not path.name.endswith(".dockerignore")
)
UNIT = DEPLOY / "systemd" / "auroraedge.service"


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def beside_python(name: str) -> Path:
    path = Path(sys.executable).parent / name
    if not path.exists():
        lacks(f"{name} is not installed: pip install -e '.[dev]'")
    return path


# --- settings --------------------------------------------------------------------------------------------------------


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / "auroraedge.yaml").read_text(encoding="utf-8")))


def manifest(kind: str) -> dict[str, Any]:
    return next(found for found in manifests() if found["kind"] == kind)


def test_settings_files_are_valid(tmp_path: Path) -> None:
    example = load_settings(file=DEPLOY / "server.yaml", environment=False).config
    assert example.protected and not example.allow_insecure
    image = load_settings(file=DEPLOY / "docker" / "server.yaml", environment=False).config
    assert image.host == "127.0.0.1", "an image without settings of its own lets nobody in"
    cluster = tmp_path / "server.yaml"
    cluster.write_text(manifest("ConfigMap")["data"]["server.yaml"], encoding="utf-8")
    config = load_settings(file=cluster, environment=False).config
    assert config.protected
    pod = manifest("StatefulSet")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > config.drain_seconds + 3
    assert pod["enableServiceLinks"] is False
    ports = {port["name"]: port["containerPort"] for port in pod["containers"][0]["ports"]}
    assert ports == {"grpc": config.port, "metrics": config.http_port}
    mounts = [Path(mount["mountPath"]) for mount in pod["containers"][0]["volumeMounts"]]
    for path in (config.tls_cert, config.tls_key, config.tokens):
        assert path is not None and path.parent in mounts


def test_commented_settings_of_the_example_exist() -> None:
    text = (DEPLOY / "server.yaml").read_text(encoding="utf-8")
    keys = re.findall(r"^# ?([a-z_]+): ", text, re.MULTILINE)
    assert len(keys) >= 5 and set(keys) <= set(ServiceConfig.model_fields)


# --- systemd ---------------------------------------------------------------------------------------------------------


def test_the_unit_is_valid_and_hardened(tmp_path: Path) -> None:
    analyze = require_tool("systemd-analyze")
    text = UNIT.read_text(encoding="utf-8")
    unit = tmp_path / "auroraedge.service"
    unit.write_text(text.replace("/opt/auroraedge/venv/bin/python", sys.executable), encoding="utf-8")
    assert run(analyze, "verify", unit) == ""
    assert run(analyze, "verify", "--man=no", unit) == ""
    # 10 is naked, 2 is what a network service can have without its own image.
    run(analyze, "security", "--offline=true", "--threshold=20", unit)
    stop = re.search(r"^TimeoutStopSec=(\d+)", text, re.MULTILINE)
    assert stop and int(stop[1]) > ServiceConfig().drain_seconds
    drop_in = tmp_path / "auroraedge.service.d"
    drop_in.mkdir()
    (drop_in / "gpu.conf").write_text((DEPLOY / "systemd" / "gpu.conf").read_text(encoding="utf-8"), encoding="utf-8")
    assert run(analyze, "verify", "--man=no", unit) == ""


def test_the_check_of_the_unit_can_fail(tmp_path: Path) -> None:
    analyze = require_tool("systemd-analyze")
    unit = tmp_path / "open.service"
    unit.write_text(f"[Service]\nExecStart={sys.executable}\n", encoding="utf-8")
    command = [str(analyze), "security", "--offline=true", "--threshold=20", str(unit)]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


# --- containers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles(path: Path) -> None:
    run(beside_python("hadolint"), path)
    text = path.read_text(encoding="utf-8")
    assert "USER 10001:10001" in text and "HEALTHCHECK" in text and "STOPSIGNAL SIGTERM" in text
    assert "--allow-insecure" not in text
    # What is copied from the context exists and is not kept out of it.
    ignore = (path.parent / f"{path.name}.dockerignore").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}\n" in ignore, source
    extras = re.findall(r'"/src\[([\w,]+)\]"', text)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in ",".join(extras).split(","):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


# --- Kubernetes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_manifests_fit_the_schema(version: str) -> None:
    validate = beside_python("kubernetes-validate")
    run(validate, "--strict", "-k", version, DEPLOY / "kubernetes" / "auroraedge.yaml")


def test_the_schema_check_can_fail(tmp_path: Path) -> None:
    text = (DEPLOY / "kubernetes" / "auroraedge.yaml").read_text(encoding="utf-8")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(text.replace("readinessProbe:", "readynessProbe:"), encoding="utf-8")
    command = [str(beside_python("kubernetes-validate")), "--strict", str(wrong)]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_pods_are_confined_and_found() -> None:
    kinds = {found["kind"] for found in manifests()}
    assert {"StatefulSet", "Service", "PodDisruptionBudget", "NetworkPolicy", "ConfigMap"} <= kinds
    assert "Secret" not in kinds, "secrets do not belong into a repository"
    template = manifest("StatefulSet")["spec"]["template"]
    pod = template["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"startupProbe", "livenessProbe", "readinessProbe", "resources"} <= container.keys()
    assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    labels = template["metadata"]["labels"].items()
    for kind in ("Service", "PodDisruptionBudget"):
        selector = manifest(kind)["spec"]["selector"]
        assert selector.get("matchLabels", selector).items() <= labels
    # Group-readable and no more, or the server refuses the token file.
    modes = [volume["secret"]["defaultMode"] for volume in pod["volumes"] if "secret" in volume]
    assert modes == [0o440, 0o440]


# --- monitoring ------------------------------------------------------------------------------------------------------


def exported() -> set[str]:
    metrics = Metrics()
    text = generate_latest(metrics.registry).decode()
    names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    for name in list(names):
        if f"# TYPE {name} histogram" in text:
            names |= {f"{name}_{end}" for end in ("bucket", "sum", "count")}
    readings = GpuCollector.__dict__["collect"].__code__.co_consts
    names |= {f"auroraedge_gpu_{name}" for const in readings if isinstance(const, tuple) for name in const}
    return names | {f"auroraedge_gpu_{name}" for name in readings if isinstance(name, str)} | {"up"}


def used(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:auroraedge|process)_\w+", expression))


def test_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 20
    names = set().union(*map(used, expressions))
    assert names <= exported(), names - exported()
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places) and all(x + 4 <= 24 for x, _ in places)
    # Every metric of ours is to be seen somewhere.
    shown = " ".join(expressions) + (DEPLOY / "monitoring" / "alerts.yaml").read_text(encoding="utf-8")
    families = {
        re.sub(r"_(total|created)$", "", name)
        for name in re.findall(r"^# TYPE (auroraedge_\S+)", generate_latest(Metrics().registry).decode(), re.MULTILINE)
        if not name.endswith("_created")
    }
    unseen = {name for name in families if name not in shown}
    assert unseen <= {"auroraedge_start_time_seconds"}


def test_expressions_of_the_dashboard_are_promql(tmp_path: Path) -> None:
    promtool = require_tool("promtool")
    dashboard = json.loads((DEPLOY / "monitoring" / "dashboard.json").read_text(encoding="utf-8"))
    rules = [
        {"record": f"panel:{panel['id']}:{target['refId']}", "expr": target["expr"].replace("$instance", ".*")}
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    run(promtool, "check", "rules", file)


def test_alerts() -> None:
    promtool = require_tool("promtool")
    folder = DEPLOY / "monitoring"
    run(promtool, "check", "config", folder / "prometheus.yaml", cwd=folder)
    run(promtool, "test", "rules", "alerts_test.yaml", cwd=folder)
    rules = yaml.safe_load((folder / "alerts.yaml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    names = set().union(*(used(rule["expr"]) for rule in rules))
    assert names <= exported(), names - exported()
    assert all(rule["annotations"].keys() == {"summary", "action"} for rule in rules)


def test_metrics_have_the_format_that_promtool_wants() -> None:
    promtool = require_tool("promtool")
    text = generate_latest(Metrics().registry)
    done = subprocess.run([str(promtool), "check", "metrics"], input=text, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
