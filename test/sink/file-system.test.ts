import { type FileHandle, open } from "node:fs/promises";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type Libc, libc, unsupportedErrnos } from "../../engine/disk/source/libc.ts";
import { TidemarkError } from "../../engine/errors.ts";
import { absentAs, clearFully, folderError, SpaceReserve, translated } from "../../sink/file-system.ts";
import { createFolder, removeFolder } from "../temporary-folder.ts";
import { expectCode } from "./expectations.ts";

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
    const error = translated(cause, "disks/d/head", "STORE_REFUSED", "/srv/v");
    expect(error).toMatchObject({ code, cause });
    expect((error as TidemarkError).remedy).toBeDefined();
    expect((error as TidemarkError).message).toContain("disks/d/head");
  });

  test("a refusal names the vault's folder, whose owner the remedy shows", () => {
    const refused = (subject: string): unknown => translated(systemError("EACCES"), subject, "STORE_REFUSED", "/srv/v");
    const remedy = expect.stringContaining("`ls -ld /srv/v`") as string;
    const fact = "the file system refuses access to";
    expect(refused("vault.json")).toMatchObject({ message: `${fact} vault.json in /srv/v (EACCES)`, remedy });
    expect(refused("/srv/v")).toMatchObject({ message: `${fact} /srv/v (EACCES)`, remedy });
  });

  test("a full one tells what is free, what is to be written and what stays reserved", async () => {
    const reserve = new SpaceReserve(tmpdir());
    const write = reserve.keptBy(2 ** 50, async () => await Promise.reject(new Error("it was written")));
    await expect(write).rejects.toMatchObject({
      code: "NO_SPACE",
      message: expect.stringMatching(
        / is full: \d+\.\d MiB are free, 1073741824\.0 MiB are to be written, and \d+\.\d MiB stay reserved$/,
      ) as string,
    });
  });

  test.each(["EMFILE", "ENFILE"])("%s is no fault of the folder: the remedy is a higher limit", (systemCode) => {
    const cause = systemError(systemCode);
    for (const error of [translated(cause, "x", "STORE_REFUSED", "/srv/v"), folderError(cause, "x")])
      expect((error as TidemarkError).remedy).toContain("`ulimit -n 4096`");
  });

  test("an input/output error amid a write leaves its outcome unknown, a full disk does not", () => {
    expect(translated(systemError("EIO"), "x", "OUTCOME_UNKNOWN", "/srv/v")).toMatchObject({ code: "OUTCOME_UNKNOWN" });
    expect(translated(systemError("ENOSPC"), "x", "OUTCOME_UNKNOWN", "/srv/v")).toMatchObject({ code: "NO_SPACE" });
  });

  test("what is no error of the file system passes as it is", () => {
    const typed = new TidemarkError("LEASE_HELD", "held");
    const bug = new TypeError("a bug");
    expect(translated(typed, "x", "STORE_REFUSED", "/srv/v")).toBe(typed);
    expect(translated(bug, "x", "STORE_REFUSED", "/srv/v")).toBe(bug);
  });

  test("only a path that names nothing is absent", async () => {
    expect(await absentAs("nothing", Promise.reject(systemError("ENOENT")))).toBe("nothing");
    expect(await absentAs("nothing", Promise.reject(systemError("ENOTDIR")))).toBe("nothing");
    await expect(absentAs("nothing", Promise.reject(systemError("EIO")))).rejects.toThrow("EIO");
    await expect(absentAs("nothing", Promise.reject(systemError("EACCES")))).rejects.toThrow("EACCES");
  });
});

describe("a range of a file that is cleared", () => {
  const sizeBytes = 3 * 2 ** 20 + 4096;
  const [at, length] = [1536, sizeBytes - 4096];
  let folder: string;
  let handle: FileHandle;

  beforeEach(async () => {
    folder = createFolder("clear");
    handle = await open(join(folder, "file"), "wx+");
    await handle.write(new Uint8Array(sizeBytes).fill(7), 0, sizeBytes, 0);
  });

  afterEach(async () => {
    await handle.close();
    await removeFolder(folder);
  });

  async function expectClear(start: number, end: number): Promise<void> {
    const found = new Uint8Array(sizeBytes + 1);
    const { bytesRead } = await handle.read(found, 0, sizeBytes + 1, 0);
    expect(Buffer.compare(found.subarray(0, bytesRead), new Uint8Array(sizeBytes).fill(7).fill(0, start, end))).toBe(0);
  }

  /** A fallocate that answers with these errors one after the other, and then as the real one. */
  function failing(...errnos: number[]): Pick<Libc, "fallocate"> & { calls: number } {
    const system = {
      calls: 0,
      fallocate: async (...call: Parameters<NonNullable<Libc["fallocate"]>>) => {
        system.calls++;
        const errno = errnos.shift();
        if (errno !== undefined) return { errno };
        const real = libc()?.fallocate;
        return real === undefined ? { errno: constants.errno.ENOSYS } : await real(...call);
      },
    };
    return system;
  }

  test.each(unsupportedErrnos)("is zeros also where the file system refuses holes with errno %i", async (errno) => {
    const system = failing(errno);
    await clearFully(handle, at, length, { libc: system });
    expect(system.calls).toBe(1);
    await expectClear(at, at + length);
  });

  test("is zeros also where the system has no call for it", async () => {
    await clearFully(handle, at, length, { libc: {} });
    await expectClear(at, at + length);
  });

  test("is asked for again after an interrupted call", async () => {
    const system = failing(constants.errno.EINTR);
    await clearFully(handle, at, length, { libc: system });
    expect(system.calls).toBe(2);
    await expectClear(at, at + length);
  });

  test("fails with what the system says, as Node would have said it", async () => {
    const error: unknown = await clearFully(handle, at, length, { libc: failing(constants.errno.EIO) }).catch(
      (reason: unknown) => reason,
    );
    expect(error).toMatchObject({ code: "EIO" });
    expect(translated(error, "p", "STORE_REFUSED", "/srv/v")).toMatchObject({ code: "STORE_REFUSED" });
    await expectClear(0, 0);
  });

  test("is left alone once the signal is aborted, also between two pieces", async () => {
    const controller = new AbortController();
    const aborting = (): Promise<{ errno: number }> => {
      controller.abort();
      return Promise.resolve({ errno: constants.errno.EOPNOTSUPP });
    };
    await expectCode(
      clearFully(handle, at, length, { signal: controller.signal, libc: { fallocate: aborting } }),
      "INTERRUPTED",
    );
    await expectClear(0, 0);
  });
});
