#!/usr/bin/env bash
# Tests the program for 64-bit ARM on an x86-64 machine: cross-compiles it and runs it under qemu as three processors, one
# with the matrix product (i8mm), one with the dot product alone, and one with neither.
#
#   tests/aarch64/run.sh                      the kernels: src/int8 with its tests; builds what is missing
#   tests/aarch64/run.sh test max             only as this processor; all kernels run on it
#   tests/aarch64/run.sh model [PROCESSOR…]   whole models: the suites golden, packed, model and steady
#   tests/aarch64/run.sh serve [PROCESSOR…]   serves small models, and compares the answers with this machine's
#   tests/aarch64/run.sh packages [ARM [NATIVE]]     makes a release and installs its wheel, Debian package and formula for ARM
#   tests/aarch64/run.sh image [ARM [NATIVE]]        builds the image for both, and serves from that for ARM
#
#   tests/aarch64/run.sh setup                only the toolchain
#   tests/aarch64/run.sh binfmt               lets the kernel start programs for ARM, until the next boot
#   tests/aarch64/run.sh binary               builds the static binary of a release, and prints its path
#   tests/aarch64/run.sh cargo build --release --locked     cargo for aarch64 with this toolchain, in the current folder
#
# Needs Debian 12, and root the first time. The whole program takes 15 CPU-minutes to build, so `.ci/run` tests only the
# kernels. ARM and NATIVE are static binaries; without them `binary` and release/binary.sh build them first.
#
# There is no standard library for aarch64 among the packages of Debian 12, and rustup's may be out of reach. So it is built
# from Debian's source package of this very compiler, which newer suites of Debian have, into a folder of its own:
# AARCH64_HOME (/var/cache/microgranite-aarch64). A machine that has rustup's target needs none of this.
set -euo pipefail

home=${AARCH64_HOME:-/var/cache/microgranite-aarch64}
target=aarch64-unknown-linux-gnu
here=$(realpath "$(dirname "$0")")
version=$(rustc --version | cut -d' ' -f2)
sysroot=$home/rust-$version

# qemu's names, and what the program runs there. cortex-a76 stands for Neoverse N1, and cortex-a72 for the oldest servers.
processors=(max cortex-a76 cortex-a72)
declare -A instructions=([max]=neon-i8mm [cortex-a76]=neon-dotprod [cortex-a72]=neon)

# The source of the standard library, from whichever suite of Debian has this version of the compiler. The suites are listed
# in a folder of their own, so that apt never installs anything from them.
source_of_std() {
    [ -e "$home/src-$version/library/Cargo.lock" ] && return
    local mirror suite found
    # shellcheck disable=SC2016 # apt expands it.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' | grep -v security | sort -u | head -1)
    mkdir -p "$home"/apt/{lists,archives}/partial
    : >"$home/apt/status"
    : >"$home/apt/sources.list"
    for suite in trixie-backports testing unstable experimental; do
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >>"$home/apt/sources.list"
    done
    export APT_CONFIG=$home/apt/apt.conf
    cat >"$APT_CONFIG" <<EOF
Dir::State::status "$home/apt/status";
Dir::State::lists "$home/apt/lists";
Dir::Cache "$home/apt";
Dir::Etc::sourcelist "$home/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled "false";
Acquire::IndexTargets::deb::DEP-11-icons-hidpi::DefaultEnabled "false";
APT::Sandbox::User "root";
EOF
    apt-get update -q
    found=$(apt-cache madison rust-src | awk -F'|' -v wanted="$version+" \
        '{gsub(/ /, "", $2)} index($2, wanted) == 1 {print $2; exit}')
    if [ -z "$found" ]; then
        echo "Debian has no rust-src $version now; it has:" >&2
        apt-cache madison rust-src >&2
        return 69
    fi
    (cd "$home" && apt-get download -q "rust-src=$found")
    unset APT_CONFIG
    rm -rf "$home/src.partial"
    mkdir -p "$home/src.partial"
    dpkg-deb --fsys-tarfile "$home"/rust-src_*.deb |
        tar -x -C "$home/src.partial" --strip-components=4 --wildcards './usr/src/rustc-*/library'
    rm "$home"/rust-src_*.deb
    mv "$home/src.partial" "$home/src-$version"
}

