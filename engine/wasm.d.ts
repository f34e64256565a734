/**
 * The part of the WebAssembly JavaScript API that the engine uses. `@types/node` 20 leaves it to the DOM library, which a program
 * that runs in Node should not see. Source: https://webassembly.github.io/spec/js-api/
 */
declare namespace WebAssembly {
  class Module {
    constructor(bytes: Uint8Array | ArrayBuffer);
    readonly [Symbol.toStringTag]: "WebAssembly.Module";
  }

  class Instance {
    constructor(module: Module, imports?: Readonly<Record<string, Readonly<Record<string, unknown>>>>);
    readonly exports: Readonly<Record<string, unknown>>;
  }

  class Memory {
    constructor(limits: { readonly initial: number; readonly maximum?: number; readonly shared?: boolean });
    /** A SharedArrayBuffer when the memory is shared. */
    readonly buffer: ArrayBufferLike;
    grow(pages: number): number;
  }
}
