// What "@std/cli/parse-args" means here: the npm edition of Deno's std, given types, for machines that cannot reach JSR.

// @ts-types="./std_parse_args.d.ts"
export * from "npm:deno-std@1.4.0/cli/parse_args.js";
