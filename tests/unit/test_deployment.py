"""What is needed to run the service elsewhere agrees with the service, and with itself."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from config import configure_minio
from webhook import settings

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
OURS = [name for name, service in COMPOSE["services"].items() if service.get("image") == "minio-replicator"]
GUNICORN_MARGIN_S = 10
"""What config/gunicorn.conf.py adds to DRAIN_S."""
INTERPRETERS = {"PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}
SECRET = re.compile(r"\$\{(\w*(?:KEY|TOKEN|PASSWORD)\w*)(:?[^}]*)\}")


class Unit(configparser.RawConfigParser):
    """A systemd unit; of settings given more than once, all values, one a line."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=False, delimiters="=", dict_type=_Lines)
        self.optionxform = str  # type: ignore[assignment, method-assign]
        self.read(path)


class _Lines(dict[str, Any]):
    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, list) and isinstance(self.get(key), list):
            value = [*self[key], *value]
        super().__setitem__(key, value)


UNIT = Unit(ROOT / "config" / "minio-replicator.service")["Service"]


def _stage(name: str) -> str:
    """The lines of the Dockerfile's last stage, or of its first one; continued lines joined."""
    stages = re.split(r"^FROM ", DOCKERFILE.replace("\\\n", " "), flags=re.MULTILINE)
    return stages[{"first": 1, "last": -1}[name]]


def _instructions(keyword: str) -> list[str]:
    return re.findall(rf"^{keyword} (.*)$", _stage("last"), re.MULTILINE)


def _image_environ() -> dict[str, str]:
    return dict(word.split("=", 1) for line in _instructions("ENV") for word in shlex.split(line))


def _procfile() -> list[str]:
    return shlex.split((ROOT / "Procfile").read_text().removeprefix("web: "))


def _known_settings() -> set[str]:
    """Every variable that the service asks its environment for, and those of configure_minio."""
    asked: set[str] = set()

    class Asking(dict[str, str]):
        def get(self, name: str, default: Any = None) -> Any:
            asked.add(name)
            return super().get(name, default)

    with pytest.raises(settings.SettingsError):
        settings.from_environ(Asking())
    return asked | set(configure_minio.MINIO_NAMES + configure_minio.WEBHOOK_NAMES)


def _images() -> Iterator[str]:
    yield from re.findall(r"^ARG PYTHON=(.*)$", DOCKERFILE, re.MULTILINE)
    yield from re.findall(r"^FROM ([^$\s]+)", (ROOT / "config" / "minio" / "Dockerfile").read_text(), re.M)
    yield from (each["image"] for name, each in COMPOSE["services"].items() if name not in OURS)


def test_every_variable_that_is_set_exists() -> None:
    known = _known_settings()
    assert {"MINIO_ENDPOINT", "DRAIN_S", "METRICS_PUBLIC"} <= known, "they are found out"
    for name in OURS:
        assert set(COMPOSE["services"][name]["environment"]) <= known, name
    assert _image_environ().keys() - INTERPRETERS <= known
    of_unit = {line.split("=", 1)[0] for line in UNIT["Environment"].splitlines()}
    assert of_unit - INTERPRETERS <= known


def test_variables_of_compose_stand_in_the_example_or_in_the_command_that_makes_secrets() -> None:
    named = set(re.findall(r"\$\{(\w+)", (ROOT / "compose.yaml").read_text()))
    example = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    made = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", _command_for_secrets()))
    assert named <= example | made
    assert {name for name, _ in SECRET.findall((ROOT / "compose.yaml").read_text())} == made


def _command_for_secrets() -> str:
    (found,) = re.findall(
        r"^for name in (.*?); do$", (ROOT / "docs" / "DEPLOYMENT.md").read_text(), re.M | re.S
    )
    return str(found)


def test_no_secret_has_a_default() -> None:
    found = SECRET.findall((ROOT / "compose.yaml").read_text())
    assert found
    for name, rest in found:
        assert rest.startswith(":?"), f"{name} must be required"


