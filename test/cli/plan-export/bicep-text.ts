/** Reads the part of Bicep that our templates use, for comparison with a template in JSON. */

export interface BicepFile {
  /** Name and default value; undefined: none. An expression is `{ expression }`, as it is written. */
  readonly parameters: readonly (readonly [name: string, value: unknown])[];
  readonly resources: readonly {
    readonly symbol: string;
    readonly type: string;
    readonly apiVersion: string;
    readonly fields: Readonly<Record<string, unknown>>;
  }[];
}

/** Throws where it does not understand the text. */
export function parseBicep(text: string): BicepFile {
  const parameters: [string, unknown][] = [];
  const resources: BicepFile["resources"][number][] = [];
  let rest = text;
  while (rest !== "") {
    const head = take(/^(?:@\w+\(|metadata \w+ = |param (\w+) string(?: = )?|resource (\w+) '([^'@]+)@([^']+)' = )/);
    const [, parameter, symbol, type = "", apiVersion = ""] = head;
    const value = parameter !== undefined && rest.startsWith("\n") ? undefined : readValue();
    if (head[0].startsWith("@")) take(/^\)/);
    take(/^\n+/);
    if (parameter !== undefined) parameters.push([parameter, value]);
    if (symbol !== undefined) resources.push({ symbol, type, apiVersion, fields: value as Record<string, unknown> });
  }
  return { parameters, resources };

  function take(pattern: RegExp): RegExpExecArray {
    const found = pattern.exec(rest);
    if (found === null) throw new Error(`not understood: ${rest.slice(0, 80)}`);
    rest = rest.slice(found[0].length);
    return found;
  }

  function readValue(): unknown {
    if (rest.startsWith("{}") || rest.startsWith("[]")) return take(/^../)[0] === "{}" ? {} : [];
    if (rest.startsWith("{")) {
      take(/^\{\n/);
      const fields: [string, unknown][] = [];
      while (!/^ *\}/.test(rest)) {
        const [, name = ""] = take(/^ *(\w+): /);
        fields.push([name, readValue()]);
        take(/^\n/);
      }
      take(/^ *\}/);
      return Object.fromEntries(fields);
    }
    if (rest.startsWith("[")) {
      take(/^\[\n/);
      const items: unknown[] = [];
      while (!/^ *\]/.test(rest)) {
        take(/^ */);
        items.push(readValue());
        take(/^\n/);
      }
      take(/^ *\]/);
      return items;
    }
    if (rest.startsWith("'")) {
      const [raw] = take(/^'(?:[^'\\\n]|\\['\\nrt]|\\\$\{)*'/);
      if (/(?<!\\)\$\{/.test(raw)) return { expression: raw };
      return raw
        .slice(1, -1)
        .replace(/\\(\$\{|.)/g, (_match, what: string) => ({ n: "\n", r: "\r", t: "\t" })[what] ?? what);
    }
    const [word] = take(/^[^\n]+/);
    return /^(true|false|\d+)$/.test(word) ? (JSON.parse(word) as unknown) : { expression: word };
  }
}
