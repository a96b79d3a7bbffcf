"""What a pod sees: its environment, its volumes, its neighbours."""

import asyncio
from pathlib import Path

import pytest

from llmtrain_devcluster.api import Api
from tests.support.process_pods import POD_IP, is_ready, phase, pod, py, run, sh, state

pytestmark = pytest.mark.cluster


SEEN = """
    echo "ip=$IP node=$NODE name=$NAME label=$LABEL note=$NOTE conf=$CONF sum=$SUM home=$HOME"
    echo "args=$0 void=$NVIDIA_VISIBLE_DEVICES pwd=$(pwd) host=$(hostname)"
    cat /etc/llmtrain/job.json; echo; ls /etc/llmtrain
    cat /projected/a /projected/labels /projected/s; echo
    echo shared > /pod-work/file; echo shm > /dev/shm/file; ls /tmp | wc -l
    touch /etc/llmtrain/nope 2>/dev/null || echo read-only
    python -c 'import llmtrain_core; print("trainer image")'
"""


def field(name: str, path: str) -> dict:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def container_with_everything() -> dict:
    mounts = {
        "/etc/llmtrain": "conf",
        "/projected": "projected",
        "/pod-work": "work",
        "/var/lib/llmtrain": "work",
        "/tmp": "tmp",
        "/dev/shm": "shm",
    }
    return sh(
        SEEN,
        args=["$(NAME)-$$(NAME)-$(UNKNOWN)"],
        workingDir="/var/lib/llmtrain",
        env=[
            POD_IP,
            field("NODE", "spec.nodeName"),
            field("NAME", "metadata.name"),
            field("LABEL", "metadata.labels['l']"),
            field("NOTE", "metadata.annotations['n']"),
            {"name": "CONF", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "key"}}},
            {"name": "SUM", "value": "$(CONF)+$(LABEL)"},
        ],
        volumeMounts=[{"name": name, "mountPath": path} for path, name in mounts.items()],
    )


