// Prints the size of the deployed modules, and how long V8 takes to compile and
// instantiate the wasm module.
//
// usage: node bench/module.mjs [FOLDER]   (build/release)
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { brotliCompressSync, gzipSync } from 'node:zlib';

const REPETITIONS = 21;
const folder = process.argv[2] ?? new URL('../build/release', import.meta.url).pathname;
const wasm = readFileSync(join(folder, 'index_bg.wasm'));
const script = readFileSync(join(folder, 'index.js'));

const kilobytes = (bytes) => `${(bytes.length / 1000).toFixed(0)} kB`;
for (const [name, bytes] of Object.entries({ 'index_bg.wasm': wasm, 'index.js': script })) {
  const gzipped = kilobytes(gzipSync(bytes, { level: 9 }));
  console.log(`${name}: ${kilobytes(bytes)}, ${gzipped} gzipped, ${kilobytes(brotliCompressSync(bytes))} with brotli`);
}

// Stubs for all imports, because the module is instantiated but not run.
const module = new WebAssembly.Module(wasm);
const imports = {};
for (const { module: from, name, kind } of WebAssembly.Module.imports(module)) {
  const jsTag = () => WebAssembly.JSTag ?? new WebAssembly.Tag({ parameters: ['externref'] });
  (imports[from] ??= {})[name] = kind === 'tag' ? jsTag() : () => {};
}
const median = (work) => {
  const times = Array.from({ length: REPETITIONS }, () => {
    const start = performance.now();
    work();
    return performance.now() - start;
  });
  return times.sort((a, b) => a - b)[REPETITIONS >> 1].toFixed(2);
};
console.log(`compile: ${median(() => new WebAssembly.Module(wasm))} ms, median of ${REPETITIONS}`);
console.log(`instantiate: ${median(() => new WebAssembly.Instance(module, imports))} ms, median of ${REPETITIONS}`);
