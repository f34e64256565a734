/**
 * Completion scripts for bash, zsh and fish, made from the command definitions.
 *
 * Each script holds the whole table: at which command which words may follow. It runs no tidemark,
 * so that a key press costs nothing. Values of an option complete to its choices, or to file names
 * where the value is one.
 */
import { allCommands, type CommandReference, type OptionReference } from "./definitions.ts";

export const shells = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof shells)[number];

/** Names of values that are paths, and arguments that are. */
const pathValues: ReadonlySet<string> = new Set(["path", "file", "dir", "target"]);
const pathArguments: ReadonlySet<string> = new Set(["<source>", "<image>"]);

/** How a shell of Bourne's family is told what may stand at the cursor. */
interface Dialect {
  /** From the start of the script to the loop over the words before the cursor, whose `$word` it sets. */
  readonly head: string;
  /** After the function. */
  readonly foot: string;
  readonly choose: (words: string) => string;
  readonly files: string;
}

const bash: Dialect = {
  head: `_tidemark() {
  local cur="\${COMP_WORDS[COMP_CWORD]}" prev="\${COMP_WORDS[COMP_CWORD-1]}" at="" word
  COMPREPLY=()
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do`,
  foot: "complete -F _tidemark tidemark",
  choose: (words) => `COMPREPLY+=($(compgen -W "${words}" -- "$cur"))`,
  files: 'compopt -o filenames 2>/dev/null; COMPREPLY+=($(compgen -f -- "$cur"))',
};

const zsh: Dialect = {
  head: `_tidemark() {
  local cur="\${words[CURRENT]}" prev="\${words[CURRENT-1]}" at="" word
  for word in "\${(@)words[2,CURRENT-1]}"; do`,
  foot: 'if [[ "$funcstack[1]" = _tidemark ]]; then _tidemark "$@"; else compdef _tidemark tidemark; fi',
  choose: (words) => `compadd -- ${words}`,
  files: "_files",
};

/** The script that `shell` reads. */
export function completionScript(shell: Shell, program: CommandReference): string {
  switch (shell) {
    case "bash":
      return bourneScript(program, bash);
    case "zsh":
      return `#compdef tidemark\n${bourneScript(program, zsh)}`;
    case "fish":
      return fishScript(program);
  }
}

function bourneScript(program: CommandReference, dialect: Dialect): string {
  const { head, foot, choose, files } = dialect;
  const commands = allCommands(program);
  const steps = commands
    .slice(1)
    .flatMap((command) =>
      namesOf(command).map((name) => `"${pathOf(command, 1)}:${name}") at="${pathOf(command)}" ;;`),
    );
  const words = commands.map((command) => {
    const options = [...command.options, ...(command === program ? [] : program.options)];
    const [argument] = command.arguments;
    const given = [...command.commands.flatMap(namesOf), ...(argument?.choices ?? [])];
    const choices = [...given, ...options.map(({ long }) => long), "--help"];
    const takesFile = argument !== undefined && pathArguments.has(argument.term);
    const more = takesFile ? `; if [[ $cur != -* ]]; then ${files}; fi` : "";
    return `"${pathOf(command)}") ${choose(choices.join(" "))}${more} ;;`;
  });
  const values = commands.flatMap((command) =>
    command.options
      .filter(({ value }) => value !== undefined)
      .map((option) => {
        const reply =
          option.choices.length > 0
            ? `${choose(option.choices.join(" "))}; `
            : pathValues.has(option.value ?? "")
              ? `${files}; `
              : "";
        return `"${pathOf(command)}:${option.long}") ${reply}return ;;`;
      }),
  );
  return `# Completion of tidemark: source it, or put it where the shell looks for completions.
${head}
    case "$at:$word" in
      ${steps.join("\n      ")}
    esac
  done
  case "$at:$prev" in
    ${values.join("\n    ")}
  esac
  case "$at" in
    ${words.join("\n    ")}
  esac
}
${foot}
`;
}

function fishScript(program: CommandReference): string {
  const lines = allCommands(program).flatMap((command) => {
    const path = pathOf(command);
    const condition = command === program ? "" : ` -n '__tidemark_at "${path}"'`;
    const children = command.commands.flatMap((child) =>
      namesOf(child).map(
        (name) => `complete -c tidemark -f -n '__tidemark_at "${path}"' -a ${name} -d ${quoted(child.description)}`,
      ),
    );
    const choices = command.arguments.flatMap((argument) => argument.choices);
    const given = choices.length === 0 ? [] : [`complete -c tidemark -f${condition} -a '${choices.join(" ")}'`];
    const options = command.options.map((option) => `complete -c tidemark${condition}${fishOption(option)}`);
    return [...children, ...given, ...options];
  });
  const commands = allCommands(program).slice(1);
  const steps = commands.flatMap((command) =>
    namesOf(command).map((name) => `case '${pathOf(command, 1)}:${name}'\n                set at '${pathOf(command)}'`),
  );
  return `# Completion of tidemark: put it into ~/.config/fish/completions/tidemark.fish
function __tidemark_at
    set -l at ''
    for word in (commandline -opc)[2..]
        switch "$at:$word"
            ${steps.join("\n            ")}
        end
    end
    test "$at" = "$argv[1]"
end
${lines.join("\n")}
`;
}

function fishOption({ long, short, value, choices, description }: OptionReference): string {
  const names = ` -l ${long.replace(/^--/, "")}${short === undefined ? "" : ` -s ${short.replace(/^-/, "")}`}`;
  const taken =
    value === undefined
      ? ""
      : choices.length > 0
        ? ` -x -a '${choices.join(" ")}'`
        : pathValues.has(value)
          ? " -r -F"
          : " -x";
  return `${names}${taken} -d ${quoted(description)}`;
}

/** `points list` of `tidemark points list`; with `dropped` words less. */
function pathOf({ name }: CommandReference, dropped = 0): string {
  const words = name.split(" ").slice(1);
  return words.slice(0, words.length - dropped).join(" ");
}

/** What a user may type for a command. */
function namesOf(command: CommandReference): readonly string[] {
  return [command.name.slice(command.name.lastIndexOf(" ") + 1), ...command.aliases];
}

/** As fish reads it back. */
function quoted(text: string): string {
  return `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
}
