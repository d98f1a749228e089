"""What secrets and paths of a computer look like: the one table that cards and uploads are searched with."""

import re

# What follows the name of a secret: no placeholder (`<token>`, `$TOKEN`, `your-key`), and no code (`os.environ[...]`).
_VALUE = (
    r"(?!(?i:your|xxx|none|null|true|false|example)|[A-Za-z_][\w.]*[(\[]|[a-z_]+(?:\.[a-z_]+)+\b)"
    r"[\w+/=~!@#%^&*.-]{8,}"
)
SECRETS: dict[str, re.Pattern[str]] = {
    "a Hugging Face token": re.compile(r"\b(?:hf_|api_org_)[A-Za-z0-9]{20,}"),
    "an AWS access key": re.compile(
        r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|aws_secret_access_key\W{1,5}[A-Za-z0-9/+=]{40}", re.IGNORECASE
    ),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"),
    "a GitLab token": re.compile(r"\bglpat-[\w-]{20,}"),
    "an API key (sk-...)": re.compile(r"(?<![\w-])sk-(?=[\w-]*\d)[\w-]{20,}"),
    "a Google API key": re.compile(r"\bAIza[\w-]{30,}"),
    "a Slack token": re.compile(r"\bxox[abprs]-[\w-]{10,}"),
    "a JSON web token": re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"),
    "a bearer token": re.compile(r"\b[Bb]earer\s+(?=[\w.=+/-]*\d)[\w.=+/-]{20,}"),
    "a private key": re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY"),
    "an address with a password": re.compile(
        r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"'<>{}]+:[^\s/@\"'<>{}]+@", re.IGNORECASE
    ),
    "an address with a token": re.compile(
        r"[?&;](?:[\w-]{0,20}(?:token|api[_-]?key|secret|password|signature)|sig|key)=(?!your)[\w%+/=.~-]{8,}",
        re.IGNORECASE,
    ),
    # `NAME_API_KEY=value`, as environments and shells write it.
    "a secret in a variable": re.compile(
        r"(?:API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|SECRET|TOKEN|PASSWORD|PASSWD)[\"']?\s{0,4}[=:]\s{0,4}[\"']?(?!\d+\b)"
        + _VALUE
    ),
    "a password or key": re.compile(
        r"(?:password|passwd|api[_-]?key|secret(?:[_-]?key)?|(?:access|auth)[_-]?token)[\"']?\s{0,4}[=:]\s{0,4}[\"']?"
        r"(?=\S*\d)" + _VALUE,
        re.IGNORECASE,
    ),
}
# Keys of settings whose value is a secret whatever it looks like; `bos_token` and its like are none.
_SECRET_KEY = re.compile(
    r"token|use_auth_token|(?:[\w-]*[_-])?(?:api[_-]?key|password|passwd|secret(?:[_-]?key)?|(?:access|private)[_-]?key"
    r"|(?:hub|hf|auth|access|bearer|refresh|api|github)[_-]?token)|(?-i:[A-Z0-9_]+_TOKEN)",
    re.IGNORECASE,
)

# In running text only paths that are certainly somebody's.
PATH_IN_TEXT = re.compile(
    r"(?<![\w.:/~$}-])/(?:home|Users|root|mnt|tmp|scratch|Volumes|workspace|gpfs|lustre|fsx|nfs|private/var|var/folders)"
    r"/[\w.-]"
    r"|\bfile:///\w"
    r"|(?<![A-Za-z])[A-Za-z]:(?:\\{1,2}|/)(?:Users|Documents and Settings)(?:\\{1,2}|/)",
)
# A card has no reason to name any path at all.
PATH_IN_CARD = re.compile(
    rf"{PATH_IN_TEXT.pattern}|(?<![\w:/.])(?:/(?:media|data|work|srv|opt|var|etc|private)/[\w.-]+"
    r"|~/[\w.-]+|[A-Za-z]:\\\w+)|\bfile://"
)


def kinds_of_secrets(text: str) -> list[str]:
    """Kinds of secrets in a text; what they are is not repeated."""
    return [kind for kind, pattern in SECRETS.items() if pattern.search(text)]


def names_a_secret(key: str) -> bool:
    """Whether the value of a setting of this name is a secret.

    >>> [names_a_secret(key) for key in ("api_key", "OPENAI_API_KEY", "hub_token", "bos_token", "image_token")]
    [True, True, True, False, False]
    """
    return _SECRET_KEY.fullmatch(key) is not None