def volumes_of_every_kind() -> list[dict]:
    labels = {"fieldRef": {"fieldPath": "metadata.labels"}, "path": "labels"}
    sources = [
        {"configMap": {"name": "conf", "items": [{"key": "other", "path": "a"}]}},
        {"downwardAPI": {"items": [labels]}},
        {"secret": {"name": "hidden"}},
    ]
    job = {"key": "job.json", "path": "job.json"}
    return [
        {"name": "conf", "configMap": {"name": "conf", "items": [job]}},
        {"name": "projected", "projected": {"sources": sources}},
        {"name": "work", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
    ]


async def test_environment_and_volumes(api: Api, namespace: str) -> None:
    data = {"job.json": '{"a": 1}', "other": "x", "key": "from-config"}
    await api.create("configmaps", {"metadata": {"name": "conf"}, "data": data}, namespace)
    secret = {"metadata": {"name": "hidden"}, "stringData": {"s": "secret-value"}}
    await api.create("secrets", secret, namespace)
    manifest = pod(
        "full",
        container_with_everything(),
        meta={"labels": {"l": "blue"}, "annotations": {"n": "noted"}},
        volumes=volumes_of_every_kind(),
    )
    done = await run(api, namespace, manifest)
    log = await api.logs("full", namespace)
    assert phase(done) == "Succeeded", log
    address, node = done["status"]["podIP"], done["spec"]["nodeName"]
    assert f"ip={address} node={node} name=full label=blue note=noted conf=from-config" in log
    assert "sum=from-config+blue home=/root" in log
    assert "args=full-$(NAME)-$(UNKNOWN) void=void pwd=/var/lib/llmtrain host=full" in log
    assert '{"a": 1}\njob.json\n' in log
    assert 'xl="blue"\nsecret-value\n0\nread-only\ntrainer image\n' in log
    assert not Path("/pod-work/file").exists()
    assert not Path("/dev/shm/file").exists()


NEIGHBOUR = """
    import os, socket, sys, time
    me, peer, ns = int(sys.argv[1]), 1 - int(sys.argv[1]), sys.argv[2]
    open("/tmp/mine", "w").write(str(me))
    server = socket.create_server((os.environ["IP"], 29500))
    names = [f"gang-{peer}.gang.{ns}.svc.cluster.local", f"gang-{peer}.gang.{ns}.svc",
             f"gang-{peer}.gang"]
    for name in names:
        for _ in range(200):
            try:
                socket.create_connection((name, 29500), 1).close()
                break
            except OSError as error:
                last = error
                time.sleep(0.1)
        else:
            sys.exit(f"{name}: {last}")
    for name in (f"gang.{ns}.svc.cluster.local", "gang"):
        for _ in range(100):
            found = {info[4][0] for info in socket.getaddrinfo(name, 1, socket.AF_INET)}
            if len(found) == 2:
                break
            time.sleep(0.1)
        assert len(found) == 2, (name, found)
    assert socket.gethostbyname(socket.gethostname()) == os.environ["IP"]
    try:
        socket.getaddrinfo("outside.example", 1)
        sys.exit("an outside name was asked for")
    except socket.gaierror as error:
        assert error.errno == socket.EAI_NONAME, error
    assert os.listdir("/tmp") == ["mine"] and open("/tmp/mine").read() == str(me)
    time.sleep(2)
    print("fine")
"""


async def test_names_ports_and_files_of_two_pods(api: Api, namespace: str) -> None:
    """Two pods bind one port, find each other by every form of name, and share no files."""
    service = {
        "metadata": {"name": "gang"},
        "spec": {
            "clusterIP": "None",
            "selector": {"app": "gang"},
            "publishNotReadyAddresses": True,
        },
    }
    await api.create("services", service, namespace)
    pods = [
        pod(
            f"gang-{i}",
            {**py(NEIGHBOUR, env=[POD_IP]), "args": [str(i), namespace]},
            meta={"labels": {"app": "gang"}},
            hostname=f"gang-{i}",
            subdomain="gang",
            nodeName=f"node-{i}",
        )
        for i in range(2)
    ]
    done = await asyncio.gather(*(run(api, namespace, one) for one in pods))
    for one in done:
        log = await api.logs(one["metadata"]["name"], namespace)
        assert (phase(one), log) == ("Succeeded", "fine\n")
    assert done[0]["status"]["podIP"] != done[1]["status"]["podIP"]
    assert not Path("/tmp/mine").exists()


async def test_readiness_probe(api: Api, namespace: str) -> None:
    script = 'sleep 0.7; exec python -m http.server 8080 --bind "$IP"'
    probe = {"httpGet": {"path": "/", "port": "web"}, "periodSeconds": 1}
    ports = [{"name": "web", "containerPort": 8080}]
    container = sh(script, env=[POD_IP], readinessProbe=probe, ports=ports)
    await api.create("pods", pod("web", container), namespace)
    found = await api.wait_for("pods", "web", lambda one: "running" in state(one), namespace)
    assert not is_ready(found)
    await api.wait_for("pods", "web", is_ready, namespace)


def volume_and_claim(namespace: str, path: Path) -> tuple[dict, dict]:
    volume = {
        "metadata": {"name": f"pv-{namespace}"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany"],
            "hostPath": {"path": str(path)},
            "storageClassName": "",
            "claimRef": {"namespace": namespace, "name": "kept"},
        },
    }
    claim = {
        "metadata": {"name": "kept"},
        "spec": {
            "storageClassName": "",
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
            "volumeName": f"pv-{namespace}",
        },
    }
    return volume, claim


async def test_restricted_pod_security_and_claims(api: Api, namespace: str, tmp_path: Path) -> None:
    """The shape of the operator's pods is admitted, and a claimed volume outlives a pod."""
    level = {"pod-security.kubernetes.io/enforce": "restricted"}
    await api.patch("namespaces", namespace, {"metadata": {"labels": level}})
    volume, claim = volume_and_claim(namespace, tmp_path / "kept")
    await api.create("persistentvolumes", volume)
    await api.create("persistentvolumeclaims", claim, namespace)
    container = sh(
        "echo $(cat /kept/f) again >> /kept/f; cat /kept/f",
        volumeMounts=[{"name": "kept", "mountPath": "/kept"}],
        securityContext={"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    )
    for name in ("first", "second"):
        one = pod(
            name,
            container,
            volumes=[{"name": "kept", "persistentVolumeClaim": {"claimName": "kept"}}],
            automountServiceAccountToken=False,
            securityContext={
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        )
        assert phase(await run(api, namespace, one)) == "Succeeded"
    assert "again again" in await api.logs("second", namespace)
    await api.delete("persistentvolumes", f"pv-{namespace}")
