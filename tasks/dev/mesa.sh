#!/bin/sh
# Runs tok on the Mesa of another Debian: sh tasks/dev/mesa.sh make DIR [sid|trixie] | run DIR COMMAND...
# make: installs a minimal Debian with its Mesa (llvmpipe) in DIR: 26.2 or later of sid, 25.0 of trixie; a minute, 800 MB. The mirror
# is this system's. run: runs COMMAND in it with this repository at /mnt, this deno and its npm packages; tok's and Mesa's caches are
# DIR's own. As root on Debian. All mounts belong to the command alone: DIR can be deleted at any time.
set -eu
usage() { echo "usage: sh tasks/dev/mesa.sh make DIR [sid|trixie] | run DIR COMMAND..." >&2; exit 2; }
cannot() { echo "mesa: Cannot $what \"$dir\": $1" >&2; exit 1; }
what=${1:-} dir=${2:-}
case "$what" in make | run) ;; *) usage ;; esac
[ $# -ge 2 ] || usage
shift 2
[ "$what" = make ] || [ $# -gt 0 ] || usage
top=$(realpath "$(dirname "$0")/../..")
[ "$(uname)" = Linux ] && [ "$(id -u)" = 0 ] || cannot "this needs root on Linux"
unshare -m true 2>/dev/null || cannot "this system gives no private mounts (unshare -m)"
driver() { ls "$1"/usr/share/vulkan/icd.d/lvp_icd*.json >/dev/null 2>&1; }

# Runs a command in the folder $1 with the repository $2 at /mnt and the deno folder $3.
inside() {
  unshare -m sh -ec 'root=$1 top=$2 deno=$3; shift 3
    for d in proc dev sys; do mount --rbind "/$d" "$root/$d"; done
    mount --bind "$top" "$root/mnt"
    if [ -n "$deno" ]; then
      mkdir -p "$root/var/tmp/deno/npm"
      touch "$root/usr/local/bin/deno"
      mount --bind "$(deno eval "console.log(Deno.execPath())")" "$root/usr/local/bin/deno"
      [ ! -d "$deno/npm" ] || mount --bind "$deno/npm" "$root/var/tmp/deno/npm"
    fi
    exec chroot "$root" env PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/var/tmp TMPDIR=/tmp XDG_RUNTIME_DIR=/tmp XDG_CACHE_HOME= \
      DENO_DIR=/var/tmp/deno DEBIAN_FRONTEND=noninteractive sh -c "cd /mnt && exec \"\$@\"" sh "$@"' sh "$@"
}

if [ "$what" = run ]; then
  [ -d "$dir" ] && driver "$dir" || cannot "there is no Mesa; make it first: sh tasks/dev/mesa.sh make $dir"
  caches=$(deno info --json | sed -n 's/.*"denoDir": *"\([^"]*\)".*/\1/p')
  inside "$(realpath "$dir")" "$top" "$caches" "$@"
  exit
fi

suite=${1:-sid}
case "$suite" in sid | trixie) ;; *) usage ;; esac
if ! driver "$dir"; then
  [ ! -e "$dir" ] || [ -z "$(ls -A "$dir")" ] || cannot "it is not empty and has no Mesa; name another folder, or delete it"
  mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
    awk '/^URIs:/ && /\/debian\/?$/ {print $2; exit} /^deb / {for (i = 2; i <= NF; i++) if ($i ~ /\/debian\/?$/) {print $i; exit}}')
  [ -n "$mirror" ] || cannot "apt has no Debian mirror (sources that end in /debian)"
  command -v debootstrap >/dev/null || apt-get install -y debootstrap >/dev/null 2>&1 ||
    { apt-get update >/dev/null && apt-get install -y debootstrap >/dev/null 2>&1; } || cannot "apt-get cannot install debootstrap"
  # Unfinished work stays in a folder of its own, so that an interruption leaves none that looks complete.
  mkdir -p "$(dirname "$dir")"
  new="$(realpath "$(dirname "$dir")")/.$(basename "$dir").unfinished"
  rm -rf "$new"
  mkdir "$new"
  # debootstrap mounts too: privately.
  unshare -m debootstrap --variant=minbase --include=ca-certificates "$suite" "$new" "$mirror" >"$new.log" 2>&1 ||
    cannot "debootstrap failed, see $new.log: $(tail -n 1 "$new.log")"
  cp /etc/apt/apt.conf.d/* "$new/etc/apt/apt.conf.d/" 2>/dev/null || true
  for file in "${SSL_CERT_FILE:-}" "${NODE_EXTRA_CA_CERTS:-}"; do
    [ -z "$file" ] || { mkdir -p "$new$(dirname "$file")" && cp "$file" "$new$file"; }
  done
  inside "$new" "$top" "" apt-get install -y --no-install-recommends libvulkan1 mesa-vulkan-drivers >"$new.log" 2>&1 ||
    cannot "apt-get failed, see $new.log: $(tail -n 1 "$new.log")"
  [ ! -d "$dir" ] || rmdir "$dir"
  mv "$new" "$dir"
  rm -f "$new.log"
fi
echo "mesa: $dir has Mesa $(inside "$(realpath "$dir")" "$top" "" dpkg-query -W -f '${Version}' mesa-vulkan-drivers)"
