"""Files from a hub on this machine: what is accepted, and what is said of what is not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback_hub import Hub

from mindtwins.errors import UserError
from mindtwins.hub import fetching
from mindtwins.hub.fetching import Repository, check_pinned, fetch, parse_repository

PUBLISHED = Repository("timm/twins_svt_tiny.in1k")
OTHER = Repository("me/tiny")
WEIGHTS = fetching.WEIGHTS


def left(folder: Path) -> list[str]:
    """The files with content that a download left behind; what a branch stands for is none."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    return [path.name for path in files if path.name not in ("CACHEDIR.TAG", "main")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("timm/twins_svt_small.in1k", Repository("timm/twins_svt_small.in1k")),
        ("me/tiny@v2", Repository("me/tiny", "v2")),
        ("hf-hub:timm/x", Repository("timm/x")),
        ("svt_small", None),
        ("./a/b", None),
        ("/a/b", None),
        ("a/b/c", None),
        ("~/b", None),
    ],
)
def test_what_a_repository_is_called(text: str, expected: Repository | None):
    assert parse_repository(text) == expected


def test_a_file_is_what_is_served(hub: Hub, tiny_file: bytes):
    path = fetch(OTHER, WEIGHTS)
    assert path.read_bytes() == tiny_file
    assert path.resolve().name == hashlib.sha256(tiny_file).hexdigest()


def test_published_weights_are_asked_for_once(hub: Hub):
    first = fetch(PUBLISHED, WEIGHTS)
    hub.requests.clear()
    assert fetch(PUBLISHED, WEIGHTS) == first
    assert not hub.requests


def test_of_others_newer_ones_are_taken(hub: Hub):
    fetch(OTHER, WEIGHTS)
    hub.files[OTHER.name][WEIGHTS] = b"newer"
    assert fetch(OTHER, WEIGHTS).resolve().read_bytes() == b"newer"


def test_what_is_cached_needs_no_network(hub: Hub, go_offline: Callable, tiny_file: bytes):
    fetch(OTHER, WEIGHTS)
    go_offline()
    hub.requests.clear()
    assert fetch(OTHER, WEIGHTS).read_bytes() == tiny_file
    assert not hub.requests


def test_offline_without_a_copy(hub: Hub, go_offline: Callable, tmp_path: Path):
    go_offline()
    with pytest.raises(UserError, match=r"is not in the cache .*HF_HUB_OFFLINE forbids"):
        fetch(OTHER, WEIGHTS)
    assert not hub.requests and not left(tmp_path)


def test_nobody_answers(hub: Hub, tmp_path: Path):
    hub.__exit__()
    with pytest.raises(UserError, match=r"could not be asked \(.*refused.*HF_ENDPOINT"):
        fetch(OTHER, WEIGHTS)
    assert not left(tmp_path)


def test_a_repository_that_is_not_there(hub: Hub):
    with pytest.raises(UserError, match=r"there is no repository me/nothing at http"):
        fetch(Repository("me/nothing"), WEIGHTS)


def test_a_file_that_is_not_there(hub: Hub):
    assert fetch(OTHER, "config.json") is None


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "GatedRepo", r"is open to those whom its owner lets in.*HF_TOKEN"),
        (401, "RepoNotFound", r"or it is private.*HF_TOKEN"),
        (404, "RevisionNotFound", r"has no revision main"),
        (500, "", r"could not be asked .*500"),
    ],
)
def test_a_hub_that_refuses(hub: Hub, status: int, code: str, said: str, tmp_path: Path):
    hub.statuses[OTHER.name] = (status, code)
    with pytest.raises(UserError, match=said) as caught:
        fetch(OTHER, WEIGHTS)
    assert "\n" not in str(caught.value)
    assert not left(tmp_path)


def test_a_download_that_breaks_off(hub: Hub, tiny_file: bytes, tmp_path: Path):
    hub.sends[WEIGHTS] = tiny_file[:1000]
    with pytest.raises(UserError, match=r"broke off .*: try again"):
        fetch(OTHER, WEIGHTS)
    assert not left(tmp_path)


def test_a_flipped_bit(hub: Hub, tiny_file: bytes, tmp_path: Path):
    """Of the right size, which is all that the hub's client looks at."""
    damaged = bytearray(tiny_file)
    damaged[-1] ^= 1
    hub.sends[WEIGHTS] = bytes(damaged)
    with pytest.raises(UserError, match=r"is damaged \(its hash is .*announced was"):
        fetch(OTHER, WEIGHTS)
    assert not list((tmp_path / "hub").rglob("model.safetensors"))
    hub.sends.clear()
    assert fetch(OTHER, WEIGHTS).read_bytes() == tiny_file


def test_a_bit_that_flips_in_the_cache(hub: Hub, tiny_file: bytes):
    blob = fetch(PUBLISHED, WEIGHTS).resolve()
    damaged = bytearray(tiny_file)
    damaged[len(damaged) // 2] ^= 1
    blob.write_bytes(damaged)
    with pytest.raises(UserError, match="is damaged"):
        fetch(PUBLISHED, WEIGHTS)
    assert fetch(PUBLISHED, WEIGHTS).read_bytes() == tiny_file


def test_a_small_file_is_hashed_too(hub: Hub):
    hub.files[OTHER.name]["config.json"] = b'{"num_classes": 10}'
    hub.sends["config.json"] = b'{"num_classes": 11}'
    with pytest.raises(UserError, match=r"config.json of me/tiny is damaged"):
        fetch(OTHER, "config.json")
    hub.sends.clear()
    assert fetch(OTHER, "config.json").read_bytes() == b'{"num_classes": 10}'


def test_a_mirror_that_lies_consistently(hub: Hub, tiny_file: bytes, monkeypatch):
    """Another file under a hash that fits it: the table of known sums finds it."""
    sha256 = hashlib.sha256(tiny_file).hexdigest()
    monkeypatch.setitem(fetching.PINNED, PUBLISHED.name, sha256)
    assert check_pinned(PUBLISHED, fetch(PUBLISHED, WEIGHTS), sha256)
    other = tiny_file[:-1] + b"\0"
    hub.files[PUBLISHED.name][WEIGHTS] = other
    fetch(PUBLISHED, WEIGHTS).unlink()
    path = fetch(PUBLISHED, WEIGHTS)
    with pytest.raises(UserError, match=rf"is not what timm published.*not {sha256}"):
        check_pinned(PUBLISHED, path, hashlib.sha256(other).hexdigest())
    assert not path.exists()


def test_sums_are_of_published_weights_alone(hub: Hub, tiny_file: bytes):
    sha256 = hashlib.sha256(tiny_file).hexdigest()
    assert not check_pinned(OTHER, fetch(OTHER, WEIGHTS), sha256)
    assert not check_pinned(PUBLISHED, fetch(PUBLISHED, WEIGHTS), sha256)


def test_the_table_names_published_weights():
    assert set(fetching.PINNED) <= set(fetching.PUBLISHED.values())
    assert all(len(sha256) == 64 for sha256 in fetching.PINNED.values())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize(
    ("options", "said"),
    [("size=64k", "No space left on device"), ("size=64k,ro", "Read-only file system")],
)
def test_a_cache_without_room(hub: Hub, tmp_path: Path, options: str, said: str):
    folder = tmp_path / "hub"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o {options} tmpfs {folder}") != 0:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(UserError, match=f"cannot keep .*{said}.*HF_HOME"):
            fetch(OTHER, WEIGHTS)
        assert not left(folder)
    finally:
        os.system(f"umount {folder}")
