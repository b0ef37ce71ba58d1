"""Secrets are known by name, by form and by the environment, and replaced wherever they are; ordinary text is kept."""

from __future__ import annotations

import base64
import hashlib
import json
import string
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modlib.components import known_components, load_component
from modlib.runtime.secrets import FORMS, is_secret_name, mask, masked, masked_config, secret_variables, why_secret

# made when the test runs: no file of this repository holds what looks like a live key
LETTERS = "".join(
    c for c in base64.b64encode(hashlib.sha512(b"a canary of the tests").digest()).decode() if c.isalnum()
)
HEX = hashlib.sha256(b"a canary of the tests").hexdigest()
KEY = "hf_" + LETTERS[:32]
LOOK_LIKE_SECRETS = {
    "Hugging Face": KEY,
    "OpenAI": "sk-proj-" + LETTERS[:40],
    "GitHub": "ghp_" + LETTERS[:36],
    "GitHub, fine-grained": "github_pat_" + LETTERS[:22] + "_" + LETTERS[:40],
    "GitLab": "glpat-" + LETTERS[:20],
    "AWS": "AKIA" + LETTERS.upper()[:16],
    "Google": "AIza" + LETTERS[:35],
    "Google OAuth": "ya29." + LETTERS[:40],
    "Slack": "xoxb-" + "123456789012-" + LETTERS[:24],
    "Slack webhook": "https://hooks.slack.com/services/" + "T0/B0/" + LETTERS[:24],
    "W&B, new": "wandb_v1_" + LETTERS[:40],
    "Stripe": "sk_live_" + LETTERS[:24],
    "Stripe, restricted": "rk_test_" + LETTERS[:24],
    "npm": "npm_" + LETTERS[:36],
    "Docker": "dckr_pat_" + LETTERS[:27],
    "PyPI": "pypi-" + LETTERS[:60],
    "SendGrid": "SG." + LETTERS[:22] + "." + LETTERS[:43],
    "JWT": "eyJ" + LETTERS[:20] + ".eyJ" + LETTERS[:30] + "." + LETTERS[:43],
    "Telegram": "123456789:AA" + LETTERS[:33],
    "Azure": "AccountKey=" + LETTERS[:60] + "==",
    "Databricks": "dapi" + HEX[:32],
    "URL": "postgres://me:" + LETTERS[:12] + "@db.example.org:5432/x",
    "proxy": "http://someone:" + LETTERS[:9] + "@proxy:3128",
    "signed URL": "https://x.example.org/f?X-Amz-Signature=" + HEX,
    "PEM": "-----BEGIN RSA PRIVATE KEY-----\n" + LETTERS[:64] + "\n-----END RSA PRIVATE KEY-----",
    "PEM, cut off": "-----BEGIN OPENSSH PRIVATE KEY-----\\n" + LETTERS[:64],
    "bearer": "Bearer " + LETTERS[:20] + "7",
    "header": "Authorization: Basic " + LETTERS[:20],
}
SECRET_NAMES = (
    "API_KEY HF_TOKEN PASSWORD SECRET PRIVATE_KEY WANDB_KEY MY_TOKEN PAT GITHUB_PAT AUTH BASIC_AUTH auth_header BEARER "
    "DB_URL DATABASE_URL REDIS_URI CREDENTIALS credential PASSPHRASE COOKIE cookies WEBHOOK webhook_url SENTRY_DSN JWT "
    "MYSQL_PWD AWS_SECRET_ACCESS_KEY api_keys hfToken accessToken val/Service.apiKey token client_secret slack_token "
    "connection_string"
)  # fmt: skip
ORDINARY_NAMES = (
    "TOKENS_PER_STEP AUTHOR num_tokens NUM_TOKENS eos_token end_token pad_token_id image_token FLOPS_PER_TOKEN "
    "sample_key key keys sort_key image_key tokenizer TOKENIZERS_PARALLELISM PATH PATTERN pat_str compat PWD OLDPWD "
    "token_type password_file HF_TOKEN_PATH auth_method authors keyboard MONKEY max_tokens project notes prompt "
    "secretary SSH_AUTH_SOCK COOKIECUTTER passage bypass"
)  # fmt: skip
ORDINARY_TEXTS = (
    HEX, HEX[:40], "runs/quickstart-1a2b3c4d/checkpoints/step-00000100", "https://example.org/a?b=c&page=12345678",
    "s3://bucket/folder@2", "git@github.com:someone/project.git", "a bearer of good news: internationalization",
    "https://huggingface.co/openai-community/gpt2", "2026-11-30 12:00:01 train step=10/400 loss=7.1234 tokens/s=59",
    "sk-learn and risk-aware-models-of-the-world", "-----BEGIN PUBLIC KEY-----", "the key is in the token file",
    "ssh://login@host:22/x", "authorization is not needed", "123e4567-e89b-12d3-a456-426614174000", "eyJ is base64",
)  # fmt: skip


