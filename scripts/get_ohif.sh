#!/usr/bin/env bash
# Puts OHIF's prebuilt static site (MIT licence) into .cache/ohif, from the npm package that its makers publish.
# Where npm is missing or cannot answer it says so and succeeds: the node then serves no viewer.
set -euo pipefail
cd "$(dirname "$0")/.."
package=@ohif/app@3.13.2
sha512=WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA==
site=.cache/ohif
[ -e "$site/index.html" ] && [ "$(cat "$site/.package" 2>/dev/null)" = "$package $sha512" ] && exit 0

without_viewer() {
    echo "$1 The node goes on without the OHIF viewer; results are in the files and at the receiving PACS." >&2
    exit 0
}
command -v npm >/dev/null || without_viewer "npm is not installed (Debian: apt-get install npm)."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "Getting $package from npm"
npm pack "$package" --silent --pack-destination "$work" </dev/null >/dev/null 2>"$work/npm.log" ||
    without_viewer "npm could not get $package: $(tail -n 1 "$work/npm.log")."
tarball=$(ls "$work"/*.tgz)
expected=$(base64 -d <<<"$sha512" | od -An -v -tx1 | tr -d ' \n')
if ! sha512sum --check --status <<<"$expected  $tarball"; then
    echo "$package does not have the pinned sha512; nothing was unpacked." >&2
    exit 1
fi
# Left out: ort/ (segmentation in the browser), microscopy, and source maps; three quarters of the size.
tar -xzf "$tarball" -C "$work" --exclude='*/dist/ort' --exclude='*/dist/dicom-microscopy-viewer' \
    --exclude='*.map' package/dist package/LICENSE
mv "$work/package/LICENSE" "$work/package/dist/LICENSE"
echo "$package $sha512" >"$work/package/dist/.package"
rm -rf "$site"
mkdir -p "$(dirname "$site")"
mv "$work/package/dist" "$site"
