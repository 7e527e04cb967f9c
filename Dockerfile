# One image for all processes of Hayloft: docker build -t hayloft/hayloft:0.1.0 .
#
# The base is any Debian or Ubuntu with Python 3.11 or newer: --build-arg BASE_IMAGE=registry.example.com/python:3.12
ARG BASE_IMAGE=python:3.12-slim-bookworm

# -- wheels ------------------------------------------------------------------------------------------------------------
FROM ${BASE_IMAGE} AS wheels

# pip reads its own variables: --build-arg PIP_INDEX_URL=... for a mirror.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL

WORKDIR /source
RUN python3 -m pip install --no-cache-dir --upgrade pip
COPY pyproject.toml README.md LICENSE ./
COPY csi_driver csi_driver
COPY benchmarks benchmarks
RUN python3 -m pip wheel --no-cache-dir --wheel-dir /wheels .

# -- what runs ---------------------------------------------------------------------------------------------------------
FROM ${BASE_IMAGE}

LABEL org.opencontainers.image.title="Hayloft" \
      org.opencontainers.image.description="A CSI driver that turns a dataset in an object store into a directory in a pod" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"

# mount and util-linux: umount, nsenter and findmnt for whoever has to look into a node. fuse3: fusermount3.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends ca-certificates fuse3 mount util-linux \
    && rm -rf /var/lib/apt/lists/*

# The wheels of the first stage are seen here during this step alone, so they take no room in the image.
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    python3 -m pip install --no-cache-dir --no-index --find-links=/wheels hayloft \
    && hayloft --help >/dev/null

ENV PYTHONUNBUFFERED=1

# Root: the node plugin and the cache daemon call mount(2) and hand backing files to the kernel, which needs
# CAP_SYS_ADMIN on the host. Controller and keeper drop every capability instead (deploy/kubernetes).
USER 0

ENTRYPOINT ["hayloft"]
CMD ["--help"]
