"""What is a secret: one list of names and forms, and the masks that every text and record passes before it is written.

A secret is known by the name it is bound to, by its form, or because it is the value of a secret environment variable.
"""

from __future__ import annotations

import base64
import json
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

STARS = "***"
SHORTEST = 8  # shorter values of variables ("true", "1") would turn ordinary text into stars

# names, as words in snake case: `api_key` and `MY_TOKEN` hold secrets, `sample_key`, `eos_token` and `AUTHOR` do not
_OWNERS = (
    "api|access|auth|oauth|bearer|session|refresh|secret|private|ssh|rsa|gpg|pgp|ssl|tls|service|account|encryption"
    "|signing|deploy|license|master|admin|storage|client|consumer|hf|hub|huggingface|wandb|github|gitlab|slack|openai"
    "|anthropic|aws|azure|gcp|google|stripe|payment|npm|pypi|docker|comet|neptune|mlflow|clearml"
)
_DATABASES = "database|db|postgres|postgresql|pg|mysql|mariadb|mongo|mongodb|redis|amqp|rabbitmq"
_NAME = re.compile(
    rf"(?:^|_)(?:(?:{_OWNERS})_?(?:keys?|tokens?)"
    "|secrets?|passw(?:or)?ds?|passphrases?|passcodes?|credentials?|bearer|authorization|cookies?|webhooks?|jwt|dsn"
    rf"|(?:{_DATABASES})_ur[li]|connection_string)(?:_|$)"
    "|(?:^|_)auth(?:_(?:header|user|string|value|info|data|code))?$|(?:^|_)pat$|[^_]_pwd$|^(?:token|apikey)$"
)
_TOKEN = re.compile(r"(?:^|_)([a-z0-9]+)_token$")
# words before `_token` that speak of tokens of a text
_OF_TEXT = re.compile(
    "eos|bos|pad|unk|mask(?:ed)?|sep|cls|class|eod|eot|bot|boi|eoi|soi|start|begin|stop|end|special|control|reserved"
    "|extra|added|additional|first|last|next|prev|previous|new|per|by|max|min|num|n|count|loss|ignored?|separator"
    "|document|doc|text|turn|word|image|vision|video|audio|speech|query|register|newline|space|prefix|suffix|middle|fim"
    "|pre|suf|mid|lang|language|prompt|response|input|output|target|label|draft|decoder|encoder|think|tool"
)
# a name that ends so says where or how, and does not hold the secret
_NOT_THE_VALUE = re.compile(
    "paths?|files?|dir|folder|sock|socket|names?|type|kind|mode|method|env|variable|var|count|size|len|length|index"
    "|column|field|ttl|expiry|timeout|seconds|s|format|regex|pattern|template|level|policy|enabled"
)
_SPECIAL_TOKEN = re.compile(r"<[^<>\s]{0,40}>|\[[A-Za-z0-9_]{1,40}\]")
_VARIABLE_WORD = re.compile(r"(?:token|secret|password|passwd|passphrase|key)\d*$")
_NO_KEY = re.compile("monkey|turkey|donkey|hockey|jockey|whiskey|hotkey")

