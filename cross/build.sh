#!/usr/bin/env bash
# Builds the agent for a gateway: cross/build.sh TARGET [PACKAGE]
#
#   TARGET    x86_64-unknown-linux-gnu      linked by cc
#             aarch64-unknown-linux-musl    static, linked by zig
#             armv7-unknown-linux-gnueabihf linked by arm-linux-gnueabihf-gcc, else by zig
#   PACKAGE   tributary (the agent, default) or tributary-receiver
#
# Changes nothing but the target directory, and adds the target to rustup where it is missing. What it cannot get it
# names, with the command that gets it. The last line printed is the binary's path and size. README.md says what was tried.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

fail() {
    echo "cross/build.sh: $*" >&2
    exit 1
}

readonly ZIG_HINT="python3 -m venv zig && zig/bin/pip install ziglang==0.17.1 cargo-zigbuild, then put zig/bin first in PATH"

# Zig from PyPI is a module and not a command; cargo-zigbuild finds it by the venv's python3.
have_zig() {
    command -v cargo-zigbuild >/dev/null && { command -v zig >/dev/null || python3 -c 'import ziglang' 2>/dev/null; }
}

target="${1:-}"
package="${2:-tributary}"
case "$package" in
    tributary | tributary-receiver) ;;
    *) fail "package \"$package\" is not for gateways or centres: tributary or tributary-receiver" ;;
esac
build=(build)
case "$target" in
    x86_64-unknown-linux-gnu)
        command -v cc >/dev/null || fail "no C compiler (cc): apt-get install gcc libc6-dev"
        ;;
    aarch64-unknown-linux-musl)
        # Not gcc for glibc: ring, zstd and SQLite have C code, which its headers would tie to glibc.
        have_zig || fail "no zig for $target: $ZIG_HINT"
        build=(zigbuild)
        ;;
    armv7-unknown-linux-gnueabihf)
        if command -v arm-linux-gnueabihf-gcc >/dev/null; then
            export CARGO_TARGET_ARMV7_UNKNOWN_LINUX_GNUEABIHF_LINKER=arm-linux-gnueabihf-gcc
            export CC_armv7_unknown_linux_gnueabihf=arm-linux-gnueabihf-gcc
        elif have_zig; then
            build=(zigbuild)
        else
            fail "no linker for $target: apt-get install gcc-arm-linux-gnueabihf libc6-dev-armhf-cross, or $ZIG_HINT"
        fi
        ;;
    "") fail "which target? x86_64-unknown-linux-gnu, aarch64-unknown-linux-musl or armv7-unknown-linux-gnueabihf" ;;
    *) fail "target \"$target\" is not supported: x86_64-unknown-linux-gnu, aarch64-unknown-linux-musl or armv7-unknown-linux-gnueabihf" ;;
esac

# The standard library of the target, for the compiler that cargo will use.
if ! [[ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ]]; then
    command -v rustup >/dev/null || fail "rustc has no standard library for $target, and there is no rustup to add it"
    rustup target add "$target" || fail "rustup could not add $target: add it where there is a network"
fi

echo "cross/build.sh: cargo ${build[0]} for $target" >&2
cargo "${build[@]}" --locked --release --target "$target" -p "$package" --bin "$package"

directory="$(cargo metadata --locked --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')"
binary="$directory/$target/release/$package"
[[ -f $binary ]] || fail "cargo ended well, but $binary is not there"
printf '%s %s bytes\n' "$binary" "$(stat -c %s "$binary")"
