#!/usr/bin/env bash
# Makes a Debian package of the agent: cross/package.sh TARGET [BINARY]
#
#   TARGET   as for cross/build.sh, which is called first unless a BINARY is given
#
# The last line printed is the package's path and size. Fails above the size in size-budget.toml, and on an error of
# lintian if that is installed. The same commit gives the same bytes: all times are the commit's (SOURCE_DATE_EPOCH, if
# it is set), all owners root, all names in order. Needs dpkg-deb, gzip, python3.
#
# TRIBUTARY_MANUAL names a folder with what the example `manual` wrote; else it is built and run.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

fail() {
    echo "cross/package.sh: $*" >&2
    exit 1
}

target="${1:-}"
binary="${2:-}"
case "$target" in
    x86_64-*) architecture=amd64 ;;
    aarch64-*) architecture=arm64 ;;
    armv7-*) architecture=armhf ;;
    *) fail "which target? see cross/build.sh" ;;
esac
for program in dpkg-deb gzip python3 readelf; do
    command -v "$program" >/dev/null || fail "no $program: apt-get install dpkg gzip python3 binutils"
done
if [[ -z $binary ]]; then
    binary="$(cross/build.sh "$target" | tee /dev/stderr | tail -n 1 | cut -d ' ' -f 1)"
fi
[[ -f $binary ]] || fail "there is no $binary"

directory="$(cargo metadata --locked --no-deps --format-version 1 | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')"
version="${TRIBUTARY_VERSION:-$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)}"
SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}"
export SOURCE_DATE_EPOCH
place="$directory/package/$target"
root="$place/root"
rm -rf -- "$place"
mkdir -p -- "$root"

if [[ -z ${TRIBUTARY_MANUAL:-} ]]; then
    TRIBUTARY_MANUAL="$place/manual"
    cargo run --locked --quiet -p tributary --example manual -- "$TRIBUTARY_MANUAL"
fi

# put MODE FILE PLACE
put() {
    install -D -m "$1" -- "$2" "$root/$3"
}
put 755 "$binary" usr/bin/tributary
for unit in tributary tributary-seed; do
    put 644 "systemd/$unit.service" "usr/lib/systemd/system/$unit.service"
done
put 644 systemd/tributary.sysusers.conf usr/lib/sysusers.d/tributary.conf
put 644 systemd/tributary.tmpfiles.conf usr/lib/tmpfiles.d/tributary.conf
put 644 systemd/60-tributary-serial.rules usr/lib/udev/rules.d/60-tributary-serial.rules
for file in examples/profiles/*.toml examples/profiles/*.csv; do
    [[ ! -f $file ]] || put 644 "$file" "usr/share/tributary/profiles/$(basename "$file")"
done
put 644 agent/daemon/schema/config.schema.json usr/share/tributary/schema/config.schema.json
put 644 agent/daemon/schema/profile.schema.json usr/share/tributary/schema/profile.schema.json
for file in examples/*.toml agent/daemon/sample.toml systemd/seed.toml systemd/serial.conf; do
    put 644 "$file" "usr/share/doc/tributary/examples/$(basename "$file")"
done
put 644 systemd/README.md usr/share/doc/tributary/README.md
put 644 cross/README.md usr/share/doc/tributary/installers-guide.md
for page in "$TRIBUTARY_MANUAL"/man/man1/*.1; do
    put 644 "$page" "usr/share/man/man1/$(basename "$page")"
done
put 644 "$TRIBUTARY_MANUAL/bash/tributary" usr/share/bash-completion/completions/tributary
put 644 "$TRIBUTARY_MANUAL/zsh/_tributary" usr/share/zsh/vendor-completions/_tributary
put 644 "$TRIBUTARY_MANUAL/fish/tributary.fish" usr/share/fish/vendor_completions.d/tributary.fish
put 644 cross/debian/lintian-overrides usr/share/lintian/overrides/tributary
python3 cross/sbom.py tributary "$target" >"$place/sbom.json"
put 644 "$place/sbom.json" usr/share/doc/tributary/sbom.cdx.json
{
    printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n'
    printf 'Upstream-Name: tributary\n\nFiles: *\nCopyright: 2026 the Tributary authors\nLicense: Apache-2.0\n'
    printf ' On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\nComment:\n'
    printf ' What is linked into the binary, with its licences, is listed in sbom.cdx.json beside this file.\n'
} >"$place/copyright"
put 644 "$place/copyright" usr/share/doc/tributary/copyright
{
    printf 'tributary (%s) stable; urgency=medium\n\n  * See CHANGELOG.md in the source.\n\n' "$version"
    printf ' -- Tributary <tributary@localhost>  %s\n' "$(date -u -R -d "@$SOURCE_DATE_EPOCH")"
} >"$place/changelog"
put 644 "$place/changelog" usr/share/doc/tributary/changelog
find "$root/usr/share/man" "$root/usr/share/doc/tributary/changelog" "$root/usr/share/doc/tributary/sbom.cdx.json" -type f -exec gzip -9n {} +

# The oldest glibc whose symbols the binary has; a static one needs none.
floor="$({ readelf --version-info --wide "$binary" | grep -o 'GLIBC_[0-9.]*' || true; } | sort -uV | tail -n 1)"
depends="systemd | systemd-standalone-sysusers, systemd | systemd-standalone-tmpfiles"
if [[ -n $floor ]]; then depends="libc6 (>= ${floor#GLIBC_}), libgcc-s1, $depends"; fi
mkdir -p "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<CONTROL
Package: tributary
Version: $version
Architecture: $architecture
Maintainer: Tributary <tributary@localhost>
Installed-Size: $(du -sk --apparent-size "$root/usr" | cut -f 1)
Depends: $depends
Section: net
Priority: optional
Description: edge agent for Modbus and MQTT devices
 Polls Modbus devices, listens to MQTT sensors, keeps every reading on the
 gateway's disk until the centre has acknowledged it, and accounts for each.
CONTROL
for script in postinst prerm postrm; do
    install -m 755 "cross/debian/$script" "$root/DEBIAN/$script"
done
(cd "$root" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum >DEBIAN/md5sums)
chmod 644 "$root/DEBIAN/control" "$root/DEBIAN/md5sums"
find "$root" -type d -exec chmod 755 {} +
find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

deb="$directory/package/tributary_${version}_$architecture.deb"
# One thread: several cut the stream elsewhere.
dpkg-deb --root-owner-group --threads-max=1 -Zxz -z9 -Sextreme --build "$root" "$deb" >/dev/null
if command -v lintian >/dev/null; then
    # As root it warns that it is root; the maker's address and the distribution are who builds for others' to set.
    lintian --allow-root --fail-on error --suppress-tags bogus-mail-host,bogus-mail-host-in-debian-changelog "$deb" >&2 ||
        fail "lintian found errors in $deb"
fi
size="$(stat -c %s "$deb")"
key=package
if [[ $architecture == amd64 ]]; then key=package_x86_64; fi
most="$(sed -n "s/^$key = \([0-9_]*\).*/\1/p" cross/size-budget.toml)"
((size <= ${most//_/})) || fail "$size bytes of $deb are more than the ${most//_/} of cross/size-budget.toml"
echo "$deb $size bytes"
