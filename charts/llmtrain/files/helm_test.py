"""Wait until one operator of each Deployment leads: HOST PORT LEADERS."""

import socket
import sys
import time
import urllib.request

LIMIT_SECONDS = 60


def leaders(host: str, port: int) -> int:
    """Return how many of the operator's pods hold a lease."""
    found = 0
    for *_, address in set(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)):
        name = f"[{address[0]}]" if ":" in address[0] else address[0]
        with urllib.request.urlopen(f"http://{name}:{port}/metrics", timeout=5) as answer:
            found += "\nllmtrain_operator_leader 1.0\n" in answer.read().decode()
    return found


host, port, wanted = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
deadline = time.monotonic() + LIMIT_SECONDS
while True:
    try:
        seen: object = leaders(host, port)
    except OSError as error:
        seen = error
    if seen == wanted:
        print(f"{seen} of {wanted} operators lead")
        break
    if time.monotonic() > deadline:
        sys.exit(f"{host}:{port}: {seen} operators lead, not {wanted}")
    time.sleep(1)
