/**
 * Set-up of every test file. Tests of codecs call `checksum` without a `Vault`, which compiles it
 * otherwise. Property tests of a quick run draw the same cases every time, so that an unchanged
 * program passes again; a deep run draws new ones and prints its seed.
 */
import fc from "fast-check";
import { openChecksum } from "../engine/store/format/checksum.ts";
import { byDepth } from "./depth.ts";

await openChecksum();
fc.configureGlobal(byDepth({ seed: 1 }, {}));
