#!/bin/sh
# Runs tests under Dawn on the CPU, subgroup matrices included: sh tasks/dev/dawn.sh DIR [TEST...|none]. DIR is a folder with sid's
# Mesa (mesa.sh makes it if it is not there: root on Debian); "none" only sets up. Without TESTs: the engine, the ops, the models,
# tuning and short trainings in fp32, fp16 and fp16 by matrices, 25 minutes of processor time the first time (tests/README.md).
set -eu
[ $# -gt 0 ] || { echo "usage: sh tasks/dev/dawn.sh DIR [TEST...|none]" >&2; exit 2; }
dir=$1 top=$(realpath "$(dirname "$0")/../..")
shift
[ $# -gt 0 ] || set -- tests/gpu tests/ops tests/models tests/nn tests/bench tests/train/matrix_training_test.ts \
  tests/train/fp16_training_test.ts tests/train/training_test.ts tests/train/skipped_steps_test.ts tests/train/muon_test.ts
sh "$top/tasks/dev/mesa.sh" make "$dir" sid
# Dawn's package: mesa.sh takes Deno's npm cache along.
dawn() { deno eval "import { dawnFolder, INSTALL_DAWN } from \"file://$top/src/gpu/provider.ts\"; console.log($1);"; }
[ "$(dawn 'dawnFolder() !== undefined')" = true ] || $(dawn INSTALL_DAWN) >/dev/null 2>&1 ||
  { echo "dawn: Cannot download its package; try: $(dawn INSTALL_DAWN)" >&2; exit 1; }
[ "$*" != none ] || exit 0
# Its subgroup matrices need vectors of 256 bits: with 512, Mesa 26.2 crashes at the first.
exec sh "$top/tasks/dev/mesa.sh" run "$dir" env TOK_GPU=dawn LP_NATIVE_VECTOR_WIDTH=256 deno test -A --no-check --cached-only "$@"
