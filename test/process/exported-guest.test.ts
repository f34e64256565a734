/**
 * A guest that starts from what `tidemark plan export` writes: Debian's kernel under qemu boots with the
 * words of the script, finds the disk of the run and writes to it. The domain for libvirt is held against
 * libvirt's own schema.
 */
import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { expect } from "vitest";
import { deepTest } from "../deep-test.ts";
import { isInstalled } from "../programs.ts";
import { Client } from "./client.ts";
import { checkFileSystem } from "./mounted-disk.ts";

const bootScript: string = fileURLToPath(new URL("boot-guest.sh", import.meta.url));
/** What `boot-guest.sh` ends with when the machine lacks something. */
const lacking = 77;

const plan = `plan: shop
machines:
  - {name: db, disks: [d, log], os: linux, size: {vcpus: 1, memoryGiB: 0.5}, nics: [{network: corp}]}
groups: [{machines: [db]}]
networks: {corp: {vnet: default}}
target: dir:dr
`;

async function movedPlan(client: Client): Promise<void> {
  mkdirSync(client.path("dr"));
  mkdirSync(client.path("files"));
  writeFileSync(client.path("files/greeting"), "of the old place\n");
  const make = ["-q", "-t", "ext4", "-d", client.path("files"), client.path("d.img"), "64M"];
  expect(spawnSync("mke2fs", make).status).toBe(0);
  writeFileSync(client.path("log.img"), Buffer.alloc(1024 * 1024, 0x4c));
  for (const disk of ["d", "log"])
    expect(await client.run("replicate", client.path(`${disk}.img`), "--disk", disk)).toMatchObject({ code: 0 });
  writeFileSync(client.path("shop.yaml"), plan);
  expect(await client.run("failover", "unplanned", "--plan", "shop.yaml")).toMatchObject({ code: 0 });
}

deepTest(
  "a guest boots with the script that is exported, finds every disk and writes to the first",
  { timeout: 600_000 },
  async ({ skip }) => {
    for (const needed of ["mke2fs", "e2fsck"]) if (!isInstalled(needed)) skip(`${needed} is not installed here`);
    const { status, stderr } = spawnSync(bootScript, { encoding: "utf8" });
    if (status === lacking) skip(`no guest can be booted here: ${stderr.trim()}`);
    const client = new Client("dir:vault");
    await movedPlan(client);
    const exported = ["plan", "export", "--plan", "shop.yaml", "--format", "qemu", "--out", client.path("shop.sh")];
    expect(await client.run(...exported)).toMatchObject({ code: 0 });
    const script = [
      'grep -q "of the old place" /mnt/greeting',
      '[ "$(dd if=/dev/vdb bs=1 count=4 2>/dev/null)" = LLLL ]',
      "echo moved >/mnt/moved",
    ].join(" && ");
    const image = client.path("dr/d.img");
    // A machine that is a guest itself may have a KVM that does not work.
    const environment = { ...process.env, ACCEL: "tcg" };
    const words = [image, script, "sh", client.path("shop.sh"), "db"];
    const booted = spawnSync(bootScript, words, { encoding: "utf8", env: environment });
    expect(booted.status, booted.stdout + booted.stderr).toBe(0);
    expect(checkFileSystem(image, "-f", "-n")).toMatchObject({ code: 0 });
    const read = spawnSync("debugfs", ["-R", "cat /moved", image], { encoding: "utf8" });
    expect(read.stdout).toBe("moved\n");
  },
);

deepTest("the domain that is exported keeps libvirt's schema", { timeout: 120_000 }, async ({ skip }) => {
  for (const needed of ["mke2fs", "virt-xml-validate", "xmllint"])
    if (!isInstalled(needed)) skip(`${needed} is not installed here`);
  const client = new Client("dir:vault");
  await movedPlan(client);
  const file = client.path("db.xml");
  const exported = await client.run("plan", "export", "--plan", "shop.yaml", "--format", "libvirt", "--out", file);
  expect(exported).toMatchObject({ code: 0 });
  const validated = spawnSync("virt-xml-validate", [file, "domain"], { encoding: "utf8" });
  expect(validated.status, validated.stdout + validated.stderr).toBe(0);
});