# Only here is the compiler allowed unstable features: the standard library needs them, the program does not.
build_std() {
    local lib=$sysroot/lib/rustlib/$target/lib crate=$home/empty
    [ -d "$lib" ] && return
    source_of_std
    mkdir -p "$crate/src"
    printf '[package]\nname = "empty"\nversion = "0.0.0"\nedition = "2024"\n[workspace]\n' >"$crate/Cargo.toml"
    : >"$crate/src/lib.rs"
    env -u RUSTFLAGS RUSTC_BOOTSTRAP=1 __CARGO_TESTS_ONLY_SRC_ROOT="$home/src-$version/library" \
        cargo build --manifest-path "$crate/Cargo.toml" --target-dir "$crate/target" --release --target $target \
        -Z build-std=std,panic_unwind,panic_abort,proc_macro,test
    mkdir -p "$lib.partial"
    find "$crate/target/$target/release/deps" -name '*.rlib' ! -name 'libempty*' -exec cp {} "$lib.partial" \;
    mv "$lib.partial" "$lib"
    rm -rf "$crate"
}

setup() {
    local packages=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static)
    if ! dpkg -s "${packages[@]}" >/dev/null 2>&1; then
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}"
    fi
    mkdir -p "$home"
    build_std
}

environment() {
    local name=${target//-/_}
    export "CARGO_TARGET_${name^^}_LINKER=aarch64-linux-gnu-gcc"
    # Static, as it is released.
    export "CARGO_TARGET_${name^^}_RUSTFLAGS=--sysroot $sysroot -C target-feature=+crt-static"
    export "CARGO_TARGET_${name^^}_RUNNER=qemu-aarch64-static"
    # `ring` has C code.
    export "CC_$name=aarch64-linux-gnu-gcc" "AR_$name=aarch64-linux-gnu-ar"
}

# Programs for ARM then start like any other, those that a test starts and those in containers too.
binfmt() {
    local folder=/proc/sys/fs/binfmt_misc
    setup
    [ -e $folder/register ] || mount -t binfmt_misc binfmt_misc $folder
    [ -e $folder/qemu-aarch64 ] || cat /usr/lib/binfmt.d/qemu-aarch64.conf >$folder/register
}

# The assembly in gemm-f16 compiles for ARM only where it is inlined; the project's dev profile does not optimise it.
build() { # build COMMAND ARGUMENT…
    environment
    cargo "$1" --target $target --config profile.dev.package.gemm-f16.opt-level=3 "${@:2}"
}

static_binary() {
    setup
    environment
    "$here/../../release/binary.sh" $target
}

# What serve.py expects.
expected() {
    local processor
    for processor in "${processors[@]}"; do echo "$processor=${instructions[$processor]}"; done
}

# The two binaries of a release, unless they are given.
binaries() { # binaries [ARM [NATIVE]]
    echo "${1:-$(static_binary)}"
    echo "${2:-$("$here/../../release/binary.sh")}"
}

kernel_tests() {
    setup
    environment
    cd "$here"
    cargo test --locked --target $target --no-run
    for processor in "${processors[@]}"; do
        echo "--- $processor"
        QEMU_CPU=$processor cargo test --locked --target $target -q
    done
}

model_tests() {
    binfmt # Some tests start the program.
    cd "$here/../.."
    local suites=(--locked --test golden --test packed --test model --test steady)
    build test "${suites[@]}" --no-run
    for processor in "${processors[@]}"; do
        echo "--- $processor"
        export QEMU_CPU=$processor
        build test "${suites[@]}"
    done
}

serve() {
    binfmt
    cd "$here/../.."
    build build --locked --bin microgranite
    cargo build --locked --bin microgranite
    local pairs
    mapfile -t pairs < <(expected)
    "$here/serve.py" target/debug/microgranite target/$target/debug/microgranite "${pairs[@]}"
}

action=${1-test}
case $action in
test | model | serve)
    if [ $# -gt 1 ]; then processors=("${@:2}"); fi
    ;;&
setup) setup ;;
binfmt) binfmt ;;
binary) static_binary ;;
cargo)
    setup
    build "${@:2}"
    ;;
test) kernel_tests ;;
model) model_tests ;;
serve) serve ;;
packages | image)
    binfmt
    mapfile -t programs < <(binaries "${@:2}")
    mapfile -t pairs < <(expected)
    if [ "$action" = image ]; then
        "$here/image.sh" "${programs[@]}" "${pairs[@]}"
    else
        "$here/packages.sh" "${programs[@]}"
    fi
    ;;
*)
    sed -n '2,/^set/{/^#/p}' "$0"
    exit 64
    ;;
esac
