/** A template as a Bicep file. What a resource uses by its id, Bicep finds out itself. */
import { Expression, escaped, isList, type Template, type Value } from "./azure-template.ts";

export function bicepTemplate({ notes, parameters, resources }: Template): string {
  const parts = [
    ...(notes.length === 0 ? [] : [`metadata notes = ${spelled(notes)}`]),
    ...parameters.map(({ name, description, default: value, allowed }) =>
      [
        `@description(${spelled(description)})`,
        ...(allowed === undefined ? [] : [`@allowed(${spelled(allowed)})`]),
        `param ${name} string${value === undefined ? "" : ` = ${spelled(value)}`}`,
      ].join("\n"),
    ),
    ...resources.map(({ symbol, type, apiVersion, name, body, after }) => {
      const dependsOn = after.map((other) => new Expression(other.symbol));
      const fields = { name, ...body, ...(after.length === 0 ? {} : { dependsOn }) };
      return `resource ${symbol} '${type}@${apiVersion}' = ${spelled(fields)}`;
    }),
  ];
  return `${parts.join("\n\n")}\n`;
}

function spelled(value: Value, indent = ""): string {
  if (value instanceof Expression) return value.bicep;
  if (typeof value === "string") return `'${escaped(value)}'`;
  if (typeof value !== "object") return String(value);
  const inner = `${indent}  `;
  const items = isList(value)
    ? value.map((item) => spelled(item, inner))
    : Object.entries(value).map(([name, item]) => `${name}: ${spelled(item, inner)}`);
  const [open, close] = isList(value) ? "[]" : "{}";
  return items.length === 0 ? `${open}${close}` : `${open}\n${inner}${items.join(`\n${inner}`)}\n${indent}${close}`;
}
