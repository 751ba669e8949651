"""Files that are written whole or not at all: under exceptions, kills and several writers."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from studyloom import files
from studyloom.errors import FileError
from studyloom.files import (
    digest_below,
    filesystem_of,
    is_abandoned,
    is_network_filesystem,
    is_own,
    mark_own,
    read_below,
    remove_below,
    size_below,
    sync_folder,
    temporary_name,
    write_below,
    write_whole,
    write_with,
)
from studyloom.processes import host_id

# Writes half of a file, reports so, and waits to be killed.
HALF = """
import sys, time
from pathlib import Path
from studyloom.files import write_with
def write(file):
    file.write(b"new" * 1000)
    file.flush()
    print("half", flush=True)
    time.sleep(60)
write_with(Path(sys.argv[1]), write)
"""

# Writes a file a hundred times, filled with one letter.
MANY = """
import sys
from pathlib import Path
from studyloom.files import write_whole
for _ in range(100):
    write_whole(Path(sys.argv[1]), sys.argv[2] * 50_000)
"""


@pytest.fixture
def path(tmp_path):
    """A file with content, alone in its folder."""
    path = tmp_path / "study.yaml"
    path.write_text("old")
    return path


def names(path):
    return sorted(file.name for file in path.parent.iterdir())


def dead_pid():
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize(("content", "stored"), [("ü\n", b"\xc3\xbc\n"), (b"\0\xff", b"\0\xff")])
def test_text_and_bytes_replace_what_was_there(path, content, stored, durable):
    write_whole(path, content, durable=durable)
    assert path.read_bytes() == stored
    assert names(path) == ["study.yaml"]


def test_a_new_file_is_created_where_there_was_none(tmp_path):
    write_whole(tmp_path / "new", "content")
    assert (tmp_path / "new").read_text() == "content"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), ValueError(), KeyboardInterrupt()]
)
def test_a_torn_write_leaves_the_old_content_and_no_temporary_file(path, error):
    def write(file):
        file.write(b"half of what")
        file.flush()
        raise error

    with pytest.raises(type(error)):
        write_with(path, write)
    assert path.read_text() == "old"
    assert names(path) == ["study.yaml"]


def test_size_and_digest_are_those_of_a_file_of_any_size_and_of_no_link(path, monkeypatch):
    monkeypatch.setattr(files.read_below, "__defaults__", (2,))
    with pytest.raises(FileError, match="must have at most 2 bytes"):
        read_below(path.parent, path.name)
    assert size_below(path.parent, path.name) == 3
    assert digest_below(path.parent, path.name) == hashlib.sha256(b"old").hexdigest()
    (path.parent / "link").symlink_to(path)
    for read in (size_below, digest_below):
        with pytest.raises(FileError, match="symbolic link"):
            read(path.parent, "link")


def test_a_disk_that_fails_to_sync_leaves_the_old_content(path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_whole(path, "new", durable=True)
    assert path.read_text() == "old"
    assert names(path) == ["study.yaml"]


def test_a_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "nowhere" / "file", "new")
    assert list(tmp_path.iterdir()) == []


def test_what_is_durable_is_synced_before_it_gets_its_name(path, monkeypatch):
    content_at_sync = []
    monkeypatch.setattr(files.os, "fsync", lambda _: content_at_sync.append(path.read_text()))
    write_whole(path, "quick")
    assert content_at_sync == []
    write_whole(path, "durable", durable=True)
    assert content_at_sync == ["quick"]
    assert path.read_text() == "durable"


def test_a_process_killed_in_mid_write_leaves_the_old_content_and_an_abandoned_file(path):
    writer = subprocess.Popen(
        [sys.executable, "-c", HALF, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "half\n"
    (temporary,) = {*path.parent.iterdir()} - {path}
    assert temporary.stat().st_size == 3000
    assert not is_abandoned(temporary)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert path.read_text() == "old"
    assert is_abandoned(temporary)


def test_of_two_processes_that_write_one_file_each_reader_sees_one_whole(path):
    letters = "ab"
    writers = [
        subprocess.Popen([sys.executable, "-c", MANY, str(path), letter]) for letter in letters
    ]
    contents = set()
    while any(writer.poll() is None for writer in writers):
        contents.add(path.read_text())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert contents | {path.read_text()} <= {"old", *(letter * 50_000 for letter in letters)}
    assert names(path) == ["study.yaml"]


def test_temporary_names_differ_by_kind_process_and_host(path, monkeypatch):
    first = {temporary_name(path), temporary_name(path, "old")}
    monkeypatch.setattr(files.os, "getpid", lambda: 1)
    second = {temporary_name(path), temporary_name(path, "old")}
    monkeypatch.setattr(files, "host_id", lambda: "elsewhere-0000")
    third = {temporary_name(path), temporary_name(path, "old")}
    assert len(first | second | third) == 6
    assert {temporary.parent for temporary in first | second | third} == {path.parent}


def test_a_temporary_file_is_abandoned_once_its_process_has_ended(path, monkeypatch):
    gone = dead_pid()
    monkeypatch.setattr(files.os, "getpid", lambda: gone)
    left = temporary_name(path)
    monkeypatch.undo()
    assert is_abandoned(left)
    monkeypatch.setattr(files.os, "getpid", os.getppid)
    used = temporary_name(path)
    monkeypatch.undo()
    assert not is_abandoned(used)


def test_a_temporary_file_with_this_process_number_is_an_earlier_ones(path):
    """Whoever asks has none of its own: it looks before it writes."""
    assert is_abandoned(temporary_name(path))


@pytest.mark.parametrize(
    "name",
    [
        "study.yaml",
        "study.yaml.tmp",
        "study.yaml.elsewhere-0000.{pid}.new.tmp",
        "study.yaml.{host}x.{pid}.new.tmp",
        "study.yaml.{host}.{pid}.new.tmp.kept",
        "study.yaml.{host}.1{pid:09}.new.tmp",
    ],
)
def test_files_of_other_hosts_and_other_names_are_never_abandoned(tmp_path, name):
    assert not is_abandoned(tmp_path / name.format(host=host_id(), pid=dead_pid()))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF])
def test_a_folder_that_cannot_be_synced_is_left_as_it_is(tmp_path, monkeypatch, number):
    sync_folder(tmp_path)

    def refuse(descriptor):
        raise OSError(number, "not here")

    monkeypatch.setattr(files.os, "fsync", refuse)
    sync_folder(tmp_path)


def test_a_disk_that_fails_while_a_folder_is_synced_is_an_error(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        sync_folder(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="only Linux lists mounts")
def test_file_systems_are_known_by_the_longest_mount_point(tmp_path):
    assert filesystem_of(Path("/proc/self")) == "proc"
    assert filesystem_of(tmp_path / "not" / "there") == filesystem_of(tmp_path) != "unknown"
    for kind in ("nfs4", "cifs", "fuse.sshfs", "lustre"):
        assert is_network_filesystem(kind)
    local = ("ext4", "xfs", "tmpfs", "overlay", "fuse.ntfs-3g", "unknown", filesystem_of(tmp_path))
    for kind in local:
        assert not is_network_filesystem(kind)


MOUNTS = r"""
1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
2 1 8:2 / /data rw shared:2 master:1 - xfs /dev/sdb1 rw
3 1 0:3 / /data\040of\040mine rw - nfs4 server:/export rw
4 2 0:4 / /data rw - fuse.sshfs somebody@host: rw
"""


def test_mount_points_with_spaces_and_mounts_on_top_of_others_are_told_apart(monkeypatch):
    monkeypatch.setattr(files.Path, "read_text", lambda path, **_: MOUNTS.strip())
    kinds = {name: filesystem_of(Path(name)) for name in ("/x", "/data/x", "/data of mine/x")}
    assert kinds == {"/x": "ext4", "/data/x": "fuse.sshfs", "/data of mine/x": "nfs4"}


def test_outside_linux_the_file_system_is_unknown(monkeypatch):
    def absent(path, **_):
        raise FileNotFoundError

    monkeypatch.setattr(files.Path, "read_text", absent)
    assert filesystem_of(Path("/")) == "unknown"


def test_a_file_below_a_folder_is_read_written_and_removed(tmp_path):
    (tmp_path / "real" / "a").mkdir(parents=True)
    run_dir = tmp_path / "link"
    run_dir.symlink_to("real")  # a person has named it
    write_below(run_dir, "a/b", b"1")
    write_below(run_dir, "a/b", b"2")
    assert read_below(run_dir, "a/b") == b"2"
    assert names(run_dir / "a" / "b") == ["b"]
    with pytest.raises(FileError, match="at most 0 bytes"):
        read_below(run_dir, "a/b", 0)
    remove_below(run_dir, "a/b")
    with pytest.raises(FileNotFoundError):
        read_below(run_dir, "a/b")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "", "."])
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "run" / "a").mkdir(parents=True)
    for act in (read_below, remove_below, lambda *where: write_below(*where, b"")):
        with pytest.raises(FileError, match="must be a path below"):
            act(tmp_path / "run", name)
    assert (tmp_path / "secret").read_text() == "secret"


def test_no_link_below_the_folder_is_followed(tmp_path):
    run_dir, outside = tmp_path / "run", tmp_path / "outside"
    for folder in (run_dir, outside):
        folder.mkdir()
    (outside / "file").write_text("mine")
    (run_dir / "folder").symlink_to(outside)
    (run_dir / "file").symlink_to(outside / "file")
    (run_dir / "dangling").symlink_to(outside / "new")
    for name in ("folder/file", "file"):
        with pytest.raises(FileError, match="symbolic link"):
            read_below(run_dir, name)
    for name in ("folder/file", "folder/new"):
        with pytest.raises(FileError, match="symbolic link"):
            write_below(run_dir, name, b"theirs")
    for name in ("file", "dangling"):  # the link goes, and not what it points to
        write_below(run_dir, name, b"theirs")
        assert not (run_dir / name).is_symlink()
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"file": "mine"}


def test_a_temporary_name_that_is_a_link_is_not_written_through(tmp_path):
    (tmp_path / "outside").write_text("mine")
    temporary_name(tmp_path / "new").symlink_to(tmp_path / "outside")
    write_whole(tmp_path / "new", "content")
    assert (tmp_path / "outside").read_text() == "mine"
    assert (tmp_path / "new").read_text() == "content"


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind):
    run_dir = tmp_path
    match kind:
        case "pipe":
            os.mkfifo(run_dir / "x")
        case "folder":
            (run_dir / "x").mkdir()
        case "device":
            run_dir = Path("/dev")
    with pytest.raises(FileError, match="must be a regular file"):
        read_below(run_dir, "null" if kind == "device" else "x")


def test_a_folder_is_known_as_ones_own_wherever_it_lies_and_only_as_it_was(tmp_path, monkeypatch):
    (folder := tmp_path / "run").mkdir()
    assert not is_own(folder, "one")
    mark_own(folder, "one")
    assert is_own(folder, "one")
    assert not is_own(folder, "two")
    mark_own(folder, "two")
    moved = folder.rename(tmp_path / "moved")
    assert is_own(moved, "one")
    assert is_own(moved, "two")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "somebody else's"))
    assert not is_own(moved, "one")


def test_without_a_home_notes_go_where_only_this_user_writes(tmp_path, monkeypatch):
    (folder := tmp_path / "run").mkdir()
    (tmp_path / "no folder").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "no folder"))
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    mark_own(folder, "one")
    assert is_own(folder, "one")
    notes = tmp_path / f"studyloom-{os.geteuid()}"
    notes.chmod(0o777)  # as whoever was there first has made it
    assert not is_own(folder, "one")
    mark_own(folder, "two")
    assert not is_own(folder, "two")
