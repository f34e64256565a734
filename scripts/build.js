/**
 * Builds the program: its WASM kernels in a process of their own, and its JavaScript and declarations meanwhile, because none needs
 * another. Every part that fails is told, and the build then ends with status 1.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { rmSync } from "node:fs";
import process from "node:process";

const kernels = ["engine/pipeline/lz4.as.ts", "engine/pipeline/xxh3.as.ts", "engine/pipeline/blake3.as.ts"];
const kernelFlags =
  "-O3 --noAssert --runtime stub --enable simd --enable threads --importMemory --sharedMemory --initialMemory 1 --maximumMemory 65536";

async function buildKernels() {
  const words = [...kernels, "-o", "dist/engine/pipeline/kernels.wasm", ...kernelFlags.split(" ")];
  const compiler = spawn(process.execPath, ["node_modules/assemblyscript/bin/asc.js", ...words], { stdio: "inherit" });
  const [status] = await once(compiler, "exit");
  if (status !== 0) throw new Error(`asc ended with status ${status}`);
}

rmSync("dist", { recursive: true, force: true });
const parts = await Promise.allSettled([buildKernels(), import("./bundle.js"), import("./bundle-declarations.js")]);
for (const { reason } of parts.filter(({ status }) => status === "rejected")) {
  console.error(reason);
  process.exitCode = 1;
}
