/**
 * Set-up of every test file: tests of codecs call `checksum` without a `Vault`, which compiles it
 * otherwise.
 */
import { openChecksum } from "../engine/store/format/checksum.ts";

await openChecksum();
