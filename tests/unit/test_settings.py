"""The environment is read whole, and complained about whole."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import certifi
import pytest
import trustme

from webhook import presets, settings
from webhook.errors import SettingsError
from webhook.rules import Template
from webhook.settings import MIB, DeleteSettings, Settings, StoreSettings

EXAMPLE = Path(__file__).parents[2] / "config" / "rules.example.toml"

REQUIRED = [f"{store}_{name}" for store in ("MINIO", "FILEBASE") for name in ("ENDPOINT", "BUCKET")] + [
    f"{store}_{name}_KEY" for store in ("MINIO", "FILEBASE") for name in ("ACCESS", "SECRET")
]


def the_target(found: Settings) -> StoreSettings:
    assert set(found.targets) == {"filebase"}
    return found.targets["filebase"]


def the_template(found: Settings) -> Template:
    (template,) = found.rules
    return template


def problems(environ: dict[str, str], folder: Path | None = None) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        settings.from_environ(environ, folder)
    assert "s3cr3t" not in f"{caught.value} {caught.value!r} {caught.value.hint}"
    return caught.value.problems


def test_what_is_not_set_has_a_default(environ: dict[str, str]) -> None:
    found = settings.from_environ(environ)
    assert (found.web.port, found.web.webhook_auth_token, found.web.api_token) == (8000, "", "")
    assert (found.worker.threads, found.worker.embedded, found.worker.lease_s) == (16, True, 60)
    assert (the_template(found).overwrite, found.copy.whole_max_bytes) == ("changed", 16 * MIB)
    assert (the_target(found).region, found.database_url) == ("us-east-1", "sqlite:///data/replicator.db")
    assert the_template(found) == Template(
        name="default", sources=("source-bucket",), target_bucket="target-bucket"
    )
    assert found.deletes == DeleteSettings(grace_s=60, breaker_max=1000, breaker_share=0.1)
    assert found.reconcile_interval_s == 21_600
    assert (the_target(found).preset, found.source.preset) == (presets.OTHER, presets.OTHER)


def test_what_is_set_is_used(environ: dict[str, str]) -> None:
    environ |= {"PORT": " 81 ", "WORKER_EMBEDDED": "No", "OVERWRITE": "NEVER", "MEMORY_BUDGET_MIB": "64"}
    environ |= {"FILEBASE_REGION": "eu", "MINIO_ENDPOINT": "http://minio:9000/", "LOG_FORMAT": "json"}
    environ |= {"DELETE_GRACE_S": "0", "DELETE_BREAKER_MAX": "5", "DELETE_BREAKER_SHARE": "100"}
    environ |= {"RECONCILE_INTERVAL_S": "0", "REPLICATE_DELETES": "true"}
    found = settings.from_environ(environ)
    assert (found.web.port, found.worker.embedded, the_template(found).overwrite) == (81, False, "never")
    assert (found.copy.memory_budget_bytes, the_target(found).region) == (64 * MIB, "eu")
    assert found.deletes == DeleteSettings(grace_s=0, breaker_max=5, breaker_share=1)
    assert (found.reconcile_interval_s, the_template(found).deletes) == (0, True)
    assert (found.source.endpoint_url, found.log_format) == ("http://minio:9000", "json")


@pytest.mark.parametrize(("value", "expected"), [(None, ""), ("  ", ""), (" STANDARD_IA ", "STANDARD_IA")])
def test_a_storage_class_is_the_target_s_alone_and_empty_where_none_is_set(
    environ: dict[str, str], value: str | None, expected: str
) -> None:
    given = {} if value is None else {"FILEBASE_STORAGE_CLASS": value}
    found = settings.from_environ(environ | given | {"MINIO_STORAGE_CLASS": "GLACIER"})
    assert the_template(found).storage_class == expected


@pytest.mark.parametrize("value", [None, "", "  "])
def test_all_missing_variables_are_named_at_once(value: str | None) -> None:
    environ = {} if value is None else dict.fromkeys(REQUIRED, value)
    with pytest.raises(SettingsError) as caught:
        settings.from_environ(environ)
    assert sorted(caught.value.problems) == sorted(f"{name} is missing" for name in REQUIRED)
    assert all(name in str(caught.value) for name in REQUIRED)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("PORT", value) for value in ("0", "65536", "-1", "8e3", "eight", "8.0", "9" * 5000)),
        *(("WORKER_THREADS", "0"), ("LEASE_S", "1"), ("MAX_ATTEMPTS", "0"), ("DRAIN_S", "-1")),
        *(("MEMORY_BUDGET_MIB", "31"), ("WHOLE_OBJECT_MAX_MIB", "4"), ("WHOLE_OBJECT_MAX_MIB", "129")),
        *(("WORKER_EMBEDDED", "maybe"), ("OVERWRITE", "always"), ("LOG_FORMAT", "xml")),
        *(("REPLICATE_DELETES", "perhaps"), ("DELETE_GRACE_S", "86401"), ("DELETE_BREAKER_MAX", "-1")),
        *(("DELETE_BREAKER_SHARE", value) for value in ("101", "-1", "10%", "0.1")),
        *(("RECONCILE_INTERVAL_S", "-1"), ("RECONCILE_INTERVAL_S", "31536001"), ("FILEBASE_PRESET", "s3")),
        *(("MINIO_BUCKET", value) for value in (",", " , ", "a/b", "a,b/c", "[ab]", "{bucket}")),
        *(("FILEBASE_BUCKET", value) for value in ("a b", "a,b", "a*", "{name}", "a/b")),
        *(("MINIO_ENDPOINT", value) for value in ("minio:9000", "ftp://minio", "http://", "http://h/path")),
        *(
            ("MINIO_ENDPOINT", value)
            for value in ("http://h:0", "http://h:99999", "http://h?x=1", "http://[")
        ),
    ],
)
def test_a_value_out_of_range_is_one_problem_that_names_its_variable(
    environ: dict[str, str], name: str, value: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.from_environ(environ | {name: value})
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(name)


def test_problems_of_all_kinds_are_reported_together(environ: dict[str, str]) -> None:
    del environ["MINIO_BUCKET"]
    with pytest.raises(SettingsError) as caught:
        settings.from_environ(environ | {"PORT": "x", "OVERWRITE": "y", "FILEBASE_ENDPOINT": "z"})
    named = {problem.split()[0] for problem in caught.value.problems}
    assert named == {"MINIO_BUCKET", "PORT", "OVERWRITE", "FILEBASE_ENDPOINT"}


@pytest.mark.parametrize("endpoint", ["http://minio:9000", "http://minio:9000/"])
def test_a_source_that_is_its_own_target_is_refused(environ: dict[str, str], endpoint: str) -> None:
    environ |= {"MINIO_ENDPOINT": "http://minio:9000", "FILEBASE_ENDPOINT": endpoint}
    environ |= {"MINIO_BUCKET": "b", "FILEBASE_BUCKET": "b"}
    with pytest.raises(SettingsError, match="source itself"):
        settings.from_environ(environ)
    settings.from_environ(environ | {"FILEBASE_BUCKET": "another"})


@pytest.mark.parametrize(("source", "target"), [("*", "b"), ("a,b", "b"), ("b*", "{bucket}2"), ("b?", "bb")])
def test_a_target_that_one_of_several_source_buckets_may_be_is_refused(
    environ: dict[str, str], source: str, target: str
) -> None:
    environ |= {"MINIO_ENDPOINT": "http://minio:9000", "FILEBASE_ENDPOINT": "http://minio:9000"}
    environ |= {"MINIO_BUCKET": source, "FILEBASE_BUCKET": target}
    assert problems(environ) == (
        "FILEBASE_ENDPOINT and FILEBASE_BUCKET name the source itself: copies would be copied again",
    )
    settings.from_environ(environ | {"FILEBASE_ENDPOINT": "http://another:9000"})


@pytest.mark.parametrize("value", ["a,b*", "a b*", " a , b*,a ", "a,,b*"])
def test_several_source_buckets_are_given_with_commas_or_spaces(environ: dict[str, str], value: str) -> None:
    found = settings.from_environ(environ | {"MINIO_BUCKET": value, "FILEBASE_BUCKET": "{bucket}-copy"})
    assert the_template(found).sources == ("a", "b*")
    names = [(rule.name, rule.target_bucket) for rule in found.rules.of_buckets(["a", "b", "bc"])]
    assert names == [
        *(("default.a", "a-copy"), ("default.b", "b-copy")),
        ("default.bc", "bc-copy"),
    ]


def test_what_is_known_of_the_target_is_told_from_its_host_or_by_name(environ: dict[str, str]) -> None:
    environ |= {"FILEBASE_ENDPOINT": "https://x.r2.cloudflarestorage.com"}
    target = the_target(settings.from_environ(environ))
    assert (target.preset, target.region) == (presets.R2, "auto")
    target = the_target(settings.from_environ(environ | {"FILEBASE_PRESET": "Garage"}))
    assert (target.preset, target.region) == (presets.GARAGE, "garage")
    target = the_target(settings.from_environ(environ | {"FILEBASE_REGION": "eu"}))
    assert (target.preset, target.region) == (presets.R2, "eu")


@pytest.mark.parametrize(
    ("set_", "limits"),
    [
        ({}, (0, 0)),
        ({"FILEBASE_PRESET": "filebase"}, (100, 0)),
        ({"FILEBASE_PRESET": "filebase", "TARGET_MAX_RPS": "0"}, (0, 0)),
        ({"FILEBASE_PRESET": "filebase", "TARGET_MAX_RPS": "400", "TARGET_MAX_MBPS": "20"}, (400, 20)),
    ],
)
def test_a_target_s_limits_are_those_set_else_the_preset_s(
    environ: dict[str, str], set_: dict[str, str], limits: tuple[int, int]
) -> None:
    found = settings.from_environ(environ | set_)
    assert (the_target(found).max_rps, the_target(found).max_mbps) == limits
    assert (found.source.max_rps, found.source.max_mbps) == (0, 0)


@pytest.mark.parametrize("userinfo", ["user:s3cr3t@", "s3cr3t@", ":s3cr3t@"])
def test_credentials_in_an_endpoint_are_refused_and_not_repeated(
    environ: dict[str, str], userinfo: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.from_environ(environ | {"MINIO_ENDPOINT": f"http://{userinfo}host"})
    assert "s3cr3t" not in str(caught.value)


def test_no_secret_is_printed(environ: dict[str, str]) -> None:
    environ |= {"WEBHOOK_AUTH_TOKEN": "hook-s3cr3t", "API_TOKEN": "api-s3cr3t"}
    environ |= {"DATABASE_URL": "postgresql://user:s3cr3t@db/ledger"}
    found = settings.from_environ(environ)
    assert "s3cr3t" not in f"{found!r} {found} {found.source!r} {the_target(found)} {found.web!r}"
    with pytest.raises(SettingsError) as caught:
        settings.from_environ(environ | {"PORT": "x", "FILEBASE_ENDPOINT": "nonsense"})
    assert "s3cr3t" not in f"{caught.value} {caught.value!r} {caught.value.hint}"


def test_the_environment_wins_over_the_file(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{name}={value}" for name, value in environ.items()]
    (tmp_path / ".env").write_text("\n".join([*lines, "PORT=1", "OVERWRITE=never", "NOTHING", "# no"]))
    for name in (*environ, "OVERWRITE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PORT", "2")
    found: Settings = settings.load(tmp_path)
    assert (found.web.port, the_template(found).overwrite) == (2, "never")
    assert found.rules.literal_buckets == ("source-bucket",)
    monkeypatch.chdir(tmp_path)
    assert settings.load() == found


def test_the_certificates_are_the_usual_ones_or_those_that_ssl_cert_file_names(
    environ: dict[str, str], tmp_path: Path
) -> None:
    usual = settings.from_environ(environ)
    assert {usual.source.ca_file, the_target(usual).ca_file} == {certifi.where()}
    own = str(authority(tmp_path, "own"))
    named = settings.from_environ({**environ, "SSL_CERT_FILE": own})
    assert {named.source.ca_file, the_target(named).ca_file} == {own}


def authority(folder: Path, name: str) -> Path:
    path = folder / f"{name}.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return path


def test_each_store_may_have_authorities_of_its_own(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(
        ARCHIVE + PHOTOS + 'target = "archive"\n[rules.b]\nsource = "b"\nbucket = "c"'
    )
    variables = [f"{name}_CA_BUNDLE" for name in ("MINIO", "FILEBASE", "TARGET_ARCHIVE")] + ["SSL_CERT_FILE"]
    files = {name: str(authority(tmp_path, name)) for name in variables}
    more = {"RULES_FILE": "rules.toml", "EVENTS_FROM": "nats://host:4222"}
    more |= {f"TARGET_ARCHIVE_{name}_KEY": "key" for name in ("ACCESS", "SECRET")}
    found = settings.from_environ(environ | files | more, tmp_path)
    seen = found.source, found.targets["filebase"], found.targets["archive"], found.events
    assert [each.ca_file for each in seen if each] == list(files.values())
    del files["FILEBASE_CA_BUNDLE"]
    found = settings.from_environ(environ | files | more, tmp_path)
    assert found.targets["filebase"].ca_file == files["SSL_CERT_FILE"]


@pytest.mark.parametrize("content", [None, "", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
@pytest.mark.parametrize("name", ["MINIO_CA_BUNDLE", "FILEBASE_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_file_of_authorities_that_cannot_be_read_is_named(
    environ: dict[str, str], tmp_path: Path, name: str, content: str | None
) -> None:
    path = tmp_path / "authorities.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError) as raised:
        settings.from_environ(environ | {name: str(path)})
    assert raised.value.message.count("authorities.pem") == 1
    assert f"{name} names" in raised.value.message
    assert "cannot be read as certificates" in raised.value.message


# ── the rules file ───────────────────────────────────────────────────────────────────────────────────

ARCHIVE = """
[targets.archive]
endpoint = "https://archive.example.com:443/"
"""
PHOTOS = """
[rules.photos]
source = "photos"
bucket = "copy"
"""


@pytest.fixture
def with_file(environ: dict[str, str], tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Writes a rules file; gives an environment that names it, and holds the target's credentials."""

    def write(text: str, *without: str) -> dict[str, str]:
        (tmp_path / "rules.toml").write_text(text)
        given = environ | {"RULES_FILE": "rules.toml"}
        given |= {"TARGET_ARCHIVE_ACCESS_KEY": "a-s3cr3t", "TARGET_ARCHIVE_SECRET_KEY": "b-s3cr3t"}
        return {name: value for name, value in given.items() if not name.startswith(without)}

    return write


