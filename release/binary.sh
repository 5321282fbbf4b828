#!/usr/bin/env bash
# Builds the static release binary and prints its path on standard output. It is the one file that the archive, the Python
# wheel, the Debian package and the image carry. Needs a Rust toolchain, a C compiler and, for the id of the build, git.
#
#   release/binary.sh [TARGET]      TARGET as rustc names it, such as aarch64-unknown-linux-gnu; this machine's without it
#
# For another target, cargo's own variables say what to build with: CARGO_TARGET_…_LINKER and CARGO_TARGET_…_RUSTFLAGS.
# `tests/aarch64/run.sh binary` sets them on Debian.
#
# A static glibc needs no additional toolchain. `--target` keeps the flags away from build scripts and procedural macros,
# which must stay dynamic. Kernels are chosen at run time, so one build per architecture serves every CPU.
set -euo pipefail
cd "$(dirname "$0")/.."

of_rustc() { rustc -vV | sed -n "s/^$1: //p"; }
target=${1:-$(of_rustc host)}
of_target=CARGO_TARGET_$(tr a-z- A-Z_ <<<"$target")_RUSTFLAGS
read -ra more <<<"${!of_target-}"
# Panic messages name source files. Without these flags they would name folders of the machine that built them, and two
# machines would build two different files. The last line is for toolchains that have the sources of the standard library.
flags=(
    "${more[@]}"
    -C target-feature=+crt-static
    "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    "--remap-path-prefix=$PWD=/microgranite"
    "--remap-path-prefix=$(rustc --print sysroot)/lib/rustlib/src/rust=/rustc/$(of_rustc commit-hash)"
)
# cargo separates encoded flags by this character, so that paths may have spaces.
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && echo "${flags[*]}")
export CARGO_ENCODED_RUSTFLAGS
unset RUSTFLAGS
cargo build --release --locked --bin microgranite --target "$target" --target-dir target >&2
echo "$PWD/target/$target/release/microgranite"
