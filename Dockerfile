# The images of Weir: --target coordinator, worker or weir.
#
#   docker buildx build --target coordinator --tag registry.example/weir/weir-coordinator:0.1.0 \
#       --build-arg SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) --build-arg REVISION=$(git rev-parse HEAD) \
#       --output type=registry,rewrite-timestamp=true --sbom=true --provenance=mode=max .
#
# Bases are arguments, so that they can be pinned by digest (name@sha256:…) or
# be of your own: what runs needs glibc, libgcc and the certificates of public
# authorities, and no shell. BINARIES may be an image with the three programs in
# /out, which then are not built here.
ARG RUST=docker.io/library/rust:1.95-slim-bookworm
ARG BASE=gcr.io/distroless/cc-debian12:nonroot
ARG BINARIES=build

FROM ${RUST} AS build
ARG SOURCE_DATE_EPOCH=0
ENV SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=never \
    RUSTFLAGS="--remap-path-prefix=/src=weir --remap-path-prefix=/usr/local/cargo=cargo"
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked -p weir-coordinator -p weir-worker -p weir-cli --bins \
    && mkdir /out && cp target/release/weir target/release/weir-coordinator target/release/weir-worker /out/ \
    && strip /out/*

FROM ${BINARIES} AS binaries

FROM ${BASE} AS base
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.vendor="Weir" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 65532:65532
WORKDIR /

FROM base AS coordinator
LABEL org.opencontainers.image.title="weir-coordinator" \
      org.opencontainers.image.description="The coordinator of Weir: owns the queue in Postgres and every lease"
COPY --from=binaries /out/weir-coordinator /usr/local/bin/
EXPOSE 7400
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/weir-coordinator"]

FROM base AS worker
LABEL org.opencontainers.image.title="weir-worker" \
      org.opencontainers.image.description="The worker of Weir: claims jobs, calls an embedder, streams vectors back"
COPY --from=binaries /out/weir-worker /usr/local/bin/
EXPOSE 7401
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/weir-worker"]

FROM base AS weir
LABEL org.opencontainers.image.title="weir" \
      org.opencontainers.image.description="The command line of Weir"
COPY --from=binaries /out/weir /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/weir"]
