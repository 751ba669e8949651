"""Files that are written whole or not at all: under exceptions, kills and several writers."""

import contextlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from studyloom import files
from studyloom.files import (
    filesystem_of,
    is_abandoned,
    is_network_filesystem,
    is_trusted,
    locked,
    mark_trusted,
    temporary_name,
    write_whole,
    write_with,
)
from studyloom.processes import host_id
from studyloom.training.checkpoint import Checkpoint
from studyloom.user_code import pickled
from studyloom.user_code.pickled import passing_objects

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

# Holds a lock, reports so, and waits to be killed.
HOLD = """
import sys, time
from pathlib import Path
from studyloom.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
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


def test_text_and_bytes_replace_the_old_content(path):
    for content, stored in (("ü\n", b"\xc3\xbc\n"), (b"\0\xff", b"\0\xff")):
        write_whole(path, content)
        assert path.read_bytes() == stored
    assert names(path) == ["study.yaml"]


def test_a_torn_write_leaves_the_old_content_and_no_temporary_file(path):
    def write(file):
        file.write(b"half of what")
        file.flush()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_with(path, write)
    assert path.read_text() == "old"
    assert names(path) == ["study.yaml"]


def test_durable_content_is_synced_before_it_is_renamed(path, monkeypatch):
    content_at_sync = []
    monkeypatch.setattr(files.os, "fsync", lambda _: content_at_sync.append(path.read_text()))
    write_whole(path, "quick")
    assert content_at_sync == []
    write_whole(path, "durable", durable=True)
    assert content_at_sync == ["quick"]
    assert path.read_text() == "durable"


def test_a_killed_write_leaves_the_old_content_and_an_abandoned_file(path):
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


def test_files_of_other_hosts_and_other_names_are_not_abandoned(tmp_path):
    assert is_abandoned(temporary_name(tmp_path / "x")), "an earlier process had our number"
    for name in ("study.yaml", "study.yaml.elsewhere-0000.{pid}.new.tmp"):
        assert not is_abandoned(tmp_path / name.format(host=host_id(), pid=dead_pid())), name


def test_one_process_holds_a_lock_until_it_ends(tmp_path):
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert select.select([other.stdout], [], [], 1.0)[0] == []
    holder.kill()
    holder.communicate()
    assert other.stdout.readline() == "held\n"
    other.kill()
    other.communicate()
    for _ in range(2):  # given back
        with locked(path):
            pass


def test_a_file_system_is_that_of_the_deepest_mount_point(tmp_path):
    assert filesystem_of(Path("/proc/self")) == "proc"
    assert filesystem_of(tmp_path / "not" / "there") == filesystem_of(tmp_path) != "unknown"
    assert is_network_filesystem("nfs4")
    assert is_network_filesystem("fuse.sshfs")
    assert not is_network_filesystem("ext4")


def test_a_folder_is_trusted_once_this_user_has_marked_it_at_its_path(tmp_path, monkeypatch):
    (folder := tmp_path / "run").mkdir()
    assert not is_trusted(folder)
    mark_trusted(folder)
    assert is_trusted(folder)
    moved = folder.rename(tmp_path / "moved")
    assert not is_trusted(moved), "as an archive that somebody has sent back"
    mark_trusted(moved)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "somebody else's"))
    assert not is_trusted(moved)
    (tmp_path / "no folder").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "no folder"))
    mark_trusted(moved)
    assert not is_trusted(moved)


@pytest.mark.parametrize("write", ["write_whole", "passing_objects", "checkpoint"])
def test_a_full_disk_is_reported_with_the_file_and_a_fix(write, tmp_path, monkeypatch):
    monkeypatch.setattr(pickled, "_objects", {})
    with small_disk(tmp_path / "disk") as folder:
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        writes = {
            "write_whole": lambda: write_whole(folder / "report.html", bytes(10**6)),
            "passing_objects": lambda: passing_objects(["x"], {"x": "y" * 10**6}, ()).__enter__(),
            "checkpoint": lambda: Checkpoint(folder / "trial.pt", "s").save({"x": bytes(10**6)}),
        }
        with pytest.raises(OSError, match="No space left on device; free some space") as caught:
            writes[write]()
        assert str(folder) in str(caught.value)
        assert "choose another with run_dir or TMPDIR" in str(caught.value)


@contextlib.contextmanager
def small_disk(folder):
    """A disk of 64 KB; skips the test where none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
