/**
 * YAML with positions: finds the line and column of a field by its path, and collects faults in the
 * order of the file.
 *
 * Idea: a fault names a path such as `disks.0.image`; the document looks up the node there, or the
 * deepest node on the way that exists. A field that has a fault is marked, so that a value that
 * stands in for it causes no second fault.
 *
 * `${ENV:NAME}` in a text is replaced by that variable before anything is checked. The document
 * remembers which texts hold no reference, because a secret may stand in the environment but not in
 * a file that other users can read.
 */
import {
  type Document,
  isAlias,
  isCollection,
  isMap,
  isNode,
  isScalar,
  LineCounter,
  type Node,
  parseDocument,
  visit,
} from "yaml";
import type { Environment } from "../settings.ts";
import type { ConfigFault } from "./config.ts";

/** Names of fields and indexes of lists, from the root of the file. */
export type Path = readonly (string | number)[];

export class ConfigDocument {
  readonly #file: string;
  readonly #lines = new LineCounter();
  readonly #document: Document;
  readonly #faults: (ConfigFault & { readonly offset: number })[] = [];
  /** Nodes of texts that hold no reference to the environment. */
  readonly #literal = new WeakSet<Node>();
  /** Paths, as JSON, of fields that have a fault. */
  readonly #unsound = new Set<string>();

  /** Parses `text`. What is no YAML is a fault. `file` names it in faults. */
  constructor(file: string, text: string) {
    this.#file = file;
    this.#document = parseDocument(text, { lineCounter: this.#lines, prettyErrors: false });
    for (const error of this.#document.errors)
      this.#faultAt(error.pos[0], error.message.split("\n")[0] ?? "", "correct the YAML");
  }

  /** False when the text is no YAML: then nothing else may be judged. */
  get isParsed(): boolean {
    return this.#document.errors.length === 0;
  }

  /** All faults, in the order of the file. */
  get faults(): readonly ConfigFault[] {
    const sorted = [...this.#faults].sort((a, b) => a.offset - b.offset);
    return sorted.map(({ file, line, column, message, remedy }) => ({ file, line, column, message, remedy }));
  }

  /**
   * Replaces each reference to the environment by its variable. A variable that is not set is a
   * fault.
   */
  substitute(environment: Environment): void {
    visit(this.#document, {
      Scalar: (_key, node) => {
        if (typeof node.value !== "string") return;
        const written = node.value;
        if (!written.includes("${ENV:")) this.#literal.add(node);
        node.value = written.replace(/\$\{ENV:([^{}]*)\}/g, (_match, name: string) => {
          const value = environment[name];
          if (value !== undefined && value !== "") return value;
          this.#faultAt(
            node.range?.[0] ?? 0,
            `the variable ${name} is not set`,
            "set it where the agent is started, or correct its name",
          );
          return "unset";
        });
      },
    });
  }

  /** The whole document as plain objects. */
  toPlain(): unknown {
    try {
      return this.#document.toJS({ maxAliasCount: 1_000 });
    } catch (error) {
      if (!(error instanceof ReferenceError)) throw error;
      this.fault([], error.message, "write it out instead of repeating aliases");
      return {};
    }
  }

  /** The value that stands at `at`, or undefined. */
  valueAt(at: Path): unknown {
    return this.#document.getIn(at);
  }

  /** True when the text at `at` holds no reference to the environment. */
  isLiteral(at: Path): boolean {
    return this.#literal.has(this.#nodeAt(at));
  }

  /**
   * Marks a field that has a fault. Later faults of it, and of what lies below it, are left out.
   */
  markUnsound(at: Path): void {
    this.#unsound.add(JSON.stringify(at));
  }

  /** True unless `at`, or a field above it, is marked. */
  isSound(at: Path): boolean {
    return !at.some((_, index) => this.#unsound.has(JSON.stringify(at.slice(0, index + 1))));
  }

  /** Adds a fault of the field at `at`, unless it is marked. */
  fault(at: Path, message: string, remedy: string): void {
    if (!this.isSound(at)) return;
    this.#faultAt(this.#nodeAt(at).range?.[0] ?? 0, message, remedy);
  }

  /** Adds a fault of the name `key` of the map at `at`. */
  faultAtKey(at: Path, key: string, message: string, remedy: string): void {
    const map = this.#nodeAt(at);
    const pair = isMap(map)
      ? map.items.find((item) => isScalar(item.key) && String(item.key.value) === key)
      : undefined;
    const offset = isScalar(pair?.key) ? pair.key.range?.[0] : map.range?.[0];
    this.#faultAt(offset ?? 0, message, remedy);
  }

  #faultAt(offset: number, message: string, remedy: string): void {
    const { line, col } = this.#lines.linePos(offset);
    this.#faults.push({ file: this.#file, line: Math.max(line, 1), column: Math.max(col, 1), message, remedy, offset });
  }

  /** The node at `at`, or the deepest on the way to it that exists. */
  #nodeAt(at: Path): Node {
    let node: Node | null = this.#document.contents;
    for (const step of at) {
      const within = isAlias(node) ? node.resolve(this.#document) : node;
      const next: unknown = isCollection(within) ? within.getIn([step], true) : undefined;
      if (!isNode(next)) break;
      node = next;
    }
    const found = isAlias(node) ? node.resolve(this.#document) : node;
    return found ?? this.#document.createNode(null);
  }
}
