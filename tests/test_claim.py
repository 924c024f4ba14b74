"""One writer for an output: other processes, killed ones, hosts that cannot lock, leases."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
from torch.distributed import HashStore

from edm2lite import processes
from edm2lite.claim import claim_file, claim_folder, claim_together, lock_file

HOLD = """
import sys
from pathlib import Path
from edm2lite.claim import claim_folder, lock_file
lock_file._lock = {lock}
lock_file.BEAT, lock_file.LEASE = 0.1, 0.6
mine = claim_folder(Path(sys.argv[1]))
print("held", flush=True)
input()
"""
LOCKS = {"locks": "lock_file._lock", "leases": "lambda descriptor: None"}


@pytest.fixture(params=LOCKS)
def other(request, tmp_path, monkeypatch):
    """A process that holds ``tmp_path``, on a file system that can lock files, or cannot."""
    monkeypatch.setattr(lock_file, "BEAT", 0.1)
    monkeypatch.setattr(lock_file, "LEASE", 0.6)
    if request.param == "leases":
        monkeypatch.setattr(lock_file, "_lock", lambda descriptor: None)
    with hold(tmp_path, LOCKS[request.param]) as process:
        yield process
        process.kill()


def hold(folder, lock="lock_file._lock"):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(lock=lock), folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == b"held\n"
    return process


def move_to_another_host(lock):
    record = json.loads(lock.read_text())
    with lock.open("r+") as file:
        file.write(json.dumps({**record, "place": "elsewhere", "host": "node7"}))
        file.truncate()


def test_the_second_process_is_told_who_writes(other, tmp_path):
    with pytest.raises(ValueError, match=f"one process at a time, process {other.pid} on .*since"):
        claim_folder(tmp_path)
    assert (tmp_path / ".lock").is_file()


def test_what_its_holder_gives_back_is_free(other, tmp_path):
    other.communicate(b"\n")
    with claim_folder(tmp_path):
        assert os.listdir(tmp_path) == [".lock"]
    assert os.listdir(tmp_path) == []


def test_a_killed_holder_is_named_and_followed(other, tmp_path, caplog):
    other.kill()
    other.wait()
    with claim_folder(tmp_path) as mine:
        assert f"process {other.pid} on" in caplog.text and "ended while" in caplog.text
        mine.check()
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_holder_on_another_host_lives_while_it_renews(other, tmp_path):
    move_to_another_host(tmp_path / ".lock")
    with pytest.raises(ValueError, match=f"process {other.pid} on node7"):
        claim_folder(tmp_path)


def test_a_holder_on_another_host_that_fell_silent_is_followed(other, tmp_path, caplog):
    move_to_another_host(tmp_path / ".lock")
    other.kill()
    other.wait()
    began = time.monotonic()
    with claim_folder(tmp_path):
        assert 0.3 < time.monotonic() - began < 3
        assert "waiting up to 1 s" in caplog.text and "node7" in caplog.text
        assert os.listdir(tmp_path) == [".lock"]


def test_a_holder_whose_lease_was_taken_over_stops_writing(tmp_path):
    mine = claim_folder(tmp_path)
    (tmp_path / ".lock").rename(tmp_path / "aside")
    (tmp_path / ".lock").touch()
    with pytest.raises(ValueError, match="another process took it over"):
        mine.check()
    mine.release()
    assert (tmp_path / ".lock").exists()  # which is the other one's


def test_of_many_that_follow_a_dead_lease_one_has_it(tmp_path):
    with hold(tmp_path, LOCKS["leases"]) as dead:
        dead.kill()
    code = HOLD.format(lock=LOCKS["leases"])
    several = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(6)
    ]
    while sum(process.poll() is None for process in several) > 1:
        time.sleep(0.05)
    errors = [process.communicate(b"\n")[1].decode() for process in several]
    assert sum(process.returncode == 0 for process in several) == 1, errors
    assert all("ValueError" in e for e, p in zip(errors, several, strict=True) if p.returncode)


def test_claims_of_one_process_are_one_and_a_child_holds_nothing(tmp_path):
    path = tmp_path / "images.zip"
    with claim_file(path) as first:
        with claim_file(path) as second:
            assert first is second
        child = os.fork()
        if child == 0:
            try:
                claim_file(path)
            except ValueError:
                os._exit(3)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        assert os.listdir(tmp_path) == [".images.zip.lock"]
    assert os.listdir(tmp_path) == []


def test_a_lock_file_is_not_followed_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".lock").symlink_to(victim)
    with pytest.raises(OSError, match="lock"):
        claim_folder(tmp_path)
    assert victim.read_text() == "precious"


def test_a_killed_holder_that_its_parent_has_not_asked_about_is_followed(other, tmp_path):
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # a zombie, as in many containers
    with claim_folder(tmp_path) as mine:
        mine.check()
        assert json.loads(mine.path.read_text())["pid"] == os.getpid()


def test_an_empty_file_of_nobody_is_taken_at_once(tmp_path, caplog):
    """Of a process that was killed before it wrote, or that is refused because this was faster."""
    (tmp_path / ".lock").touch()
    began = time.monotonic()
    with claim_folder(tmp_path) as mine:
        mine.check()
    assert time.monotonic() - began < 1 and not caplog.text


def test_a_holder_that_ends_while_its_file_is_looked_at_is_no_dead_one(
    tmp_path, monkeypatch, caplog
):
    lock, path = lock_file._lock, tmp_path / ".lock"
    path.write_text(json.dumps({"pid": 1, "place": "elsewhere"}))

    def removed_meanwhile(descriptor):
        path.unlink(missing_ok=True)
        monkeypatch.setattr(lock_file, "_lock", lock)
        return lock(descriptor)

    monkeypatch.setattr(lock_file, "_lock", removed_meanwhile)
    with claim_folder(tmp_path):
        assert path.exists() and not caplog.text


def test_on_a_full_disk_the_lock_alone_has_to_do(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with claim_folder(tmp_path):
        assert (tmp_path / ".lock").stat().st_size == 0  # reading it here would unlock it
        code = HOLD.format(lock=LOCKS["locks"])
        second = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True)
        assert b"at a time, another process writes to it now" in second.stderr


def test_folders_made_for_a_claim_stay_only_with_something_in_them(tmp_path):
    path = tmp_path / "new" / "folder" / "images.zip"
    with pytest.raises(RuntimeError), claim_file(path):
        assert path.parent.is_dir()
        raise RuntimeError("before anything was written")
    assert os.listdir(tmp_path) == []
    with claim_file(path):
        path.write_text("images")
    assert os.listdir(path.parent) == ["images.zip"]


def test_processes_of_torchrun_wait_until_the_first_one_has_the_claim(tmp_path, monkeypatch):
    store = HashStore()
    monkeypatch.setattr(processes, "_store", lambda: store)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    found = []

    def second():
        with claim_together(claim_folder, tmp_path) as mine:
            found.append((mine, os.listdir(tmp_path)))

    thread = threading.Thread(target=second, daemon=True)
    thread.start()
    time.sleep(0.3)
    assert not found
    monkeypatch.setenv("RANK", "0")
    with claim_together(claim_folder, tmp_path) as mine:
        thread.join(5)
    assert mine is not None and found == [(None, [".lock"])]


def test_a_copy_of_a_folder_that_is_written_to_is_nobodys(tmp_path, caplog):
    (tmp_path / "run").mkdir()
    with hold(tmp_path / "run") as other:
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with claim_folder(tmp_path / "copy"), pytest.raises(ValueError, match="at a time"):
            claim_folder(tmp_path / "run")
        other.kill()
    assert "ended" not in caplog.text