def test_all_start_the_command_of_the_procfile() -> None:
    (command,) = _instructions("CMD")
    assert json.loads(command) == _procfile()
    assert "command" not in COMPOSE["services"]["replicator"]
    program, *rest = UNIT["ExecStart"].split()
    assert [Path(program).name, *rest] == _procfile()
    assert "startCommand" not in json.loads((ROOT / "railway.json").read_text())["deploy"]


def test_railway_builds_what_the_dockerfile_says_and_each_service_has_its_own_file() -> None:
    for folder in (ROOT, ROOT / "config" / "minio"):
        build = json.loads((folder / "railway.json").read_text())["build"]
        assert build["builder"] == "DOCKERFILE"
        assert (folder / build["dockerfilePath"]).is_file()
    assert not re.search(r"^VOLUME", DOCKERFILE, re.MULTILINE), "Railway refuses it"


def test_health_is_asked_for_where_there_is_a_route() -> None:
    source = (ROOT / "webhook" / "app.py").read_text()
    path = json.loads((ROOT / "railway.json").read_text())["deploy"]["healthcheckPath"]
    assert f'get("{path}")' in source
    (line,) = _instructions("HEALTHCHECK")
    assert "/healthz" in line
    assert 'get("/healthz")' in source
    compile(json.loads(line.partition(" CMD ")[2])[2], "HEALTHCHECK", "exec")


