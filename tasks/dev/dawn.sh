#!/bin/sh
# Runs tests under Dawn on the CPU, subgroup matrices included: sh tasks/dev/dawn.sh DIR [TEST...]. DIR is a folder with sid's Mesa
# (mesa.sh makes it if it is not there: root on Debian). Without TESTs: the engine, the ops, the models and a short training.
set -eu
[ $# -gt 0 ] || { echo "usage: sh tasks/dev/dawn.sh DIR [TEST...]" >&2; exit 2; }
dir=$1
shift
top=$(dirname "$0")/../..
[ $# -gt 0 ] || set -- tests/gpu tests/ops tests/models tests/nn tests/train/fp16_training_test.ts
sh "$top/tasks/dev/mesa.sh" make "$dir" sid
# Dawn's package, which mesa.sh takes along with Deno's cache.
(cd "$top" && deno eval 'import { dawnFolder, INSTALL_DAWN } from "./src/gpu/provider.ts";
  if (!dawnFolder()) console.log(INSTALL_DAWN);' | sh) >/dev/null 2>&1
exec sh "$top/tasks/dev/mesa.sh" run "$dir" env TOK_GPU=dawn deno test -A -q --no-check --cached-only "$@"
