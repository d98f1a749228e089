"""Sends a checkpoint, a processor or a LoRA adapter to the Hub: chosen files only, checked first, in one commit."""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, though not declared so to type checkers
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    get_session,
    hf_raise_for_status,
    validate_repo_id,
)
from tqdm import tqdm

from ..errors import PushError
from .push_errors import NETWORK_ERRORS, NO_TOKEN, Progress, explain, is_passing, status_of
from .push_files import UploadPlan, is_replaced_weight_file, plan_upload

MAIN = "main"
PAUSES = (1.0, 4.0)  # seconds before the second and the third attempt
# What the Hub's client raises, its storage backends included.
_FAILURES: tuple[type[Exception], ...] = (HfHubHTTPError, HFValidationError, RuntimeError, ValueError, *NETWORK_ERRORS)

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class PushReport:
    """What was sent, or would be.

    Attributes:
        repo_id: Repository.
        revision: Branch that was written to, or that the pull request is against.
        kind: `model`, `processor` or `adapter`.
        url: Page of the repository.
        files: Size in bytes by name.
        left_out: Reason by name of what stays here; a folder ends in a slash.
        removed: Weight files of an earlier push that the new ones replace under other names.
        private: Whether only members see the repository; as asked for in a dry run.
        commit: Commit; `None` in a dry run or if the Hub had everything already.
        pull_request: Page of the pull request, if one was asked for.
        dry_run: Whether nothing was sent.
        seconds: Duration.
    """

    repo_id: str
    revision: str
    kind: str
    url: str
    files: dict[str, int]
    left_out: dict[str, str]
    removed: list[str] = field(default_factory=list)
    private: bool
    commit: str | None = None
    pull_request: str | None = None
    dry_run: bool
    seconds: float

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(self.files.values())

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self) | {"num_bytes": self.num_bytes}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sent:
    """What a push led to; the fields are those of `PushReport`."""

    is_private: bool
    removed: list[str] = field(default_factory=list)
    commit: str | None = None
    pull_request: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """State of the repository before the commit."""

    head: str
    is_private: bool
    names: list[str]


def push_checkpoint(
    directory: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    dry_run: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
    show_progress: bool = False,
) -> PushReport:
    """Send a directory to the Hub.

    Weights go first, file by file; what the Hub has already is not sent again. The commit at the end makes everything
    visible at once, so an interrupted push changes nothing, and the same call continues it.

    Args:
        directory: A checkpoint, a processor alone, or a LoRA adapter.
        repo_id: `owner/name`; created if missing, unless another branch or a pull request is asked for.
        private: Whether a new repository is private. An existing public one is refused unless this is `False`; an
            existing private one stays so.
        revision: Existing branch to write to; `main` if left out.
        create_pr: Open a pull request instead of writing to the branch.
        commit_message: Title of the commit.
        dry_run: Choose and check the files, without a request or a token.
        token: Token of the Hub; by default that of `hf auth login` or HF_TOKEN.
        endpoint: Address of the Hub; by default that of HF_ENDPOINT.
        show_progress: Show bars on stderr.

    Returns:
        What was sent and what was left out.

    Raises:
        PushError: If a file must not get out, something is missing, or the Hub refuses; the message says what to do.
    """
    start = time.monotonic()
    directory = Path(directory)
    _check_name(repo_id)
    key = token or get_token()
    secrets = (key,) if key else ()
    plan = plan_upload(directory, secrets=secrets)
    api = HfApi(endpoint=endpoint, token=key, library_name="xgen-mm", library_version=version("xgen-mm"))
    sent = _Sent(is_private=private)
    if not dry_run:
        if key is None:
            raise PushError(NO_TOKEN)
        progress = Progress(
            repo_id=repo_id, revision=revision or MAIN, endpoint=api.endpoint, is_pull_request=create_pr
        )
        message = commit_message or f"Upload {plan.kind} with xgen-mm {version('xgen-mm')}"
        try:
            sent = _send(api, directory, plan, progress, private=private, message=message, show_progress=show_progress)
        except PushError:
            raise
        except _FAILURES as error:
            raise explain(error, progress=progress, secrets=secrets) from error
    return PushReport(
        repo_id=repo_id,
        revision=revision or MAIN,
        kind=plan.kind,
        url=f"{api.endpoint}/{repo_id}",
        files=plan.files,
        left_out=plan.left_out,
        removed=sent.removed,
        private=sent.is_private,
        commit=sent.commit,
        pull_request=sent.pull_request,
        dry_run=dry_run,
        seconds=time.monotonic() - start,
    )


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PushError(f"`{repo_id}` is no repository name; write `owner/name`.") from error
    if repo_id.count("/") != 1:
        raise PushError(f"`{repo_id}` names no owner; write `owner/name`.")


def _send(
    api: HfApi,
    directory: Path,
    plan: UploadPlan,
    progress: Progress,
    *,
    private: bool,
    message: str,
    show_progress: bool,
) -> _Sent:
    """Everything that takes requests, in order."""
    target = _open_repository(api, progress, private=private)
    _check_card(api, directory, plan)
    operations = _upload(api, directory, plan, progress, show_progress=show_progress)
    removed = [name for name in target.names if is_replaced_weight_file(name, plan=plan)]
    info = _commit(api, operations, progress, head=target.head, removed=removed, message=message)
    return _Sent(
        is_private=target.is_private,
        removed=removed,
        commit=None if info.oid == target.head else info.oid,
        pull_request=info.pr_url,
    )