@pytest.mark.parametrize("secret", LOOK_LIKE_SECRETS.values(), ids=LOOK_LIKE_SECRETS)
def test_forms_are_refused_and_masked_alone_and_inside_of_text(secret: str) -> None:
    reason = why_secret("Service.note", secret)
    assert reason is not None
    assert reason.startswith("a secret (")
    assert reason[len("a secret (") : -1] in FORMS
    for text in (secret, f"see '{secret}' there", f"x={secret}\ny", json.dumps({"a": [secret]}), repr(secret)):
        assert not any(part in mask(text) for part in (LETTERS[:9], LETTERS[:9].upper(), HEX[:9])), mask(text)
        assert mask(mask(text)) == mask(text)
    json.loads(mask(json.dumps({"a": [secret]})))


@pytest.mark.parametrize("name", SECRET_NAMES.split())
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)
    assert why_secret(name, "abc") == "a secret"
    assert why_secret(name, "") is None
    assert masked(name, "abc") == "***"


@pytest.mark.parametrize("name", ORDINARY_NAMES.split())
def test_names_of_ordinary_things(name: str) -> None:
    assert not is_secret_name(name)
    if name.isupper():  # of a variable any KEY counts
        assert secret_variables({name: "a long enough value"}) == {}


@pytest.mark.parametrize("text", ORDINARY_TEXTS)
def test_ordinary_texts_are_kept(text: str) -> None:
    assert why_secret("Service.note", text) is None
    assert mask(text) == text


WORDS = (
    "tokens tokenizer author num steps per step batch size lr seq len data path run name key word vocab train eval "
    "loss model layer head dim norm file keyword passes patch pattern sequence document window"
)


@given(st.lists(st.sampled_from(WORDS.split()), min_size=1, max_size=5), st.sampled_from("_.-/ "))
def test_words_of_the_trade_are_neither_names_nor_values_of_secrets(words: list[str], between: str) -> None:
    name = "_".join(words)
    assert not is_secret_name(name)
    assert not is_secret_name(name.upper())
    assert secret_variables({name.upper().replace("KEY", "WORD"): "a long enough value"}) == {}
    text = between.join(words)
    assert mask(text) == text
    assert why_secret(name, text) is None


@given(
    st.lists(
        st.one_of(
            st.integers(),
            st.floats(),
            st.uuids(),
            st.datetimes(),
            st.binary(max_size=40).map(bytes.hex),
            st.text(string.ascii_letters + " ./=,:'\"-", max_size=30),
        ),
        max_size=6,
    )
)
def test_numbers_hashes_and_prose_are_kept(parts: list[object]) -> None:
    text = " ".join(map(str, parts))
    if "hf_" not in text and "sk-" not in text:
        assert mask(text) == text


@given(st.text(max_size=300))
def test_masking_twice_changes_nothing_more(text: str) -> None:
    assert mask(mask(text)) == mask(text)


