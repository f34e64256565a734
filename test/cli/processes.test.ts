/** What happens to processes: ^C, kill -9, two at once. */
import { existsSync, readdirSync, renameSync } from "node:fs";
import process from "node:process";
import { describe, expect, it } from "vitest";
import { command } from "../../engine/disk/nbd/protocol.ts";
import { deepTest } from "../deep-test.ts";
import { byDepth } from "../depth.ts";
import { RawClient } from "../engine/disk/nbd/server-rig.ts";
import { sameFiles, writeImage } from "./images.ts";
import { Place, parseLines, type Running } from "./tidemark.ts";

const bigMebibytes: number = byDepth(128, 300);
/**
 * The promise is two seconds after the signal; what a busy machine needs to end the process is not
 * part of it.
 */
const restMsMax = 2_000;

const vault = { TIDEMARK_VAULT: "dir:vault", TIDEMARK_WORKERS: "1" };

async function interrupt(running: Running): Promise<{
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
  readonly elapsedMs: number;
}> {
  const startedAt = performance.now();
  running.child.kill("SIGINT");
  const { code, stdout, stderr } = await running.ended;
  return { code, stdout, stderr, elapsedMs: performance.now() - startedAt };
}

describe("^C", () => {
  it("ends a replication with 130 within two seconds, and the next one is as if nothing had been; SIGUSR1 opens no inspector", async () => {
    const place = new Place();
    writeImage(place.path("big.img"), bigMebibytes);
    const running = place.start(["replicate", "big.img", "--disk", "big", "--json"], vault);
    await running.says('"type":"progress"');
    running.child.kill("SIGUSR1");
    const ended = await interrupt(running);
    expect(ended.stderr).toBe("");
    expect(ended.code).toBe(130);
    expect(ended.elapsedMs).toBeLessThan(restMsMax);
    expect(parseLines(ended.stdout).at(-1)).toMatchObject({ type: "error", code: "INTERRUPTED" });
    expect(await place.json("points", "list", "--disk", "big")).toMatchObject({
      code: 10,
      last: { code: "DISK_NOT_FOUND" },
    });
    expect(await place.json("replicate", "big.img", "--disk", "big")).toMatchObject({ code: 0, last: { sequence: 1 } });
    expect(await place.json("verify", "--disk", "big", "--source", "big.img")).toMatchObject({ code: 0 });
  });

  it("ends the demo without leaving anything behind", async () => {
    const place = new Place();
    writeImage(place.path("a.img"), 24);
    const running = place.start(["demo", "--image", "a.img", "--json"]);
    await running.says('"phase":"scan"');
    expect(await interrupt(running)).toMatchObject({ code: 130 });
    expect(readdirSync(place.folder)).toEqual(["a.img"]);
  });

  it("pressed twice ends at once", async () => {
    const place = new Place();
    writeImage(place.path("big.img"), bigMebibytes);
    const running = place.start(["replicate", "big.img", "--disk", "big"], { ...vault, TIDEMARK_JSON: "1" });
    await running.says('"type":"progress"');
    running.child.kill("SIGINT");
    expect(await interrupt(running)).toMatchObject({ code: 130 });
  });
});

describe("two replications of one disk at once", () => {
  it("are refused: the second ends with 11, the first one goes on", async () => {
    const place = new Place();
    writeImage(place.path("big.img"), bigMebibytes);
    const first = place.start(["replicate", "big.img", "--disk", "big", "--json"], vault);
    await first.says('"type":"progress"');
    first.child.kill("SIGSTOP");
    const second = await place.json("replicate", "big.img", "--disk", "big");
    first.child.kill("SIGCONT");
    expect(second).toMatchObject({ code: 11, last: { type: "error", code: "WRITER_ACTIVE" } });
    expect(await first.ended).toMatchObject({ code: 0 });
    expect(await place.json("points", "list", "--disk", "big")).toMatchObject({ last: { points: 1 } });
  });
});

describe("kill -9", () => {
  it("of a replication leaves its lease to the next one at once", async () => {
    const place = new Place();
    writeImage(place.path("big.img"), bigMebibytes);
    const killed = place.start(["replicate", "big.img", "--disk", "big", "--json"], vault);
    await killed.says('"type":"progress"');
    killed.child.kill("SIGKILL");
    await killed.ended;
    const next = await place.json("replicate", "big.img", "--disk", "big");
    expect(next).toMatchObject({ code: 0, last: { sequence: 1 } });
    expect(next.lines).toContainEqual(expect.objectContaining({ type: "notice", code: "SEAT_TAKEN_OVER" }));
  });

  deepTest("of a materialization leaves no half image under the target's name, and the next run ends it", async () => {
    const place = new Place();
    writeImage(place.path("big.img"), bigMebibytes);
    await place.json("replicate", "big.img", "--disk", "big");
    const words = ["materialize", "--disk", "big", "--point", "1", "--to", "back.img"];
    const killed = place.start([...words, "--json"], vault);
    await killed.says('"phase":"materialize"');
    killed.child.kill("SIGKILL");
    await killed.ended;
    expect(existsSync(place.path("back.img"))).toBe(false);
    expect(await place.json(...words)).toMatchObject({ code: 0 });
    expect(sameFiles(place.path("big.img"), place.path("back.img"))).toBe(true);
    expect(readdirSync(place.folder).filter((name) => name.includes("partial"))).toEqual([]);
  });
});

describe.runIf(process.platform !== "win32")("^C of protect while the vault is away", () => {
  it("says at once what it waits for; a second one ends it, else the missing point is an error", async () => {
    const place = new Place();
    writeImage(place.path("a.img"), 1);
    const words = ["protect", "a.img", "--disk", "a", "--listen", "unix:s", "--cycle", "1h", "--json"];
    const running = place.start(words, vault);
    await running.says('"kind":"point"');
    const client = await RawClient.transmitting({ kind: "unix", path: place.path("s") }, { name: "a" });
    expect(await client.call({ type: command.write, payload: Buffer.alloc(4096, 1) })).toMatchObject({ error: 0 });
    renameSync(place.path("vault"), place.path("away"));
    running.child.kill("SIGINT");
    await running.says("a second ^C ends without it");
    if (byDepth(true, false)) running.child.kill("SIGINT");
    const { code, stdout } = await running.ended;
    expect(code).toBe(byDepth(130, 1));
    expect(parseLines(stdout).at(-1)).toMatchObject({
      type: "error",
      code: byDepth("INTERRUPTED", "STORE_UNREACHABLE"),
    });
  });
});
