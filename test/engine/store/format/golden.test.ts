import { describe, expect, test } from "vitest";
import { toHex } from "../../../../engine/store/format/checksum.ts";
import {
  decodeHead,
  decodeManifest,
  decodePage,
  decodeVault,
  encodeHead,
  encodeManifest,
  encodePage,
  encodeVault,
} from "../../../../engine/store/format/documents.ts";
import { decodeFrameHeader, decodeFrameTable, frameHeaderBytes } from "../../../../engine/store/format/frame.ts";
import {
  decodeCondemned,
  decodeLabel,
  decodePin,
  encodeCondemned,
  encodeHold,
  encodeLabel,
  encodePin,
} from "../../../../engine/store/format/keeping.ts";
import { decodeLeaf, decodeRoot, encodeLeaf, encodeRoot } from "../../../../engine/store/format/leaf.ts";
import { decodePlanRun, encodePlanRun } from "../../../../engine/store/format/plan-run.ts";
import {
  decodeProved,
  decodeQuarantine,
  decodeScrubbed,
  encodeProved,
  encodeQuarantine,
  encodeScrubbed,
  quarantineName,
} from "../../../../engine/store/format/proof.ts";
import {
  collectedName,
  collectionName,
  deadName,
  decodeCollected,
  decodeCollection,
  decodeDead,
  encodeCollected,
  encodeCollection,
  encodeDead,
} from "../../../../engine/store/format/reclaim.ts";
import { decodeReplica, encodeReplica } from "../../../../engine/store/format/replica.ts";
import {
  decodeClaim,
  decodeRun,
  decodeRunRequest,
  encodeClaim,
  encodeRun,
  encodeRunRequest,
} from "../../../../engine/store/format/run.ts";
import { vaultId } from "../../../engine-model.ts";
import { golden } from "../../../golden.ts";
import { registrationRows } from "./registration-samples.ts";
import {
  claimSample,
  collectedSample,
  collectionSample,
  condemnedSample,
  deadSample,
  failedOverSample,
  frameChunks,
  framePlace,
  headSample,
  holdSample,
  indexReference,
  indexSample,
  labelSample,
  leafSample,
  manifestSample,
  pageReference,
  pageSample,
  pinSample,
  planRunSample,
  provedSample,
  quarantineSample,
  replicaRunSample,
  replicaSample,
  rootSample,
  runRequestSample,
  runSample,
  scrubbedSample,
  sealFrame,
  vaultSample,
} from "./samples.ts";

