"""What may happen to a checkpoint folder, and what must be left afterwards."""

import errno
import json
import os
import pickle
import shutil

import pytest
import torch

from sar2opt import checkpoint
from sar2opt.checkpoint import CheckpointError
from sar2opt.config import MachineError

TENSORS = {
    "net": {"w": torch.arange(12.0).reshape(3, 4), "b": torch.ones(3)},
    "net.optim": {"w/step": torch.tensor(3.0)},
}


@pytest.fixture
def folder(tmp_path):
    for step in (2, 4):
        checkpoint.save(tmp_path / "ck", step, TENSORS, {"seed": 7})
    return tmp_path / "ck"


def flip_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "bit flip": lambda ck: flip_bit(ck / "net.safetensors"),
    "truncated": lambda ck: (ck / "net.safetensors").write_bytes((ck / "net.safetensors").read_bytes()[:-9]),
    "empty": lambda ck: (ck / "net.optim.safetensors").write_bytes(b""),
    "missing file": lambda ck: (ck / "state.json").unlink(),
    "no manifest": lambda ck: (ck / "MANIFEST.json").unlink(),
    "half a manifest": lambda ck: (ck / "MANIFEST.json").write_text('{"net.safetensors": {'),
    "not a mapping": lambda ck: (ck / "MANIFEST.json").write_text("[1]"),
    "escaping path": lambda ck: (ck / "MANIFEST.json").write_text(
        json.dumps(json.loads((ck / "MANIFEST.json").read_text()) | {"../../secret": {"bytes": 0, "sha256": ""}})
    ),
    "nothing": lambda ck: [f.unlink() for f in ck.iterdir()],
}


def test_round_trip_is_exact(folder):
    found, state = checkpoint.load(folder, checkpoint.newest_step(folder))
    assert (state["step"], state["seed"]) == (4, 7)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name][key], value) for name, group in TENSORS.items() for key, value in group.items())


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_damaged_newest_falls_back_and_says_why(folder, kind):
    DAMAGE[kind](folder / "step-00000004")
    with pytest.warns(UserWarning, match="step-00000004: ignored"):
        assert checkpoint.newest_step(folder) == 2


def test_all_damaged_is_an_error_not_a_fresh_start(folder):
    for ck in folder.iterdir():
        flip_bit(ck / "net.safetensors")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="all 2 checkpoints are damaged"):
        checkpoint.newest_step(folder)


def test_damaged_folder_of_the_same_step_is_replaced(folder):
    flip_bit(folder / "step-00000004" / "net.safetensors")
    checkpoint.save(folder, 4, TENSORS, {})
    assert checkpoint.newest_step(folder) == 4


def test_full_disk_keeps_the_old_one_and_names_the_cause(folder, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(MachineError, match=r"step-00000006: not written: .*No space left"):
        checkpoint.save(folder, 6, TENSORS, {})
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000002", "step-00000004"]


def test_too_little_space_is_seen_before_the_first_byte(folder, monkeypatch):
    usage = shutil.disk_usage(folder)._replace(free=10)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MachineError, match="MiB needed, 0 MiB free"):
        checkpoint.save(folder, 6, TENSORS, {})
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000002", "step-00000004"]


def test_rotation_keeps_the_newest_and_survives_a_failing_delete(folder, monkeypatch):
    checkpoint.save(folder, 6, TENSORS, {})
    checkpoint.rotate(folder, keep=1)
    assert [p.name for p in folder.iterdir()] == ["step-00000006"]
    checkpoint.save(folder, 8, TENSORS, {})
    monkeypatch.setattr(checkpoint, "discard", lambda path: (_ for _ in ()).throw(OSError("busy")))
    with pytest.warns(UserWarning, match="not removed: busy"):
        checkpoint.rotate(folder, keep=1)


def test_leftovers_are_cleaned_and_never_read(folder):
    shutil.copytree(folder / "step-00000004", folder / ".tmp-step-00000006-1")
    assert checkpoint.newest_step(folder) == 4
    checkpoint.clean(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000002", "step-00000004"]


def test_a_pickle_is_never_opened(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/pwned",)

    for name in ("net.safetensors", "state.json", "extra.pt"):
        (folder / "step-00000004" / name).write_bytes(pickle.dumps(Evil()))
    with pytest.warns(UserWarning):
        checkpoint.load(folder, checkpoint.newest_step(folder))
    assert not (tmp_path / "pwned").exists()


def test_files_follow_the_umask(folder):
    os.umask(mask := os.umask(0))
    assert (folder / "step-00000004" / "net.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_optimizer_state_survives_by_parameter_name():
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    net(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    packed = checkpoint.pack(optimizer, net)
    assert {"weight/exp_avg", "bias/exp_avg_sq", "bias/step"} <= packed.keys()
    other = torch.optim.AdamW(net.parameters(), lr=0.1)
    checkpoint.unpack(other, net, packed)
    assert all(torch.equal(value, packed[key]) for key, value in checkpoint.pack(other, net).items())


def test_another_architecture_is_refused_with_the_tensors_that_differ(folder):
    tensors, _ = checkpoint.load(folder, 4)
    net = torch.nn.Sequential(torch.nn.Linear(4, 2))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.restore(net, "net", tensors, folder / "step-00000004")
    assert "of another architecture" in str(caught.value)
    assert "0.weight: network has [2, 4], checkpoint lacks it" in str(caught.value)
    same = torch.nn.Linear(4, 5)
    with pytest.raises(CheckpointError, match=r"weight: network has \[5, 4\], checkpoint has \[3, 4\]"):
        checkpoint.restore(same, "net", {"net": {"weight": torch.ones(3, 4), "bias": torch.ones(5)}}, folder)


def test_an_unknown_format_is_an_error_not_a_guess(folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(CheckpointError, match="has format 1; this version reads format 2"):
        checkpoint.load(folder, 4)
