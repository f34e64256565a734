import { readFileSync, renameSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { type Log, openLog } from "../../../cli/agent/log.ts";
import type { LoggingEntry } from "../../../cli/agent/schema.ts";
import { ConfigFolder } from "./configuration.ts";

function logTo(lines: string[], entry: Partial<LoggingEntry> = {}): Log {
  return openLog(
    { level: "info", format: "json", file: undefined, ...entry },
    {},
    { write: (line) => lines.push(line) },
  );
}

describe("the log", () => {
  it("is one JSON object a line, with time, level, message and fields", () => {
    const lines: string[] = [];
    const log = logTo(lines);
    log.write("warn", "it waits", { disk: "web", code: "STORE_UNREACHABLE" });
    expect(JSON.parse(lines[0] ?? "")).toEqual({
      level: "warn",
      time: expect.stringMatching(/^\d{4}-.*Z$/) as string,
      disk: "web",
      code: "STORE_UNREACHABLE",
      message: "it waits",
    });
  });

  it("leaves out what is below its level, which can change", () => {
    const lines: string[] = [];
    const log = logTo(lines);
    log.write("debug", "a");
    log.setLevel("debug");
    log.write("debug", "b");
    expect(lines.map((line) => (JSON.parse(line) as { message: string }).message)).toEqual(["b"]);
  });

  it("is a line for people, which control characters cannot garble", () => {
    const lines: string[] = [];
    logTo(lines, { format: "pretty" }).write("error", "gone\u001b[2J", { disk: "we\nb", code: "DAMAGED" });
    expect(lines[0]).toMatch(/^\d\d:\d\d:\d\d error we\\u\{a\}b: gone\\u\{1b\}\[2J \(DAMAGED\)\n$/);
  });

  it("masks signatures and keys", () => {
    const lines: string[] = [];
    logTo(lines).write("info", "https://a/b?sv=1&sig=topsecret", { path: "http://user:topsecret@proxy:1" });
    logTo(lines, { format: "pretty" }).write("info", "AccountKey=topsecret;x");
    expect(lines).toHaveLength(2);
    expect(lines.join("")).not.toContain("topsecret");
  });

  it("goes to a file that only its user reads, and is opened again after it was moved", () => {
    const folder = new ConfigFolder();
    const file = folder.path("logs/agent.log");
    const log = logTo([], { file });
    log.write("info", "first");
    renameSync(file, `${file}.1`);
    log.reopen();
    log.write("info", "second");
    log.close();
    expect(readFileSync(`${file}.1`, "utf8")).toContain("first");
    expect(readFileSync(file, "utf8")).toContain("second");
  });

  it("goes on elsewhere when its file cannot be written, and says so once", () => {
    const lines: string[] = [];
    const log = logTo(lines, { file: "/dev/full" });
    log.write("info", "first");
    log.write("info", "second");
    expect(lines[0]).toContain("the log /dev/full cannot be written");
    expect(lines.slice(1).join("")).toContain("second");
    expect(lines.filter((line) => line.includes("cannot be written"))).toHaveLength(1);
  });
});