def test_no_parameter_of_the_catalogue_has_a_secrets_name_or_default() -> None:
    from modlib.config.signatures import signature_of

    for entry in known_components():
        for name, parameter in signature_of(load_component(entry)).parameters.items():
            assert not is_secret_name(name), (entry, name)
            if not parameter.required:
                assert why_secret(name, parameter.default) is None, (entry, name)


@pytest.mark.parametrize(
    ("name", "value", "safe"),
    [
        ("Service.api_key", "abc", "***"),
        ("Service.hf_token", ["abc", "", None], ["***", "", None]),
        ("Service.headers", {"api_key": "abc", "name": "abc"}, {"api_key": "***", "name": "abc"}),
        ("Service.credentials", {"user": "abc"}, {"user": "***"}),
        ("Service.name", f"before {KEY} after", "before *** after"),
        ("Service.names", ("a", KEY), ("a", "***")),
        ("Service.data", KEY.encode(), b"***"),
        ("", {"Service.api_key": "abc", KEY: 1}, {"Service.api_key": "***", "***": 1}),
        ("Sampler.num_tokens", 12, 12),
        ("Tokenizer.eos_token", "<eos>", "<eos>"),
        ("Tokenizer.my_token", "<|im_end|>", "<|im_end|>"),
        ("x.secret", 5, 5),
    ],
)
def test_a_value(name: str, value: object, safe: object) -> None:
    assert masked(name, value) == safe


def test_a_config_keeps_all_else() -> None:
    text = (
        "Service:\n"
        "    api_key = 'it\\'s = one'\n"
        '    password = "two"  # kept\n'
        f"    note = 'see {KEY}'\n"
        "    eos_token = '<eos>'\n"
        "    # secret = 'three' (default)\n"
    )
    assert masked_config(text) == (
        "Service:\n"
        "    api_key = '***'\n"
        "    password = '***'  # kept\n"
        "    note = 'see ***'\n"
        "    eos_token = '<eos>'\n"
        "    # secret = '***' (default)\n"
    )


def test_the_value_of_a_secret_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", "long-enough")
    assert masked("Service.note", "it is long-enough") == "it is ***"
    assert masked_config("note = 'long-enough'\n") == "note = '***'\n"
    assert why_secret("Service.note", ["x", "it is long-enough"]) == (
        "the value of the environment variable MY_PASSWORD, which is a secret"
    )


VARIABLES = (
    "WANDB_API_KEY GITHUB_PAT DATABASE_URL AWS_CREDENTIALS SSH_PASSPHRASE PROXY_AUTH SITE_COOKIE SLACK_WEBHOOK "
    "PGPASSWORD GITHUBTOKEN OPENAIAPIKEY SLURM_JWT DEPLOY_KEY2"
)


@pytest.mark.parametrize("variable", VARIABLES.split())
def test_variables_of_secrets(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = "s3/cr+et \"quoted\" 'and' \\more"
    monkeypatch.setenv(variable, value)
    data = value.encode()
    ways = [value, json.dumps(value), repr(value), urllib.parse.quote(value, safe=""), urllib.parse.quote_plus(value)]
    ways += [base64.b64encode(before + data + b"tail").decode() for before in (b"", b"u", b"u:", b"me:")]
    ways += [base64.urlsafe_b64encode(data).decode()]
    for way in ways:
        text = mask(f"before {way} after")
        assert text.startswith("before ")
        assert text.endswith(" after")
        assert "***" in text
        for start in range(0, len(way) - 8, 4):
            assert way[start : start + 12] not in text or len(way[start : start + 12]) < 12


def test_short_values_paths_and_own_variables_are_not_looked_for(tmp_path: object) -> None:
    environment = {"SHORT_SECRET": "true", "MY_KEY": str(tmp_path), "MODLIB_RENDEZVOUS_TOKEN": "run/1/5.0"}
    assert secret_variables(environment) == {}
    assert secret_variables({"MY_KEY": "/no/such/file", "MY_SECRET": "12345678"}) == {
        "MY_KEY": "/no/such/file",
        "MY_SECRET": "12345678",
    }
