// What "jsquash/webp" means here: libwebp's decoder as wasm, a new instance with memory of its own at each call.

// @ts-types="./jsquash_webp.d.ts"
import factory from "npm:@jsquash/webp@1.5.0/codec/dec/webp_dec.js";
import type { WebpDecoder } from "./jsquash_webp.d.ts";

export type { WebpDecoder } from "./jsquash_webp.d.ts";

let program: WebAssembly.Module | undefined;

/** The package's own loader would fetch the program by its address. */
export async function webpDecoder(): Promise<WebpDecoder> {
  program ??= await WebAssembly.compile(
    await Deno.readFile(new URL(import.meta.resolve("npm:@jsquash/webp@1.5.0/codec/dec/webp_dec.wasm"))),
  );
  const compiled = program;
  return await factory({
    noInitialRun: true,
    instantiateWasm(imports, done) {
      const instance = new WebAssembly.Instance(compiled, imports);
      done(instance);
      return instance.exports;
    },
  });
}
