"""config/minio-nats.sh: what it has MinIO's client do.

The gateway has no NATS target, so a stand-in for the client writes down how it was called. The real client is
asked for what it says where it is refused.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.local_servers import Gateway
from tests.integration.test_minio_setup import CONFIG, MIDNIGHT_COMMANDER, SECRET, real_client

RUN_BOUND_S = 60.0
PASSWORD = "pass=word-s3cr3t"
TARGET = "address=nats:4222 subject=minio.events jetstream=on"
LOGIN = f"username=minio password={PASSWORD}"
QUEUE = "queue_dir=/data/.replicator-events queue_limit=100000"
CLIENT = """#!/bin/sh
[ "$1" = --version ] && echo 'mc version RELEASE.2025' && exit
folder=$(dirname "$0")
cp "$MC_CONFIG_DIR/config.json" "$folder/keys.json"
echo "$*" >>"$folder/calls"
case $* in
    "--json $(cat "$folder/fails" 2>/dev/null || echo no)"*) rm "$folder/fails"; echo "it said: $*"; exit 1 ;;
esac
"""


def run(folder: Path, *options: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """A copy of the script in a repository of its own, with a complete environment but for the changes."""
    (folder / "config").mkdir(exist_ok=True)
    for name in ("mc.sh", "minio-nats.sh"):
        script = shutil.copy(CONFIG / name, folder / "config" / name)
    client = folder / "client"
    if not client.exists():
        client.write_text(CLIENT)
        client.chmod(0o755)
    env = {
        "PATH": "/usr/bin:/bin",
        "TMPDIR": str(folder),
        "MINIO_ENDPOINT": "http://minio:9000",
        "MINIO_ACCESS_KEY": "minioadmin",
        "MINIO_SECRET_KEY": SECRET,
        "MINIO_BUCKET": "photos, letters",
        "EVENTS_FROM": f"nats://minio:{PASSWORD}@nats:4222,nats://other:4222",
        "WEBHOOK_QUEUE_DIR": "/data/.replicator-events",
        "MC": str(client),
    }
    done = subprocess.run(
        ["sh", script, *options],
        cwd=folder,
        env=env | changes,
        timeout=RUN_BOUND_S,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert PASSWORD not in done.stdout
    assert SECRET not in done.stdout
    assert list(folder.glob("minio-nats.*")) == [], "the folder with the keys must not stay behind"
    return done


def calls(folder: Path) -> list[str]:
    """How the client was called, each time for JSON: its errors are read, and a restart needs no terminal."""
    lines = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    assert all(line.startswith("--json ") for line in lines)
    return [line.removeprefix("--json ") for line in lines]


BOUND = [
    f"event add replicator/{bucket} arn:minio:sqs::{target}:nats --event put,delete --ignore-existing"
    for bucket in ("photos", "letters")
    for target in ("REPLICATOR_NOW", "REPLICATOR_QUEUE")
]


def test_it_sets_two_targets_restarts_minio_and_binds_every_bucket(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout
    assert calls(tmp_path) == [
        f"admin config set replicator notify_nats:REPLICATOR_NOW {TARGET} {LOGIN}",
        f"admin config set replicator notify_nats:REPLICATOR_QUEUE {TARGET} {LOGIN} {QUEUE}",
        "admin service restart replicator",
        *BOUND,
    ]
    keys = (tmp_path / "keys.json").read_text()
    assert "http://minio:9000" in keys
    assert r"a:secret@/with\"\\%25signs" in keys


def test_removing_takes_ours_only(tmp_path: Path) -> None:
    done = run(tmp_path, "--remove", MINIO_BUCKET="photos", EVENTS_FROM="", WEBHOOK_QUEUE_DIR="")
    assert done.returncode == 0, done.stdout
    assert calls(tmp_path) == [
        "event remove replicator/photos arn:minio:sqs::REPLICATOR_NOW:nats --event ",
        "event remove replicator/photos arn:minio:sqs::REPLICATOR_QUEUE:nats --event ",
        "admin config reset replicator notify_nats:REPLICATOR_NOW",
        "admin config reset replicator notify_nats:REPLICATOR_QUEUE",
        "admin service restart replicator",
    ]


def test_a_dry_run_prints_what_would_be_run_and_calls_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "--dry-run")
    assert done.returncode == 0
    assert calls(tmp_path) == []
    printed = done.stdout.splitlines()
    set_queue = f"mc admin config set replicator notify_nats:REPLICATOR_QUEUE {TARGET}"
    assert printed[1] == f"{set_queue} username=minio password=*** {QUEUE}"
    assert printed[3:7] == [f"mc {call}" for call in BOUND]
    assert printed[-1] == "Nothing was changed."


@pytest.mark.parametrize(
    ("events_from", "address", "words"),
    [
        ("nats://nats", "", "address=nats:4222 subject=s.x jetstream=on"),
        ("nats://nats:1/", "", "address=nats:1 subject=s.x jetstream=on"),
        ("tls://a:2,tls://b:3", "", "address=a:2 subject=s.x jetstream=on tls=on"),
        ("nats://outside:1", "inside:2", "address=inside:2 subject=s.x jetstream=on"),
        ("tls://some-token@nats:1", "", "address=nats:1 subject=s.x jetstream=on tls=on token=some-token"),
    ],
)
def test_the_target_is_the_first_server_with_its_login(
    tmp_path: Path, events_from: str, address: str, words: str
) -> None:
    changes = {"EVENTS_FROM": events_from, "NATS_ADDRESS": address, "EVENTS_SUBJECT": "s.x"}
    assert run(tmp_path, **changes).returncode == 0
    assert calls(tmp_path)[0] == f"admin config set replicator notify_nats:REPLICATOR_NOW {words}"


def test_it_waits_for_the_targets_of_a_minio_that_restarts(tmp_path: Path) -> None:
    (tmp_path / "fails").write_text(BOUND[0])
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout
    assert calls(tmp_path)[3:5] == [BOUND[0], BOUND[0]]


def test_what_cannot_be_set_is_said_without_the_password(tmp_path: Path) -> None:
    (tmp_path / "fails").write_text("admin config set")
    done = run(tmp_path)
    assert done.returncode == 1
    assert "target REPLICATOR_NOW can't be set: it said:" in done.stdout
    assert "password=***" in done.stdout
    assert len(calls(tmp_path)) == 1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"MINIO_BUCKET": "", "EVENTS_FROM": ""},
            "not set: MINIO_BUCKET, EVENTS_FROM (in the environment or",
        ),
        ({"EVENTS_FROM": "http://nats"}, "EVENTS_FROM must be like nats://"),
        ({"EVENTS_FROM": "nats://me:a%40b@nats"}, "a login with %"),
        ({"WEBHOOK_QUEUE_DIR": "/data/my queue"}, "no spaces"),
        ({"MINIO_BUCKET": "photos-*"}, "name the buckets one by one"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    tmp_path: Path, changes: dict[str, str], problem: str
) -> None:
    done = run(tmp_path, **changes)
    assert done.returncode == 2
    assert problem in done.stdout
    assert calls(tmp_path) == []


def test_settings_come_from_a_file_too(tmp_path: Path) -> None:
    lines = ['export EVENTS_FROM="nats://nats:1"', "EVENTS_SUBJECT = mine # a comment", "MINIO_BUCKET='a,b'"]
    (tmp_path / ".env").write_text("\n".join(lines) + "\n")
    assert run(tmp_path, EVENTS_FROM="", MINIO_BUCKET="").returncode == 0
    assert calls(tmp_path)[0].endswith("REPLICATOR_NOW address=nats:1 subject=mine jetstream=on")
    assert calls(tmp_path)[-1].startswith("event add replicator/b ")


def test_an_unknown_option_is_refused_and_help_explains(tmp_path: Path) -> None:
    assert run(tmp_path, "--frobnicate").returncode == 2
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    assert "python -m webhook.ingest" in done.stdout
    assert calls(tmp_path) == []


def test_midnight_commander_is_not_taken_for_the_client(tmp_path: Path) -> None:
    client = tmp_path / "client"
    client.write_text(MIDNIGHT_COMMANDER)
    client.chmod(0o755)
    done = run(tmp_path)
    assert done.returncode == 1
    assert f"MC={client} is Midnight Commander" in done.stdout


def test_the_real_client_s_reasons_are_passed_on_with_a_hint(tmp_path: Path, gateway: Gateway) -> None:
    there = {"MINIO_ENDPOINT": gateway.endpoint, "MINIO_SECRET_KEY": gateway.secret_key}
    for changes, reason, hint in (
        (there, "unknown sub-system", "see MinIO's log"),
        ({**there, "MINIO_SECRET_KEY": "wrong-secret"}, "signature", "check MINIO_ACCESS_KEY and"),
        (
            {"MINIO_ENDPOINT": "http://127.0.0.1:9"},
            "connection refused",
            "MinIO can't be reached at http://127",
        ),
    ):
        done = run(tmp_path, **real_client("minio-nats.sh"), **changes)
        assert done.returncode == 1
        assert "target REPLICATOR_NOW can't be set: " in done.stdout
        assert reason in done.stdout
        assert f"Hint: {hint}" in done.stdout


def test_a_password_that_json_writes_otherwise_is_masked_too(tmp_path: Path, gateway: Gateway) -> None:
    there = {"MINIO_ENDPOINT": gateway.endpoint, "MINIO_SECRET_KEY": gateway.secret_key}
    login = {"EVENTS_FROM": r"nats://minio:begin&<>\end@nats"}
    done = run(tmp_path, **real_client("minio-nats.sh"), **there, **login)
    assert "password=***" in done.stdout
    assert "begin" not in done.stdout
    assert "end" not in done.stdout
