import pytest

from bs_cluster.cli.main import main


@pytest.fixture
def ran(capsys):
    """Runs a command in this process: (exit code, stdout, stderr)."""

    def ran(*words: str):
        try:
            code = main(words)
        except SystemExit as ended:
            code = ended.code
        told = capsys.readouterr()
        return code, told.out, told.err

    return ran
