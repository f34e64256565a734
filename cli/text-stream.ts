/**
 * Text on stdout or stderr: a terminal, a file, a full disk, a pipe whose reader is slow or gone.
 *
 * A command does not end because its text cannot be printed: its work is worth more. A write that
 * fails is noted, and the command's end reports it. A reader that closed its end (`| head`) wanted
 * no more, which is no failure. A file is written to again after a failure, because its disk may
 * have got room meanwhile.
 *
 * Pipes and terminals take text without waiting. What their readers do not take is kept in memory,
 * so optional text, such as progress, is not written while the reader is behind.
 */
import { writeSync } from "node:fs";
import { Socket } from "node:net";
import process from "node:process";
import { systemCode } from "../engine/index.ts";

/** As much text as waits for a reader before news are left out. */
const waitingBytesMax = 1024 * 1024;

type StandardStream = NodeJS.WriteStream & { readonly fd: number };

export class TextStream {
  readonly #stream: StandardStream;
  #failure: Error | undefined;

  /** `stream` is stdout or stderr of this process. */
  constructor(stream: StandardStream) {
    this.#stream = stream;
    stream.on("error", (error: Error) => this.#note(error));
  }

  get columns(): number {
    return this.#stream.columns;
  }

  /** The first failure to write, if there was one. */
  get failure(): Error | undefined {
    return this.#failure;
  }

  write(text: string): void {
    if (this.#stream instanceof Socket) this.#stream.write(text);
    else this.#writeToFile(Buffer.from(text));
  }

  /** Writes text that may be left out: progress, or what a long-running command observes. */
  writeNews(text: string): void {
    if (this.#stream.writableLength < waitingBytesMax) this.write(text);
  }

  /** Waits until everything has been handed to the system. */
  async flush(): Promise<void> {
    // The callback comes after a failure too, which is noted by then.
    await new Promise<void>((resolve) => void this.#stream.write("", () => resolve()));
  }

  /** Node's own stream for files gives up at the first failure, and takes a short write for whole. */
  #writeToFile(bytes: Uint8Array): void {
    try {
      for (let at = 0; at < bytes.length; ) at += writeSync(this.#stream.fd, bytes, at);
    } catch (error) {
      this.#note(error as Error);
    }
  }

  #note(error: Error): void {
    const code = systemCode(error);
    if (code !== "EPIPE" && code !== "ERR_STREAM_DESTROYED") this.#failure ??= error;
  }
}

/** Takes lines for stderr that may be left out when nothing reads them. */
export function newsToStderr(): (line: string) => void {
  const stderr = new TextStream(process.stderr);
  return (line) => stderr.writeNews(line);
}
