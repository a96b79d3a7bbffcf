"""What becomes of containers: exit codes, restarts, order, deadlines, their image."""

import asyncio

import pytest

from llmtrain_devcluster.api import Api
from tests.support.process_pods import ended, phase, pod, py, run, sh, state

pytestmark = pytest.mark.cluster


async def test_exit_code_and_termination_message(api: Api, namespace: str) -> None:
    own = sh("echo noise; printf '{\"error\": 1}' > /dev/termination-log; exit 3")
    falls_back = sh("echo the last words; exit 4", terminationMessagePolicy="FallbackToLogsOnError")
    other_path = sh("head -c 9000 /dev/zero | tr '\\0' x > /m", terminationMessagePath="/m")
    killed = py("import os, signal; os.kill(os.fork() or os.getpid(), signal.SIGKILL); os.wait()")
    shell = sh("sh -c 'kill -9 $$$$'; exit $?")
    first, second, third, fourth, fifth = await asyncio.gather(
        run(api, namespace, pod("own", own)),
        run(api, namespace, pod("falls-back", falls_back)),
        run(api, namespace, pod("other-path", other_path)),
        run(api, namespace, pod("survives", killed)),
        run(api, namespace, pod("shell", shell)),
    )
    assert phase(first) == "Failed"
    assert state(first)["terminated"]["exitCode"] == 3
    assert state(first)["terminated"]["reason"] == "Error"
    assert state(first)["terminated"]["message"] == '{"error": 1}'
    assert state(second)["terminated"]["message"] == "the last words\n"
    assert phase(third) == "Succeeded"
    assert state(third)["terminated"]["message"] == "x" * 4096
    assert state(third)["terminated"]["reason"] == "Completed"
    assert state(fourth)["terminated"]["exitCode"] == 0
    assert state(fifth)["terminated"]["exitCode"] == 137


async def test_command_that_does_not_exist(api: Api, namespace: str) -> None:
    done = await run(api, namespace, pod("nope", {**sh(""), "command": ["/no/such/program"]}))
    assert state(done)["terminated"]["exitCode"] == 128
    assert state(done)["terminated"]["reason"] == "StartError"
    assert "/no/such/program" in state(done)["terminated"]["message"]


async def test_restart_policy(api: Api, namespace: str) -> None:
    script = "n=$(cat /w/n 2>/dev/null || echo 0); echo $((n+1)) > /w/n; echo run $n; exit $((2-n))"
    mounts = [{"name": "w", "mountPath": "/w"}]
    volumes = [{"name": "w", "emptyDir": {}}]
    retried = pod("retried", sh(script, volumeMounts=mounts), volumes=volumes)
    retried["spec"]["restartPolicy"] = "OnFailure"
    done = await run(api, namespace, retried)
    status = done["status"]["containerStatuses"][0]
    assert phase(done) == "Succeeded"
    assert status["restartCount"] == 2
    assert status["lastState"]["terminated"]["exitCode"] == 1
    assert await api.logs("retried", namespace) == "run 2\n"
    assert await api.logs("retried", namespace, query={"previous": "true"}) == "run 1\n"

    always = pod("always", sh("exit 5"))
    always["spec"]["restartPolicy"] = "Always"
    await api.create("pods", always, namespace)

    def backs_off(found: dict | None) -> bool:
        return state(found).get("waiting", {}).get("reason") == "CrashLoopBackOff"

    found = await api.wait_for("pods", "always", backs_off, namespace, every=0.02)
    assert phase(found) == "Running"
    assert found["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 5


async def test_init_containers_run_in_order_and_can_fail(api: Api, namespace: str) -> None:
    mounts = [{"name": "w", "mountPath": "/w"}]
    first = {**sh("echo one >> /w/log", volumeMounts=mounts), "name": "first"}
    second = {**sh("echo two >> /w/log", volumeMounts=mounts), "name": "second"}
    main = sh("cat /w/log", volumeMounts=mounts)
    volumes = [{"name": "w", "emptyDir": {}}]
    good = pod("good", main, initContainers=[first, second], volumes=volumes)
    done = await run(api, namespace, good)
    assert phase(done) == "Succeeded"
    assert await api.logs("good", namespace, container="main") == "one\ntwo\n"
    broken = {**sh("exit 9"), "name": "broken"}
    bad = await run(api, namespace, pod("bad", sh("echo never"), initContainers=[broken]))
    assert phase(bad) == "Failed"
    assert bad["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 9
    assert state(bad)["waiting"]["reason"] == "PodInitializing"


async def test_deadline(api: Api, namespace: str) -> None:
    done = await run(api, namespace, pod("late", sh("exec sleep 600"), activeDeadlineSeconds=1))
    assert phase(done) == "Failed"
    assert done["status"]["reason"] == "DeadlineExceeded"
    assert state(done)["terminated"]["exitCode"] == 137


async def test_image_that_does_not_exist(api: Api, namespace: str) -> None:
    await api.create("pods", pod("typo", {**sh("exit 0"), "image": "llmtrain/tariner"}), namespace)
    await api.create("pods", pod("bad", {**sh("exit 0"), "image": "Bad Name"}), namespace)

    def waits_for(reason: str):
        return lambda found: state(found).get("waiting", {}).get("reason") == reason

    await api.wait_for("pods", "typo", waits_for("ErrImagePull"), namespace, every=0.02)
    found = await api.wait_for("pods", "typo", waits_for("ImagePullBackOff"), namespace)
    assert phase(found) == "Pending"
    assert "llmtrain/tariner" in state(found)["waiting"]["message"]
    await api.wait_for("pods", "bad", waits_for("InvalidImageName"), namespace)
    for name in ("typo", "bad"):
        await api.delete("pods", name, namespace)
        await api.wait_for("pods", name, lambda found: found is None, namespace)


async def test_configuration_that_comes_later(api: Api, namespace: str) -> None:
    reference = {"configMapKeyRef": {"name": "later", "key": "k"}}
    container = sh("echo got $K", env=[{"name": "K", "valueFrom": reference}])
    await api.create("pods", pod("waits", container), namespace)

    def misses(found: dict | None) -> bool:
        return state(found).get("waiting", {}).get("reason") == "CreateContainerConfigError"

    found = await api.wait_for("pods", "waits", misses, namespace)
    assert "later" in state(found)["waiting"]["message"]
    await api.create("configmaps", {"metadata": {"name": "later"}, "data": {"k": "v"}}, namespace)
    await api.wait_for("pods", "waits", ended, namespace)
    assert await api.logs("waits", namespace) == "got v\n"
