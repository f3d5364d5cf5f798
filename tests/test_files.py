import errno
import os
import stat

import pytest

from mindtwins.errors import UserError, run_cli
from mindtwins.files import atomic_write, check_writable, read_file, replaced_file


@pytest.mark.parametrize("named", [True, False])
def test_what_the_system_says_of_a_file_is_one_line(named, capsys):
    def main(argv):
        raise PermissionError(errno.EACCES, "Permission denied", *(["a/b.png"] if named else []))

    with pytest.raises(SystemExit if named else PermissionError):
        run_cli(main)
    assert capsys.readouterr().err == ("error: a/b.png: Permission denied\n" if named else "")


def test_writes_whole_with_the_usual_permissions(tmp_path):
    path = tmp_path / "file"
    before = os.umask(0o022)
    try:
        with atomic_write(path) as file:
            file.write(b"content")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("inside"), MemoryError()])
def test_keeps_the_old_file_when_the_block_fails(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), atomic_write(path) as file:
        file.write(b"half of the new")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_keeps_the_old_file_and_says_so(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = r"cannot write .*file: No space left on device"
    with pytest.raises(UserError, match=message), atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_writer_leaves_beside_its_file_goes(tmp_path):
    path = tmp_path / "file.x"
    with replaced_file(path) as temporary:
        assert temporary.name == path.name
        temporary.unlink()
        temporary.with_suffix(".tmp").write_bytes(b"left over")
        temporary.write_bytes(b"content")
        temporary.chmod(0o400)
    assert path.read_bytes() == b"content"
    assert path.stat().st_mode & stat.S_IWUSR
    assert os.listdir(tmp_path) == ["file.x"]


def test_places_that_cannot_be_written_are_named(tmp_path):
    for path, reason in {
        tmp_path / "missing" / "file": f"the folder {tmp_path / 'missing'} does not exist",
        tmp_path: "it is a directory",
    }.items():
        with pytest.raises(UserError, match=f"cannot write {path}: {reason}"):
            check_writable(path)
        with pytest.raises(UserError, match=f"cannot write {path}: {reason}"), atomic_write(path):
            pass


def test_a_forbidden_file_is_named(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    with pytest.raises(UserError, match=f"cannot read {path}: Permission denied"):
        read_file(path)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "empty").touch()
    for name, reason in {"missing": "does not exist", "empty": "is empty", "": "directory"}.items():
        with pytest.raises(UserError, match=reason) as caught:
            read_file(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
