"""Nothing secret in what anybody reads."""

import os

SECRETS = ("HF_TOKEN",)


def redact(text: str) -> str:
    """The text without the values of secret environment variables."""
    for name in SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return text
