/** What a configuration may say of retention: a time as in the original, or a policy. */

import { describe, expect, it } from "vitest";
import { parseRetention, retentionMs } from "../../../cli/agent/retention.ts";
import { parsePolicy, TidemarkError } from "../../../engine/index.ts";
import { describePolicy } from "../../../engine/internal.ts";

describe("the retention of a configuration", () => {
  it.each([
    ["0", "days:0"],
    ["1d", "days:1"],
    ["24h", "days:1"],
    ["15d", "days:15"],
    ["1w", "days:7"],
    ["90m", "bands:90m=all"],
    ["2h", "bands:2h=all"],
    ["150m", "bands:150m=all"],
    ["12h", "bands:2h=all,12h=1h"],
    ["36h", "bands:2h=all,36h=2h"],
    ["170h", "bands:2h=all,170h=2h"],
    ["30d", "bands:2h=all,7d=2h,30d=4h"],
    ["36500d", "bands:2h=all,7d=2h,36500d=4h"],
    ["off", "none"],
    ["none", "none"],
    ["days:3", "days:3"],
    ["keep:last=7,daily=30", "keep:last=7,daily=30"],
  ])("%s is %s", (text, policy) => {
    const parsed = parseRetention(text);
    expect(describePolicy(parsed)).toBe(policy);
    // Every table that a time stands for is one that could have been written.
    expect(parsePolicy(policy)).toEqual(parsed);
  });

  it.each(["soon", "12", "40000d", "days:99", "keep:never=1"])("%s is refused with a remedy", (text) => {
    expect(() => parseRetention(text)).toThrow(TidemarkError);
  });

  it("reaches back as far as its last band, and an open policy for no time that could be told", () => {
    expect(["0", "36h", "days:3", "off", "keep:last=7"].map((text) => retentionMs(parseRetention(text)))).toEqual([
      0,
      36 * 3_600_000,
      3 * 86_400_000,
      undefined,
      undefined,
    ]);
  });
});
