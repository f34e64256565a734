/**
 * docs/site-recovery.md answers every capability of Azure Site Recovery: with a command, a key of a
 * configuration or a plan, or a reason. Commands and flags are checked with those of all pages.
 */
import { chmodSync, writeFileSync } from "node:fs";
import { expect, test } from "vitest";
import { loadConfig } from "../../cli/agent/config-file.ts";
import { planJsonSchema } from "../../cli/plan/plan-schema.ts";
import { Place } from "../cli/tidemark.ts";
import { readText } from "../source-tree.ts";
import { codeSpans } from "./pages.ts";

const path = "docs/site-recovery.md";
const rows = [...(readText(path) ?? "").matchAll(/^\| (\d+) \| ([^|]+) \| (.+) \|$/gm)].map(
  ([, number = "", capability = "", answer = ""]) => ({ number: Number(number), capability, answer }),
);
/** Rows that hold always: there is nothing to type. */
const always: readonly number[] = [19];
/** Rows that are for Azure's own people: nothing here does them. */
const azureOnly: readonly number[] = [9, 44, 45, 47];
const keyPattern = /^(?:vaults\.NAME|policies\.NAME|disks\[\]|notify\[\]|plan)(?:\.[\w[\]]+)*$/;
const spansOf = (answer: string): readonly string[] => codeSpans({ path, text: answer });

test("every row is there once, with a command, a key or a reason", () => {
  expect(rows.map(({ number }) => number)).toEqual(Array.from({ length: 49 }, (_, index) => index + 1));
  const unanswered = rows.filter(({ number, answer }) => {
    const isAnswered = spansOf(answer).some((span) => /^tidemark [a-z]/.test(span) || keyPattern.test(span));
    return azureOnly.includes(number) ? !answer.startsWith("Azure only: ") : !(isAnswered || always.includes(number));
  });
  expect(unanswered).toEqual([]);
});

test("the keys that it names are those of the agent's configuration and of a plan", async () => {
  const keys = [...new Set(rows.flatMap(({ answer }) => spansOf(answer)).filter((span) => keyPattern.test(span)))];
  expect(keys.length).toBeGreaterThan(15);
  const unknown: string[] = [];
  for (const key of keys) if (!(key.startsWith("plan.") ? isPlanKey(key) : await isConfigKey(key))) unknown.push(key);
  expect(unknown).toEqual([]);
  expect(isPlanKey("plan.machines[].nosuch")).toBe(false);
  expect(await isConfigKey("vaults.NAME.nosuch")).toBe(false);
});

/** `plan.machines[].size`: looks it up in the JSON schema of plans. */
function isPlanKey(key: string): boolean {
  const root = planJsonSchema();
  const at = (value: unknown, name: string): unknown =>
    typeof value === "object" && value !== null ? Reflect.get(value, name) : undefined;
  let place: unknown = root;
  for (const word of key.split(".").slice(1)) {
    place = at(at(place, "properties"), word.replace("[]", ""));
    if (word.endsWith("[]")) place = at(place, "items");
    const reference = at(place, "$ref");
    if (typeof reference === "string") place = at(at(root, "$defs"), reference.replace("#/$defs/", ""));
  }
  return place !== undefined;
}

/** `vaults.NAME.proxy.url`: a configuration with that key has faults, but not that there is no such key. */
async function isConfigKey(key: string): Promise<boolean> {
  const words = key.split(".");
  const document = words.reduceRight<unknown>((value, word) => {
    return word.endsWith("[]") ? { [word.slice(0, -2)]: [value] } : { [word]: value };
  }, []);
  const place = new Place();
  writeFileSync(place.path("agent.yaml"), JSON.stringify(document));
  chmodSync(place.path("agent.yaml"), 0o600);
  const { faults } = await loadConfig(place.path("agent.yaml"), {});
  return !faults.some(({ message }) => message === `${words.at(-1) ?? ""} is no field here`);
}