def _open_repository(api: HfApi, progress: Progress, *, private: bool) -> _Target:
    """Create the repository if it is missing and may be created, and read its state."""
    if progress.revision == MAIN and not progress.is_pull_request:
        _retry(lambda: api.create_repo(progress.repo_id, private=private, exist_ok=True))
    info = _retry(lambda: api.model_info(progress.repo_id, revision=progress.revision))
    if private and not info.private:
        raise PushError(
            f"`{progress.repo_id}` exists and is public, nothing was sent; pass `private=False` (`--public`) to push "
            "there nevertheless."
        )
    names = [sibling.rfilename for sibling in info.siblings or []]
    return _Target(head=str(info.sha), is_private=bool(info.private), names=names)


def _check_card(api: HfApi, directory: Path, plan: UploadPlan) -> None:
    """Ask the Hub whether it takes the card's metadata, before gigabytes are sent."""
    if "README.md" not in plan.files:
        return
    body = {"content": (directory / "README.md").read_text(encoding="utf-8"), "repoType": "model"}

    def ask() -> None:
        hf_raise_for_status(get_session().post(f"{api.endpoint}/api/validate-yaml", json=body))

    try:
        _retry(ask)
    except HfHubHTTPError as error:
        if status_of(error) != 400:
            raise
        said = " ".join((error.server_message or "").split())[:300]
        raise PushError(f"the Hub refuses the metadata of README.md, nothing was sent: {said}") from error


def _upload(
    api: HfApi, directory: Path, plan: UploadPlan, progress: Progress, *, show_progress: bool
) -> list[CommitOperationAdd]:
    """Send what the Hub does not have yet; small text files wait for the commit."""
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=str((directory / name).resolve())) for name in plan.files
    ]
    weights = [operation for operation in operations if operation.path_in_repo in plan.weights]
    others = [operation for operation in operations if operation not in weights]
    progress.num_files, progress.stage = len(weights), "upload"
    bar = tqdm(total=sum(plan.files.values()), unit="B", unit_scale=True, desc="Uploading", disable=not show_progress)
    with bar, _hub_bars(show_progress):
        for group in (*([operation] for operation in weights), others):
            if not group:
                continue
            # The client itself tries again when a transfer fails.
            api.preupload_lfs_files(
                progress.repo_id,
                group,
                revision=progress.revision,
                create_pr=progress.is_pull_request,
                free_memory=False,
            )
            progress.uploaded += [item.path_in_repo for item in group if item in weights]
            bar.update(sum(plan.files[item.path_in_repo] for item in group))
    return operations


def _commit(
    api: HfApi,
    operations: list[CommitOperationAdd],
    progress: Progress,
    *,
    head: str,
    removed: list[str],
    message: str,
) -> CommitInfo:
    """Make one commit on top of the known state; that state's own if there is nothing to change."""

    def names_on_hub() -> list[str]:
        info = api.model_info(progress.repo_id, revision=progress.revision)
        return [sibling.rfilename for sibling in info.siblings or []]

    def send() -> CommitInfo:
        there = names_on_hub() if removed else []
        deletions = [CommitOperationDelete(path_in_repo=name) for name in removed if name in there]
        with warnings.catch_warnings():
            # The card is the user's; what the Hub merely recommends is shown on its page.
            warnings.simplefilter("ignore")
            return api.create_commit(
                progress.repo_id,
                [*next(attempts), *deletions],
                commit_message=message,
                revision=progress.revision,
                create_pr=progress.is_pull_request,
                parent_commit=head,
            )

    attempts = _attempts(operations)
    progress.stage = "commit"
    with _hub_bars(False):
        # A second attempt could open a second pull request.
        return send() if progress.is_pull_request else _retry(send)


def _attempts(operations: list[CommitOperationAdd]) -> Iterator[list[CommitOperationAdd]]:
    """Operations for one attempt after the other.

    From the second on they are new ones, with which the client asks again what the Hub has: if only the answer to the
    first attempt was lost, nothing is left to change, and it does not look like a conflict.
    """
    yield operations
    while True:
        yield [_again(operation) for operation in operations]


def _again(operation: CommitOperationAdd) -> CommitOperationAdd:
    copy = CommitOperationAdd(path_in_repo=operation.path_in_repo, path_or_fileobj=operation.path_or_fileobj)
    # Large files are not hashed a second time.
    copy.upload_info = operation.upload_info
    return copy


@contextmanager
def _hub_bars(is_shown: bool) -> Iterator[None]:
    """Bars of the Hub's client on or off, for this block."""
    were_disabled = are_progress_bars_disabled()
    (enable_progress_bars if is_shown else disable_progress_bars)()
    try:
        yield
    finally:
        (disable_progress_bars if were_disabled else enable_progress_bars)()


def _retry(action: Callable[[], Result]) -> Result:
    """Do something, and once more after a while if the server is busy or the connection broke."""
    for pause in PAUSES:
        try:
            return action()
        except _FAILURES as error:
            if not is_passing(error):
                raise
        time.sleep(pause)
    return action()
