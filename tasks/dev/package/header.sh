#!/bin/sh
{ # A shell reads all of a group before it runs any of it: cut off in here, this does nothing and says so.
# tok in one file. This header unpacks the archive behind it into the user's cache when it is not there yet, then runs it.
# What is there is used only if it is complete: all files have their sizes and none was changed since it was unpacked.
set -eu
mask=$(umask)
umask 077
digest=@DIGEST@ # SHA-256 of the archive
start=@START@ # byte at which the archive begins, from 1
total=@TOTAL@ # bytes of this file
files=@FILES@ # files in the archive, and their bytes
bytes=@BYTES@

say() { echo "tok: $*" >&2; }

# complete FOLDER: the stamp is there, which is written last, and everything is as it was then
complete() {
  [ "$(cat "$1/.complete" 2>/dev/null)" = "$digest" ] || return 1
  [ "$(cd "$1" && xargs ls -ln 2>/dev/null <.files | awk '{ n++; s += $5 } END { printf "%d %.0f", n, s }')" = "$files $bytes" ] || return 1
  [ -z "$(cd "$1" && xargs sh -c 'find "$@" -newer .complete' sh <.files 2>&1)" ]
}

# modes of a folder as ls shows them, and the number of its owner
modes() { ls -ldn "$1/." | awk '{ print $1, $3 }'; }

# private FOLDER: it is this user's, and nobody else can write to it or replace it
private() {
  base=${1%/*}
  case "$(modes "${base:-/}")" in
  d????-??-?*) ;;
  d????????[tT]*) ;; # others may make files here, and not touch ours
  *) return 1 ;;
  esac
  case "$(modes "$1")" in
  d????-??-?*" $(id -u)") return 0 ;;
  d*" $(id -u)") # ours, but open: what is in it may be anybody's
    [ ! -L "$1" ] && chmod go-w "$1" && rm -rf "$1/$name" ;;
  *) return 1 ;;
  esac
}

# whole: the archive is what it was when it was packed
whole() {
  size=$(wc -c <"$0")
  if [ "$size" -ne "$total" ]; then
    say "Cannot start: $0 has $((size)) of $total bytes, so its download was cut off; download it again"
    exit 1
  fi
  if command -v sha256sum >/dev/null 2>&1; then sum=$(tail -c "+$start" "$0" | sha256sum)
  elif command -v shasum >/dev/null 2>&1; then sum=$(tail -c "+$start" "$0" | shasum -a 256)
  else return 0; fi # gzip has a checksum of its own
  if [ "${sum%% *}" != "$digest" ]; then
    say "Cannot start: $0 is damaged (SHA-256 ${sum%% *}, and it should be $digest); download it again"
    exit 1
  fi
}

# clean FOLDER: removes what unpacking left that was killed
clean() {
  for part in "$1"/.part-"$(uname -n)"-*; do
    [ -d "$part" ] || continue
    kill -0 "${part##*-}" 2>/dev/null || rm -rf "$part"
  done
}

# unpack FOLDER: into a part of its own, which takes its place at once when it is complete
unpack() {
  part="$1/.part-$(uname -n)-$$"
  mkdir "$part" 2>/dev/null || return 1
  trap 'rm -rf "$part"' EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  done=false
  if tail -c "+$start" "$0" | tar -xzf - -C "$part" 2>/dev/null &&
    "$part/tok/deno" run -A --no-config --no-lock --cached-only "$part/tok/install.ts" "$part" "$1/$name" "$digest" 2>/dev/null; then
    done=true
  fi
  rm -rf "$part"
  trap - EXIT HUP INT TERM
  $done
}

main() {
  name=$(printf %.16s "$digest")
  checked=false
  for base in "${XDG_CACHE_HOME:-}" "${HOME:+$HOME/.cache}" "${TMPDIR:-/tmp}"; do
    [ -n "$base" ] || continue
    folder="$base/tok"
    if [ "$base" = "${TMPDIR:-/tmp}" ]; then
      folder="${base%/}/tok-$(id -u)"
      [ ! -L "$folder" ] || continue
    fi
    mkdir -p "$folder" 2>/dev/null || [ -d "$folder" ] || continue
    if ! private "$folder"; then
      say "warning: $folder is not used: it belongs to another user, or others can write to it"
      continue
    fi
    home="$folder/$name"
    clean "$folder"
    if ! complete "$home"; then
      $checked || whole
      checked=true
      unpack "$folder" && complete "$home" || continue
    fi
    export DENO_DIR="$home/cache" DENO_NO_UPDATE_CHECK=1
    umask "$mask"
    exec "$home/deno" run -A --no-check --cached-only --no-prompt --config "$home/deno.json" "$home/main.ts" "$@"
  done
  say "Cannot unpack: no folder of yours can be written and run from; set XDG_CACHE_HOME to one"
  exit 1
}
main "$@"
exit 1
}
