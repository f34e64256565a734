import { describe, expect, test } from "vitest";
import { TidemarkError } from "../../engine/errors.ts";
import { absentAs, translated } from "../../sink/file-system.ts";

function systemError(code: string): Error {
  return Object.assign(new Error(`${code}: something, write`), { code });
}

describe("errors of the file system", () => {
  test.each([
    ["ENOSPC", "NO_SPACE"],
    ["EDQUOT", "NO_SPACE"],
    ["EACCES", "ACCESS_REFUSED"],
    ["EPERM", "ACCESS_REFUSED"],
    ["EROFS", "ACCESS_REFUSED"],
    ["EMFILE", "STORE_REFUSED"],
    ["EIO", "STORE_REFUSED"],
  ] as const)("%s means %s, and says what to do", (systemCode, code) => {
    const cause = systemError(systemCode);
    const error = translated(cause, "disks/d/head", "STORE_REFUSED");
    expect(error).toMatchObject({ code, cause });
    expect((error as TidemarkError).remedy).toBeDefined();
    expect((error as TidemarkError).message).toContain("disks/d/head");
  });

  test("an input/output error amid a write leaves its outcome unknown, a full disk does not", () => {
    expect(translated(systemError("EIO"), "x", "OUTCOME_UNKNOWN")).toMatchObject({ code: "OUTCOME_UNKNOWN" });
    expect(translated(systemError("ENOSPC"), "x", "OUTCOME_UNKNOWN")).toMatchObject({ code: "NO_SPACE" });
  });

  test("what is no error of the file system passes as it is", () => {
    const typed = new TidemarkError("LEASE_HELD", "held");
    const bug = new TypeError("a bug");
    expect(translated(typed, "x", "STORE_REFUSED")).toBe(typed);
    expect(translated(bug, "x", "STORE_REFUSED")).toBe(bug);
  });

  test("only a path that names nothing is absent", async () => {
    expect(await absentAs("nothing", Promise.reject(systemError("ENOENT")))).toBe("nothing");
    expect(await absentAs("nothing", Promise.reject(systemError("ENOTDIR")))).toBe("nothing");
    await expect(absentAs("nothing", Promise.reject(systemError("EIO")))).rejects.toThrow("EIO");
    await expect(absentAs("nothing", Promise.reject(systemError("EACCES")))).rejects.toThrow("EACCES");
  });
});
