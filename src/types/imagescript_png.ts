// What "imagescript/png" means here: the wasm decoder and the encoder, given types. The package's main import would
// load a native addon, and its second decoder (beside the encoder) knows neither interlacing nor less than 8 bits.

// @ts-types="./imagescript_png_encode.d.ts"
import encoder from "npm:imagescript@1.3.1/png/node.js";

// @ts-types="./imagescript_png.d.ts"
export { default } from "npm:imagescript@1.3.1/wasm/node/png.js";
export type { PngDecoder } from "./imagescript_png.d.ts";
export const encode = encoder.encode;