describe("the bytes of format version 1", () => {
  test("of a vault are fixed", () => {
    const bytes = golden("vault-v1.txt", encodeVault(vaultSample));
    expect(decodeVault(bytes, "vault.json")).toEqual(vaultSample);
    expect(plain(encodeVault(vaultSample))).toEqual(bytes);
  });

  test("of a head are fixed, with and without a writer", () => {
    for (const [name, head] of [
      ["head-v1.txt", headSample],
      ["head-left-v1.txt", { ...headSample, writer: null, collection: null, pages: [], points: [] }],
    ] as const) {
      const bytes = golden(name, encodeHead(head));
      expect(decodeHead(bytes, "head", headSample)).toEqual(head);
      expect(plain(encodeHead(head))).toEqual(bytes);
    }
  });

  test("of a collection and of a record of dead pages are fixed", () => {
    const bytes = golden("collection-v1.txt", encodeCollection(collectionSample));
    expect(decodeCollection(bytes, collectionName, headSample.vault)).toEqual(collectionSample);
    expect(plain(encodeCollection(collectionSample))).toEqual(bytes);
    const collected = golden("collected-v1.txt", encodeCollected(collectedSample));
    expect(decodeCollected(collected, collectedName, headSample.vault)).toEqual(collectedSample);
    expect(plain(encodeCollected(collectedSample))).toEqual(collected);
    const deadBytes = golden("dead-v1.txt", encodeDead(deadSample));
    expect(decodeDead(deadBytes, deadName(deadSample.segment), headSample.vault)).toEqual(deadSample);
    expect(plain(encodeDead(deadSample))).toEqual(deadBytes);
  });

  test("of the times of proofs and of a quarantine are fixed", () => {
    const proved = golden("proved-v1.txt", encodeProved(provedSample));
    expect(decodeProved(proved, "proved", provedSample)).toEqual(provedSample);
    expect(plain(encodeProved(provedSample))).toEqual(proved);
    const quarantined = golden("quarantine-v1.txt", encodeQuarantine(quarantineSample));
    expect(decodeQuarantine(quarantined, quarantineName(quarantineSample.segment), quarantineSample.vault)).toEqual(
      quarantineSample,
    );
    expect(plain(encodeQuarantine(quarantineSample))).toEqual(quarantined);
    const scrubbed = golden("scrubbed-v1.txt", encodeScrubbed(scrubbedSample));
    expect(decodeScrubbed(scrubbed, "scrubbed", scrubbedSample.vault)).toEqual(scrubbedSample);
    expect(plain(encodeScrubbed(scrubbedSample))).toEqual(scrubbed);
  });

  test("of a page are fixed, be it of points or of pages", () => {
    for (const [name, page, reference] of [
      ["page-points-v1.txt", pageSample, pageReference],
      ["page-pages-v1.txt", indexSample, indexReference],
    ] as const) {
      const bytes = golden(name, encodePage(page).bytes);
      expect(decodePage(bytes, "page", { ...headSample, reference })).toEqual(page);
      expect(plain(encodePage(page).bytes)).toEqual(bytes);
    }
  });

  test("of a manifest are fixed, and with them the point's id", () => {
    for (const [name, manifest] of [
      ["manifest-v1.txt", manifestSample],
      ["manifest-first-v1.txt", { ...manifestSample, parent: null, application: null, group: null, runs: [] }],
    ] as const) {
      const encoded = encodeManifest(manifest);
      const bytes = golden(name, encoded.bytes);
      expect(plain(encoded.bytes)).toEqual(bytes);
      // The id stands in the file's first line.
      expect(Buffer.from(bytes).toString("latin1", 0, bytes.indexOf(0x0a))).toBe(`tidemark manifest 1 ${encoded.id}`);
      expect(decodeManifest(bytes, "manifest", { ...manifest, id: encoded.id })).toEqual(manifest);
    }
  });

  test("of the documents of registration are fixed", () => {
    for (const { golden: name, sample, bytes, decode } of registrationRows) {
      const kept = golden(name, bytes);
      expect(decode(kept)).toEqual(sample);
      expect(plain(bytes)).toEqual(kept);
    }
  });

  test("of holds, pins and condemned points are fixed", () => {
    const hold = golden("hold-v1.txt", encodeHold(holdSample));
    expect(plain(encodeHold(holdSample))).toEqual(hold);
    for (const [name, pin] of [
      ["pin-v1.txt", pinSample],
      ["pin-unnamed-v1.txt", { ...pinSample, name: null, untilMs: null }],
    ] as const) {
      const bytes = golden(name, encodePin(pin));
      expect(decodePin(bytes, "pin", pinSample)).toEqual(pin);
      expect(plain(encodePin(pin))).toEqual(bytes);
    }
    const label = golden("label-v1.txt", encodeLabel(labelSample));
    expect(decodeLabel(label, "label", labelSample)).toEqual(labelSample);
    expect(plain(encodeLabel(labelSample))).toEqual(label);
    const claim = golden("claim-v1.txt", encodeClaim(claimSample));
    expect(decodeClaim(claim, "claim", claimSample)).toEqual(claimSample);
    expect(plain(encodeClaim(claimSample))).toEqual(claim);
    const replica = golden("replica-v1.txt", encodeReplica(replicaSample));
    expect(decodeReplica(replica, "failover/replicas/0123456789abcdef", replicaSample.vault)).toEqual(replicaSample);
    expect(plain(encodeReplica(replicaSample))).toEqual(replica);
    const taken = golden("replica-failed-over-v1.txt", encodeReplica(failedOverSample));
    expect(decodeReplica(taken, "failover/replicas/0123456789abcdef", replicaSample.vault)).toEqual(failedOverSample);
    expect(plain(encodeReplica(failedOverSample))).toEqual(taken);
    const onReplica = golden("run-replica-v1.txt", encodeRun(replicaRunSample));
    expect(decodeRun(onReplica, "failover/runs/5f03c2aa", runSample.vault)).toEqual(replicaRunSample);
    expect(plain(encodeRun(replicaRunSample))).toEqual(onReplica);
    const run = golden("run-v1.txt", encodeRun(runSample));
    expect(decodeRun(run, "failover/runs/5f03c2aa", runSample.vault)).toEqual(runSample);
    expect(plain(encodeRun(runSample))).toEqual(run);
    const planRun = golden("plan-v1.txt", encodePlanRun(planRunSample));
    expect(decodePlanRun(planRun, "failover/plans/0badcafe", planRunSample.vault)).toEqual(planRunSample);
    expect(plain(encodePlanRun(planRunSample))).toEqual(planRun);
    const request = golden("request-v1.txt", encodeRunRequest(runRequestSample));
    expect(decodeRunRequest(request, "failover/requests/5f03c2aa", runRequestSample.vault)).toEqual(runRequestSample);
    expect(plain(encodeRunRequest(runRequestSample))).toEqual(request);
    // Written before runs could be served.
    const unserved = golden("run-unserved-v1.txt", encodeRun(runSample));
    expect(decodeRun(unserved, "failover/runs/5f03c2aa", runSample.vault)).toMatchObject({ serving: null });
    for (const [name, condemned] of [
      ["condemned-v1.txt", condemnedSample],
      ["condemned-none-v1.txt", { ...condemnedSample, ranges: [] }],
    ] as const) {
      const bytes = golden(name, encodeCondemned(condemned));
      expect(decodeCondemned(bytes, "condemned", condemnedSample)).toEqual(condemned);
      expect(plain(encodeCondemned(condemned))).toEqual(bytes);
    }
  });

  test("of a frame are fixed, and its table leads to every payload", () => {
    const bytes = golden("frame-v1.bin", sealFrame());
    expect(sealFrame()).toEqual(bytes);
    const header = decodeFrameHeader(bytes.subarray(0, frameHeaderBytes), "segment", framePlace);
    expect(header).toMatchObject({ frameBytes: bytes.length, chunkCount: 3 });
    const table = decodeFrameTable(
      bytes.subarray(header.tableOffset, header.tableOffset + header.tableBytes),
      "segment",
      header,
    );
    const chunks = frameChunks.map((chunk, index) => {
      const at = table.offsets[index] ?? 0;
      return {
        payload: bytes.slice(at, at + chunk.payload.length),
        storedWord: table.storedWords[index],
        digest: table.digests.slice(index * 16, (index + 1) * 16),
        granule: table.granule[index],
        granules: table.granules[index],
      };
    });
    expect(chunks).toEqual(frameChunks);
  });

  test("of a leaf are fixed", () => {
    const encoded = encodeLeaf(leafSample(), vaultId);
    const bytes = golden("leaf-v1.bin", encoded.bytes);
    expect(plain(encoded.bytes)).toEqual(bytes);
    expect(decodeLeaf(bytes, "leaf", vaultId, bytes.slice(48, 64))).toEqual(leafSample());
    expect(toHex(encoded.checksum)).toBe(toHex(bytes.subarray(48, 64)));
  });

  test("of a root are fixed", () => {
    const encoded = encodeRoot(rootSample, vaultId);
    const bytes = golden("root-v1.bin", encoded.bytes);
    expect(plain(encoded.bytes)).toEqual(bytes);
    expect(decodeRoot(bytes, "root", vaultId, bytes.slice(48, 64))).toEqual(rootSample);
  });
});

describe("the decoders", () => {
  test("read a table from a Buffer as from any other view of memory", () => {
    const frame = Buffer.concat([Buffer.alloc(64), sealFrame()]).subarray(64);
    const header = decodeFrameHeader(frame, "segment", framePlace);
    const part = frame.subarray(header.tableOffset, header.tableOffset + header.tableBytes);
    expect(decodeFrameTable(part, "segment", header)).toEqual(
      decodeFrameTable(new Uint8Array(part), "segment", header),
    );
    const leaf = encodeLeaf(leafSample(), vaultId);
    const unaligned = Buffer.concat([Buffer.alloc(3), leaf.bytes]).subarray(3);
    expect(decodeLeaf(unaligned, "leaf", vaultId, leaf.checksum)).toEqual(leafSample());
  });

  test("skip fields that a newer minor version added", () => {
    const document = { ...vaultSample, colour: "blue" };
    expect(decodeVault(encodeVault(document), "vault.json")).toEqual(vaultSample);
  });
});

/** The same bytes without the class of the view they came in. */
function plain(bytes: Uint8Array): Uint8Array {
  return new Uint8Array(bytes);
}
