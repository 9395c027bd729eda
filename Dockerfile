# The launcher: llmproxy with the Docker CLI's Compose, run as a user of its own.
#
#   docker build -t llmproxy .
#   docker build --build-arg BASE_IMAGE=... --build-arg PIP_NO_INDEX=1 -t llmproxy .     (wheels in deploy/wheelhouse)
#   docker build --target demo -t llmproxy-demo .          a stand-in for vLLM's image, for a machine with no GPU
#
# BASE_IMAGE is Python's slim image, or a bare Debian (bookworm or newer) with python3. To have the very same bytes
# each time name it by its digest (python:3.13-slim@sha256:...) and give SOURCE_DATE_EPOCH; docs/security.md tells
# what of an image is the same then and what is not.
ARG BASE_IMAGE=python:3.13-slim

# ---- llmproxy in a virtual environment of its own -------------------------------------------------------------
FROM ${BASE_IMAGE} AS build
ARG PIP_NO_INDEX
# Extras of setup.cfg, such as otel: docker build --build-arg EXTRAS=otel
ARG EXTRAS
# When files in wheels are from; zip knows no year before this one.
ARG SOURCE_DATE_EPOCH=315532800
ENV PIP_NO_INDEX=${PIP_NO_INDEX} PIP_FIND_LINKS=/wheelhouse PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 \
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0
RUN python3 -c 'import ensurepip, venv' 2>/dev/null \
    || { apt-get update && apt-get install -y --no-install-recommends python3-venv; }
COPY deploy/wheelhouse /wheelhouse
WORKDIR /src
# What it needs changes seldom: a layer of its own. Nothing is installed whose hash is not in a lock (`make lock`),
# and what builds it stays out of what it is made of, pip too.
COPY requirements requirements
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/llmproxy \
    && /build/bin/pip install --require-hashes --no-compile -r requirements/build.lock \
    && for each in runtime http2 ${EXTRAS}; do \
        /build/bin/pip --python /opt/llmproxy/bin/python install --require-hashes --no-compile \
            -r "requirements/$each.lock" || exit 1; done
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY llmproxy llmproxy
COPY twisted twisted
# Twisted writes its plugin cache beside the plugins: here it may, later (another user) it may not. Compiled code that
# is told by its source's hash, not its time, is the same each time. sbom.cdx.json lists what is installed.
RUN /build/bin/pip wheel --no-deps --no-build-isolation --no-index -w /dist . \
    && /build/bin/pip --python /opt/llmproxy/bin/python install --no-deps --no-index --no-compile /dist/*.whl \
    && /opt/llmproxy/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/llmproxy/lib \
    && /build/bin/cyclonedx-py environment --output-reproducible --output-format JSON \
        --output-file /opt/llmproxy/sbom.cdx.json /opt/llmproxy/bin/python \
    && cd / && /opt/llmproxy/bin/twistd --help | grep -q llmproxy

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
# own from trixie on; bookworm's docker-compose needs none. Other hosts' engines are reached by ssh (docs/hosts.md).
RUN apt-get update \
    && apt-get install -y --no-install-recommends docker-compose openssh-client $(apt-cache show docker-cli >/dev/null 2>&1 && echo docker-cli) \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 llmproxy \
    && useradd --uid 1000 --gid 1000 --create-home --shell /usr/sbin/nologin llmproxy \
    && install -d -o llmproxy -g llmproxy -m 700 /var/lib/llmproxy \
    # Nothing in here makes anybody root.
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
COPY --from=build /opt/llmproxy /opt/llmproxy
COPY deploy/entrypoint.sh /usr/local/bin/llmproxy-entrypoint
ENV PATH=/opt/llmproxy/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 LLMPROXY_STATE_DIR=/var/lib/llmproxy
LABEL org.opencontainers.image.title=llmproxy org.opencontainers.image.licenses=MIT \
    llmproxy.sbom=/opt/llmproxy/sbom.cdx.json
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
