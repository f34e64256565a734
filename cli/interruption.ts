/**
 * Signals: SIGINT (^C), SIGTERM, SIGHUP. The first one aborts the command, which closes what it has
 * open and leaves nothing incomplete. If that takes too long, or at a second signal, the process
 * ends at once; the stored formats survive that too.
 */
import { setMaxListeners } from "node:events";
import process from "node:process";
import { TidemarkError } from "../engine/index.ts";
import { exitCodes } from "./errors.ts";

/** The promise is two seconds; the difference is for the start and the end of the process. */
const defaultRestMsMax = 1_700;

/** Signal handlers of a command that runs until it is stopped. */
export interface SignalAnswers {
  /** Stops in good order, without a limit; a second signal ends the process at once. */
  readonly stop: (name: NodeJS.Signals) => void;
  /** SIGHUP; without it, that stops too. */
  readonly reload?: () => void;
}

const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

export class Interruption implements Disposable {
  readonly #abort = new AbortController();
  readonly #tell: (error: TidemarkError) => void;
  #timer: NodeJS.Timeout | undefined;
  #error: TidemarkError | undefined;
  #answers: SignalAnswers | undefined;
  #restMsMax = defaultRestMsMax;

  private constructor(tell: (error: TidemarkError) => void) {
    this.#tell = tell;
    // Everything that a command has in flight listens to this one signal; that is no leak, and Node
    // would warn of one.
    setMaxListeners(0, this.#abort.signal);
    for (const name of signals) process.on(name, this.#onSignal);
  }

  /**
   * Listens until disposed of. `tell` prints the error when the process has to end without coming
   * to rest.
   */
  static listen(tell: (error: TidemarkError) => void): Interruption {
    return new Interruption(tell);
  }

  /** Aborts, with an INTERRUPTED error as its reason, at the first signal. */
  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  /** From now on the command itself answers; `signal` aborts no more. */
  handOver(answers: SignalAnswers): void {
    this.#answers = answers;
  }

  /** From now on the command has `ms` to come to rest after the first signal. */
  allowRest(ms: number): void {
    this.#restMsMax = ms;
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    for (const name of signals) process.off(name, this.#onSignal);
  }

  readonly #onSignal = (name: NodeJS.Signals): void => {
    if (name === "SIGHUP" && this.#answers?.reload !== undefined) {
      this.#answers.reload();
      return;
    }
    if (this.#error !== undefined) {
      this.#endAtOnce(this.#error);
      return;
    }
    this.#error = new TidemarkError("INTERRUPTED", `interrupted by ${name} before the work was done`, {
      remedy: "run the command again; what was shipped is reused",
    });
    if (this.#answers !== undefined) {
      this.#answers.stop(name);
      return;
    }
    this.#abort.abort(this.#error);
    this.#timer = setTimeout(this.#endAtOnce, this.#restMsMax, this.#error);
  };

  readonly #endAtOnce = (error: TidemarkError): void => {
    this.#tell(error);
    process.exit(exitCodes.interrupted);
  };
}
