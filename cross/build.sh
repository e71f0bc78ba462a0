#!/usr/bin/env bash
# Builds the agent for a gateway: cross/build.sh TARGET [PACKAGE]
#
#   TARGET    x86_64-unknown-linux-gnu       linked by cc
#             aarch64-unknown-linux-musl     static, linked by rustc's own linker; zig compiles what is C
#             aarch64-unknown-linux-gnu      linked by aarch64-linux-gnu-gcc, else by zig
#             armv7-unknown-linux-gnueabihf  linked by arm-linux-gnueabihf-gcc, else by zig
#   PACKAGE   tributary (the agent, default) or tributary-receiver
#
# Changes nothing but the target directory. What it needs it sets up there (zig from PyPI) or by rustup (the target's
# standard library); what it cannot get it names, with the command that gets it. The last line printed is the binary's
# path, its size and the oldest glibc that it runs on. Fails above the size in size-budget.toml. No path of this machine
# is in the binary, so that another one builds the same bytes. README.md says what was tried.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

fail() {
    echo "cross/build.sh: $*" >&2
    exit 1
}

readonly TARGETS="x86_64-unknown-linux-gnu, aarch64-unknown-linux-musl, aarch64-unknown-linux-gnu, armv7-unknown-linux-gnueabihf"
readonly ZIG=0.17.1 ZIGBUILD=0.24.1

target="${1:-}"
package="${2:-tributary}"
case "$package" in
    tributary | tributary-receiver) ;;
    *) fail "package \"$package\" is not for gateways or centres: tributary or tributary-receiver" ;;
esac
directory="$(cargo metadata --locked --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')"

# A C compiler for every target in one download: no root, no foreign packages.
with_zig() {
    if ! { command -v cargo-zigbuild && { command -v zig || python3 -c 'import ziglang'; }; } >/dev/null 2>&1; then
        local venv="$directory/zig-$ZIG-$ZIGBUILD"
        if [[ ! -e $venv/ready ]]; then
            echo "cross/build.sh: installing zig $ZIG and cargo-zigbuild $ZIGBUILD from PyPI into $venv" >&2
            rm -rf -- "$venv"
            python3 -m venv "$venv" || fail "no venv: apt-get install python3-venv"
            "$venv/bin/python" -m pip install --quiet "ziglang==$ZIG" "cargo-zigbuild==$ZIGBUILD" ||
                fail "PyPI could not be reached: put zig and cargo-zigbuild into PATH"
            touch "$venv/ready"
        fi
        # cargo-zigbuild finds zig by the venv's python3.
        export PATH="$venv/bin:$PATH"
    fi
    build=(zigbuild)
}

# rustc brings musl and a linker for it: of zig only the C compiler is wanted. Linked by zig, the agent would have zig's
# malloc, with which it holds 40 MB where it holds 10 with musl's.
with_musl() {
    with_zig
    build=(build)
    local zig="python3 -m ziglang" name="${target//-/_}" tools="$directory/zig-tools" tool
    if command -v zig >/dev/null; then zig=zig; fi
    mkdir -p "$tools"
    # What rustc calls the target is not what zig calls it.
    printf '#!/bin/bash\nargs=()\nfor arg in "$@"; do [[ $arg == --target=* ]] || args+=("$arg"); done\nexec %s cc -target %s -fno-sanitize=all "${args[@]}"\n' \
        "$zig" "${target%%-*}-linux-musl" >"$tools/cc-$target"
    printf '#!/bin/bash\nexec %s ar "$@"\n' "$zig" >"$tools/ar"
    for tool in "$tools"/*; do chmod 755 "$tool"; done
    export "CC_$name=$tools/cc-$target" "AR_$name=$tools/ar" "CARGO_TARGET_${name^^}_LINKER=rust-lld"
    # Functions that came out alike are linked once.
    export RUSTFLAGS="${RUSTFLAGS:-} -Clink-self-contained=yes -Clink-arg=--icf=all"
}

# with_gcc PREFIX: Debian's cross compiler, if it is there.
with_gcc() {
    command -v "$1-gcc" >/dev/null || return 1
    local name="${target//-/_}"
    export "CARGO_TARGET_${name^^}_LINKER=$1-gcc" "CC_$name=$1-gcc"
}

build=(build)
case "$target" in
    x86_64-unknown-linux-gnu) command -v cc >/dev/null || fail "no C compiler (cc): apt-get install gcc libc6-dev" ;;
    # Not gcc for glibc: ring, zstd and SQLite have C code, which its headers would tie to glibc.
    aarch64-unknown-linux-musl) with_musl ;;
    aarch64-unknown-linux-gnu) with_gcc aarch64-linux-gnu || with_zig ;;
    armv7-unknown-linux-gnueabihf) with_gcc arm-linux-gnueabihf || with_zig ;;
    "") fail "which target? $TARGETS" ;;
    *) fail "target \"$target\" is not supported: $TARGETS" ;;
esac

# The standard library of the target, for the compiler that cargo will use.
sysroot="$(rustc --print sysroot)"
if ! [[ -d "$sysroot/lib/rustlib/$target/lib" ]]; then
    command -v rustup >/dev/null || fail "rustc has no standard library for $target: install rustup, or Debian's libstd-rust-dev of that architecture"
    rustup target add "$target" || fail "rustup could not add $target: add it where there is a network"
fi

remap=()
# The last that fits counts, and the target directory may be in the tree.
for place in "$PWD=/tributary" "${CARGO_HOME:-$HOME/.cargo}=/cargo" "$directory=/target"; do
    remap+=("--remap-path-prefix=$place")
done
# Of C code too: zig leaves debug information in until the last. For this target alone: CFLAGS itself, if set, would take the
# place of what .cargo/config.toml leaves out of zstd.
export "CFLAGS_${target//-/_}=-ffile-prefix-map=$directory=/target -ffile-prefix-map=${CARGO_HOME:-$HOME/.cargo}=/cargo"
export RUSTFLAGS="${RUSTFLAGS:-} ${remap[*]}"
# For 64-bit ARM the compiler would take out what functions have in common, piece by piece: the binary stays as large as it
# is, calls more, and compresses by 7 % less.
if [[ $target == aarch64-* ]]; then RUSTFLAGS+=" -Cllvm-args=-enable-machine-outliner=never"; fi

echo "cross/build.sh: cargo ${build[0]} for $target" >&2
cargo "${build[@]}" --locked --release --target "$target" -p "$package" --bin "$package" >&2

binary="$directory/$target/release/$package"
[[ -f $binary ]] || fail "cargo ended well, but $binary is not there"
size="$(stat -c %s "$binary")"
# Without glibc nothing is found, which is no fault.
floor="$({ readelf --version-info --wide "$binary" | grep -o 'GLIBC_[0-9.]*' || true; } | sort -uV | tail -n 1)"
if [[ -n $floor ]]; then needs="needs glibc ${floor#GLIBC_} or later"; else needs="static"; fi
echo "$binary $size bytes, $needs"
key=agent
if [[ $target == x86_64-* ]]; then key=agent_x86_64; fi
most="$(sed -n "s/^$key = \([0-9_]*\).*/\1/p" cross/size-budget.toml)"
[[ $package != tributary ]] || ((size <= ${most//_/})) ||
    fail "$size bytes are more than the ${most//_/} of cross/size-budget.toml: nm -S --size-sort of a build with strip = \"none\" says where they are"
