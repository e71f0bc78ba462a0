#!/usr/bin/env bash
# Runs what was built for another machine, under qemu-user: cross/smoke.sh TARGET [--unit-tests]
#
#   TARGET         as for cross/build.sh, whose binary is run
#   --unit-tests   also the unit tests of core, proto and protocols, built for TARGET
#
# The agent, emulated, between a native device, broker, receiver and database; tests/field/smoke.py says what must come
# true. Each emulated step has a time-out and is tried once more: qemu's first start has been seen to hang.
# Needs qemu-user-static, mosquitto, openssl, python3, and native binaries in TRIBUTARY_BIN_DIR (or built by cargo build
# --release). A serial line cannot be tried here: qemu-user has not the calls for it.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

fail() {
    echo "cross/smoke.sh: $*" >&2
    exit 1
}

target="${1:-}"
case "$target" in
    x86_64-*) runner=() ;;
    aarch64-*-musl) runner=(qemu-aarch64-static) ;;
    aarch64-*-gnu) runner=(qemu-aarch64-static -L /usr/aarch64-linux-gnu) ;;
    armv7-*) runner=(qemu-arm-static -L /usr/arm-linux-gnueabihf) ;;
    *) fail "which target? see cross/build.sh" ;;
esac
for program in "${runner[@]:0:1}" openssl python3; do
    command -v "$program" >/dev/null || fail "no $program: apt-get install qemu-user-static openssl python3"
done
directory="$(cargo metadata --locked --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')"
binary="$directory/$target/release/tributary"
[[ -f $binary ]] || fail "$binary is not there: cross/build.sh $target"
native="${TRIBUTARY_BIN_DIR:-$directory/release}"
for name in tributary tributary-receiver; do
    [[ -x $native/$name ]] || fail "$native/$name is not there: cargo build --release -p $name"
done

# twice SECONDS COMMAND…
twice() {
    timeout --foreground --kill-after=5 "$@" || {
        echo "cross/smoke.sh: once more: ${*:2}" >&2
        timeout --foreground --kill-after=5 "$@"
    }
}

twice 120 python3 tests/field/smoke.py "$native" "${runner[@]}" "$binary" || fail "the agent for $target failed twice"
if [[ ${2:-} == --unit-tests ]]; then
    name="${target//-/_}"
    export "CARGO_TARGET_${name^^}_RUNNER=${runner[*]}"
    if [[ $target == armv7-* ]]; then
        export CARGO_TARGET_ARMV7_UNKNOWN_LINUX_GNUEABIHF_LINKER=arm-linux-gnueabihf-gcc
        export CC_armv7_unknown_linux_gnueabihf=arm-linux-gnueabihf-gcc
    fi
    for package in tributary-core tributary-proto tributary-protocols; do
        cargo test --locked --profile checked --target "$target" -p "$package" --lib --no-run
        twice 600 cargo test --locked --profile checked --target "$target" -p "$package" --lib ||
            fail "unit tests of $package for $target failed twice"
    done
fi
