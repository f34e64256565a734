/** Output that cannot be written costs the output, not the work. */
import { existsSync, writeFileSync } from "node:fs";
import process from "node:process";
import { describe, expect, it, vi } from "vitest";
import { NbdVolume } from "../../engine/index.ts";
import { byDepth } from "../depth.ts";
import { writeImage } from "./images.ts";
import { Place } from "./tidemark.ts";

const toFull = ["sh", "-c", 'exec "$@" >/dev/full', "sh"];
const isLinux = process.platform === "linux";

describe.runIf(isLinux)("a stdout that is full", () => {
  it("costs a command its output; its work is done and the exit code is 1", async () => {
    const place = new Place();
    writeImage(place.path("a.img"), 1);
    const words = ["replicate", "a.img", "--disk", "a", "--vault", "dir:vault"];
    for (const flags of byDepth([[]], [[], ["--json"]])) {
      const ended = await place.start([...words, ...flags], {}, toFull).ended;
      expect(ended.code).toBe(1);
      expect(ended.stderr).toMatch(/^error: not all output could be written to stdout: ENOSPC.*\n {2}\S.*\n$/);
    }
    expect(await place.json("points", "list", "--disk", "a")).toMatchObject({ last: { points: byDepth(1, 2) } });
  });

  it("leaves a protected disk served, and its last point is taken", async () => {
    const place = new Place();
    writeFileSync(place.path("a.img"), Buffer.alloc(1024 * 1024, 7));
    const words = ["protect", "a.img", "--disk", "a", "--vault", "dir:vault", "--listen", "unix:s", "--cycle", "1s"];
    const running = place.start([...words, "--json"], {}, toFull);
    const uri = `nbd+unix:///a?socket=${place.path("s")}`;
    const volume = await vi.waitFor(async () => await NbdVolume.open(uri, {}), { timeout: 20_000 });
    const bytes = new Uint8Array(4096);
    // Longer than the time between two lines of status.
    for (let read = 0; read < 3; read += 1) {
      await volume.read(0, bytes);
      await new Promise((resolve) => setTimeout(resolve, 400));
    }
    await volume.close();
    running.child.kill("SIGINT");
    expect(await running.ended).toMatchObject({ code: 1, signal: null });
    expect(existsSync(place.path("s"))).toBe(false);
    expect(bytes[0]).toBe(7);
    expect(await place.json("points", "list", "--disk", "a")).toMatchObject({ code: 0 });
  });
});

describe.runIf(isLinux)("a priority that is lower already", () => {
  // On a busy machine such a process hardly gets a processor.
  it("is left alone, and no reason to fail", { timeout: 240_000 }, async () => {
    const place = new Place();
    // Raising a priority is refused to all but root.
    const user = process.getuid?.() === 0 ? ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] : [];
    const words = ["replicate", process.execPath, "--disk", "a", "--vault", "memory:", "--json"];
    const ended = await place.start(words, {}, [...user, "nice", "-n", "19"]).ended;
    expect(ended).toMatchObject({ code: 0, stderr: "" });
  });
});
