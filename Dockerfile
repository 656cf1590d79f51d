# syntax=docker/dockerfile:1
# Two targets: `cpu` (default) and `gpu`. Every step is in deploy/image_steps.sh, which
# `make image-check` runs without Docker.
#   docker build --target cpu -t headrace .
#   docker run -p 8080:8080 -v ./models:/srv/models -v ./headrace.yaml:/srv/headrace.yaml headrace

FROM python:3.11-slim AS source
WORKDIR /src
COPY . .
RUN deploy/image_steps.sh compiler

FROM source AS cpu-install
RUN deploy/image_steps.sh install lock/runtime.txt /opt/headrace

FROM source AS gpu-install
RUN deploy/image_steps.sh install lock/runtime-gpu.txt /opt/headrace

FROM python:3.11-slim AS base
ENV PATH=/opt/headrace/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
COPY deploy/image_steps.sh /tmp/image_steps.sh
RUN /tmp/image_steps.sh user headrace && rm /tmp/image_steps.sh
WORKDIR /srv
USER headrace
EXPOSE 8080 8081
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["headrace"]
CMD ["up", "/srv/headrace.yaml"]

FROM base AS gpu
COPY --from=gpu-install /opt/headrace /opt/headrace

FROM base AS cpu
COPY --from=cpu-install /opt/headrace /opt/headrace
