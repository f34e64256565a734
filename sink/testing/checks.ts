/**
 * Named asynchronous checks for any test runner: nested groups with set-up, flattened into a list.
 *
 * A runner registers each check under its name and reports what `run` rejects with. Checks of one
 * list share variables, so they run one after the other.
 */

/** One check. `run` rejects when it does not hold. */
export interface Check {
  /** The groups around the check, outermost first. */
  readonly group: readonly string[];
  /** A fact in the present tense; unique in its group. */
  readonly name: string;
  readonly run: () => Promise<void>;
}

type Step = () => void | Promise<void>;

/**
 * Collects checks. Inside a group, `before` steps run before each check, outer groups first;
 * `after` steps run in any case.
 */
export class CheckList {
  readonly checks: Check[] = [];
  readonly #groups: { readonly name: string; readonly before: Step[]; readonly after: Step[] }[] = [];

  group(name: string, define: () => void): void {
    this.#groups.push({ name, before: [], after: [] });
    define();
    this.#groups.pop();
  }

  before(step: Step): void {
    this.#groups.at(-1)?.before.push(step);
  }

  after(step: Step): void {
    this.#groups.at(-1)?.after.push(step);
  }

  check(name: string, body: Step): void {
    const before = this.#groups.flatMap((group) => group.before);
    const after = this.#groups.toReversed().flatMap((group) => group.after);
    const run = async (): Promise<void> => {
      let started = 0;
      try {
        for (const step of before) {
          await step();
          started += 1;
        }
        await body();
      } finally {
        // Without its first step there is nothing to take down.
        if (started > 0) for (const step of after) await step();
      }
    };
    this.checks.push({ group: this.#groups.map((group) => group.name), name, run });
  }
}