def test_who_stops_it_waits_longer_than_it_takes(environ: Mapping[str, str]) -> None:
    needed_s = settings.from_environ(environ).worker.drain_s + GUNICORN_MARGIN_S
    assert json.loads((ROOT / "railway.json").read_text())["deploy"]["drainingSeconds"] > needed_s
    assert int(UNIT["TimeoutStopSec"]) > needed_s
    for name in OURS:
        assert int(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s")) > needed_s
    assert _instructions("STOPSIGNAL") == ["SIGTERM"]


def test_ports_agree(environ: Mapping[str, str]) -> None:
    port = settings.from_environ(environ).web.port
    assert _instructions("EXPOSE") == [str(port)]
    services = COMPOSE["services"]
    assert services["replicator"]["environment"]["PORT"] == str(port)
    assert services["replicator"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert services["set-up"]["environment"]["WEBHOOK_URL"] == f"http://replicator:{port}/minio/events"
    scraped = yaml.safe_load((ROOT / "config" / "compose" / "prometheus.yml").read_text())
    assert scraped["scrape_configs"][0]["static_configs"] == [{"targets": [f"replicator:{port}"]}]
    assert f".internal:{port}/minio/events" in (ROOT / "config" / "minio" / "Dockerfile").read_text()


def test_ports_are_open_on_this_machine_only() -> None:
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_images_are_pinned() -> None:
    images = list(_images())
    assert len(images) > 5
    for image in images:
        name, _, tag = image.partition(":")
        assert name, image
        assert re.match(r"(v?\d+\.\d+|RELEASE\.\d{4})", tag), f"{image}: name a version"


def test_one_version_of_minio_everywhere() -> None:
    assert len({image for image in _images() if image.startswith("pgsty/")}) == 1


def test_files_that_are_mounted_or_copied_exist() -> None:
    mounts = [mount for service in COMPOSE["services"].values() for mount in service.get("volumes", [])]
    files = [mount.split(":")[0] for mount in mounts if mount.startswith(".")]
    assert len(files) >= 4
    copied = [line.split()[0] for line in _instructions("COPY") if not line.startswith("--from")]
    for file in (*files, *copied, *re.findall(r"^COPY (\S+) ", _stage("first"), re.MULTILINE)):
        assert (ROOT / file).exists(), file


def test_what_is_copied_into_the_image_is_in_its_context() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {line.split()[0] for line in _instructions("COPY") if not line.startswith("--from")}
    assert let_in == copied | {"requirements.txt"}
    assert "*" in lines, "all else stays out, .env too"


def test_volumes_that_are_mounted_are_declared() -> None:
    mounts = [mount for service in COMPOSE["services"].values() for mount in service.get("volumes", [])]
    named = {mount.split(":")[0] for mount in mounts if not mount.startswith(".")}
    assert named == set(COMPOSE["volumes"])


def test_it_does_not_run_as_root() -> None:
    assert _instructions("USER") == ["10001:10001"]
    assert UNIT["DynamicUser"] == "yes"
    for name in OURS:
        service = COMPOSE["services"][name]
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name


def test_what_ends_is_started_anew() -> None:
    assert UNIT["Restart"] == "always"
    assert json.loads((ROOT / "railway.json").read_text())["deploy"]["restartPolicyType"] == "ON_FAILURE"
    assert {COMPOSE["services"][name]["restart"] for name in ("replicator", "worker")} == {"unless-stopped"}


def test_each_alert_says_what_to_do() -> None:
    text = (ROOT / "docs" / "OPERATIONS.md").read_text()
    groups = yaml.safe_load((ROOT / "config" / "alerts.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    assert alerts
    assert alerts == set(re.findall(r"^### Alert (\w+)$", text, re.MULTILINE))
    for name in alerts:
        assert f"docs/OPERATIONS.md#alert-{name.lower()}" in (ROOT / "config" / "alerts.yml").read_text()


def test_the_examples_of_the_documents_set_what_exists_and_no_secret() -> None:
    text = (ROOT / "docs" / "DEPLOYMENT.md").read_text()
    compose, deployment = (yaml.safe_load(each) for each in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    replicator = compose["services"]["replicator"]
    for variables in (replicator["environment"], {each["name"]: each["value"] for each in container["env"]}):
        assert variables.keys() <= _known_settings()
        assert not any(value for name, value in variables.items() if f"{name}_FILE" in variables)
        assert not [name for name in variables if re.search("(KEY|TOKEN)$", name)], "they stand in files"
    assert {f"/run/secrets/{name}" for name in compose["secrets"]} == {
        value for name, value in replicator["environment"].items() if name.endswith("_FILE")
    }
    assert set(replicator["secrets"]) == set(compose["secrets"])
    (user,) = _instructions("USER")
    inner, outer = container["securityContext"], pod["securityContext"]
    assert user == f"{outer['runAsUser']}:{outer['runAsGroup']}"
    assert (inner["readOnlyRootFilesystem"], inner["allowPrivilegeEscalation"]) == (True, False)
    assert inner["capabilities"] == {"drop": ["ALL"]}
    assert {each["name"] for each in pod["volumes"]} == {each["name"] for each in container["volumeMounts"]}


def test_credentials_of_the_unit_are_read_from_where_they_are_put() -> None:
    (block,) = re.findall(r"```ini\n(.*?)```", (ROOT / "docs" / "DEPLOYMENT.md").read_text(), re.DOTALL)
    loaded = set(re.findall(r"^LoadCredential=(\w+):/", block, re.MULTILINE))
    words = [word for line in re.findall(r"^Environment=(.*)$", block, re.MULTILINE) for word in line.split()]
    variables = dict(word.split("=", 1) for word in words)
    assert variables.keys() <= _known_settings()
    assert {value for value in variables.values() if value} == {f"%d/{name}" for name in loaded}
    assert all(name.endswith("_FILE") for name, value in variables.items() if value)


def test_commands_of_the_documents_exist() -> None:
    for document in ("OPERATIONS.md", "DEPLOYMENT.md"):
        text = (ROOT / "docs" / document).read_text()
        named = set(
            re.findall(
                r"\b(?:scripts|config|webhook|docs)/[\w./-]+\.(?:py|sh|md|yml|json|toml|service)", text
            )
        )
        assert named, document
        for file in named:
            assert (ROOT / file).exists(), f"{document} names {file}"
