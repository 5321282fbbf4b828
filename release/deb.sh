#!/usr/bin/env bash
# Makes the Debian package:
#
#   release/deb.sh STAGE OUT        STAGE as release/stage.sh makes it; prints the path of the package
#
# It installs the program, the systemd units of deploy/systemd, its settings in /etc/default/microgranite, the manual pages
# and the completions. It starts nothing: a server without a model has nothing to serve. The same files and the same
# SOURCE_DATE_EPOCH give the same bytes. Needs dpkg-deb and Python.
set -euo pipefail
if [ $# -ne 2 ]; then
    echo "usage: release/deb.sh STAGE OUT" >&2
    exit 64
fi
stage=$(realpath "$1")
out=$(realpath "$2")
cd "$(dirname "$0")/.."
: "${SOURCE_DATE_EPOCH:?is the time in the files}"

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
architecture=$(release/elf.py "$stage/microgranite" --debian)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
umask 022

put() { # put MODE FILE… FOLDER
    local mode=$1 folder=$root/${*: -1}
    install -d -m 755 "$folder"
    install -m "$mode" "${@:2:$#-2}" "$folder"
}
put 755 "$stage/microgranite" usr/bin
put 644 deploy/systemd/*.service deploy/systemd/*.socket usr/lib/systemd/system
put 644 "$stage"/man/*.1 usr/share/man/man1
put 644 "$stage/completions/microgranite" usr/share/bash-completion/completions
put 644 "$stage/completions/_microgranite" usr/share/zsh/vendor-completions
put 644 "$stage/completions/microgranite.fish" usr/share/fish/vendor_completions.d
put 644 "$stage/sbom.cdx.json" "$stage/THIRD-PARTY.txt" README.md usr/share/doc/microgranite
install -d -m 755 "$root/etc/default"
install -m 644 deploy/systemd/microgranite.default "$root/etc/default/microgranite"
install -m 644 CHANGELOG.md "$root/usr/share/doc/microgranite/changelog"
gzip --best --no-name "$root"/usr/share/man/man1/*.1 "$root"/usr/share/doc/microgranite/{changelog,THIRD-PARTY.txt}
cat >"$root/usr/share/doc/microgranite/copyright" <<'TEXT'
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: microgranite
Comment: The program contains parts of others. THIRD-PARTY.txt.gz in this folder has their licences.

Files: *
Copyright: The authors of microgranite
License: Apache-2.0
 On Debian systems the full text is in /usr/share/common-licenses/Apache-2.0.
TEXT

install -d -m 755 "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<CONTROL
Package: microgranite
Version: $version
Architecture: $architecture
Maintainer: The authors of microgranite <microgranite@localhost>
Installed-Size: $(find "$root/etc" "$root/usr" -type f -printf '%s\n' | awk '{ kib += int(($1 + 1023) / 1024) } END { print kib }')
Section: net
Priority: optional
Description: IBM Granite at eight bits behind an HTTP port
 Quantizes IBM Granite checkpoints to int8 and serves them on plain CPUs through
 the APIs of OpenAI and Anthropic, with metrics for Prometheus.
 .
 The program is static and depends on no other package. The service starts when
 /etc/default/microgranite names a model.
CONTROL
echo /etc/default/microgranite >"$root/DEBIAN/conffiles"

# Where systemd does not run, as in an image, or where dpkg installs into another root, the scripts do nothing.
script() { # script NAME: reads the script from standard input
    cat >"$root/DEBIAN/$1"
    chmod 755 "$root/DEBIAN/$1"
}
script postinst <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = configure ] && [ -z "$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    # After an upgrade the new program serves, if the old one did.
    if [ -n "$2" ]; then systemctl try-restart microgranite.service; fi
fi
SCRIPT
script prerm <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -z "$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then
    systemctl disable --now microgranite.socket microgranite.service
fi
SCRIPT
script postrm <<'SCRIPT'
#!/bin/sh
set -e
if [ -z "$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
if [ "$1" = purge ]; then
    # What the service downloaded. With a dynamic user the folders are under "private", and the others are links to them.
    rm -rf "$DPKG_ROOT/var/cache/private/microgranite" "$DPKG_ROOT/var/cache/microgranite"
fi
SCRIPT
(cd "$root" && find etc usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
chmod 644 "$root/DEBIAN/"{control,conffiles,md5sums}

# dpkg-deb sorts the files and takes no time later than SOURCE_DATE_EPOCH.
dpkg-deb --root-owner-group -Zxz --build "$root" "$out/microgranite_${version}_$architecture.deb" >&2
echo "$out/microgranite_${version}_$architecture.deb"
