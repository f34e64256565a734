/**
 * The page in a real browser: it shows what the status says, its actions act, it is accessible, and it
 * stays quick with many disks.
 */
import { writeFileSync } from "node:fs";
import axe, { type AxeResults } from "axe-core";
import { type Browser, chromium, type Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it, onTestFinished, type TestContext } from "vitest";
import { systemClock } from "../../../../cli/agent/engine-adapter.ts";
import type { AgentStatus } from "../../../../cli/agent/supervisor.ts";
import type { HealthLevel, ProtectionStatus } from "../../../../engine/index.ts";
import { deepTest } from "../../../deep-test.ts";
import { binary } from "../../../programs.ts";
import { settled } from "../scripted.ts";
import { DashboardRig, listedPoints } from "./rig.ts";

const token = "0123456789abcdefghij";
const program = binary("chromium") ?? binary("google-chrome");
const missing = "chromium is missing";

let browser: Browser | undefined;

beforeAll(async () => {
  // Debian's Chromium needs no sandbox of its own in a container, and cannot have one.
  if (program !== undefined) browser = await chromium.launch({ executablePath: program, args: ["--no-sandbox"] });
});

afterAll(async () => {
  await browser?.close();
});

interface Look {
  readonly width?: number;
  readonly dark?: boolean;
  /** Lets the test run scripts that the page's policy would refuse. */
  readonly bypassCSP?: boolean;
}

class PageRig extends DashboardRig {
  /** What the page itself reported: there should be nothing. */
  readonly faults: string[] = [];

  /** An agent whose dashboard acts; `points` are those of each disk. */
  async serve(context: TestContext, disks: number, points = 20, groupOf = 0): Promise<void> {
    context.skip(program === undefined, "chromium is missing");
    writeFileSync(this.folder.path("t"), token, { mode: 0o600 });
    this.engine.points = (disk) => listedPoints(disk, points);
    const dashboard = '{listen: "tcp:127.0.0.1:0", token: t}';
    await this.start({ dashboard, disks, groupOf, clock: systemClock });
    while (this.engine.protections.size < disks) await settled();
  }

  async open({ width = 1280, dark = false, bypassCSP = false }: Look = {}): Promise<Page> {
    if (browser === undefined) throw new Error(missing);
    const context = await browser.newContext({
      viewport: { width, height: 800 },
      colorScheme: dark ? "dark" : "light",
      bypassCSP,
    });
    onTestFinished(async () => await context.close());
    const page = await context.newPage();
    page.on("pageerror", (error) => this.faults.push(String(error)));
    page.on("console", (message) => {
      if (message.type() === "error") this.faults.push(message.text());
    });
    page.on("request", (request) => {
      if (!request.url().startsWith(this.url)) this.faults.push(`asks ${request.url()}`);
    });
    await page.addInitScript(`sessionStorage.setItem("tidemark-token", ${JSON.stringify(token)})`);
    await page.goto(this.url);
    await page.waitForSelector("[data-disk]");
    return page;
  }

  tell(disk: string, state: Partial<ProtectionStatus>): void {
    this.engine.protection(disk).state = state;
  }

  finding(level: HealthLevel, code: string): Partial<ProtectionStatus> {
    return { health: level, findings: [{ level, code, cause: `${code} of it`, remedy: "do this" }] as never };
  }
}