WithFile = Callable[..., dict[str, str]]


def test_rules_and_targets_come_from_the_file(with_file: WithFile, tmp_path: Path) -> None:
    text = ARCHIVE + PHOTOS + 'target = "archive"\n[rules.music]\nsource = "music"\nbucket = "b"\n'
    found = settings.from_environ(with_file(text), tmp_path)
    assert [template.name for template in found.rules] == ["photos", "music"]
    assert set(found.targets) == {"archive", "filebase"}
    archive = found.targets["archive"]
    assert (archive.endpoint_url, archive.region) == ("https://archive.example.com", "us-east-1")
    assert (archive.access_key, archive.secret_key) == ("a-s3cr3t", "b-s3cr3t")
    assert "s3cr3t" not in repr(found)


def test_with_a_file_the_environment_s_buckets_and_unused_target_need_not_be_set(
    with_file: WithFile, tmp_path: Path
) -> None:
    text = ARCHIVE + PHOTOS + 'target = "archive"\n'
    found = settings.from_environ(with_file(text, "FILEBASE_", "MINIO_BUCKET"), tmp_path)
    assert set(found.targets) == {"archive"}
    found = settings.from_environ(with_file(PHOTOS, "FILEBASE_BUCKET", "MINIO_BUCKET"), tmp_path)
    assert set(found.targets) == {"filebase"}


