// What "imagescript/jpeg" means here: the wasm decoder alone, given types. The package's main import would load a
// native addon.

// @ts-types="./imagescript_jpeg.d.ts"
export { default } from "npm:imagescript@1.3.1/wasm/node/jpeg.js";
export type { JpegDecoder, JpegFrame } from "./imagescript_jpeg.d.ts";