_URL_SECRET = r"(?P<url>\b[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s/@:'\"?#]{0,200}:)[^\s/@'\"]{1,500}(?=@[^\s@])"
_PRIVATE_KEY = (
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}-----"
    r"(?:[A-Za-z0-9+/=,:.\s\\-]*?-----END [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}-----|[A-Za-z0-9+/=,:\s\\]*)"
)
# what it is -> how it looks
FORMS = {
    "a private key": _PRIVATE_KEY,
    "a URL with a password": _URL_SECRET,
    "a signed URL": r"(?P<query>[?&](?:access_token|auth_token|api_?key|token|key|password|sig|signature"
    r"|X-Amz-Signature|X-Goog-Signature)=)[^\s&'\"#]{8,}",
    "a webhook": r"https://(?:hooks\.slack\.com/(?:services|workflows)|discord(?:app)?\.com/api/webhooks)/[\w/-]{10,}",
    "an Authorization header": r"(?P<header>(?i:authorization)['\"]?\s*[:=]\s*['\"]?(?:(?i:basic|bearer|token)\s+)?)"
    r"[A-Za-z0-9._~+/=-]{8,}",
    "a bearer token": r"(?P<bearer>\b(?i:bearer)\s+)(?=[^\s'\"]*\d)[A-Za-z0-9._~+/=-]{16,}",
    "a JSON web token": r"(?<![A-Za-z0-9])eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{8,}",
    "a token of a chat bot": r"(?<!\w)\d{8,10}:AA[\w-]{33}(?!\w)",
    "a key or token": "(?<![A-Za-z0-9])(?:"
    + "|".join(
        (
            r"hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{20,}",  # Hugging Face
            r"wandb_v\d_[A-Za-z0-9_]{20,}",
            r"sk-[A-Za-z0-9_-]{20,}|gsk_[A-Za-z0-9]{20,}|r8_[A-Za-z0-9]{30,}|nvapi-[\w-]{20,}",  # models as a service
            r"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|gl(?:pat|dt|rt)-[A-Za-z0-9_-]{16,}",
            r"(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{35}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}|dop_v1_[a-f0-9]{40,}",
            r"dapi[0-9a-f]{32}|AccountKey=[A-Za-z0-9+/=]{40,}",
            r"xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{20,}",
            r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{10,}|whsec_[A-Za-z0-9+/=]{20,}",  # Stripe
            r"sq0[a-z]{3}-[\w-]{22,}|shp(?:at|ca|pa|ss)_[A-Fa-f0-9]{32}|access_token\$\w+\$[\w$]{16,}",
            r"npm_[A-Za-z0-9]{30,}|pypi-[\w-]{50,}|dckr_[a-z]+_[\w-]{20,}|SG\.[\w-]{16,}\.[\w-]{16,}|glsa_\w{30,}",
        )
    )
    + ")(?![A-Za-z0-9])",
}
_FORM = re.compile("|".join(FORMS.values()))
_KEPT = ("url", "query", "header", "bearer")  # the part before the secret, which says what was there


def is_secret_name(name: str) -> bool:
    """Whether a parameter, macro or variable of this name holds a secret when it is a string."""
    snake = _snake(name)
    if _NOT_THE_VALUE.fullmatch(snake.rpartition("_")[2]):
        return False
    token = _TOKEN.search(snake)
    return bool(_NAME.search(snake)) or (token is not None and not _OF_TEXT.fullmatch(token[1]))


def why_secret(name: str, value: Any) -> str | None:
    """Why binding this value to this name would write a secret down; None where it would not.

    Looks into lists and dicts; a key of a dict is the name of what it leads to. The answer completes "NAME holds ..."
    and never shows the secret.
    """
    match value:
        case Mapping():
            parts = [why_secret(name_within(name, key), item) or why_secret("", key) for key, item in value.items()]
            return next(filter(None, parts), None)
        case list() | tuple() | set() | frozenset():
            return next(filter(None, (why_secret(name, item) for item in value)), None)
        case bytes():
            value = value.decode("latin-1")
    if not isinstance(value, str) or not value:
        return None
    if variable := _variable_in(value):
        return f"the value of the environment variable {variable}, which is a secret"
    if is_secret_name(name) and not _SPECIAL_TOKEN.fullmatch(value):
        return "a secret"
    for form, pattern in FORMS.items():
        if re.search(pattern, value):
            return f"a secret ({form})"
    return None


def name_within(name: str, key: Any) -> str:
    """The name that counts for an item of a dict of this name: its key's, but within a secret all is one."""
    return key if isinstance(key, str) and (is_secret_name(key) or not is_secret_name(name)) else name


def mask(text: str) -> str:
    """A text with `***` for what looks like a secret, and for the value of every secret environment variable."""
    known = _known(_environment())
    if known is not None:
        text = known[0].sub(STARS, text)
    return _FORM.sub(_stars, text)


