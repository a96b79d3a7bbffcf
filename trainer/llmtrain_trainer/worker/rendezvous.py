"""Rendezvous of the ranks: a TCPStore in the pod of rank 0, bound to that pod's own address."""

from __future__ import annotations

import socket
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from llmtrain_trainer.errors import PeerLostError
from llmtrain_trainer.runtime.sockets import listen

RETRY_SECONDS = 0.5


def join(
    rank: int,
    world_size: int,
    own_ip: str,
    master: tuple[str, int],
    timeout: timedelta,
    listener: socket.socket | None = None,
) -> Store:
    """Create the default process group and return its store; collective over all ranks.

    Rank 0 serves the store on `listener`, or opens the port of `master` itself.
    """
    store = (
        _serve(listener or listen(own_ip, master[1]), world_size, timeout)
        if rank == 0
        else _connect(master, world_size, timeout)
    )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    return store


def leave(store: Store, rank: int, world_size: int, timeout: timedelta) -> None:
    """Wait until every rank is done.

    Without it the first rank to exit, in particular rank 0 with the store, is a lost peer to those
    that still read their last messages.
    """
    store.set_timeout(timeout)
    if store.add("llmtrain/done", 1) == world_size:
        store.set("llmtrain/all-done", "1")
    store.wait(["llmtrain/all-done"])
    if rank:
        try:
            store.add("llmtrain/left", 1)
        except dist.DistError:
            return  # rank 0 counted this rank and exited before its reply arrived
    else:
        deadline = time.monotonic() + timeout.total_seconds()
        while store.add("llmtrain/left", 0) < world_size - 1 and time.monotonic() < deadline:
            time.sleep(0.01)


def _serve(listener: socket.socket, world_size: int, timeout: timedelta) -> TCPStore:
    address, port = listener.getsockname()[:2]
    return TCPStore(
        address,
        port,
        world_size,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def _connect(master: tuple[str, int], world_size: int, timeout: timedelta) -> TCPStore:
    """Connect to rank 0; its name may not resolve and its pod may not listen yet."""
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            address = str(socket.getaddrinfo(*master, type=socket.SOCK_STREAM)[0][4][0])
            with socket.create_connection((address, master[1]), timeout=5):
                break
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerLostError(
                    f"rank 0 at {master[0]}:{master[1]} did not answer: {error}"
                ) from error
            time.sleep(RETRY_SECONDS)
    return TCPStore(address, master[1], world_size, timeout=timeout, wait_for_workers=False)
