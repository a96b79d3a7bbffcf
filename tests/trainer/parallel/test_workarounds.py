"""Defects of torch that the trainer works around. A test that fails here means: mended upstream,
so remove the workaround it names."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.torch


def test_gloo_still_lacks_the_premultiplied_sum_of_a_divide_factor(
    run_world: Callable[..., Any],
) -> None:
    """`workarounds.disable_gradient_averaging`: set_force_sum_reduction_for_comms."""

    def body(rank: int) -> str:
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model = fully_shard(torch.nn.Linear(4, 4, bias=False), mesh=init_device_mesh("cpu", (2,)))
        model.set_gradient_divide_factor(1.0)
        try:
            model(torch.ones(2, 4)).sum().backward()
        except RuntimeError as error:
            return str(error)
        return "works"

    assert all("PREMUL_SUM" in text for text in run_world(2, body))


def test_stages_of_a_pipeline_still_exchange_pickles() -> None:
    """`workarounds.JsonPipelineStage`."""
    import inspect

    from torch.distributed.pipelining import PipelineStage

    for method in (PipelineStage._send_meta, PipelineStage._recv_meta):
        text = inspect.getsource(method)
        assert "_object_list" in text and "weights_only" not in text


def test_groups_of_a_mesh_still_ignore_the_timeout_they_inherit(
    run_world: Callable[..., Any],
) -> None:
    """`Grid.limit` sets every group by itself."""

    def body(rank: int) -> tuple[bool, bool]:
        import torch
        import torch.distributed as dist

        from llmtrain_core.layout import Layout
        from llmtrain_trainer.parallel.mesh import Grid

        grid = Grid.build(Layout(tensor=2, data=2), "cpu")

        def seconds(group: Any) -> float:
            backend = group._get_backend(torch.device("cpu"))
            return float(backend.options._timeout.total_seconds())

        inherited = seconds(grid.groups["tp"]) == seconds(dist.group.WORLD)
        grid.limit(timedelta(seconds=3))
        if rank % 2:
            return inherited, True
        try:  # the tensor partner never comes
            dist.all_reduce(torch.ones(1), group=grid.groups["tp"])
        except RuntimeError:
            return inherited, True
        return inherited, False

    results = run_world(4, body)
    assert not any(inherited for inherited, _ in results)
    assert all(expired for _, expired in results)


def test_torch_still_binds_its_store_to_the_wildcard() -> None:
    """`ports.listen` makes the socket that is handed over."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
    needle = f":{store.port:04X}"
    listening = [
        line.split()[1].removesuffix(needle)
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[1].endswith(needle) and line.split()[3] == "0A"
    ]
    assert listening in (["0" * 32], ["0" * 8])


def test_two_stores_share_a_port_on_different_addresses() -> None:
    from llmtrain_trainer.runtime.sockets import listen
    from llmtrain_trainer.worker.rendezvous import _serve

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    listeners = [listen(f"127.0.0.{last}", port) for last in (11, 12)]
    stores = [_serve(listener, 1, timedelta(seconds=5)) for listener in listeners]
    stores[0].set("who", "first")
    stores[1].set("who", "second")
    assert [store.get("who") for store in stores] == [b"first", b"second"]
