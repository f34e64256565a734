/** HTTP statuses of the agent's API: each error code has one. */
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { expect, it, onTestFinished } from "vitest";
import { type Routes, serviceListener } from "../../../cli/agent/http-service.ts";
import { remedies } from "../../../cli/error-table.ts";
import { type ErrorCode, TidemarkError } from "../../../engine/index.ts";

/** Failures of the agent, its stores and its machine. All other codes are of the request, or of what it meets. */
const failures: Partial<Readonly<Record<ErrorCode, number>>> = {
  INTERRUPTED: 503,
  OBJECT_NOT_FOUND: 500,
  OUTCOME_UNKNOWN: 500,
  STORE_UNREACHABLE: 503,
  STORE_REFUSED: 500,
  STORE_REGRESSED: 500,
  DAMAGED: 500,
  FORMAT_UNSUPPORTED: 500,
  SOURCE_UNREADABLE: 500,
  TARGET_FAILED: 500,
  DEVICE_FAILED: 500,
  NO_SPACE: 507,
  CUT_TIMED_OUT: 503,
  CUT_ABANDONED: 500,
  HOOK_FAILED: 500,
  AGENT_UNREACHABLE: 503,
  INTERNAL: 500,
};

const refusals: Partial<Readonly<Record<ErrorCode, number>>> = {
  INVALID_ARGUMENT: 400,
  UNSUPPORTED: 400,
  ACCESS_REFUSED: 403,
  KEY_ALTERED: 403,
  KEY_EXPIRED: 403,
  KEY_FOREIGN: 403,
  KEY_USED: 403,
  AGENT_REMOVED: 403,
  VAULT_NOT_FOUND: 404,
  DISK_NOT_FOUND: 404,
  POINT_NOT_FOUND: 404,
  SOURCE_NOT_FOUND: 404,
};

it("answers what is wrong with a request with 4xx, its conflicts with 409, and failures with 5xx", async () => {
  const routes: Routes<null> = {
    "GET /": async () => await Promise.reject(new Error("a fault")),
    "GET /codes/": async (_, { rest }) =>
      await Promise.reject(new TidemarkError(rest as ErrorCode, "no", { remedy: "look" })),
  };
  const server = createServer(serviceListener({ routes }, Promise.resolve(null)));
  server.listen(0, "127.0.0.1");
  onTestFinished(() => void server.close());
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const statusOf = async (path: string): Promise<number> =>
    (await fetch(`http://127.0.0.1:${String(port)}${path}`)).status;
  const codes = Object.keys(remedies) as ErrorCode[];
  const found = await Promise.all(codes.map(async (code) => [code, await statusOf(`/codes/${code}`)] as const));
  expect(found).toEqual(codes.map((code) => [code, failures[code] ?? refusals[code] ?? 409]));
  // A later version may have a code that this one does not know.
  expect([await statusOf("/"), await statusOf("/codes/LATER")]).toEqual([500, 500]);
});
