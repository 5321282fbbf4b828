# A builder with the toolchain, and two images: `runtime` contains only one static binary with its licences and its bill of materials:
# no shell, no libc, no package manager. TLS roots are compiled into the binary. `packed` contains a packed model as well.
#
#   docker build -t microgranite --build-arg MICROGRANITE_BUILD=$(git describe --always --dirty --abbrev=12 --exclude '*') .
#
# Podman and buildah take the same. Without the argument the build calls itself "unknown": there is no .git in here.
#
# deploy/README.md says how to run it, and how to build and publish both.

FROM docker.io/library/rust:1.95-bookworm AS builder
# Which build it is, for --version, GET /version and the answers' system_fingerprint.
ARG MICROGRANITE_BUILD=""
# The time in the bill of materials, in seconds since 1970.
ARG SOURCE_DATE_EPOCH=0
WORKDIR /src
COPY . .
# Scripts in it say how and why.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    mkdir /stage && binary=$(release/binary.sh) && release/stage.sh "$binary" /stage

FROM scratch AS program
ARG MICROGRANITE_BUILD=""
ARG VERSION=""
LABEL org.opencontainers.image.title="microgranite" \
      org.opencontainers.image.description="IBM Granite at eight bits behind an HTTP port" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$MICROGRANITE_BUILD"
COPY --from=builder /stage/LICENSE /stage/THIRD-PARTY.txt /stage/sbom.cdx.json /usr/share/doc/microgranite/
COPY --from=builder /stage/microgranite /microgranite
# The usual id of an unprivileged user in images without a user database; the Kubernetes manifests use the same.
USER 65532:65532
# A container's loopback address cannot be reached from outside. A flag takes precedence.
ENV MICROGRANITE_LISTEN=0.0.0.0:8080
# 8080 is the API; 9090 is for probes and metrics, if --admin-listen is given.
EXPOSE 8080 9090
ENTRYPOINT ["/microgranite"]
CMD ["serve"]

# An image that serves with nothing mounted, not even a volume: the packed folder is one more layer, whose digest depends on the model alone, so
# that a registry keeps it once for all releases of the program.
#
#   microgranite quantize hf:ibm-granite/granite-4.0-350m -o granite-350m-int8
#   docker build -t granite-350m --target packed --build-context model=granite-350m-int8 --build-arg MODEL_NAME=granite-350m .
FROM program AS packed
ARG MODEL_NAME=granite
# Files that only their owner may read are readable as well, because the server's user owns them here.
COPY --from=model --chown=65532:65532 . /models/model/
ENV MICROGRANITE_MODEL=/models/model MICROGRANITE_SERVED_MODEL_NAME=$MODEL_NAME

# Without --target this one is built.
FROM program AS runtime