def masked(name: str, value: Any) -> Any:
    """A value, or a record of values, with `***` for every secret in it; what is no text stays as it is.

    Args:
        name: What the value is bound to; "" for a record, whose keys are names.
        value: Dicts, lists and tuples of them are gone through.
    """
    match value:
        case str() if value and is_secret_name(name) and not _SPECIAL_TOKEN.fullmatch(value):
            return STARS
        case str():
            return mask(value)
        case bytes():
            text = value.decode("latin-1")
            found = masked(name, text)
            return value if found == text else found.encode("latin-1")
        case Mapping():
            return {
                mask(key) if isinstance(key, str) else key: masked(name_within(name, key), item)
                for key, item in value.items()
            }
        case list():
            return [masked(name, item) for item in value]
        case tuple() if type(value) is tuple:
            return tuple(masked(name, item) for item in value)
    return value


def masked_config(text: str) -> str:
    """The text of a config, line by line: strings bound to a secret's name, or that are one, become `***`."""
    lines = []
    for line in mask(text).splitlines(keepends=True):
        name, equals, value = line.partition("=")
        if equals and is_secret_name(name.strip(" #")):
            value = re.sub(r"""b?(['"])(?:\\.|(?!\1).)+\1""", _quoted_stars, value)
        lines.append(name + equals + value)
    return "".join(lines)


def secret_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that hold secrets, by name; those too short to be looked for are left out."""
    return {
        name: value
        for name, value in environment.items()
        if len(value.strip()) >= SHORTEST
        and _is_secret_variable(name)
        and not name.startswith("MODLIB_")  # of which none is a secret of the user's
        and not _is_path(value)
    }


def _snake(name: str) -> str:
    last = re.split(r"[./]", name)[-1]
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).lower()
    return re.sub(r"[^a-z0-9]+", "_", snake).strip("_")


def _is_secret_variable(name: str) -> bool:
    """As `is_secret_name`, but any KEY counts: in an environment it is hardly ever one to sort by."""
    if is_secret_name(name):
        return True
    words = _snake(name).split("_")
    if _NOT_THE_VALUE.fullmatch(words[-1]) or (
        words[-1] == "token" and len(words) > 1
    ):  # which is_secret_name has judged
        return False
    return any(_VARIABLE_WORD.search(word) and not _NO_KEY.fullmatch(word) for word in words)


def _is_path(value: str) -> bool:
    """Whether a variable leads to its secret: the name of a file is none."""
    return value.startswith(("/", "~", "./", "../")) and os.path.exists(os.path.expanduser(value))


def _environment() -> frozenset[tuple[str, str]]:
    return frozenset(os.environ.items())


@lru_cache(maxsize=4)
def _known(environment: frozenset[tuple[str, str]]) -> tuple[re.Pattern[str], dict[str, str]] | None:
    """The pattern of all secret values in all ways to write them, and each way's variable."""
    ways = {way: name for name, value in secret_variables(dict(environment)).items() for way in _ways(value)}
    if not ways:
        return None
    longest_first = sorted(ways, key=len, reverse=True)  # a longer one may contain a shorter one
    return re.compile("|".join(map(re.escape, longest_first))), ways


def _ways(value: str) -> Iterator[str]:
    """A value as texts show it: itself, escaped, in a URL, its lines, and within base64 at any offset."""
    stripped = value.strip()
    yield from (value, stripped, json.dumps(stripped)[1:-1], repr(stripped)[1:-1])
    yield from (urllib.parse.quote(stripped, safe=""), urllib.parse.quote_plus(stripped))
    yield from (line.strip() for line in stripped.splitlines() if len(line.strip()) >= 2 * SHORTEST)
    data = stripped.encode(errors="surrogateescape")
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(bytes(offset) + data).decode()
            # without the characters that share bits with what is before or behind
            yield text[-(-offset * 8 // 6) : (offset + len(data)) * 8 // 6]


def _variable_in(text: str) -> str | None:
    """The secret environment variable whose value is in a text."""
    known = _known(_environment())
    found = known[0].search(text) if known is not None else None
    return known[1][found[0]] if known is not None and found else None


def _stars(found: re.Match[str]) -> str:
    return "".join(found[name] or "" for name in _KEPT) + STARS


def _quoted_stars(found: re.Match[str]) -> str:
    return found[0] if _SPECIAL_TOKEN.fullmatch(found[0].strip("b'\"")) else f"'{STARS}'"
