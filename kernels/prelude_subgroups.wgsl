// The last levels of the trees of prelude_rows by shuffles, without barriers: invocation t of a subgroup meets t ^ half, so that all
// threads of a row get the result. Needs prelude_rows, and consecutive threads in consecutive invocations of a subgroup, which
// src/ops/subgroups.ts checks. subgroupAdd would leave the order of additions to the driver.
enable subgroups;

fn sum_subgroup(own: vec2<f32>) -> vec2<f32> {
  let threads = min(THREADS, SUBGROUP);
  var sum = own;
  if (threads > 32u) { sum += subgroupShuffleXor(sum, 32u); }
  if (threads > 16u) { sum += subgroupShuffleXor(sum, 16u); }
  if (threads > 8u) { sum += subgroupShuffleXor(sum, 8u); }
  if (threads > 4u) { sum += subgroupShuffleXor(sum, 4u); }
  if (threads > 2u) { sum += subgroupShuffleXor(sum, 2u); }
  if (threads > 1u) { sum += subgroupShuffleXor(sum, 1u); }
  return sum;
}

fn max_subgroup(own: f32) -> f32 {
  let threads = min(THREADS, SUBGROUP);
  var top = own;
  if (threads > 32u) { top = max(top, subgroupShuffleXor(top, 32u)); }
  if (threads > 16u) { top = max(top, subgroupShuffleXor(top, 16u)); }
  if (threads > 8u) { top = max(top, subgroupShuffleXor(top, 8u)); }
  if (threads > 4u) { top = max(top, subgroupShuffleXor(top, 4u)); }
  if (threads > 2u) { top = max(top, subgroupShuffleXor(top, 2u)); }
  if (threads > 1u) { top = max(top, subgroupShuffleXor(top, 1u)); }
  return top;
}
