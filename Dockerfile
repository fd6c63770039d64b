# One worker, two images:
#   docker build --target worker-cpu -t slipstream:cpu .     any machine
#   docker build --target worker     -t slipstream:cuda .    torch with CUDA, for machines with a GPU
# The model is not in the image: mount a directory and name it in SLIPSTREAM_MODEL.
# Versions are requirements.lock's, which is what the tests ran with, on the same Python.
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    SLIPSTREAM_HEALTH_FILE=/tmp/slipstream-healthy \
    SLIPSTREAM_LOG_FORMAT=json
STOPSIGNAL SIGTERM
# A large model takes minutes to load; after that a minute without a sign of life makes the container unhealthy.
HEALTHCHECK --interval=15s --timeout=10s --start-period=300s --retries=4 CMD ["python", "-m", "worker", "health"]
ENTRYPOINT ["python", "-m", "worker"]
WORKDIR /app
# The C kernels are compiled for the processor they meet, at a worker's first start; Triton compiles its launchers.
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 slipstream \
 && pip install "pip>=25.1"
COPY pyproject.toml requirements.lock ./
# pip installs a group by itself (25.1 and later), but a project's own dependencies only together with the project.
# A CUDA build of torch demands the triton it was made with, so there that one pin goes.
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    > own.txt \
 && grep -v "^triton==" requirements.lock > cuda.lock


FROM base AS worker
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN pip install -c cuda.lock -r own.txt --group worker
# Hugging Face's package `kernels` and ours can't live together; nothing may have brought it in.
RUN ! pip show --quiet kernels
COPY producer ./producer
COPY kernels ./kernels
COPY worker ./worker
USER slipstream


# torch's CPU build is "+cpu" in the indexes that carry it: name one in PIP_EXTRA_INDEX_URL. The plain build that is taken
# without one runs on a CPU too, and brings gigabytes of CUDA libraries along.
FROM base AS worker-cpu
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN torch="$(grep '^torch==' requirements.lock)+cpu" \
 && { pip install -c requirements.lock -r own.txt --group worker "$torch" \
   || { echo "no $torch to be had: taking the plain build, CUDA libraries and all" >&2 \
     && pip install -c cuda.lock -r own.txt --group worker; }; }
RUN ! pip show --quiet kernels
COPY producer ./producer
COPY kernels ./kernels
COPY worker ./worker
USER slipstream
