import errno
import json
import os
import socket
import stat
import subprocess
import sys

import pytest

from mindtwins.errors import UserError, run_cli
from mindtwins.files import JsonArray, atomic_write, check_writable, read_file, replaced_file


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


class TestOutputsOntoOtherThings:
    """What is not a regular file is written through, never replaced."""

    def test_a_link_stays_and_its_file_is_written(self, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere/real").write_text("old")
        (tmp_path / "link").symlink_to("elsewhere/real")
        with atomic_write(tmp_path / "link") as file:
            file.write(b"new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "elsewhere/real").read_bytes() == b"new"
        assert os.listdir(tmp_path / "elsewhere") == ["real"]

    def test_a_link_to_nothing_yet(self, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "new")
        with atomic_write(tmp_path / "link") as file:
            file.write(b"content")
        assert (tmp_path / "link").is_symlink() and (tmp_path / "new").read_bytes() == b"content"

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
    def test_a_device_stays(self, tmp_path):
        os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        with atomic_write(tmp_path / "null") as file:
            file.write(b"content")
        with JsonArray(tmp_path / "null") as array:
            array.add({"a": 1})
        assert (tmp_path / "null").is_char_device()

    def test_a_pipe_gets_the_bytes(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        with atomic_write(tmp_path / "pipe") as file:
            file.write(b"content")
        with JsonArray(tmp_path / "pipe") as array:
            array.add(1)
            array.add(2)
        assert os.read(reader, 100) == b"content[\n  1,\n  2\n]\n"
        os.close(reader)
        assert (tmp_path / "pipe").is_fifo()

    def test_a_socket_is_refused(self, tmp_path):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "socket"))
            with pytest.raises(UserError, match="neither a file nor a pipe nor a device"):
                check_writable(tmp_path / "socket")


class TestJsonArray:
    def test_is_valid_after_each_entry(self, tmp_path):
        path = tmp_path / "a.json"
        array = JsonArray(path)
        assert not path.exists()
        for number in range(3):
            array.add({"number": number})
            assert json.loads(path.read_text()) == [{"number": i} for i in range(number + 1)]
        array.close()
        assert path.read_text().endswith("]\n")

    def test_without_entries_it_is_empty(self, tmp_path):
        with JsonArray(tmp_path / "a.json"):
            pass
        assert json.loads((tmp_path / "a.json").read_text()) == []

    def test_no_path_is_no_file(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with JsonArray("") as array:
            array.add(1)
        assert os.listdir(tmp_path) == []

    def test_a_full_disk_leaves_what_was_there(self, tmp_path):
        """A limit of the file's size stands for a full disk."""
        script = (
            "import resource, signal, sys; from mindtwins.files import JsonArray\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
            "array = JsonArray(sys.argv[1])\n"
            "for number in range(20): array.add({'n': number})\n"
        )
        command = [sys.executable, "-c", script, str(tmp_path / "a.json")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert "cannot write" in done.stderr
        entries = json.loads((tmp_path / "a.json").read_text())
        assert entries == [{"n": number} for number in range(len(entries))] and entries
