"""An exported folder on the Hugging Face Hub, by the Hub's own client."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from bs_cluster.errors import HubError, UsageError
from bs_cluster.records import Record


@dataclass(frozen=True)
class Upload(Record):
    """What goes, or with a dry run would go, to ``repo``: names with their sizes in bytes. ``url`` is where it is then,
    None where nothing went."""

    repo: str
    files: dict[str, int]
    url: str | None


def check_repo(repo: str) -> None:
    """Raises UsageError for what is no repository's name, before anything is made for it."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"--hub {repo}: {error}") from error
    if "/" not in repo:
        raise UsageError(f"--hub {repo}: whose? Name it as user/name")


def check_login() -> None:
    """Raises HubError where the Hub does not know who is asking."""
    try:
        HfApi().whoami()
    except (LocalTokenNotFoundError, OSError) as error:  # the client's errors of network and answers are OSErrors
        raise HubError(f"the Hub does not say who you are ({_line(error)}); log in with `hf auth login`") from error


def planned(folder: Path, repo: str) -> Upload:
    """What an upload of ``folder`` would bring."""
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    return Upload(repo, files, None)


def upload(folder: Path, repo: str, message: str) -> Upload:
    """Makes the repository if there is none, and one commit of the whole folder. Raises HubError; the folder stays."""
    plan, api = planned(folder, repo), HfApi()
    try:
        api.create_repo(repo, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except (HfHubHTTPError, OSError) as error:
        raise HubError(
            f"the Hub did not take {repo} ({_line(error)}); the folder is whole: hf upload {repo} {folder}"
        ) from error
    return Upload(repo, plan.files, str(commit.commit_url))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
