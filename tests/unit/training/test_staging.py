"""What a killed process had staged is cleared away by the next one of its rank and campaign, and by no other."""

import os
import subprocess
import sys
from pathlib import Path

from bs_cluster.training.round import clear_staged, staging_folder

KILLED = (
    "import os, signal\n"
    "from bs_cluster.training.round import staging_folder\n"
    "with staging_folder('store tiny 0') as folder:\n"
    "    (folder / 'adapter_model.safetensors').write_bytes(b'half')\n"
    "    os.kill(os.getpid(), signal.SIGKILL)\n"
)


def test_a_killed_process_leaves_its_folder_to_the_next_of_the_same_rank(tmp_path, monkeypatch):
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", KILLED], env=environment, check=False, timeout=120)
    (left,) = tmp_path.glob("bs-stack-*")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with staging_folder("store tiny 1"):
        assert left.exists()
    clear_staged("store tiny 0")
    assert not left.exists()
    left.mkdir()
    with staging_folder("store tiny 0") as folder:
        assert list(tmp_path.glob("bs-stack-*")) == [folder]
        assert list(folder.iterdir()) == []
    assert list(tmp_path.glob("bs-stack-*")) == []
