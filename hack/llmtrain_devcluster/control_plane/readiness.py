"""Query the API server or a component's health endpoint, without an event loop."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request


def fetch(url: str, token: str) -> tuple[int, str]:
    """Return (status, text) of a GET, or status 0 and the error if there is no response.

    The certificate is not checked: it is self-signed and, this early, may not exist yet.
    """
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=5) as response:
            return 200, str(response.read().decode())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (OSError, ValueError) as error:
        return 0, str(error)


def probe(url: str, token: str) -> str:
    """Return "ok" or a description of the problem."""
    status, text = fetch(url, token)
    return text if status == 200 else f"{status} {text[-300:]}"
