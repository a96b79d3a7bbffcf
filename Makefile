# Two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export OMP_NUM_THREADS := 1
# Without bytecode files every process compiles torch again, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup controlplane kueue kind-programs kind-up kind-env kind-down prometheus monitoring pictures demo test lint parity kills text-matrix fuzz fuzz-objects fuzz-clusters many-jobs bench bench-data bench-plan bench-cpu-plan bench-gpu bench-queue bench-foreign-pods bench-start bench-size bench-placement bench-fragmentation bench-localise bench-slow-links bench-autotune bench-packing crds chart images lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## .venv with everything that the other commands need
	@hack/setup.sh

controlplane: setup ## the Kubernetes control plane of the development cluster (built once)
	@python -m llmtrain_devcluster.control_plane.build

kueue: setup ## Kueue for the tests (built once)
	@python -m tests.support.kueue.build

prometheus: setup ## Prometheus and promtool for the tests (built once)
	@python -m llmtrain_monitoring.prometheus

kind-programs: setup ## the programs of a kind cluster (built once)
	@python -m llmtrain_kind.binaries > /dev/null

kind-up: kind-programs ## a kind cluster of three nodes, without an image registry (root, Debian)
	@python -m llmtrain_kind up

kind-env: setup ## the commands with which a shell uses the kind cluster: eval "$(make -s kind-env)"
	@python -m llmtrain_kind env

kind-down: setup ## remove the kind cluster and restore the machine
	@python -m llmtrain_kind down

demo: controlplane ## the main example on an embedded cluster (DEMO_KEEP=1, DEMO_REPORT=FILE)
	@python -m llmtrain_devcluster.demo

test: setup ## everything that CI runs, with the time of each tier
	@python hack/tiers.py

lint: setup ## only the static tier
	@python hack/tiers.py lint

parity: setup ## all layouts and schedules: results of one process, collectives of the plan
	@python -m pytest tests/trainer/parallel/test_parity.py tests/core/plan/test_communication.py -m torch -s -q

kills: setup ## twenty kills of ranks in four windows of a run; make test has one in each
	@python -m pytest tests/trainer/launcher/test_restart.py -m "torch and exhaustive" -s -q

text-matrix: setup ## published chat templates, tokenizers, real corpora and PEFT (downloads 80 MB once)
	@python -m pytest tests/trainer/data/bench_chat_templates.py tests/trainer/data/bench_real_corpora.py \
		tests/trainer/weights/bench_peft.py -s -q

fuzz: setup ## properties on fresh random examples, and all fixed cases; make test has the same sample each time
	@python -m pytest -q -n 2 -m "hypothesis or (unit and exhaustive)" --hypothesis-profile=fresh

fuzz-objects: controlplane ## 10,000 random hostile objects and 241 jobs of 1 MB against an operator
	@LLMTRAIN_FUZZ_OBJECTS=$(or $(OBJECTS),10000) LLMTRAIN_FUZZ_SEED=$(or $(SEED),0) LLMTRAIN_LARGE_JOBS=241 \
		python -m pytest tests/security/test_fuzz_objects.py tests/security/test_large_jobs.py -s -q

fuzz-clusters: setup ## 2,000 random clusters (CLUSTERS=2000) on which place, topology and the operator have to agree
	@LLMTRAIN_FUZZ_CLUSTERS=$(or $(CLUSTERS),2000) LLMTRAIN_FUZZ_SEED=$(or $(SEED),$(shell date +%s)) \
		python -m pytest tests/operator/scheduler/test_start_obstacles.py -s -q -n 2

many-jobs: controlplane ## 5,000 jobs of one tenant (JOBS=5000), and whether those of others start as usual
	@LLMTRAIN_MANY_JOBS=$(or $(JOBS),5000) python -m pytest tests/security/test_many_jobs.py -s -q

bench: setup ## benchmarks, with their tables
	@python -m pytest tests/perf -m perf -s

bench-data: setup ## CPU time of the preparation of data beside datatrove (OLD=COMMIT: and that commit)
	@OLD=$(OLD) python -m pytest tests/perf/bench_data.py -s -q

bench-placement: setup ## peers' communication time over the placement's, by fabric
	@python -m pytest tests/perf/bench_placement.py -s -q

bench-fragmentation: setup ## refusals and whole leaves over streams of jobs, against best fit
	@python -m pytest tests/perf/bench_fragmentation.py -s -q

bench-localise: setup ## the slow link on 1,000 random fabrics, false alarms of healthy jobs
	@python -m pytest tests/perf/bench_localise.py -s -q

bench-slow-links: setup ## slow uplinks and nodes of three racks of network namespaces, named by a real job (root)
	@python -m pytest tests/network/bench_slow_links.py -s -q

bench-autotune: setup ## communication settings that a job tries on two racks of network namespaces (root)
	@python -m pytest tests/network/bench_autotune.py -s -q

bench-packing: setup ## tokens/s of packed examples against one example per sequence
	@python -m pytest tests/perf/bench_packing.py -s -q

bench-plan: setup ## the planner's predictions against published runs
	@python -m pytest tests/perf/bench_plan.py -s -q

bench-cpu-plan: setup ## the planner's CPU time of a step against measurement (an idle machine)
	@python -m pytest tests/perf/bench_cpu_plan.py -s -q

bench-gpu: setup ## one real GPU: parity with the CPU, the plan's time and memory of a step
	@python -m pytest tests/perf/bench_gpu.py -s -q

bench-queue: controlplane ## 300 jobs on 128 scripted nodes against an oracle (an idle machine)
	@python -m pytest tests/operator/integration/bench_queue_trace.py -s -q

bench-foreign-pods: controlplane ## for how long kube-scheduler refuses pods of 300 jobs beside foreign ones (an idle machine)
	@python -m pytest tests/operator/integration/bench_foreign_pods.py -s -q

bench-start: controlplane ## writes and CPU of the API server per job, beside plain pods
	@python -m pytest tests/perf/bench_start.py -s -q

bench-size: controlplane ## memory and CPU of the operator with 100, 1,000 and 5,000 nodes
	@python -m pytest tests/perf/bench_operator_size.py -s -q

crds: setup ## write crds/ from the models
	@llmtrain crd --write crds

monitoring: setup ## write the dashboards and rules of the chart from hack/llmtrain_monitoring
	@python -m llmtrain_monitoring.write

chart: setup ## write the generated files of charts/ and deploy/
	@python -m llmtrain_chart

pictures: prometheus controlplane ## draw the dashboards of a real job and of faults (PICTURES=FOLDER)
	@LLMTRAIN_PICTURES=$(or $(PICTURES),runs/pictures) python -m pytest -q tests/monitoring -k picture

images: setup ## build the images with SBOM and sizes into dist/images (IMAGES="--save")
	@python -m llmtrain_images $(IMAGES)

lock: setup ## renew the hashed locks from pyproject.toml
	@hack/lock.sh

clean: ## remove .venv and caches inside the clone
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
