// What "@std/assert" means here: the npm edition of Deno's std, given types, for machines that cannot reach JSR.
// One edit in deno.json ("@std/assert": "jsr:@std/assert@1") goes back to the original and retires this folder.

// @ts-types="./std_assert.d.ts"
export * from "npm:deno-std@1.4.0/assert/mod.js";
