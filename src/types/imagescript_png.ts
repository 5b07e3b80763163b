// What "imagescript/png" means here: the wasm decoder and the encoder, given types. The package's main import would
// load a native addon, and its second decoder (png/node.js) knows neither interlacing nor less than 8 bits.

// @ts-types="./imagescript_png.d.ts"
export { default } from "npm:imagescript@1.3.1/wasm/node/png.js";
// @ts-types="./imagescript_png_encode.d.ts"
export { encode } from "npm:imagescript@1.3.1/png/node.js";
export type { PngDecoder } from "./imagescript_png.d.ts";
