"""Redaction: values of secret environment variables become *** in what is printed, logged or kept of a trace."""

import os

SECRETS = ("HF_TOKEN",)


def redact(text: str) -> str:
    """The text without the values of secret environment variables."""
    for name in SECRETS:
        if secret := os.environ.get(name):
            text = text.replace(secret, "***")
    return text
