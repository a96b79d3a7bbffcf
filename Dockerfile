# Images of llmtrain: `docker build --target operator .` and `docker build --target trainer .`.
# They need BuildKit. docs/images.md says what the arguments are.
# `make images` builds without an image registry and without a network.
#
# The base, by digest: a tag may name other files tomorrow.
ARG BASE
# The same system with Python's venv module, where BASE has none.
ARG BUILD_BASE=${BASE}
# `cuda`, or `cpu` for tests without a GPU.
ARG VARIANT=cuda

# Folders with wheels, in place of the package index: `--build-context tool-wheels=FOLDER`.
FROM scratch AS tool-wheels
FROM scratch AS operator-wheels
FROM scratch AS trainer-wheels
# The lock and the CUDA libraries of VARIANT=cpu.
FROM scratch AS cpu-libraries

FROM ${BUILD_BASE} AS tools
# Files have this time and nothing depends on the order of a hash, so that two builds are equal.
ARG SOURCE_DATE_EPOCH=1767225600
ARG PIP_NO_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_FIND_LINKS=/wheels \
    PIP_ROOT_USER_ACTION=ignore PYTHONHASHSEED=0
WORKDIR /src
COPY requirements/build.txt requirements/
COPY hack/llmtrain_images/install.sh /usr/local/bin/install-packages
RUN --mount=type=bind,from=tool-wheels,target=/wheels \
    python3 -m venv /opt/builder \
    && /opt/builder/bin/pip install --require-hashes -r requirements/build.txt \
    && python3 -m venv --without-pip /opt/llmtrain && mkdir -p /packages/opt \
    && mv /opt/llmtrain /packages/opt/ && ln -s /packages/opt/llmtrain /opt/llmtrain

# Our own packages, in a layer of their own: a change of them does not change the large layers.
FROM tools AS app
ARG BASE
RUN case "${BASE}" in *@sha256:*|llmtrain.local/base:*) ;; \
    *) echo "name BASE by digest, NAME@sha256:DIGEST: see docs/images.md" >&2; exit 1 ;; esac
COPY pyproject.toml README.md LICENSE ./
COPY core/ core/
COPY operator/ operator/
COPY trainer/ trainer/
COPY cli/ cli/
COPY hack/llmtrain_devcluster/ hack/llmtrain_devcluster/
RUN /opt/builder/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && install-packages --root /app --no-index /dist/*.whl

# The operator: no torch, no compiler.
FROM tools AS operator-packages
COPY requirements/operator.txt requirements/
RUN --mount=type=bind,from=operator-wheels,target=/wheels \
    install-packages --require-hashes -r requirements/operator.txt

FROM ${BASE} AS operator
ARG BASE
COPY --from=operator-packages /packages/ /
COPY --from=app /app/ /
ENV PATH=/opt/llmtrain/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
LABEL org.opencontainers.image.title="llmtrain operator" org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.base.name="${BASE}"
USER 65532:65532
ENTRYPOINT ["python", "-m", "llmtrain_operator"]

# The trainer: no kopf, no Kubernetes client.
FROM tools AS trainer-packages-cuda
COPY requirements/trainer.txt requirements/corpus.txt requirements/
RUN --mount=type=bind,from=trainer-wheels,target=/wheels \
    install-packages --require-hashes -r requirements/trainer.txt -r requirements/corpus.txt

FROM tools AS trainer-packages-cpu
COPY requirements/corpus.txt requirements/
RUN --mount=type=bind,from=trainer-wheels,target=/wheels \
    --mount=type=bind,from=cpu-libraries,target=/cpu \
    cp -r /cpu/nvidia "$(/opt/llmtrain/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
    && install-packages --require-hashes -r /cpu/requirements.txt -r requirements/corpus.txt

FROM trainer-packages-${VARIANT} AS trainer-packages

FROM ${BASE} AS trainer
ARG BASE
ARG VARIANT
COPY --from=trainer-packages /packages/ /
COPY --from=app /app/ /
ENV PATH=/opt/llmtrain/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
LABEL org.opencontainers.image.title="llmtrain trainer" org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.base.name="${BASE}" dev.llmtrain.variant="${VARIANT}"
USER 65532:65532
CMD ["python", "-m", "llmtrain_trainer.launch"]
