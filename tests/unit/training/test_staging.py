"""What a killed process had staged is cleared away by the next one that stages the same, and by no other."""

import os
import subprocess
import sys
from pathlib import Path

from bs_cluster.training.round import staging_folder

KILLED = (
    "import os, signal\n"
    "from bs_cluster.training.round import staging_folder\n"
    "with staging_folder('store tiny aa_r1 0') as folder:\n"
    "    (folder / 'adapter_model.safetensors').write_bytes(b'half')\n"
    "    os.kill(os.getpid(), signal.SIGKILL)\n"
)


def test_a_killed_process_leaves_its_folder_to_the_next_of_the_same_stack(tmp_path, monkeypatch):
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", KILLED], env=environment, check=False, timeout=120)
    (left,) = tmp_path.glob("bs-stack-*")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with staging_folder("store tiny aa_r1 1"):
        assert left.exists()
    with staging_folder("store tiny aa_r1 0") as folder:
        assert list(tmp_path.glob("bs-stack-*")) == [folder]
        assert list(folder.iterdir()) == []
    assert list(tmp_path.glob("bs-stack-*")) == []
