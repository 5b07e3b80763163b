// What "imagescript/png" means here: the encoder alone, given types. The package's main import would load a native addon,
// and its decoders apply tRNS to the colours.

// @ts-types="./imagescript_png_encode.d.ts"
import encoder from "npm:imagescript@1.3.1/png/node.js";

export const encode = encoder.encode;
