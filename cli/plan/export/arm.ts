/** A template as JSON for Azure Resource Manager (schema 2019-04-01). */
import { Expression, idOf, isList, type Template, type Value } from "./azure-template.ts";

/** What a text of a template is in JSON. */
type Json = string | number | boolean | Json[] | { [name: string]: Json };

export function armTemplate({ notes, parameters, resources }: Template): string {
  const template = {
    $schema: "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
    contentVersion: "1.0.0.0",
    ...(notes.length === 0 ? {} : { metadata: { notes: json(notes) } }),
    parameters: Object.fromEntries(
      parameters.map(({ name, description, default: value, allowed }) => [
        name,
        {
          type: "string",
          ...(value === undefined ? {} : { defaultValue: json(value) }),
          ...(allowed === undefined ? {} : { allowedValues: allowed }),
          metadata: { description },
        },
      ]),
    ),
    resources: resources.map(({ type, apiVersion, name, uses, after, body }) => ({
      type,
      apiVersion,
      name: json(name),
      ...(uses.length + after.length === 0 ? {} : { dependsOn: json([...uses, ...after].map(idOf)) }),
      ...(json(body) as object),
    })),
  };
  return `${JSON.stringify(template, undefined, 2)}\n`;
}

function json(value: Value): Json {
  if (value instanceof Expression) return `[${value.arm}]`;
  // A text in brackets would be evaluated.
  if (typeof value === "string") return value.startsWith("[") && value.endsWith("]") ? `[${value}` : value;
  if (typeof value !== "object") return value;
  if (isList(value)) return value.map(json);
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, json(item)]));
}
