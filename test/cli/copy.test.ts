/** `tidemark copy` as users meet it. */

import { existsSync, writeFileSync } from "node:fs";
import { expect, it } from "vitest";
import { noKey, toKey } from "../encrypted.ts";
import { sameFiles, writeImage } from "./images.ts";
import { Place } from "./tidemark.ts";

it("copies a vault to an encrypted one and back to a plain one, and says what it did", async () => {
  const place = new Place();
  writeImage(place.path("a.img"), 2);
  await place.json("replicate", "a.img", "--disk", "a", "--label", "before");
  writeFileSync(place.path("secret"), "a long passphrase\n");
  const init = ["vault", "init", "--vault", "dir:second", "--encrypt", "--passphrase-file", "secret"];
  expect(await place.run(init)).toMatchObject({ code: 0 });
  const there = ["copy", "--from", "dir:vault", "--to", "dir:second", "--to-passphrase-file", "secret"];
  const unopened = await place.run(there.slice(0, 5));
  expect([unopened.code, unopened.stderr]).toEqual([12, expect.stringContaining("`--to-key`")]);
  const copied = await place.run(there);
  expect(copied.stdout).toMatch(/a point 1 of .* → point 1, [^]*copied +1 point of 1 disk/);
  expect(await place.run([...there, "--disk", "a", "--points", "latest", "--json"])).toMatchObject({ code: 0 });

  const back = ["copy", "--from", "dir:second", "--to", "dir:third"];
  const locked = await place.run(back, noKey);
  expect(locked.code).toBe(12);
  expect(existsSync(place.path("third"))).toBe(false);
  const environment = { ...noKey, TIDEMARK_PASSPHRASE_FILE: "secret" };
  expect(await place.run(back, environment)).toMatchObject({ code: 0 });
  const restored = ["materialize", "--disk", "a", "--point", "1", "--to", "b.img", "--vault", "dir:third"];
  expect(await place.run(restored, noKey)).toMatchObject({ code: 0 });
  expect(sameFiles(place.path("b.img"), place.path("a.img"))).toBe(true);
  expect((await place.run(["points", "list", "--disk", "a", "--vault", "dir:third"], noKey)).stdout).toContain(
    "before",
  );
});

it("refuses a disk that is not there and policies that are none, and makes no vault for them", async () => {
  const place = new Place();
  writeImage(place.path("a.img"), 1);
  await place.json("replicate", "a.img", "--disk", "a");
  const command = ["copy", "--from", "dir:vault", "--to", "dir:second"];
  expect((await place.run([...command, "--disk", "b"])).stderr).toContain('the vault holds no disk "b"');
  expect((await place.run([...command, "--points", "some"])).code).toBe(2);
  expect(existsSync(place.path("second"))).toBe(false);
  const same = await place.run(["copy", "--from", "dir:vault", "--to", "dir:vault", ...toKey]);
  expect(same.stderr).toMatch(/both vaults are [^]*name two vaults/);
});
