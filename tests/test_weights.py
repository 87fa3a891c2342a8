"""scripts/weights.py: nothing is kept whose hash is not the pinned one."""

import hashlib
import http.server
import threading

import pytest

from sar2opt import networks
from sar2opt.config import UserError
from scripts import weights

CONTENT = b"weights" * 1000


@pytest.fixture
def server(tmp_path):
    """The address of a server of this machine that has one file."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "net.pth").write_bytes(CONTENT)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path / "served")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def pinned(server, monkeypatch):
    """The table with one entry that ``server`` has."""
    digest = hashlib.sha256(CONTENT).hexdigest()
    entry = networks.Weights(("net.pth",), ("lpips_alex",), f"{server}/net.pth", digest)
    monkeypatch.setattr(networks, "WEIGHTS", {"alexnet": entry})
    monkeypatch.setattr(weights, "WEIGHTS", networks.WEIGHTS)
    return networks.WEIGHTS


def test_a_file_is_fetched_once_and_checked(pinned, tmp_path, capsys):
    folder = tmp_path / "weights"
    with pytest.raises(UserError, match=r"1 of 1 files are missing(.|\n)*--fetch lpips_alex"):
        weights.main(["--check", "--weights-dir", str(folder)])
    weights.main(["--fetch", "lpips_alex", "--weights-dir", str(folder)])
    assert (folder / "net.pth").read_bytes() == CONTENT
    weights.main(["--check", "--weights-dir", str(folder)])
    weights.main(["--fetch", "--weights-dir", str(folder)])
    printed = capsys.readouterr().out
    assert "intact" in printed and "there already" in printed
    assert [path.name for path in folder.iterdir()] == ["net.pth"]


def test_a_file_with_another_hash_is_not_kept(pinned, tmp_path):
    pinned["alexnet"] = pinned["alexnet"]._replace(sha256="0" * 64)
    with pytest.raises(UserError, match=f"expected {'0' * 64}; nothing was kept"):
        weights.main(["--fetch", "--weights-dir", str(tmp_path / "weights")])
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_damaged_file_is_replaced(pinned, tmp_path):
    (tmp_path / "net.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="missing or wrong"):
        weights.main(["--check", "--weights-dir", str(tmp_path)])
    weights.main(["--fetch", "--weights-dir", str(tmp_path)])
    assert (tmp_path / "net.pth").read_bytes() == CONTENT


def test_no_network_and_no_file_are_one_message(pinned, tmp_path):
    pinned["alexnet"] = pinned["alexnet"]._replace(url="http://127.0.0.1:1/net.pth")
    with pytest.raises(UserError, match=r"no answer: .*copy it to .*net\.pth"):
        weights.main(["--fetch", "--weights-dir", str(tmp_path)])


def test_unknown_metrics_are_refused_and_all_files_are_listed(tmp_path, capsys):
    with pytest.raises(UserError, match="--fetch psnr: needs no weights"):
        weights.main(["--fetch", "psnr", "--weights-dir", str(tmp_path)])
    weights.main(["--list"])
    printed = capsys.readouterr().out
    assert all(w.sha256 in printed and w.url in printed for w in networks.WEIGHTS.values())