def test_buckets_in_the_environment_do_not_count_beside_a_file(with_file: WithFile, tmp_path: Path) -> None:
    environ = with_file(PHOTOS) | {"MINIO_BUCKET": "a/b", "FILEBASE_BUCKET": "no name"}
    assert settings.from_environ(environ, tmp_path).rules.literal_buckets == ("photos",)


def test_the_environment_says_what_the_file_s_rules_do_not(with_file: WithFile, tmp_path: Path) -> None:
    environ = with_file(PHOTOS + ARCHIVE + PHOTOS.replace(".photos", ".two") + 'target = "archive"\n')
    environ |= {"REPLICATE_DELETES": "1", "OVERWRITE": "never", "FILEBASE_STORAGE_CLASS": "COLD"}
    one, two = settings.from_environ(environ, tmp_path).rules
    assert (one.deletes, one.overwrite, one.storage_class) == (True, "never", "COLD")
    assert (two.deletes, two.overwrite, two.storage_class) == (True, "never", "")


@pytest.mark.parametrize(
    ("lines", "endpoint", "region", "preset"),
    [
        ('preset = "gcs"', "https://storage.googleapis.com", "auto", presets.GCS),
        ('preset = "aws"\nregion = "eu-1"', "https://s3.eu-1.amazonaws.com", "eu-1", presets.AWS),
        ('endpoint = "https://s3.filebase.io"', "https://s3.filebase.io", "us-east-1", presets.FILEBASE),
        ('endpoint = "http://g:3900"\npreset = "garage"', "http://g:3900", "garage", presets.GARAGE),
        ('endpoint = "http://[::1]:9"', "http://[::1]:9", "us-east-1", presets.OTHER),
    ],
)
def test_a_preset_fills_what_a_target_does_not_say(
    with_file: WithFile, tmp_path: Path, lines: str, endpoint: str, region: str, preset: presets.Preset
) -> None:
    environ = with_file(f"[targets.archive]\n{lines}\n{PHOTOS}")
    archive = settings.from_environ(environ, tmp_path).targets["archive"]
    assert (archive.endpoint_url, archive.region, archive.preset) == (endpoint, region, preset)


