/** Numbers, names and lines as people see them, and what the environment becomes. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { printDamage } from "../../cli/commands/verify.ts";
import { errorReport, errorStacks, withoutSecrets } from "../../cli/errors.ts";
import { progressText } from "../../cli/progress-line.ts";
import { formatBytes, formatDuration, formatRate, formatRatio, parseBytes } from "../../cli/quantities.ts";
import { outputFlags, sinkOptions, vaultSecrets } from "../../cli/settings.ts";
import { cut, displayWidth, printable, table } from "../../cli/text.ts";
import type { Damage } from "../../engine/index.ts";
import { testKeyPair } from "../encrypted.ts";
import { createFolder, removeFolder } from "../temporary-folder.ts";

const mebibyte = 1024 * 1024;

describe("damage", () => {
  const found = {
    sequence: null,
    point: null,
    extent: null,
    object: "copy/vault.json",
    code: "DAMAGED",
    healed: false,
  } as const;
  const linesOf = (damaged: readonly Damage[]): readonly (string | undefined)[] => {
    const lines: (string | undefined)[] = [];
    printDamage({ item: (_type, _fields, text) => void lines.push(text) }, damaged);
    return lines;
  };

  it("is said to be of the vault where it is of no disk", () => {
    const lines = linesOf(["web", ""].map((disk) => ({ ...found, disk, message: "is damaged" })));
    expect(lines).toEqual(["damage: disk web: is damaged (DAMAGED)", "damage: vault: is damaged (DAMAGED)"]);
  });

  it("of many chunks of a segment is one line for each point, and one object each for programs", () => {
    const chunk = (sequence: number, offset: number): Damage => {
      const message = `byte ${offset} cannot be read back`;
      return { ...found, disk: "web", sequence, extent: { offset, length: 10 }, object: "segments/web/1", message };
    };
    expect(linesOf([chunk(2, 0), chunk(2, 10), chunk(1, 0), chunk(2, 20)])).toEqual([
      "damage: disk web, point 2: byte 0 cannot be read back (DAMAGED); 2 more places up to byte 30",
      undefined,
      "damage: disk web, point 1: byte 0 cannot be read back (DAMAGED)",
      undefined,
    ]);
  });
});

describe("quantities", () => {
  it("are written with the digits that say something", () => {
    expect([0, 1023, 1024, 65_536, 9_000_001, 192 * mebibyte, 1023.7 * mebibyte, 2 ** 40].map(formatBytes)).toEqual([
      "0 B",
      "1023 B",
      "1 KiB",
      "64 KiB",
      "8.6 MiB",
      "192 MiB",
      "1.0 GiB",
      "1 TiB",
    ]);
    expect([0, 300, 59_940, 59_960, 185_000, 7_620_000].map(formatDuration)).toEqual([
      "0.0 s",
      "0.3 s",
      "59.9 s",
      "1 min 00 s",
      "3 min 05 s",
      "2 h 07 min",
    ]);
    expect([formatRate(0, 0), formatRate(9 * mebibyte, 2000), formatRate(640 * mebibyte, 1000)]).toEqual([
      "0.0 MiB/s",
      "4.5 MiB/s",
      "640 MiB/s",
    ]);
    expect([formatRatio(19, 10), formatRatio(1000, 1), formatRatio(0, 0)]).toEqual(["1.9 : 1", "1000 : 1", "-"]);
  });

  it("are read as people write them", () => {
    expect(["64KiB", "64k", "64 KB", "65536", "65536B", "0.5MiB", "1MiB"].map(parseBytes)).toEqual([
      65_536, 65_536, 65_536, 65_536, 65_536, 524_288, 1_048_576,
    ]);
    expect(["", "KiB", "-1", "1.00001KiB", "1XiB", "1e3", "0x10"].map(parseBytes)).toEqual(
      Array.from({ length: 7 }, () => undefined),
    );
  });
});

describe("text", () => {
  it("cannot garble a terminal", () => {
    expect(printable("a\u001b[2Jb\nc\u202ed")).toBe("a\\u{1b}[2Jb\\u{a}c\\u{202e}d");
  });

  it("aligns by the columns that it fills", () => {
    expect(displayWidth("cafe\u0301 日本 🌊")).toBe(12);
    expect(cut("日本語", 5)).toBe("日本");
    expect(
      table(
        ["NAME", "SIZE"],
        [
          ["日本", "1"],
          ["a", "22"],
        ],
        "lr",
      ),
    ).toBe("NAME  SIZE\n日本     1\na       22");
  });

  it("of progress names share, rate and what is left", () => {
    const progress = {
      phase: "scan",
      doneBytes: 50 * mebibyte,
      totalBytes: 200 * mebibyte,
      transferredBytes: 10 * mebibyte,
    } as const;
    expect(progressText(progress, [{ atMs: 0, doneBytes: 50 * mebibyte }])).toBe(
      "scan        [#####               ]  25 %  50 MiB of 200 MiB  stored 10 MiB",
    );
    const samples = [
      { atMs: 0, doneBytes: 0 },
      { atMs: 2000, doneBytes: 50 * mebibyte },
    ];
    expect(progressText(progress, samples)).toBe(
      "scan        [#####               ]  25 %  50 MiB of 200 MiB  25 MiB/s  stored 10 MiB  6.0 s left",
    );
    expect(progressText({ ...progress, doneBytes: 0, totalBytes: 0 }, [])).toMatch(/100 %/);
  });
});

describe("errors", () => {
  it("that are no TidemarkError are faults of ours and told as such", () => {
    expect(errorReport(new TypeError("x is not a function"))).toMatchObject({
      code: "INTERNAL",
      message: "internal error: x is not a function",
    });
    expect(errorStacks(new Error("outer", { cause: "inner" }))).toMatch(/^Error: outer\n[^]*\ncaused by 'inner'$/);
  });

  it("show no secret, wherever it came from", () => {
    const shown = withoutSecrets(
      'https://a.b/c?sv=1&sig=SECRET%3D&se=2 AccountName=a;AccountKey=SECRET==;X "authorization": "SharedKey a:SECRET" http://me:SECRET@proxy',
    );
    expect(shown).not.toContain("SECRET");
    expect(shown).toContain("se=2");
    const key = "-----BEGIN EC PRIVATE KEY-----\\nSECRET+/=\nSECRET\n-----END EC PRIVATE KEY-----";
    expect(withoutSecrets(`${key} is no file`)).not.toContain("SECRET");
    expect(withoutSecrets("it begins with `-----BEGIN PRIVATE KEY-----`, and")).toContain("and");
  });
});

describe("the environment", () => {
  const signal = new AbortController().signal;
  const vault = "https://a.blob.core.windows.net/vault";

  it("names the proxy by the vault's scheme, small letters first", () => {
    const environment = {
      HTTPS_PROXY: "http://big:1",
      https_proxy: "small:1",
      HTTP_PROXY: "http://plain:1",
      NO_PROXY: "example.com, .corp 10.0.0.1,x:8080,*",
    };
    expect(sinkOptions(vault, environment, signal).proxy).toEqual({
      url: "http://small:1",
      bypass: ["example.com", ".example.com", ".corp", "10.0.0.1", "x:8080", "*"],
      setBy: "https_proxy",
    });
    expect(sinkOptions("http://a.b/account/vault", environment, signal).proxy?.url).toBe("http://plain:1");
    expect(sinkOptions("dir:/vault", environment, signal).proxy).toBeUndefined();
    expect(sinkOptions(vault, { HTTPS_PROXY: "" }, signal).proxy).toBeUndefined();
  });

  it("names files with keys, which may have a byte order mark, and must be UTF-8", async () => {
    const folder = createFolder("secrets");
    onTestFinished(async () => await removeFolder(folder));
    const file = join(folder, "file");
    const secret = "schöne Brücke";
    const read = async (bytes: Uint8Array): Promise<unknown> => {
      writeFileSync(file, bytes);
      return await vaultSecrets({ key: file }, { TIDEMARK_PASSPHRASE_FILE: file });
    };
    for (const text of [secret, `\uFEFF${secret}\r\n`, `${secret}\nsecond line`])
      expect(await read(Buffer.from(text))).toMatchObject({ passphrase: secret });
    for (const encoding of ["utf16le", "latin1"] as const)
      await expect(read(Buffer.from(`\uFEFF${secret}`, encoding))).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
  });

  it("that holds a key or passphrase in place of a file's name is refused, and neither is told", async () => {
    const { privateKey } = testKeyPair();
    const secrets = [privateKey, "a long passphrase", "x".repeat(5_000)];
    for (const secret of secrets)
      for (const given of [{ TIDEMARK_KEY_FILE: secret }, { TIDEMARK_PASSPHRASE_FILE: secret }]) {
        const error: unknown = await vaultSecrets({}, given).catch((reason: unknown) => reason);
        expect(error).toMatchObject({ code: "INVALID_ARGUMENT" });
        expect(JSON.stringify(errorReport(error)) + errorStacks(error)).not.toContain(secret.slice(0, 40));
      }
  });

  it("holds credentials, of which empty ones count as none", () => {
    expect(
      sinkOptions(vault, { AZURE_STORAGE_KEY: "key", AZURE_STORAGE_CONNECTION_STRING: "" }, signal).credentials,
    ).toEqual({
      accountKey: "key",
      connectionString: undefined,
    });
  });

  it("switches JSON on, as its flag does anywhere before --", () => {
    expect(outputFlags(["disks", "list"], { TIDEMARK_JSON: "1", TIDEMARK_DEBUG: "0" })).toMatchObject({
      json: true,
      debug: false,
    });
    expect(outputFlags(["replicate", "-q", "--", "--json"], { TIDEMARK_UTC: "yes" })).toEqual({
      json: false,
      debug: false,
      quiet: true,
      verbose: false,
      utc: true,
    });
  });
});
