// Types of jSquash's libwebp; those of the package need Emscripten's.

export interface WebpDecoder {
  /** RGBA, not premultiplied; null where the data is damaged, or an animation. */
  decode(bytes: Uint8Array): ImageData | null;
}

interface Options {
  noInitialRun: boolean;
  instantiateWasm(
    imports: WebAssembly.Imports,
    done: (instance: WebAssembly.Instance) => void,
  ): WebAssembly.Exports;
}

declare const factory: (options: Options) => Promise<WebpDecoder>;
export default factory;
