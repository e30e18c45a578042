# syntax=docker/dockerfile:1
#
# One static binary on nothing else: no shell, no package manager, no C library. Root certificates are compiled in; a
# private authority goes into `tls.ca_file`.
#
#   docker build -t spanledger .
#   docker run -v spanledger:/var/lib/spanledger -p 4317:4317 -p 4318:4318 -p 8889:8889 spanledger
#
# deploy/check-image.sh follows these steps without a container engine.

ARG RUST_VERSION=1.95

FROM rust:${RUST_VERSION}-alpine AS build
# A C compiler and libc headers for SQLite, ring, zstd and mimalloc.
RUN apk add --no-cache musl-dev gcc make perl
WORKDIR /src
COPY . .
# On Alpine the host's own target is musl, and its binaries are static.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin spanledger \
    && install -D -m 0755 target/release/spanledger /image/spanledger \
    && install -d -m 0755 /image/etc/spanledger \
    && install -d -m 0750 /image/data

FROM scratch
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="spanledger" \
      org.opencontainers.image.description="OTLP sidecar: exact metrics, one SQL row per execution, durably forwarded traces" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /image/spanledger /spanledger
COPY --from=build /image/etc /etc
# A volume that is made new takes over the owner of the folder beneath it.
COPY --from=build --chown=10001:10001 /image/data /var/lib/spanledger
USER 10001:10001
# Other containers send to us, so listen on every address. The query API then opens only with `api.auth` set.
# Without /tmp, SQLite needs another place for what it sorts on disk.
ENV SPANLEDGER_LISTEN_HOST=0.0.0.0 \
    SPANLEDGER_DATA=/var/lib/spanledger \
    SQLITE_TMPDIR=/var/lib/spanledger
# A config.yaml that is mounted here is used without being named.
WORKDIR /etc/spanledger
VOLUME /var/lib/spanledger
EXPOSE 4317 4318 8889 8890 13133
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["/spanledger", "healthcheck"]
ENTRYPOINT ["/spanledger"]
CMD ["run"]
