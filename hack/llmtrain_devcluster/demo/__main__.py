"""`make demo`: start a cluster, apply the example, watch the training, show the result.

Only the hardware is simulated. The API server, the scheduler and the operator with its shipped RBAC
are real; pods are processes that run torch. DEMO_KEEP=1 leaves the cluster up; DEMO_REPORT=FILE
also writes the result as JSON; DEMO_JOB=FILE runs another manifest.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.live import Live

from llmtrain_devcluster import detached
from llmtrain_devcluster.api import Api
from llmtrain_devcluster.control_plane.control_plane import ClusterError
from llmtrain_devcluster.demo import report, view
from llmtrain_devcluster.demo.demo_cluster import JOBS, NAME, NAMESPACE, DemoCluster

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "sotu-3d.yaml"
TIMEOUT_SECONDS = 900.0
POLL_SECONDS = 1.0
LOG_SECONDS = 15.0
FINAL = {"Succeeded", "Failed", "Rejected"}

Object = dict[str, Any]


async def watch(api: Api, name: str, console: Console, start: float) -> Object:
    """Show the job until it has ended; return its last state."""
    shown = 0.0
    with Live(console=console, auto_refresh=False, transient=True) as screen:
        while True:
            job = await api.get(JOBS, name, NAMESPACE)
            pods = await api.list("pods", NAMESPACE)
            seconds = time.monotonic() - start
            if console.is_terminal:
                screen.update(view.live(job, pods, seconds), refresh=True)
            elif seconds - shown >= LOG_SECONDS:
                console.print(view.line(job, seconds))
                shown = seconds
            if (job.get("status") or {}).get("phase") in FINAL:
                return job
            if seconds > TIMEOUT_SECONDS:
                raise ClusterError(f"the job did not end within {TIMEOUT_SECONDS:.0f} s")
            await asyncio.sleep(POLL_SECONDS)


async def run_job(
    demo_cluster: DemoCluster, manifest: Object, console: Console, start: float
) -> Object:
    """Install, apply, watch, show and report; return the finished job."""
    async with demo_cluster.cluster.client() as api:
        await demo_cluster.install(api)
        console.print(f"operator up after {time.monotonic() - start:.0f} s")
        await api.create(JOBS, manifest, NAMESPACE)
        console.print(f"applied {manifest['metadata']['name']}")
        job = await watch(api, manifest["metadata"]["name"], console, start)
        nodes = await api.list("nodes")
    report.show(console, job, time.monotonic() - start)
    target = os.environ.get("DEMO_REPORT")
    if target:
        result = report.as_json(job, nodes, time.monotonic() - start)
        Path(target).write_text(json.dumps(result, indent=2), encoding="utf-8")
    return job


def explain_failure(console: Console, job: Object, demo_cluster: DemoCluster) -> None:
    """Show why the job did not succeed, and the end of the operator's log."""
    console.print(f"[bold red]{view.explanation(job['status'])}[/]")
    console.print(demo_cluster.cluster.log_tail("operator", 20), markup=False)


def next_steps(console: Console, kubeconfig: str, manifest: Mapping[str, Any]) -> None:
    """Print commands for a cluster that keeps running."""
    name = manifest["metadata"]["name"]
    console.print(
        f"\nThe cluster keeps running. Inspect it with:\n"
        f"  export KUBECONFIG={kubeconfig}\n"
        f"  .venv/bin/kubectl get ltj -n {NAMESPACE} -o wide\n"
        f"  .venv/bin/kubectl describe ltj {name} -n {NAMESPACE}\n"
        f"  .venv/bin/kubectl logs -n {NAMESPACE} {name}-0-0\n"
        "and stop it with:\n"
        f"  .venv/bin/llmtrain cluster down --name {NAME}",
        highlight=False,
    )


def main() -> int:
    """Run the demo; the exit code is 0 if the job succeeded."""
    console = Console(highlight=False, soft_wrap=True)
    manifest = yaml.safe_load(Path(os.environ.get("DEMO_JOB") or EXAMPLE).read_text("utf-8"))
    keep = os.environ.get("DEMO_KEEP") == "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start = time.monotonic()
    demo_cluster = DemoCluster.new()
    try:
        if keep:
            detached.check_free(NAME)
        with demo_cluster.cluster:
            seconds = time.monotonic() - start
            console.print(
                f"control plane up at {demo_cluster.cluster.url} after {seconds:.0f} s,"
                f" files in {demo_cluster.cluster.folder}"
            )
            demo_cluster.start_nodes()
            console.print(
                f"{demo_cluster.describe_nodes()} up after {time.monotonic() - start:.0f} s"
            )
            job = asyncio.run(run_job(demo_cluster, manifest, console, start))
            succeeded = job["status"]["phase"] == "Succeeded"
            if not succeeded:
                explain_failure(console, job, demo_cluster)
            if keep:
                next_steps(console, demo_cluster.keep(), manifest)
    except ClusterError as error:
        console.print(f"demo: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("demo: stopped; everything is removed")
        return 130
    if not keep:
        console.print(
            "\nNext: `make demo DEMO_KEEP=1` keeps the cluster for kubectl;"
            " docs/trainer.md explains the metrics; examples/ has larger jobs."
        )
    return 0 if succeeded else 1


if __name__ == "__main__":
    sys.exit(main())
