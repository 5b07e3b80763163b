// What "@std/path" means here: the npm edition of Deno's std, given types, for machines that cannot reach JSR.

// @ts-types="./std_path.d.ts"
export * from "npm:deno-std@1.4.0/path/mod.js";