def test_a_target_s_own_limits_win_over_those_for_all(with_file: WithFile, tmp_path: Path) -> None:
    text = (
        ARCHIVE
        + PHOTOS
        + 'target = "archive"\n[targets.own]\nendpoint = "http://own"\nmax_rps = 0\nmax_mbps = 7\n'
    )
    own = {"TARGET_OWN_ACCESS_KEY": "a", "TARGET_OWN_SECRET_KEY": "b"}
    environ = with_file(text) | own | {"TARGET_MAX_RPS": "50", "TARGET_MAX_MBPS": "3"}
    targets = settings.from_environ(environ, tmp_path).targets
    limits = {name: (each.max_rps, each.max_mbps) for name, each in targets.items()}
    assert limits == {"archive": (50, 3), "own": (0, 7)}
    found = problems(environ | {"TARGET_MAX_RPS": "x"}, tmp_path)
    assert found == ("TARGET_MAX_RPS must be a whole number, not 'x'",)  # once for both


def test_everything_wrong_in_file_and_environment_is_told_at_once(
    with_file: WithFile, tmp_path: Path
) -> None:
    text = ARCHIVE + '[targets.broken]\npreset = "s4"\nendpoint = "x"\n[targets.none]\npreset = "r2"\n'
    text += PHOTOS + "tag = true\n[rules.b]\n" + PHOTOS.partition("]")[2] + 'target = "archive"'
    text += PHOTOS.replace("photos]", "c]") + 'target = "archive"'
    environ = with_file(text, "FILEBASE_ENDPOINT", "TARGET_ARCHIVE_SECRET_KEY") | {"PORT": "x"}
    assert problems(environ, tmp_path) == (
        "[rules.photos] tag is not known: did you mean tags?",
        "TARGET_ARCHIVE_SECRET_KEY is missing",
        f"[targets.broken] preset must be one of {', '.join(presets.NAMES)}, not 's4'",
        '[targets.broken] endpoint must be like "https://host:9000"',
        "TARGET_BROKEN_ACCESS_KEY is missing",
        "TARGET_BROKEN_SECRET_KEY is missing",
        "[targets.none] endpoint is missing",
        "TARGET_NONE_ACCESS_KEY is missing",
        "TARGET_NONE_SECRET_KEY is missing",
        "FILEBASE_ENDPOINT is missing",
        "rules b and c may write the same keys of one target bucket: give each a target_prefix or bucket of "
        "its own, or make them disjoint by suffix or exclude",
        "PORT must be a whole number, not 'x'",
    )


