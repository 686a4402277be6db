"""What is known of stores is found by name and by host."""

from __future__ import annotations

import pytest

from webhook import presets


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [
        ("https://s3.filebase.com", "filebase"),
        ("https://s3.filebase.io", "filebase"),
        ("https://s3.eu-west-1.amazonaws.com", "aws"),
        ("https://s3.cn-north-1.amazonaws.com.cn", "aws"),
        ("https://abc.eu.r2.cloudflarestorage.com:443", "r2"),
        ("https://s3.us-west-004.backblazeb2.com", "b2"),
        ("https://STORAGE.googleapis.com", "gcs"),
        ("https://s3.wasabisys.com", "wasabi"),
        ("https://filebase.com.", "filebase"),
        ("https://notfilebase.com", "other"),
        ("https://filebase.com.example.org", "other"),
        ("https://user:x@127.0.0.1:9000/filebase.com", "other"),
        ("http://[::1]:9000", "other"),
        ("http://[", "other"),
        ("nonsense", "other"),
        ("", "other"),
    ],
)
def test_a_store_is_recognised_by_the_end_of_its_host_s_name(endpoint: str, name: str) -> None:
    assert presets.of_endpoint(endpoint).name == name


def test_each_preset_is_found_by_its_name_and_by_its_own_endpoint() -> None:
    assert len(set(presets.NAMES)) == len(presets.ALL)
    for preset in presets.ALL:
        assert presets.named(preset.name) is preset
        if preset.endpoint:
            assert presets.of_endpoint(preset.endpoint.replace("{region}", "eu-1")) is preset
    assert presets.named("nobody") is None


def test_nothing_is_taken_for_known_of_an_unknown_store() -> None:
    other = presets.OTHER
    assert (other.takes_tags, other.heeds_only_new, other.sends_checksums) == (True, None, False)
    assert (other.endpoint, other.region, other.hosts) == ("", "us-east-1", ())


def test_what_stores_are_known_not_to_do_is_not_asked_of_them() -> None:
    assert {each.name for each in presets.ALL if not each.takes_tags} == {
        *("filebase", "r2", "b2", "gcs", "garage")
    }
    assert {each.name for each in presets.ALL if each.heeds_only_new is False} == {"b2", "gcs", "garage"}
    assert {each.name for each in presets.ALL if each.heeds_only_new} == {"aws", "r2", "seaweedfs"}
    for condition in ("heeds_match", "heeds_on_complete"):
        heeds = {each.name: getattr(each, condition) for each in presets.ALL}
        assert {name for name, known in heeds.items() if known is False} == {"gcs", "garage"}
        assert {name for name, known in heeds.items() if known} == {"aws", "r2", "seaweedfs"}
    assert {each.name for each in presets.ALL if each.heeds_on_delete} == {"aws", "seaweedfs"}
    assert {each.name: each.max_rps for each in presets.ALL if each.max_rps} == {"filebase": 100}
    assert {each.name for each in presets.ALL if each.sends_checksums} == {"aws"}
