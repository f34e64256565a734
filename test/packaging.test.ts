/**
 * The package as its users install it: built files and production dependencies in a folder of their
 * own, without the optional ones.
 */
import { execFile } from "node:child_process";
import { cpSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { deepTest } from "./deep-test.ts";
import { repositoryRoot } from "./source-tree.ts";
import { createFolder, removeFolder } from "./temporary-folder.ts";

const run = promisify(execFile);
const packedBytesMax = 500_000;

interface PackageJson {
  readonly dependencies: Readonly<Record<string, string>>;
  readonly peerDependencies: Readonly<Record<string, string>>;
  readonly peerDependenciesMeta: Readonly<Record<string, { readonly optional: boolean }>>;
  readonly devDependencies: Readonly<Record<string, string>>;
  readonly exports: Readonly<Record<string, unknown>>;
}

const manifest = JSON.parse(readFileSync(join(repositoryRoot, "package.json"), "utf8")) as PackageJson;
const entries = Object.keys(manifest.exports)
  .filter((entry) => !entry.endsWith(".json"))
  .map((entry) => entry.replace(/^\./, "tidemark"));

let folder: string;

/** Makes a package of the repository's `node_modules` available to the folder. */
function link(name: string): void {
  const target = join(folder, "node_modules", name);
  mkdirSync(dirname(target), { recursive: true });
  symlinkSync(join(repositoryRoot, "node_modules", name), target);
}

beforeAll(() => {
  folder = createFolder("package");
  const installed = join(folder, "node_modules", "tidemark");
  cpSync(join(repositoryRoot, "dist"), join(installed, "dist"), { recursive: true });
  cpSync(join(repositoryRoot, "package.json"), join(installed, "package.json"));
  for (const name of [...Object.keys(manifest.dependencies), "@types/node", "undici-types"]) link(name);
});

afterAll(async () => {
  await removeFolder(folder);
});

/** What a script of the folder prints. */
async function script(name: string, text: string): Promise<string> {
  writeFileSync(join(folder, name), text);
  return (await run(process.execPath, [name], { cwd: folder })).stdout.trim();
}

describe("the package", () => {
  test.each(entries)("%s loads with require()", async (entry) => {
    const count = await script(
      "require.cjs",
      `console.log(Object.keys(require(${JSON.stringify(entry)})).length > 0);`,
    );
    expect(count).toBe("true");
  });

  test("replicates into a directory with none of the optional packages", async () => {
    const printed = await script(
      "dir.mjs",
      `
      import { Vault } from "tidemark";
      import { openSink } from "tidemark/sink";
      import { MemoryVolume } from "tidemark/testing";
      const sink = await openSink("dir:vault");
      const vault = await Vault.create(sink, { workers: 1 });
      const volume = new MemoryVolume(new Uint8Array(100_000).fill(1));
      const { sequence } = await vault.replicate({ disk: "d", volume });
      await vault.close();
      await sink[Symbol.asyncDispose]();
      console.log(sequence);`,
    );
    expect(printed).toBe("1");
  });

  test.each([
    ["azurite:azurite", "azurite @azure/storage-blob"],
    ["https://account.blob.core.windows.net/container", "@azure/storage-blob"],
  ])("says what to install for %s", async (address, packages) => {
    const printed = await script(
      "optional.mjs",
      `
      import { openSink } from "tidemark/sink";
      const { code, remedy } = await openSink(${JSON.stringify(address)}).catch((error) => error);
      console.log(JSON.stringify({ code, remedy }));`,
    );
    expect(JSON.parse(printed)).toEqual({
      code: "UNSUPPORTED",
      remedy: expect.stringContaining(`npm install ${packages}`) as string,
    });
  });

  test("says what to do where a part of an optional package cannot be found", async () => {
    const broken = join(folder, "node_modules", "@azure", "storage-blob");
    mkdirSync(broken, { recursive: true });
    writeFileSync(join(broken, "package.json"), `{"type": "module", "exports": "./index.js"}`);
    writeFileSync(join(broken, "index.js"), `import "./absent.js";`);
    const program = join(folder, "node_modules", "tidemark", "dist", "cli", "main.js");
    const words = [program, "verify", "--vault", "https://account.blob.core.windows.net/container?sig=s", "--json"];
    const { stdout } = await run(process.execPath, words, { cwd: folder }).catch((error: unknown) => error as never);
    rmSync(broken, { recursive: true });
    expect(JSON.parse(stdout)).toMatchObject({
      code: "UNSUPPORTED",
      message: expect.stringContaining("absent.js") as string,
      remedy: expect.stringContaining("ulimit -n") as string,
    });
  });

  deepTest(
    "has types that compile without the DOM library and with skipLibCheck off",
    { timeout: 120_000 },
    async () => {
      const options = {
        lib: ["es2023", "esnext.disposable"],
        module: "node20",
        target: "es2023",
        strict: true,
        exactOptionalPropertyTypes: true,
        skipLibCheck: false,
        types: ["node"],
        noEmit: true,
      };
      writeFileSync(
        join(folder, "tsconfig.json"),
        JSON.stringify({ compilerOptions: options, files: ["consumer.mts"] }),
      );
      const imports = entries.map(
        (entry, index) => `import * as entry${index} from ${JSON.stringify(entry)};\nvoid entry${index};`,
      );
      writeFileSync(join(folder, "consumer.mts"), imports.join("\n"));
      const compiler = join(repositoryRoot, "node_modules", "typescript", "bin", "tsc");
      const { stdout } = await run(process.execPath, [compiler, "-p", folder]).catch(
        (error: unknown) => error as { stdout: string },
      );
      expect(stdout).toBe("");
    },
  );

  test("has optional peers that are development dependencies here, and no other peers", () => {
    const peers = Object.keys(manifest.peerDependencies);
    expect(peers.filter((name) => manifest.peerDependenciesMeta[name]?.optional !== true)).toEqual([]);
    expect(peers.filter((name) => manifest.devDependencies[name] === undefined)).toEqual([]);
  });

  test(`packs to at most ${packedBytesMax / 1000} kB, and names no source map`, { timeout: 60_000 }, async () => {
    const { stdout } = await run("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], { cwd: repositoryRoot });
    const [packed] = JSON.parse(stdout) as [
      { readonly size: number; readonly files: readonly { readonly path: string }[] },
    ];
    expect(packed.size).toBeLessThanOrEqual(packedBytesMax);
    const scripts = packed.files.map(({ path }) => path).filter((path) => path.endsWith(".js"));
    expect(
      scripts.filter((path) => readFileSync(join(repositoryRoot, path), "utf8").includes("sourceMappingURL")),
    ).toEqual([]);
  });
});
