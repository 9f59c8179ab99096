#!/usr/bin/env bash
# Installs the Debian packages that the tests drive from outside (`test`, the default), or Python (`python`).
# Does nothing where all are present; says what is missing where it may not install. Starts no service.
set -euo pipefail

# command that must exist -> package that brings it
needed() {
    if [ "${1:-test}" = python ]; then
        echo "python3 python3"
        echo "/usr/share/doc/python3-venv python3-venv"
        return
    fi
    cat <<'LIST'
storescu dcmtk
dciodvfy dicom3tools
Orthanc orthanc
/usr/share/orthanc/plugins/libOrthancDicomWeb.so orthanc-dicomweb
chromium chromium
/usr/lib/postgresql/*/bin/initdb postgresql
redis-server redis-server
rabbitmq-server rabbitmq-server
npm npm
wrk wrk
gcc gcc
/usr/include/stdio.h libc6-dev
mkfs.ext4 e2fsprogs
losetup mount
openssl openssl
LIST
}

missing=()
while read -r command package; do
    # shellcheck disable=SC2086  # the path may be a pattern
    if [[ $command == /* ]]; then
        compgen -G "$command" >/dev/null && continue
    elif PATH="$PATH:/usr/sbin:/sbin" command -v "$command" >/dev/null; then
        continue
    fi
    missing+=("$package")
done < <(needed "${1:-test}")
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2>/dev/null; then
        echo "These Debian packages are missing and this user may not install them; ask an administrator for:" >&2
        echo "    apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo -n)
fi
if ! command -v apt-get >/dev/null; then
    echo "These programs are missing and there is no apt-get to install them: ${missing[*]}" >&2
    exit 1
fi

echo "Installing Debian packages: ${missing[*]}"
# The tests start their own servers on free ports; what Debian installs must not start one too.
if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee /usr/sbin/policy-rc.d >/dev/null
    "${as_root[@]}" chmod +x /usr/sbin/policy-rc.d
    trap '"${as_root[@]}" rm -f /usr/sbin/policy-rc.d' EXIT
fi
install() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive ERL_EPMD_ADDRESS=127.0.0.1 \
        apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null >>"$log" 2>&1
}
log=$(mktemp)
"${as_root[@]}" apt-get update -q >>"$log" 2>&1 || true
install || { tail -n 20 "$log" >&2; echo "apt-get could not install them; the whole output is in $log" >&2; exit 1; }
rm -f "$log"
