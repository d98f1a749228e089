"""Turns what goes wrong between here and the Hub into one sentence and a remedy. No message holds a token."""

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from ..errors import PushError

# The HTTP library's own base class, whichever one this version of the Hub's client uses, and `OSError`.
NETWORK_ERRORS: tuple[type[Exception], ...] = tuple(
    base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)
)
TOKENS_PAGE = "https://huggingface.co/settings/tokens"
NO_TOKEN = (
    f"there is no token for the Hub; run `hf auth login` or set HF_TOKEN to one with write access ({TOKENS_PAGE})."
)
RETRIED = (500, 502, 503, 504)


@dataclass(kw_only=True, slots=True)
class Progress:
    """Where a push is, for the message in case it ends here.

    Attributes:
        repo_id: Repository.
        revision: Branch.
        endpoint: Address of the Hub.
        uploaded: Weight files that the Hub has.
        num_files: Number of weight files.
        is_pull_request: Whether the commit opens a pull request.
        stage: `start` before the first file, then `upload`, then `commit`.
    """

    repo_id: str
    revision: str
    endpoint: str
    uploaded: list[str] = field(default_factory=list)
    num_files: int = 0
    is_pull_request: bool = False
    stage: str = "start"

    def describe(self, *, is_answered: bool) -> str:
        """What the Hub has, and how to go on; empty before the first file.

        Args:
            is_answered: Whether the Hub refused what was asked last. Otherwise it may have been done.
        """
        if self.stage == "start":
            return ""
        done = f" {len(self.uploaded)} of {self.num_files} weight files are on the Hub"
        names = f" ({', '.join(self.uploaded)})" if self.uploaded else ""
        if self.stage == "upload" or is_answered:
            return f"{done}{names}, nothing is visible yet; the same command continues."
        if self.is_pull_request:
            page = f"{self.endpoint}/{self.repo_id}/discussions"
            return f"{done}; look at {page} whether the pull request is open, else give the same command again."
        return f"{done}, the commit may have been made or not; the same command finds out and continues."


def explain(error: BaseException, *, progress: Progress, secrets: tuple[str, ...] = ()) -> PushError:
    """Error for the user.

    Args:
        error: What the Hub's client raised.
        progress: Where the push was.
        secrets: Texts to remove from what the Hub says.
    """
    cause: BaseException = error
    while isinstance(cause, RuntimeError) and cause.__cause__ is not None:
        # Uploads in threads wrap the reason.
        cause = cause.__cause__
    message = _message(cause, progress)
    for secret in secrets:
        message = message.replace(secret, "***")
    return PushError(message)


def status_of(error: BaseException) -> int | None:
    """HTTP status that an error stands for; `None` if no answer came."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def is_passing(error: BaseException) -> bool:
    """Whether trying again may help: the server is busy, or the connection broke."""
    status = status_of(error)
    if status is not None:
        return status in RETRIED
    return isinstance(error, NETWORK_ERRORS) and not isinstance(error, OfflineModeIsEnabled)


def _message(error: BaseException, progress: Progress) -> str:
    host = urlsplit(progress.endpoint).netloc
    status = status_of(error)
    rest = progress.describe(is_answered=not is_passing(error))
    if isinstance(error, HfHubHTTPError) and status is not None:
        return _status_message(error, status, progress) + rest
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be sent; unset it." + rest
    if isinstance(error, FileNotFoundError) and error.filename:
        name = os.path.basename(str(error.filename))
        return f"`{name}` disappeared during the upload; leave the directory alone." + rest
    if isinstance(error, NETWORK_ERRORS):
        if progress.stage != "start":
            return f"the connection to {host} broke off ({type(error).__name__})." + rest
        return f"cannot reach {host} ({type(error).__name__}), nothing was sent; check the network and HF_ENDPOINT."
    if isinstance(error, HFValidationError):
        return f"`{progress.repo_id}` is no repository name; write `owner/name`."
    detail = " ".join(str(error).split())[:300]
    return f"the upload failed: {detail or type(error).__name__}." + rest


def _status_message(error: HfHubHTTPError, status: int, progress: Progress) -> str:
    repo_id, revision = progress.repo_id, progress.revision
    owner = repo_id.partition("/")[0]
    code = error.response.headers.get("X-Error-Code")
    said = f" The Hub says: {' '.join(error.server_message.split())[:300]}" if error.server_message else ""
    if status == 401:
        source = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "`hf auth login`"
        return (
            f"the Hub does not accept the token (401; it came from {source} or an argument); get one: {TOKENS_PAGE}."
        )
    if status == 402:
        return f"the Hub asks for payment (402): the storage of `{owner}` is used up or its plan excludes this.{said}"
    if status == 403:
        return (
            f"the token may not write to `{repo_id}` (403); use one with write access to `{owner}`, push to a "
            "repository of your own, or offer a pull request with `create_pr` (`--create-pr`)."
        )
    if status == 404 and code == "RevisionNotFound":
        return (
            f"`{repo_id}` has no branch `{revision}` (404); create it with `hf repos branch create {repo_id} "
            f"{revision}`, or leave `revision` out."
        )
    if status == 404:
        return (
            f"there is no repository `{repo_id}`, or this token cannot see it (404); check owner and name, or push "
            "without `revision` and `create_pr`, which creates it."
        )
    if status in (409, 412):
        return f"somebody else changed `{repo_id}` meanwhile ({status}); look at what is there, then push again."
    if status == 413:
        return f"a file or the whole is too large for the Hub (413); save smaller shards (`--max-shard-size`).{said}"
    if status == 429:
        seconds = error.response.headers.get("Retry-After")
        wait = f"wait {seconds} seconds" if seconds else "wait some minutes"
        return f"too many requests to the Hub (429); {wait} and push again."
    if status in RETRIED:
        return f"the Hub is in trouble (it answers {status}, also after trying again); try later."
    return f"the Hub answers {status}.{said}"
