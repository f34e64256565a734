/**
 * A child process that is asked questions. Each has a number and is answered once, over the channel that
 * Node gives parent and child, so that no credential is in an argument or in the environment.
 */
import { type ChildProcess, fork } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { type ErrorCode, interrupted, TidemarkError, throwIfAborted } from "../../engine/index.ts";
import { Program } from "./programs.ts";

/** An error, for the channel. */
export interface Fault {
  readonly code: ErrorCode;
  readonly message: string;
  readonly remedy: string | undefined;
}

interface Question<Asked> {
  /** From 1; 0: no answer is awaited. */
  readonly number: number;
  readonly asked: Asked;
}

type Answered<Answer> =
  | { readonly number: number; readonly answer: Answer }
  | { readonly number: number; readonly fault: Fault };

/** The parent's side. The process is gone when this object is disposed of, and ends with its parent. */
export class AskedProcess<Asked, Answer> implements AsyncDisposable {
  protected readonly program: Program;
  readonly #signal: AbortSignal | undefined;
  readonly #waiting = new Map<number, (answered: Answered<Answer>) => void>();
  #lastNumber = 0;

  /** Starts the module that the package import `entry` names. `name`: of the process, for messages. */
  constructor(entry: string, name: string, signal: AbortSignal | undefined) {
    this.program = new Program(forkEntry(entry), name);
    this.#signal = signal;
    this.program.child.on("message", (answered: Answered<Answer>) => this.#waiting.get(answered.number)?.(answered));
    const ended: Fault = { code: "INTERNAL", message: `${name} has ended`, remedy: undefined };
    void this.program.ended.then(() => this.#waiting.forEach((settle, number) => settle({ number, fault: ended })));
  }

  /** Errors: those with which the process answers; INTERRUPTED at ^C. */
  async ask(asked: Asked): Promise<Answer> {
    const signal = this.#signal;
    throwIfAborted(signal);
    this.#lastNumber += 1;
    const number = this.#lastNumber;
    let stop = (): void => undefined;
    const answering = new Promise<Answered<Answer>>((resolve, reject) => {
      this.#waiting.set(number, resolve);
      if (signal !== undefined) stop = () => reject(interrupted(signal));
      signal?.addEventListener("abort", stop, { once: true });
      const question: Question<Asked> = { number, asked };
      this.program.child.send(question, (cause) => {
        if (cause !== null)
          reject(new TidemarkError("INTERNAL", `${this.program.name} cannot be told anything`, { cause }));
      });
    });
    try {
      const answered = await answering;
      if ("answer" in answered) return answered.answer;
      throw errorOf(answered.fault);
    } finally {
      signal?.removeEventListener("abort", stop);
      this.#waiting.delete(number);
    }
  }

  /** Asks without waiting for an answer. Whether it was heard, the end of the process will show. */
  protected tell(asked: Asked): void {
    const question: Question<Asked> = { number: 0, asked };
    if (this.program.child.connected) this.program.child.send(question, () => undefined);
  }

  /** kill -9. Resolves when the process is gone. */
  async kill(): Promise<void> {
    await this.program.kill();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}

/**
 * The child's side: has `obey` answer each question. The process ends after the last one, and after a
 * first one that failed.
 */
export function answerParent<Asked, Answer>(
  obey: (asked: Asked) => Promise<Answer>,
  isLast: (asked: Asked) => boolean,
): void {
  const answer = async ({ number, asked }: Question<Asked>): Promise<void> => {
    let answered: Answered<Answer>;
    try {
      answered = { number, answer: await obey(asked) };
    } catch (error) {
      answered = { number, fault: faultOf(error) };
    }
    process.send?.(answered, undefined, undefined, () => {
      if (isLast(asked) || (number === 1 && "fault" in answered)) process.exit(0);
    });
  };
  process.on("message", (question: Question<Asked>) => void answer(question));
}

/** Starts the module that the package import `entry` names. */
export function forkEntry(entry: string): ChildProcess {
  // A ^C at the terminal is for us; what it means for the process we tell it.
  return fork(fileURLToPath(import.meta.resolve(entry)), [], {
    execArgv: [],
    detached: true,
    stdio: ["ignore", "ignore", "inherit", "ipc"],
  });
}

export function errorOf({ code, message, remedy }: Fault): TidemarkError {
  return new TidemarkError(code, message, remedy === undefined ? {} : { remedy });
}

function faultOf(error: unknown): Fault {
  if (error instanceof TidemarkError) return { code: error.code, message: error.message, remedy: error.remedy };
  return { code: "INTERNAL", message: String(error), remedy: undefined };
}
