# One image for all processes of Hayloft: docker build -t hayloft/hayloft:0.1.0 .
#
# The base is any Debian or Ubuntu with Python 3.11 or newer: --build-arg BASE_IMAGE=registry.example.com/python:3.12
ARG BASE_IMAGE=python:3.12-slim-bookworm

# -- /opt/hayloft ------------------------------------------------------------------------------------------------------
FROM ${BASE_IMAGE} AS build

# pip reads its own variables: --build-arg PIP_INDEX_URL=... for a mirror, and PIP_CERT=... for a CA of the base image.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_CERT

# A virtual environment, because Debian's own Python refuses packages of pip (PEP 668). It has no pip: the one in /build
# installs into it, and stays in this stage. Debian keeps ensurepip in a package of its own.
RUN python3 -c "import ensurepip" 2>/dev/null \
    || { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-venv; }
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/hayloft

WORKDIR /source
COPY locks/build.txt locks/driver.txt locks/
RUN /build/bin/pip install --no-cache-dir --require-hashes --no-deps --requirement locks/build.txt \
    && /build/bin/pip --python /opt/hayloft/bin/python install --no-cache-dir --require-hashes --no-deps --requirement locks/driver.txt

COPY pyproject.toml README.md LICENSE ./
COPY csi_driver csi_driver
RUN /build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /build/bin/pip --python /opt/hayloft/bin/python install --no-cache-dir --no-index --no-deps /wheels/hayloft-*.whl

# What nothing here loads, 88 of 302 MB: Arrow's Flight and S3 clients, its headers, sources and tests; and what
# botocore knows of services other than S3 and those that give credentials. The last lines fail if too much is gone.
RUN cd "$(/opt/hayloft/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
    && rm -r pyarrow/include pyarrow/includes pyarrow/src pyarrow/tests pyarrow/*.pyx pyarrow/*.pxi pyarrow/*.pxd \
    && rm pyarrow/libarrow_flight.so.* pyarrow/libarrow_python_flight.so* pyarrow/_flight.*.so pyarrow/libarrow_s3.so.* pyarrow/_s3fs.*.so \
    && find botocore/data -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -r {} + \
    && /opt/hayloft/bin/hayloft inspect file:///source >/dev/null \
    && /opt/hayloft/bin/python -c 'import pyarrow.dataset, pyarrow.fs, pyarrow.parquet' \
    && /opt/hayloft/bin/python -c 'import botocore.session as b; [b.Session().create_client(name, "us-east-1") for name in ("s3", "sts", "sso", "sso-oidc", "signin")]'

# -- what runs ---------------------------------------------------------------------------------------------------------
FROM ${BASE_IMAGE}

LABEL org.opencontainers.image.title="Hayloft" \
      org.opencontainers.image.description="A CSI driver that turns a dataset in an object store into a directory in a pod" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"

# mount and util-linux: umount, nsenter and findmnt, to look into a node. fuse3: fusermount3.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends ca-certificates fuse3 mount util-linux \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/*

COPY --from=build /opt/hayloft /opt/hayloft

ENV PATH="/opt/hayloft/bin:$PATH" \
    PYTHONUNBUFFERED=1

RUN hayloft --help >/dev/null

# Root: the node plugin and the cache daemon call mount(2) and hand backing files to the kernel, which needs
# CAP_SYS_ADMIN on the host. Controller and keeper drop every capability instead (deploy/kubernetes).
USER 0

ENTRYPOINT ["hayloft"]
CMD ["--help"]
