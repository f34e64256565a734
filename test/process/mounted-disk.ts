/**
 * A protected disk with a real file system on it, as the kernel sees it: the export through
 * nbdfuse, a loop device on that, ext4 on it, mounted. It needs root, /dev/fuse and loop devices;
 * where there are none, the tests say so and are skipped.
 *
 *     database ─► ext4 ─► loop device ─► nbdfuse ─► NBD ─► tidemark agent ─► disk.img
 */
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { onTestFinished } from "vitest";
import type { Running } from "../cli/tidemark.ts";
import { attachLoop } from "../loop-device.ts";
import { isInstalled } from "../programs.ts";
import type { Client } from "./client.ts";

const diskBytes: number = 256 * 1024 * 1024;
const readyMsMax = 10_000;
const lookEveryMs = 50;

/** Why no protected disk can be mounted here, or undefined when it can. */
export function whyNotMountable(): string | undefined {
  for (const name of ["nbdfuse", "losetup", "mke2fs", "e2fsck", "mount", "fsfreeze"])
    if (!isInstalled(name)) return `${name} is not installed`;
  if (process.getuid?.() !== 0) return "only root mounts";
  return existsSync("/dev/fuse") ? undefined : "there is no /dev/fuse";
}

/** Ends what was mounted: what is in the kernel's cache is on the disk then. */
export type Unmount = () => Promise<void>;

/** Creates `disk.img` in the place of a client: a disk of zeros. */
export function createImage(client: Client): void {
  writeFileSync(client.path("disk.img"), "");
  truncateSync(client.path("disk.img"), diskBytes);
}

/** Starts an agent that protects `disk.img` as `d`, with a point each second, behind `nbd.sock`. */
export async function startAgent(
  client: Client,
  hooks?: { readonly pre: string; readonly post: string },
): Promise<Running> {
  const disk = { name: "d", image: "disk.img", vault: "main", policy: "often", listen: "unix:nbd.sock", hooks };
  const configuration = {
    vaults: { main: { address: client.vault, stateFolder: "state" } },
    policies: { often: { crashConsistentFrequency: "1s" } },
    disks: [disk],
    control: { socket: "agent.sock" },
    logging: { format: "pretty" },
  };
  writeFileSync(client.path("agent.yaml"), JSON.stringify(configuration)); // YAML, too
  const agent = client.place.start(["agent", "--config", "agent.yaml"]);
  await agent.says("d: exported as d");
  return agent;
}

/**
 * Mounts the export `name` behind `socket` on `mountPoint`, which is created; on a `fresh` disk a
 * file system is made first. Ended with the test, if not before.
 */
export async function mountExport(
  socket: string,
  name: string,
  mountPoint: string,
  disk: "fresh" | "formatted",
): Promise<Unmount> {
  const fuse = `${mountPoint}-fuse`;
  mkdirSync(fuse);
  mkdirSync(mountPoint);
  const nbdfuse = spawn("nbdfuse", [fuse, `nbd+unix:///${name}?socket=${encodeURIComponent(socket)}`], {
    stdio: "inherit",
  });
  const gone = once(nbdfuse, "exit");
  const undo: (() => Promise<void> | void)[] = [
    async () => {
      nbdfuse.kill("SIGTERM");
      await gone;
      // One whose server has died leaves its mount behind; others do not, and this does nothing.
      spawnSync("umount", ["--quiet", fuse]);
    },
  ];
  const unmount = async (): Promise<void> => {
    for (let step = undo.pop(); step !== undefined; step = undo.pop()) await step();
  };
  onTestFinished(unmount);
  const file = join(fuse, "nbd");
  const since = performance.now();
  while (!existsSync(file)) {
    if (nbdfuse.exitCode !== null || performance.now() - since > readyMsMax)
      throw new Error("nbdfuse does not show the export");
    await delay(lookEveryMs);
  }
  const loop = attachLoop(file);
  if ("reason" in loop) throw new Error(loop.reason);
  undo.push(() => {
    loop.detach();
  });
  if (disk === "fresh") execFileSync("mke2fs", ["-q", "-t", "ext4", loop.path]);
  execFileSync("mount", [loop.path, mountPoint]);
  undo.push(() => {
    execFileSync("umount", [mountPoint]);
  });
  return unmount;
}

/**
 * Does `work` with the file system in the file `image` mounted on `mountPoint`, to be written
 * unless said otherwise.
 */
export async function withMounted<Result>(
  image: string,
  mountPoint: string,
  work: () => Promise<Result>,
  access: "rw" | "ro" = "rw",
): Promise<Result> {
  mkdirSync(mountPoint, { recursive: true });
  execFileSync("mount", ["-o", `loop,${access}`, image, mountPoint]);
  try {
    return await work();
  } finally {
    execFileSync("umount", [mountPoint]);
  }
}

/**
 * What e2fsck says of the file system in `image`: its exit code (0: clean, 1: mended, 4 and above:
 * not sound) and its words.
 */
export function checkFileSystem(
  image: string,
  ...flags: readonly string[]
): { readonly code: number | null; readonly words: string } {
  const { status, stdout, stderr } = spawnSync("e2fsck", [...flags, image], { encoding: "utf8" });
  return { code: status, words: stdout + stderr };
}