describe("the page in a browser", () => {
  it("shows what the status says, as it changes", async (context) => {
    const rig = new PageRig();
    await rig.serve(context, 3);
    rig.tell("disk-2", {
      churnBytesPerSecond: 5 * 2 ** 20,
      backlogBytes: 3 * 2 ** 20,
      ...rig.finding("Critical", "NO_SPACE"),
    });
    const page = await rig.open();
    await page.waitForSelector(".attention li.Critical");
    const answer = await page.request.get(`${rig.url}v1/status`, { headers: { Authorization: `Bearer ${token}` } });
    const status = (await answer.json()) as AgentStatus;
    const rows = await page
      .locator("[data-disk]")
      .evaluateAll((elements) =>
        elements.map((element) => (element as unknown as { readonly innerText: string }).innerText.split("\n")),
      );
    expect(rows).toHaveLength(status.disks.length);
    expect(rows[1]).toEqual(["■", "disk-2", "main · 4 KiB", "protecting", "NO_SPACE", "0.3 s", "5 MiB/s", "1 KiB/s"]);
    expect(await page.locator(".attention").innerText()).toContain("disk-2 NO_SPACE of it NO_SPACE");
    expect(await page.locator("#health").innerText()).toMatch(/1\s+▲?\s*0\s+●?\s*2/);
    expect(await page.locator("[data-disk=disk-1] .timeline").getAttribute("aria-label")).toBe(
      "20 points, 1 application-consistent, 20 proved, 1 damaged, 5 dropped next",
    );
    rig.tell("disk-2", { state: "paused" });
    await page.locator("[data-disk=disk-2]").getByText("paused").waitFor();
    await page.locator(".attention").waitFor({ state: "hidden" });
    expect(rig.faults).toEqual([]);
  });

  it("names its figures where it has no headings, and tells no peak below what is now", async (context) => {
    const rig = new PageRig();
    await rig.serve(context, 1);
    const lag = { capturedMs: 0, shippedMs: 0, committedMs: 90_000 };
    rig.tell("disk-1", { lag, churnBytesPerSecond: 5 * 2 ** 20, barrier: { lastMs: 0.3, maxMs: 2.24 } });
    const page = await rig.open({ width: 360, bypassCSP: true });
    const names =
      '[...document.querySelectorAll(".value")].map((value) => getComputedStyle(value, "::before").content)';
    expect(await page.evaluate(names)).toEqual(['"Lag "', '"Written "', '"Sent "']);
    await page.locator("[data-disk=disk-1]").click();
    await page.getByText("at most 1 min 30 s").waitFor();
    await page.getByText("at most 5 MiB/s").waitFor();
    await page.getByText("0.3 ms, at most 2.2 ms").waitFor();
  });

  it("offers no point and no resumption of a disk that a failover has", async (context) => {
    const rig = new PageRig();
    await rig.serve(context, 1);
    rig.tell("disk-1", { state: "stopped", ...rig.finding("Warning", "FAILED_OVER") });
    const page = await rig.open();
    await page.locator("[data-disk=disk-1]").click();
    await page.getByText("FAILED_OVER of it").last().waitFor();
    expect(await page.locator("dialog .buttons").innerText()).toBe("Test a failover");
  });

  deepTest("takes the token, and no other", async (context) => {
    const rig = new PageRig();
    await rig.serve(context, 1);
    const page = await browser?.newPage();
    if (page === undefined) throw new Error(missing);
    onTestFinished(async () => await page.close());
    await page.goto(rig.url);
    for (const [typed, next] of [
      ["wrong", page.getByText("does not take this token")],
      [token, page.locator("[data-disk]")],
    ] as const) {
      await page.getByLabel("Token of the dashboard").fill(typed);
      await page.keyboard.press("Enter");
      await next.waitFor();
    }
  });

  deepTest("acts when the operator has confirmed it, by keyboard alone", async (context) => {
    const rig = new PageRig();
    await rig.serve(context, 2);
    const page = await rig.open();
    const { calls } = rig.engine.protection("disk-2");
    await page.locator("[data-disk=disk-1]").focus();
    for (const key of ["ArrowDown", "Enter"]) await page.keyboard.press(key);
    await page.getByRole("heading", { name: "disk-2" }).waitFor();
    // It has no hooks.
    expect(await page.getByRole("button", { name: "Take an app point" }).count()).toBe(0);
    await page.getByRole("button", { name: "Take a point" }).press("Enter");
    await page.getByRole("button", { name: "Take it" }).press("Enter");
    await page.getByText("point 1 of disk-2 is committed (crash)").waitFor();
    await page.getByRole("button", { name: "Pause" }).press("Enter");
    await page.getByText("No points of disk-2 are taken until it is resumed").waitFor();
    await page.keyboard.press("Escape");
    expect(calls.filter((call) => !call.includes("given up"))).toEqual(["point"]);
    await page.getByRole("button", { name: "Pause" }).press("Enter");
    await page.locator("dialog.confirm").getByRole("button", { name: "Pause" }).press("Enter");
    await page.getByText("disk-2 is paused").waitFor();
    expect(calls.filter((call) => !call.includes("given up"))).toEqual(["point", "pause"]);
    await page.keyboard.press("Escape");
    expect(await page.evaluate("document.activeElement.dataset.disk")).toBe("disk-2");
    expect(rig.faults).toEqual([]);
  });

  deepTest("finds disks by their words and by their health", async (context) => {
    const rig = new PageRig();
    await rig.serve(context, 6, 1, 2);
    rig.tell("disk-3", rig.finding("Warning", "BACKLOG_SLOW"));
    const page = await rig.open();
    await page.keyboard.press("/");
    await page.keyboard.type("db-2");
    await page.getByText("2 of 6 disks").waitFor();
    await page.getByRole("searchbox").fill("");
    await page.getByRole("button", { name: "1 Warning" }).click();
    await page.getByText("1 of 6 disks").waitFor();
    expect(await page.locator("[data-disk]").getAttribute("data-disk")).toBe("disk-3");
  });

  const looks: readonly (readonly [string, Look])[] = [
    ["light", { width: 1280 }],
    ["dark", { width: 1280, dark: true }],
    ["narrow", { width: 360 }],
    ["wide", { width: 3840 }],
  ];
  for (const [name, look] of looks)
    deepTest(`has no fault that axe finds, and nothing beyond its edges: ${name}`, async (context) => {
      const rig = new PageRig();
      await rig.serve(context, 4, 20, 2);
      rig.tell("disk-1", rig.finding("Critical", "NO_SPACE"));
      rig.engine.protection("disk-2").emit({ kind: "notice", message: "something", code: "CUT_TIMED_OUT" });
      const page = await rig.open({ ...look, bypassCSP: true });
      await page.evaluate(axe.source);
      const faults = async (): Promise<readonly string[]> => {
        const found = await page.evaluate<AxeResults>("axe.run()");
        return found.violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
      };
      await page.waitForSelector(".attention li.Critical");
      for (const view of ["disks", "vaults", "failovers", "events"]) {
        await page.evaluate(`location.hash = "#${view}"`);
        await page.locator(`nav a[href="#${view}"][aria-current]`).waitFor();
        expect(await faults(), view).toEqual([]);
        expect(await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view).toBe(true);
      }
      await page.evaluate('location.hash = "#disks"');
      await page.locator("[data-disk=disk-1]").click();
      await page.getByText("List of points").click();
      expect(await faults(), "details").toEqual([]);
      await page.getByRole("button", { name: "Test a failover" }).click();
      expect(await faults(), "dialog").toEqual([]);
    });

  deepTest("draws 200 disks of 2,000 points within 100 ms a frame, a window of them at a time", async (context) => {
    const rig = new PageRig();
    await rig.serve(context, 200, 2_000);
    const page = await rig.open();
    const frames = await page.evaluate<number[]>(`(async () => {
      const main = document.getElementById("main");
      const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
      const times = [];
      for (let step = 0; step < 30; step += 1) {
        main.scrollTop = (main.scrollHeight * step) / 30;
        const before = await frame();
        times.push((await frame()) - before);
      }
      return times;
    })()`);
    // The median, because other programs share the processors of a machine that tests.
    expect(frames.toSorted((a, b) => a - b)[15]).toBeLessThan(100);
    expect(await page.locator("[data-disk]").count()).toBeLessThan(40);
    await page.locator(`[data-disk=disk-200] .timeline[aria-label^="2000 points"]`).waitFor();
    expect(rig.faults).toEqual([]);
  });
});
