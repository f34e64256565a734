/**
 * A guest on a disk that fails over and comes back: Debian's kernel under qemu boots from an instant
 * target, writes and shuts down, and again where the disk is protected at its new place. After the
 * failback the old image has a clean file system with what the guest wrote.
 */
import { execFile, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { expect } from "vitest";
import { deepTest } from "../deep-test.ts";
import { isInstalled } from "../programs.ts";
import { Client } from "./client.ts";
import { checkFileSystem } from "./mounted-disk.ts";

const bootScript: string = fileURLToPath(new URL("boot-guest.sh", import.meta.url));
/** What `boot-guest.sh` ends with when the machine lacks something. */
const lacking = 77;

deepTest(
  "a guest that boots from an instant target finds its disk, and after the failback the old image holds what it wrote",
  {
    timeout: 600_000,
  },
  async ({ skip }) => {
    for (const needed of ["mke2fs", "e2fsck", "debugfs"])
      if (!isInstalled(needed)) skip(`${needed} is not installed here`);
    const { status, stderr } = spawnSync(bootScript, { encoding: "utf8" });
    if (status === lacking) skip(`no guest can be booted here: ${stderr.trim()}`);
    const client = new Client("dir:vault");
    const [image, socket] = [client.path("disk.img"), client.path("nbd.sock")];
    mkdirSync(client.path("files"));
    writeFileSync(client.path("files/greeting"), "of the old place\n");
    expect(spawnSync("mke2fs", ["-q", "-t", "ext4", "-d", client.path("files"), image, "64M"]).status).toBe(0);
    expect(await client.replicate(image)).toMatchObject({ code: 0 });

    /** Serves the disk with a command, boots a guest from it, and ends the command. */
    const served = async (words: readonly string[], path: string, meanwhile?: () => Promise<void>): Promise<string> => {
      const running = client.start(...words);
      await running.says('"ready"');
      const sha256 = await boot(`nbd+unix:///d?socket=${socket}`, path);
      await meanwhile?.();
      running.child.kill("SIGINT");
      const { code, stdout, stderr } = await running.ended;
      expect({ code, stderr }, stdout).toEqual({ code: 0, stderr: "" });
      return sha256;
    };

    let run = "";
    const to = `instant:unix:${socket},image=${client.path("moved.img")}`;
    const planned = ["failover", "planned", "--disk", "d", "--to", to, "--source", image];
    const written: Record<string, string> = {};
    written["/first.bin"] = await served(planned, "/first.bin", async () => {
      run = await newest(client, "planned");
      expect(await client.run("failover", "commit", run)).toMatchObject({ code: 0 });
    });
    written["/second.bin"] = await served(["reprotect", run, "--listen", `unix:${socket}`], "/second.bin");

    expect(await client.run("failback", run, "--to", image)).toMatchObject({ code: 0 });
    const back = await newest(client, "failback");
    expect(await client.run("failover", "commit", back)).toMatchObject({ code: 0 });
    expect(await client.run("reprotect", back)).toMatchObject({ code: 0, last: { state: "Protected" } });
    expect(checkFileSystem(image, "-f", "-n")).toMatchObject({ code: 0 });
    for (const [path, sha256] of Object.entries(written)) expect(sha256In(image, path), path).toBe(sha256);
  },
);

/** Boots a guest that checks the greeting and writes 8 MiB to `path`; gives their digest. */
async function boot(uri: string, path: string): Promise<string> {
  const script = [
    'grep -q "of the old place" /mnt/greeting',
    `dd if=/dev/urandom of=/mnt${path} bs=1M count=8 2>/dev/null`,
    `sha256sum /mnt${path}`,
  ].join(" && ");
  const { stdout } = await promisify(execFile)(bootScript, [uri, script]).catch((error: unknown) => {
    const { stdout: console } = error as { stdout?: string };
    throw new Error(`the guest failed: ${String(console)}`, { cause: error });
  });
  return /([0-9a-f]{64}) {2}\//.exec(stdout)?.[1] ?? stdout;
}

async function newest(client: Client, kind: string): Promise<string> {
  const { lines } = await client.run("failover", "list");
  return String(lines.find((line) => line["kind"] === kind)?.["run"]);
}

/** The digest of a file in the ext4 file system of an image. */
function sha256In(image: string, path: string): string {
  const copy = `${image}.copy`;
  spawnSync("debugfs", ["-R", `dump ${path} ${copy}`, image]);
  return createHash("sha256").update(readFileSync(copy)).digest("hex");
}
