/** The examples for those who run agents: rules that fire, units that are hardened, metrics that exist. */
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { parse, parseAllDocuments } from "yaml";
import { ConfigFolder } from "../cli/agent/configuration.ts";
import { isInstalled } from "../programs.ts";
import { readText, repositoryRoot } from "../source-tree.ts";

const example = (name: string): string => readText(`examples/${name}`) ?? "";

interface Rules {
  readonly groups: readonly { readonly rules: readonly { readonly alert: string; readonly expr: string }[] }[];
}

const rules = (parse(example("prometheus/alerts.yaml")) as Rules).groups.flatMap((group) => group.rules);

describe("the alert rules", () => {
  test("are sound, and each fires on its series and on no sound one", (context) => {
    context.skip(!isInstalled("promtool"), "promtool is missing");
    const cwd = join(repositoryRoot, "examples/prometheus");
    const run = (...words: readonly string[]): string => execFileSync("promtool", words, { cwd, encoding: "utf8" });
    expect(run("check", "rules", "alerts.yaml")).toContain(`SUCCESS: ${rules.length} rules found`);
    expect(run("check", "config", "prometheus.yml")).toContain("SUCCESS");
    expect(run("test", "rules", "alerts-test.yaml")).toContain("SUCCESS");
  });

  test("are all expected to fire by their test", () => {
    const fired = [...example("prometheus/alerts-test.yaml").matchAll(/labels: '\{alertname="(\w+)"/g)];
    expect(fired.map(([, name]) => name).sort()).toEqual(rules.map(({ alert }) => alert).sort());
  });
});

test("every metric that a rule, a series or the Grafana dashboard names is one of docs/agent.md", () => {
  const listed = new Set(readText("docs/agent.md")?.match(/\b(tidemark|process|nodejs)_\w+/g));
  const panels = example("grafana/tidemark.json");
  const named = [example("prometheus/alerts.yaml"), example("prometheus/alerts-test.yaml"), panels].flatMap((text) =>
    (text.match(/\b(tidemark|process|nodejs)_[a-z_]+/g) ?? []).map((name) => name.replace(/_bucket$/, "")),
  );
  expect(new Set(named).size).toBeGreaterThan(15);
  expect([...new Set(named)].filter((name) => !listed.has(name))).toEqual([]);
  const { panels: drawn } = JSON.parse(panels) as {
    readonly panels: readonly { readonly targets: readonly unknown[] }[];
  };
  expect(drawn.filter(({ targets }) => targets.length === 0)).toEqual([]);
});

test.for(["tidemark-agent", "tidemark-verify"])("the unit %s is exposed less than 3 of 10", (unit, context) => {
  context.skip(!isInstalled("systemd-analyze"), "systemd-analyze is missing");
  const path = join(repositoryRoot, "examples/systemd", `${unit}.service`);
  const words = ["security", "--offline=true", "--no-pager", path];
  const printed = execFileSync("systemd-analyze", words, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
  const exposure = Number(/Overall exposure level for \S+: ([\d.]+)/.exec(printed)?.[1]);
  expect(exposure).toBeGreaterThan(0);
  expect(exposure).toBeLessThan(3);
});

describe("a configuration for containers", () => {
  const manifests = parseAllDocuments(example("kubernetes/daemonset.yaml")).map(
    (document) => document.toJS() as object,
  );
  const data = (manifests[0] as { readonly data: Readonly<Record<string, string>> }).data;

  test.each([
    ["compose", example("container/agent.yaml"), "/disks/web.img"],
    ["Kubernetes", data["agent.yaml"] ?? "", "/var/lib/disks/data.img"],
  ])("of %s has no fault but that this machine lacks its disk", async (_, text, image) => {
    const environment = { TIDEMARK_VAULT: "http://azurite:10000/devstoreaccount1/tidemark", NODE_NAME: "node-1" };
    expect(await new ConfigFolder().faults(text, environment)).toEqual([
      expect.stringContaining(`${image} does not exist`),
    ]);
  });

  test.each([
    ["compose", example("container/agent.yaml"), example("container/compose.yaml")],
    ["Kubernetes", data["agent.yaml"] ?? "", example("kubernetes/daemonset.yaml")],
  ])("of %s keeps its state where the container may write", (_, text, manifest) => {
    const { vaults } = parse(text) as { readonly vaults: { readonly main: { readonly stateFolder: string } } };
    const { stateFolder } = vaults.main;
    const volumes = [...manifest.matchAll(/- \w+:(\/\S+)|mountPath: ([^,}]+)\}/g)].map(
      ([, one, other]) => one ?? other ?? "",
    );
    expect(volumes).toContain("/var/lib/tidemark");
    expect(volumes.some((path) => stateFolder.startsWith(`${path}/`))).toBe(true);
  });

  test("runs as a user without rights, on a root that cannot be written, with time for last points", () => {
    const { services } = parse(example("container/compose.yaml")) as {
      readonly services: { readonly agent: object };
    };
    expect(services.agent).toMatchObject({ read_only: true, cap_drop: ["ALL"], stop_grace_period: "90s" });
    expect(example("container/Dockerfile")).toMatch(/^USER 10001$/m);
    const { spec } = (manifests[1] as { readonly spec: { readonly template: { readonly spec: object } } }).spec
      .template;
    expect(spec).toMatchObject({
      terminationGracePeriodSeconds: 90,
      securityContext: { runAsNonRoot: true, runAsUser: 10001 },
      containers: [{ securityContext: { readOnlyRootFilesystem: true, allowPrivilegeEscalation: false } }],
    });
  });
});
