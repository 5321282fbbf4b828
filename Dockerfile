# Two stages: a builder with the toolchain, and an image that contains only one static binary: no shell, no libc, no
# package manager. TLS roots are compiled into the binary.
#
#   docker build -t microgranite --build-arg MICROGRANITE_BUILD=$(git describe --always --dirty --exclude '*') .
#
# Podman and buildah take the same. Without the argument the build calls itself "unknown": there is no .git in here.
#
# deploy/README.md says how to run it.

FROM docker.io/library/rust:1.95-bookworm AS builder
# Which build it is, for --version, GET /version and the answers' system_fingerprint.
ARG MICROGRANITE_BUILD=""
WORKDIR /src
COPY . .
# A static glibc needs no additional toolchain. `--target` keeps the flag away from build scripts and procedural macros,
# which must stay dynamic. Kernels are chosen at run time, so one build per architecture serves every CPU.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    host=$(rustc -vV | sed -n 's/^host: //p') \
    && MICROGRANITE_BUILD="$MICROGRANITE_BUILD" RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target "$host" \
    && cp "target/$host/release/microgranite" /microgranite

FROM scratch AS runtime
LABEL org.opencontainers.image.title="microgranite" \
      org.opencontainers.image.description="IBM Granite at eight bits behind an HTTP port" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=builder /microgranite /microgranite
# The usual id of an unprivileged user in images without a user database; the Kubernetes manifests use the same.
USER 65532:65532
# 8080 is the API; 9090 is for probes and metrics, if --admin-listen is given.
EXPOSE 8080 9090
# 0.0.0.0, because a container's loopback address cannot be reached from outside.
ENTRYPOINT ["/microgranite"]
CMD ["serve", "--listen", "0.0.0.0:8080"]
