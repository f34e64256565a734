/** Policies as people write them. */
import { describe, expect, test } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import { describePolicy, parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import { day, hour, minute } from "./timelines.ts";

function refusal(text: string): TidemarkError {
  try {
    parsePolicy(text);
  } catch (error) {
    if (error instanceof TidemarkError) return error;
    throw error;
  }
  throw new Error(`${text} was not refused`);
}

describe("a policy", () => {
  test("of days is a number of them", () => {
    expect(parsePolicy("days:7")).toEqual({ kind: "days", days: 7 });
    expect(parsePolicy(" days: 0 ")).toEqual({ kind: "days", days: 0 });
  });

  test("of bands is a table of ages and spacings", () => {
    expect(parsePolicy("bands:90m=all, 1d = 1h,2w=1.5h")).toEqual({
      kind: "bands",
      bands: [
        { ageMsMax: 90 * minute, everyMs: null },
        { ageMsMax: day, everyMs: hour },
        { ageMsMax: 14 * day, everyMs: 90 * minute },
      ],
    });
  });

  test("of rules has counts, an age and a time zone", () => {
    expect(parsePolicy("keep:daily=30,last=7,tz=Europe/Berlin,within=36h,hourly=24")).toEqual({
      kind: "keep",
      last: 7,
      periods: [
        { period: "hourly", count: 24 },
        { period: "daily", count: 30 },
      ],
      withinMs: 36 * hour,
      timeZone: "Europe/Berlin",
    });
  });

  test.each(["none", "keep:", "bands:", "keep:tz=Asia/Tokyo"])("without a rule keeps everything: %s", (text) => {
    expect(parsePolicy(text)).toEqual({ kind: "everything" });
  });

  test.each([
    ["none", "none"],
    ["keep:", "none"],
    ["days:15", "days:15"],
    ["bands:120m=all,24h=60m,1w=2h", "bands:2h=all,1d=1h,7d=2h"],
    ["bands:1.5s=all", "bands:1.5s=all"],
    [
      "keep:yearly=1,monthly=2,weekly=3,daily=4,hourly=5,last=6",
      "keep:last=6,hourly=5,daily=4,weekly=3,monthly=2,yearly=1",
    ],
    ["keep:within=36h,tz=Australia/Lord_Howe", "keep:within=36h,tz=Australia/Lord_Howe"],
    ["keep:last=3,tz=UTC", "keep:last=3"],
  ])("%s is described as %s, which says the same", (text, described) => {
    expect(describePolicy(parsePolicy(text))).toBe(described);
    expect(parsePolicy(described)).toEqual(parsePolicy(text));
  });
});

describe("a policy that cannot be used", () => {
  test.each([
    ["", "it does not begin with"],
    ["7", "it does not begin with"],
    ["weeks:7", 'there is no kind "weeks"'],
    ["days:", "is no number of days"],
    ["days:-1", "is no number of days"],
    ["days:1.5", "is no number of days"],
    ["days:16", "16 days are more than 15"],
    ["bands:2h", '"2h" is no AGE=EVERY'],
    ["bands:2h=all=1h", '"2h=all=1h" is no AGE=EVERY'],
    ["bands:2h=all,,1d=1h", '"" is no AGE=EVERY'],
    ["bands:2=all", '"2" in "2=all" is no age'],
    ["bands:0h=all", '"0h" in "0h=all" is no age'],
    ["bands:2h=some", '"some" in "2h=some" is neither `all` nor a duration'],
    ["bands:2h=all,1h=30m", "the age 1h does not come after 2h"],
    ["bands:2h=all,2h=1h", "the age 2h does not come after 2h"],
    ["bands:1d=2h,7d=1h", "7d=1h would keep what 2h before it has dropped"],
    ["bands:1d=2h,7d=all", "7d=all would keep what 2h before it has dropped"],
    ["bands:2h=all,1d=1d", "1d=1d has room for 22h only, so its one point would come and go"],
    ["keep:last", "last= is no whole number"],
    ["keep:last=x", "last=x is no whole number"],
    ["keep:daily=0", "daily=0 keeps nothing"],
    ["keep:minutely=3", 'there is no rule "minutely"'],
    ["keep:last=1,last=2", "last is said twice"],
    ["keep:within=3", "within=3 is no duration"],
    ["keep:last=1,tz=Mars/Olympus", '"Mars/Olympus" is no time zone'],
  ])("%j is refused: %s", (text, fact) => {
    const error = refusal(text);
    expect(error).toMatchObject({ code: "INVALID_ARGUMENT", message: expect.stringContaining(fact) as string });
    expect(error.message).toContain(JSON.stringify(text));
    expect(error.remedy).not.toBe("");
  });

  test("is told all that is wrong with it at once", () => {
    const { message, remedy } = refusal("keep:last=x,daily=0,minutely=1,last=2,within=soon,tz=Nowhere");
    for (const fact of ["minutely", "said twice", "daily=0", "within=soon", '"Nowhere"'])
      expect(message).toContain(fact);
    expect(remedy).toContain("each rule once");
    const { message: ofBands } = refusal("bands:2h=al,1d=1h,12h=2h,3d=5d");
    for (const fact of ['"al"', "12h does not come after 1d", "3d=5d has room"]) expect(ofBands).toContain(fact);
  });

  test("of more days than the original has is sent to a table of its own, which is sound", () => {
    const { remedy } = refusal("days:30");
    expect(remedy).toContain("`bands:2h=all,7d=2h,30d=4h`");
    expect(parsePolicy("bands:2h=all,7d=2h,30d=4h")).toMatchObject({ kind: "bands" });
    expect(refusal("bands:2h=all,1d=1d").remedy).toContain("`26h=1d`");
    expect(parsePolicy("bands:2h=all,26h=1d")).toMatchObject({ kind: "bands" });
  });
});
