# syntax=docker/dockerfile:1
# Four images from one file:
#   docker build --target serve -t imagekin .            # CPU: embeds, searches, classifies, indexes; no torch inside
#   docker build --target serve-gpu -t imagekin:gpu .    # the same on an NVIDIA GPU (run with --gpus all)
#   docker build --target serve-milvus -t imagekin:milvus .  # the CPU service with what --store milvus://… takes
#   docker build --target train -t imagekin:train .      # training, on a GPU where there is one
# docker run -p 127.0.0.1:50051:50051 -p 127.0.0.1:8080:8080 -v ./data:/data imagekin serves /data/model.onnx and the
# collections in /data.
# Models and collections live in the volume /data, which belongs to the user that the container runs as.
ARG PYTHON_IMAGE=python:3.12.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY imagekin imagekin
COPY cli cli
COPY client client
COPY encoder encoder
COPY index index
COPY serving serving
COPY sources sources
COPY training training
RUN python -m venv /opt/imagekin

FROM build AS build-serve
RUN /opt/imagekin/bin/pip install --constraint constraints.txt '.[cpu]'

FROM build AS build-serve-milvus
RUN /opt/imagekin/bin/pip install --constraint constraints.txt '.[cpu]' pymilvus

FROM build AS build-serve-gpu
RUN /opt/imagekin/bin/pip install --constraint constraints.txt '.[gpu]'

FROM build AS build-train
RUN /opt/imagekin/bin/pip install --constraint constraints.txt '.[cpu,train]'

FROM ${PYTHON_IMAGE} AS runtime
ARG PYTHON_IMAGE
LABEL org.opencontainers.image.title="imagekin" \
      org.opencontainers.image.description="Knows which images are alike and what they are" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/${PYTHON_IMAGE}"
RUN groupadd --gid 10001 imagekin \
    && useradd --uid 10001 --gid imagekin --create-home --shell /usr/sbin/nologin imagekin \
    && install --directory --owner imagekin --group imagekin /data
ENV PATH=/opt/imagekin/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /data
VOLUME /data
USER 10001:10001

FROM runtime AS serve-base
EXPOSE 50051 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["imagekin", "health", "--address", "127.0.0.1:50051"]
ENTRYPOINT ["imagekin"]
# A container's port is reached only through what its operator publishes; hence the explicit --allow-insecure.
CMD ["serve", "--model", "/data/model.onnx", "--data-dir", "/data", "--address", "0.0.0.0:50051", \
     "--http-address", "0.0.0.0:8080", "--allow-insecure"]

FROM serve-base AS serve-gpu
COPY --from=build-serve-gpu /opt/imagekin /opt/imagekin

FROM serve-base AS serve-milvus
COPY --from=build-serve-milvus /opt/imagekin /opt/imagekin

FROM runtime AS train
COPY --from=build-train /opt/imagekin /opt/imagekin
ENTRYPOINT ["imagekin"]
CMD ["train", "--help"]

# Last, so that a plain `docker build .` makes the CPU service.
FROM serve-base AS serve
COPY --from=build-serve /opt/imagekin /opt/imagekin
