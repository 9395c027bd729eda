# The launcher: llmproxy with the Docker CLI's Compose, run as a user of its own.
#
#   docker build -t llmproxy .
#   docker build --build-arg BASE_IMAGE=... --build-arg PIP_NO_INDEX=1 -t llmproxy .     (wheels in deploy/wheelhouse)
#   docker build --target demo -t llmproxy-demo .          a stand-in for vLLM's image, for a machine with no GPU
#
# BASE_IMAGE is Python's slim image, or a bare Debian (bookworm or newer) with python3.
ARG BASE_IMAGE=python:3.13-slim

# ---- llmproxy in a virtual environment of its own -------------------------------------------------------------
FROM ${BASE_IMAGE} AS build
ARG PIP_NO_INDEX
ENV PIP_NO_INDEX=${PIP_NO_INDEX} PIP_FIND_LINKS=/wheelhouse PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -c 'import ensurepip, venv' 2>/dev/null \
    || { apt-get update && apt-get install -y --no-install-recommends python3-venv; }
COPY deploy/wheelhouse /wheelhouse
RUN python3 -m venv /opt/llmproxy
WORKDIR /src
# What it needs changes seldom: a layer of its own.
COPY setup.cfg ./
COPY scripts/requirements.py scripts/
# Extras of setup.cfg, such as otel: docker build --build-arg EXTRAS=otel
ARG EXTRAS
RUN python3 scripts/requirements.py ${EXTRAS} >/tmp/requirements && /opt/llmproxy/bin/pip install -r /tmp/requirements
COPY pyproject.toml README.md LICENSE ./
COPY llmproxy llmproxy
COPY twisted twisted
# Twisted writes its plugin cache beside the plugins: here it may, later (another user) it may not.
RUN /opt/llmproxy/bin/pip install --no-deps . && cd / && /opt/llmproxy/bin/twistd --help | grep -q llmproxy

# ---- a stand-in for vLLM's image: the demo server takes vLLM's command line -------------------------------------
FROM ${BASE_IMAGE} AS demo
COPY --from=build /opt/llmproxy /opt/llmproxy
RUN printf '#!/bin/sh\nexec /opt/llmproxy/bin/python -m llmproxy.demo "$@"\n' >/usr/local/bin/vllm \
    && chmod +x /usr/local/bin/vllm
ENV PYTHONUNBUFFERED=1
EXPOSE 8000
ENTRYPOINT ["vllm", "serve"]

# ---- the launcher -----------------------------------------------------------------------------------------------
FROM ${BASE_IMAGE}
# Compose creates the containers that the compose file names and that are missing. docker-cli is a package of its
# own from trixie on; bookworm's docker-compose needs none.
RUN apt-get update \
    && apt-get install -y --no-install-recommends docker-compose $(apt-cache show docker-cli >/dev/null 2>&1 && echo docker-cli) \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 llmproxy \
    && useradd --uid 1000 --gid 1000 --create-home --shell /usr/sbin/nologin llmproxy \
    && install -d -o llmproxy -g llmproxy -m 700 /var/lib/llmproxy
COPY --from=build /opt/llmproxy /opt/llmproxy
COPY deploy/entrypoint.sh /usr/local/bin/llmproxy-entrypoint
ENV PATH=/opt/llmproxy/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 LLMPROXY_STATE_DIR=/var/lib/llmproxy
USER llmproxy
WORKDIR /home/llmproxy
VOLUME /var/lib/llmproxy
EXPOSE 8000
STOPSIGNAL SIGTERM
# /healthz answers while the scheduler does. LLMPROXY_URL tells where, when it does not listen on :8000.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["/opt/llmproxy/bin/python", "-c", \
    "import os, urllib.request as u; u.urlopen(os.environ.get('LLMPROXY_URL', 'http://127.0.0.1:8000') + '/healthz', timeout=4)"]
ENTRYPOINT ["llmproxy-entrypoint"]
CMD ["twistd", "-n", "--pidfile=", "llmproxy"]
