# Two images from one file: `docker build --target operator .` and `--target trainer .`.
# The base is an argument; pin it by digest in a release.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY requirements/ requirements/
RUN python -m venv /opt/llmtrain
COPY pyproject.toml README.md LICENSE ./
COPY core/ core/
COPY operator/ operator/
COPY trainer/ trainer/
COPY cli/ cli/
COPY hack/llmtrain_devcluster/ hack/llmtrain_devcluster/
RUN python -m venv /opt/builder \
    && /opt/builder/bin/pip install --require-hashes -r requirements/build.txt \
    && /opt/builder/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# The operator: no torch, no compiler.
FROM build AS operator-build
RUN /opt/llmtrain/bin/pip install --require-hashes -r requirements/operator.txt \
    && /opt/llmtrain/bin/pip install --no-deps /wheels/*.whl

FROM ${BASE} AS operator
COPY --from=operator-build /opt/llmtrain /opt/llmtrain
ENV PATH=/opt/llmtrain/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
ENTRYPOINT ["python", "-m", "llmtrain_operator"]

# The trainer: no kopf, no Kubernetes client.
FROM build AS trainer-build
RUN /opt/llmtrain/bin/pip install --require-hashes -r requirements/trainer.txt \
    && /opt/llmtrain/bin/pip install --no-deps --require-hashes -r requirements/corpus.txt \
    && /opt/llmtrain/bin/pip install --no-deps /wheels/*.whl

FROM ${BASE} AS trainer
COPY --from=trainer-build /opt/llmtrain /opt/llmtrain
ENV PATH=/opt/llmtrain/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
USER 65532:65532
CMD ["python", "-m", "llmtrain_trainer.launch"]
