"""Paths as people type them: homes, variables, and addresses that are no folder of this machine."""

import pytest

from driftar_jax.storage import paths

ELSEWHERE = [
    *("gs://b/a", "GS://b", "s3://b", "s3a://b", "r2:/b", "hdfs:///a", "hdfs://n/a", "abfs://c/a"),
    *("az://c/a", "oss://b/a", "file:///tmp/a", "file:/tmp/a", "https://h/a", "http:/h/a"),
    *("hf://o/n", "memory://a", "smb://h/a", "ssh://h/a", "user@host:/a", "host.org:/a"),
    *("bucket:/a", "C:\\runs", "C:/runs", "\\\\server\\runs"),
]


@pytest.mark.parametrize("given", ELSEWHERE)
def test_addresses_are_refused_with_the_way(given):
    with pytest.raises(ValueError, match="^out: got .*, allowed a folder .* mount the bucket"):
        paths.local("out", given)


@pytest.mark.parametrize(
    "given", ["a", "./a/", "/tmp/a", "a:b", "a/b:/c", "s3", "s3:b", "a$b", "a/$", "a/$b.c", "10:30"]
)
def test_names_of_this_machine_stay(given):
    assert paths.local("out", given) == given


def test_homes_and_variables_are_filled_in(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("RUNS", "/data/runs/")
    monkeypatch.delenv("NOWHERE", raising=False)
    for given, want in (
        ("~", "/home/me"),
        ("~/a", "/home/me/a"),
        ("$HOME/a", "/home/me/a"),
        ("${HOME}/a/", "/home/me/a/"),
        ("$RUNS/$HOME", "/data/runs//home/me"),
        ("${RUNS}", "/data/runs"),
        ("./~", "./~"),
    ):
        assert paths.local("out", given) == want
    for given in ("~nobody-at-all/a", "$NOWHERE/a", "a/${NOWHERE}", "a\0b"):
        with pytest.raises(ValueError, match="^out: got .* allowed") as caught:
            paths.local("out", given)
        assert "\n" not in str(caught.value)
