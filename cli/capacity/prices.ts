/**
 * Price file: what a store charges, in the words of its price list. YAML or JSON, every field named.
 *
 *     currency: USD
 *     storedGiBMonth: 0.045     # a GiB that is stored for a month of 30 days
 *     writes10k: 0.00036        # 10,000 write requests, and listings
 *     reads10k: 0.00036         # 10,000 read requests
 */
import { readFile } from "node:fs/promises";
import { systemCode, TidemarkError } from "../../engine/index.ts";

export interface Prices {
  readonly currency: string;
  readonly storedGiBMonth: number;
  readonly writes10k: number;
  readonly reads10k: number;
}

/** Cost of 30 days. */
export interface Cost {
  readonly currency: string;
  readonly stored: number;
  readonly requests: number;
  readonly total: number;
}

export interface Usage {
  /** Mean over the time. */
  readonly storedBytes: number;
  readonly writeRequests: number;
  readonly readRequests: number;
}

export function costOf(prices: Prices, { storedBytes, writeRequests, readRequests }: Usage): Cost {
  const stored = (storedBytes / 1024 ** 3) * prices.storedGiBMonth;
  const requests = (writeRequests * prices.writes10k + readRequests * prices.reads10k) / 10_000;
  return { currency: prices.currency, stored, requests, total: stored + requests };
}

const numbers = ["storedGiBMonth", "writes10k", "reads10k"] as const;

/** Reads a price file. Errors: INVALID_ARGUMENT, SOURCE_NOT_FOUND. */
export async function readPrices(path: string): Promise<Prices> {
  const { parse, YAMLParseError } = await import("yaml");
  let value: unknown;
  try {
    value = parse(await readFile(path, "utf8"));
  } catch (error) {
    if (error instanceof YAMLParseError) throw faulty(path, `is no YAML: ${error.message.split("\n")[0] ?? ""}`, error);
    const errno = systemCode(error);
    if (errno === undefined) throw error;
    throw new TidemarkError("SOURCE_NOT_FOUND", `the price file ${path} cannot be read (${errno})`, {
      remedy: "name a file like examples/prices.yaml",
      detail: { path, errno },
      cause: error,
    });
  }
  const fields = (typeof value === "object" && value !== null ? value : {}) as Readonly<Record<string, unknown>>;
  const { currency } = fields;
  if (typeof currency !== "string" || currency.length > 8) throw faulty(path, "has no currency of up to 8 characters");
  for (const name of numbers) {
    const price = fields[name];
    if (typeof price !== "number" || !Number.isFinite(price) || price < 0)
      throw faulty(path, `has no price ${name}, a number from 0`);
  }
  const unknown = Object.keys(fields).find(
    (name) => name !== "currency" && !(numbers as readonly string[]).includes(name),
  );
  if (unknown !== undefined) throw faulty(path, `has the unknown field ${JSON.stringify(unknown)}`);
  return fields as unknown as Prices;
}

function faulty(path: string, fact: string, cause?: unknown): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", `the price file ${path} ${fact}`, {
    remedy: "write currency, storedGiBMonth, writes10k and reads10k, as in examples/prices.yaml",
    detail: { path },
    cause,
  });
}
