#!/usr/bin/env bash
# Stand-ins for the images of a registry, made from Debian's packages where no registry can be reached:
#   compose/base/make.sh python [TAG]   Python 3.11 with pip     (for BASE_IMAGE)
#   compose/base/make.sh redis  [TAG]   redis-server             (for REDIS_IMAGE)
# Needs root, mmdebstrap and a Docker engine. The machine's own certificates (/usr/local/share/ca-certificates) go in, so that pip works
# behind a proxy that has one: never ship such an image. WHEELS=FOLDER: its wheels are found by pip in builds (a CPU build of torch).
set -euo pipefail
kind=${1:?python or redis} wheels=${WHEELS:-}
tag=${2:-omnigym-base-$kind}
export TMPDIR=${TMPDIR:-/dev/shm}
case $kind in
  python) packages=ca-certificates,python3,python3.11-venv ;;
  redis) packages=redis-server ;;
  *) echo "make.sh: '$kind' is neither python nor redis" >&2; exit 2 ;;
esac
hooks=(--customize-hook='find "$1/usr" -xdev -name __pycache__ -prune -exec rm -rf {} +')
changes=(--change 'ENV LANG=C.UTF-8')
if [ "$kind" = python ]; then
  conf=$'[global]\ncert = /etc/ssl/certs/ca-certificates.crt\ndefault-timeout = 180\ndisable-pip-version-check = true\n'
  [ -z "$wheels" ] || conf+=$'find-links = /opt/wheels\n'
  export conf wheels
  hooks=(
    --customize-hook='mkdir -p "$1/usr/local/share/ca-certificates"; cp /usr/local/share/ca-certificates/*.crt "$1/usr/local/share/ca-certificates/" 2>/dev/null || true'
    --customize-hook='chroot "$1" update-ca-certificates >/dev/null 2>&1'
    --customize-hook='printf "%s" "$conf" > "$1/etc/pip.conf"'
    --customize-hook='[ -z "$wheels" ] || { mkdir -p "$1/opt/wheels"; cp "$wheels"/*.whl "$1/opt/wheels/"; }'
    --customize-hook='chroot "$1" python3.11 -m venv /usr/local'
    "${hooks[@]}"
  )
  changes+=(
    --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin'
    --change 'ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt' --change 'CMD ["python3"]'
  )
else
  changes+=(--change 'CMD ["redis-server"]')
fi
# usr-is-merged with its hook: else usrmerge comes, and with it 47 MB of Perl.
mmdebstrap --quiet --variant=minbase --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr --include="usr-is-merged,$packages" \
  --aptopt='APT::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  "${hooks[@]}" bookworm - /etc/apt/sources.list.d/debian.sources |
  docker import "${changes[@]}" - "$tag" >/dev/null
docker image inspect --format "$tag {{.Size}} bytes" "$tag"
