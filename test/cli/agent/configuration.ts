/** Configuration files for tests, in folders that are gone afterwards. */
import { chmodSync, mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { onTestFinished } from "vitest";
import { type AgentConfig, formatFault } from "../../../cli/agent/config.ts";
import { loadConfig } from "../../../cli/agent/config-file.ts";

/** An agent with one disk, whose points are asked for. */
export const oneDisk = `vaults:
  main: {address: "dir:vault"}
policies:
  gold: {crashConsistentFrequency: 1h}
disks:
  - {name: web, image: web.img, vault: main, policy: gold, listen: "unix:a.sock"}
control: {socket: agent.sock}
`;

export class ConfigFolder {
  readonly folder: string = mkdtempSync(join(tmpdir(), "tidemark-agent-"));
  readonly file: string = join(this.folder, "agent.yaml");

  constructor(...images: readonly string[]) {
    onTestFinished(() => rmSync(this.folder, { recursive: true, force: true }));
    for (const image of images) this.image(image);
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  folders(...names: readonly string[]): void {
    for (const name of names) mkdirSync(this.path(name));
  }

  image(name: string): string {
    writeFileSync(this.path(name), "");
    truncateSync(this.path(name), 65_536);
    return this.path(name);
  }

  write(text: string, mode = 0o644): string {
    writeFileSync(this.file, text);
    chmodSync(this.file, mode);
    return this.file;
  }

  /** The faults as they are printed, without the folder. */
  async faults(
    text: string,
    environment: Readonly<Record<string, string>> = {},
    mode = 0o644,
  ): Promise<readonly string[]> {
    const { faults } = await loadConfig(this.write(text, mode), { XDG_RUNTIME_DIR: this.folder, ...environment });
    return faults.map((fault) => formatFault(fault).replaceAll(`${this.folder}/`, ""));
  }

  async config(text: string, environment: Readonly<Record<string, string>> = {}, mode = 0o644): Promise<AgentConfig> {
    const loaded = await loadConfig(this.write(text, mode), { XDG_RUNTIME_DIR: this.folder, ...environment });
    if ("config" in loaded) return loaded.config;
    throw new Error(loaded.faults.map(formatFault).join("\n"));
  }
}
