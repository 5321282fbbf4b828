# Two stages: a builder with the toolchain, and an image that holds one static binary and nothing else: no shell, no
# libc, no package manager. TLS roots are compiled into the binary.
#
#   docker build -t microgranite .        (or podman, or buildah)
#
# deploy/README.md says how to run it.

FROM docker.io/library/rust:1.95-bookworm AS builder
WORKDIR /src
COPY . .
# Static glibc needs no other toolchain. `--target` keeps the flag away from build scripts and procedural macros, which
# must stay dynamic. Kernels are chosen at run time, so one build per architecture serves every CPU.
# The cache mounts keep downloads and dependencies from one build to the next.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    host=$(rustc -vV | sed -n 's/^host: //p') \
    && RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$host" \
    && cp "target/$host/release/microgranite" /microgranite

FROM scratch AS runtime
LABEL org.opencontainers.image.title="microgranite" \
      org.opencontainers.image.description="IBM Granite at eight bits behind an HTTP port" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=builder /microgranite /microgranite
# The usual number for an unprivileged user in images without a user database; the Kubernetes manifests name it too.
USER 65532:65532
# 8080 the API; 9090 probes and metrics, when --admin-listen is given.
EXPOSE 8080 9090
# 0.0.0.0, because inside a container the loopback address is nobody's.
ENTRYPOINT ["/microgranite"]
CMD ["serve", "--listen", "0.0.0.0:8080"]