def test_a_loop_through_the_source_is_refused(with_file: WithFile, tmp_path: Path) -> None:
    text = PHOTOS.replace('"copy"', '"photos"') + ARCHIVE
    environ = with_file(text) | {"MINIO_ENDPOINT": "http://minio:80", "FILEBASE_ENDPOINT": "http://MINIO/"}
    (problem,) = problems(environ, tmp_path)
    assert "(photos → photos)" in problem
    settings.from_environ(environ | {"FILEBASE_ENDPOINT": "http://another"}, tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"a\n", "is not TOML: Expected '=' after a key in a key/value pair (at line 1, column 2)"),
        (b'a = "\xff"', "is not UTF-8 (at byte 5)"),
        (b"a = " + b"[" * 100_000, "is nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_problem_among_others(
    environ: dict[str, str], tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "rules.toml"
    if content is not None:
        path.write_bytes(content)
    found = problems(environ | {"RULES_FILE": str(path), "PORT": "x"})
    assert found == (f"RULES_FILE {str(path)!r} {said}", "PORT must be a whole number, not 'x'")


def test_a_rules_file_is_looked_for_beside_the_env_file(
    with_file: WithFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = with_file(PHOTOS)
    (tmp_path / ".env").write_text("\n".join(f"{name}={value}" for name, value in environ.items()))
    for name in environ:
        monkeypatch.delenv(name, raising=False)
    assert settings.load(tmp_path).rules.literal_buckets == ("photos",)
    monkeypatch.chdir(tmp_path)
    assert settings.load() == settings.load(tmp_path)


# ── secrets in files ─────────────────────────────────────────────────────────────────────────────────

SECRETS = {
    "MINIO_ACCESS_KEY": "m-key-s3cr3t",
    "MINIO_SECRET_KEY": "m-s3cr3t",
    "FILEBASE_ACCESS_KEY": "f-key-s3cr3t",
    "FILEBASE_SECRET_KEY": "f-s3cr3t",
    "TARGET_ARCHIVE_ACCESS_KEY": "a-s3cr3t",
    "TARGET_ARCHIVE_SECRET_KEY": "b-s3cr3t",
    "WEBHOOK_AUTH_TOKEN": "hook-s3cr3t",
    "API_TOKEN": "api-s3cr3t",
    "DATABASE_URL": "postgresql://user:s3cr3t@db/ledger",
    "EVENTS_FROM": "nats://me:s3cr3t@nats:4222",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=s3cr3t",
}


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_every_secret_may_stand_in_a_file(with_file: WithFile, tmp_path: Path, end: str) -> None:
    environ = with_file(ARCHIVE + PHOTOS + PHOTOS.replace("photos]", "two]") + 'target = "archive"\n')
    environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    (tmp_path / "secrets").mkdir()
    for name, value in SECRETS.items():
        (tmp_path / "secrets" / name).write_bytes(f"{value}{end}".encode())
    files = dict.fromkeys(SECRETS, "") | {f"{name}_FILE": f"secrets/{name}" for name in SECRETS}
    found = settings.from_environ(environ | files, tmp_path)
    assert found == settings.from_environ(environ | SECRETS, tmp_path)
    assert found.targets["archive"].secret_key == "b-s3cr3t"
    assert "s3cr3t" not in repr(found)


def test_a_secret_that_is_set_twice_is_a_problem(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("another-s3cr3t")
    said = {"MINIO_SECRET_KEY_FILE": "key", "API_TOKEN_FILE": "key", "API_TOKEN": "api-s3cr3t"}
    assert problems(environ | said, tmp_path) == tuple(
        f"{name} and {name}_FILE are both set: leave one of them empty"
        for name in ("MINIO_SECRET_KEY", "API_TOKEN")
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"s3cr3t\xff", "is not UTF-8"),
        (b"s3cr3t\nPORT=1\n", "must hold one line of text"),
        (b"s3cr3t\0", "must hold one line of text"),
        (b"s3cr3t" * 10_000, "is larger than 16384 bytes"),
    ],
)
def test_a_secret_s_file_that_cannot_be_used_is_named_and_nothing_in_it(
    environ: dict[str, str], tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    del environ["MINIO_SECRET_KEY"]
    found = problems(environ | {"MINIO_SECRET_KEY_FILE": str(path), "PORT": "x"})
    assert found == (
        f"MINIO_SECRET_KEY_FILE {str(path)!r} {said}",
        "PORT must be a whole number, not 'x'",
    )


def test_a_secret_is_not_waited_for_at_a_pipe_or_folder(environ: dict[str, str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        (problem,) = problems(environ | {"API_TOKEN_FILE": name}, tmp_path)
        assert problem == f"API_TOKEN_FILE {str(tmp_path / name)!r} is no file"


def test_the_example_has_no_problems(environ: dict[str, str]) -> None:
    for target in ("ARCHIVE", "STANDBY"):
        environ |= {f"TARGET_{target}_ACCESS_KEY": "a-s3cr3t", f"TARGET_{target}_SECRET_KEY": "b-s3cr3t"}
    found = settings.from_environ(environ | {"RULES_FILE": str(EXAMPLE)})
    assert set(found.targets) == {"archive", "standby"}
    raw = found.rules.matching(bucket="photos", key="raw/2026/a.cr3")
    assert [(rule.name, rule.target_key("raw/2026/a.cr3")) for rule in raw] == [
        ("photos", "raw/2026/a.cr3"),
        ("raw", "camera/2026/a.cr3"),
        ("everything.photos", "raw/2026/a.cr3"),
    ]
    assert [rule.target_bucket for rule in raw] == ["photos-copy", "long-term", "photos"]


def test_the_example_of_the_environment_has_no_problems(tmp_path: Path) -> None:
    lines = (EXAMPLE.parents[1] / ".env.example").read_text().splitlines()
    every = [line.removeprefix("#") for line in lines if re.match(r"#?[A-Z_]+=", line)]
    values = dict(line.split("=", 1) for line in every if "RULES_FILE" not in line)
    assert settings.from_environ(values) == settings.from_environ(
        {
            name: value
            for name, value in values.items()
            if name.startswith(("MINIO", "FILEBASE", "SSL", "EVENTS", "OTEL"))
        }
    )


@pytest.mark.parametrize(
    ("value", "urls", "user", "password"),
    [
        ("nats://host", ("nats://host",), "", ""),
        ("nats://me:s3cr3t%40%2F@host:4222", ("nats://host:4222",), "me", "s3cr3t@/"),
        ("tls://tok-s3cr3t@[::1]:1, tls://b:2/", ("tls://[::1]:1", "tls://b:2"), "tok-s3cr3t", ""),
        ("nats://me:s3cr3t@a:1,nats://me:s3cr3t@b:1", ("nats://a:1", "nats://b:1"), "me", "s3cr3t"),
    ],
)
def test_events_are_fetched_from_the_servers_named(
    environ: dict[str, str], value: str, urls: tuple[str, ...], user: str, password: str
) -> None:
    found = settings.from_environ(environ | {"EVENTS_FROM": value})
    assert found.events is not None
    servers = found.events.servers
    assert (servers.urls, servers.user, servers.password) == (urls, user, password)
    assert found.events.subject == "minio.events"
    assert "s3cr3t" not in repr(found)


def test_no_events_are_fetched_unless_a_server_is_named(environ: dict[str, str]) -> None:
    assert settings.from_environ(environ).events is None


@pytest.mark.parametrize(
    "value",
    [
        *(
            "host:4222",
            "http://host",
            "nats://",
            "nats://host:s3cr3t",
            "nats://me:s3cr3t@host/path",
            "nats://a,",
        ),
        *(
            "nats://a,tls://b",
            "nats://me:s3cr3t@a,nats://you:s3cr3t@b",
            "nats://me:s3,cr3t@a",
            "nats://a?b=s3cr3t",
        ),
    ],
)
def test_servers_that_cannot_be_are_refused(environ: dict[str, str], value: str) -> None:
    (problem,) = problems(environ | {"EVENTS_FROM": value})
    assert problem.startswith("EVENTS_FROM must be like")


@pytest.mark.parametrize("value", ["a..b", ".a", "a b", "minio.*", ">", "a\u00e4"])
def test_a_subject_is_words_with_dots(environ: dict[str, str], value: str) -> None:
    (problem,) = problems(environ | {"EVENTS_SUBJECT": value})
    assert problem.startswith("EVENTS_SUBJECT must be words")
    assert settings.from_environ(environ | {"EVENTS_SUBJECT": "a-1.B_2.c"}).events is None


def test_traces_are_sent_where_it_is_said_and_the_headers_are_secret(environ: dict[str, str]) -> None:
    assert settings.from_environ(environ).traces is None
    said = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector:4318/tenant",
        "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer%20s3cr3t, x-team=a=b",
    }
    traces = settings.from_environ(environ | said).traces
    assert traces is not None
    assert traces.endpoint == "https://collector:4318/tenant"
    assert traces.headers == {"authorization": "Bearer s3cr3t", "x-team": "a=b"}
    assert "s3cr3t" not in repr(traces)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("OTEL_EXPORTER_OTLP_ENDPOINT", each) for each in ("collector:4318", "grpc://c:1", "http://u:p@c")),
        *(("OTEL_EXPORTER_OTLP_HEADERS", each) for each in ("s3cr3t", "=s3cr3t", "a=b,s3cr3t")),
    ],
)
def test_what_cannot_be_sent_to_is_reported_without_a_secret(
    environ: dict[str, str], name: str, value: str
) -> None:
    said = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"} | {name: value}
    with pytest.raises(SettingsError) as raised:
        settings.from_environ(environ | said)
    assert f"{name} must be like" in str(raised.value)
    assert "s3cr3t" not in str(raised.value)
