// What "@std/text/levenshtein-distance" means here: the npm edition of Deno's std, given types.

// @ts-types="./std_levenshtein_distance.d.ts"
export * from "npm:deno-std@1.4.0/text/levenshtein_distance.js";
