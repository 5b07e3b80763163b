// What "yauzl" means here: the zip reader, given types as far as tok uses it.

// @ts-types="./yauzl.d.ts"
export { openPromise } from "npm:yauzl@3.4.0";
export type { Entry, ZipFile } from "./yauzl.d.ts";
