"""The demo's own folder; its steps are the other commands, tested by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

import demo
from mindtwins.errors import UserError


def test_only_its_own_folder_is_emptied(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = demo.prepare_folder(None, "segmentation")
    (own / "old.png").touch()
    assert demo.prepare_folder(None, "segmentation") == own
    assert list(own.iterdir()) == []


@pytest.mark.parametrize(("name", "message"), [("kept", "is not empty"), ("file", "File exists")])
def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, name: str, message: str):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "thesis.tex").write_text("mine")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message):
        demo.main(["--output_dir", str(tmp_path / name)])
    assert (tmp_path / "kept" / "thesis.tex").read_text() == "mine"


def test_a_new_folder_is_made(tmp_path: Path):
    assert demo.prepare_folder(tmp_path / "a" / "b", "classification").is_dir()
