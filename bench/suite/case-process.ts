/** Handle of a process that measures one case. */
import { TidemarkError } from "../../engine/index.ts";
import { errorOf, type Fault, forkEntry } from "../live/asked-process.ts";
import type { StoreAddress } from "../live/orders.ts";
import { Program } from "../live/programs.ts";
import type { BenchOptions } from "../options.ts";
import type { BenchReport } from "../report.ts";

/** Options of a case that another process can be told. */
export interface CaseOptions extends Omit<BenchOptions, "openVaultSink" | "onProgress" | "signal" | "storeAddress"> {
  readonly storeAddress: StoreAddress;
}

/** A case that was interrupted has so long to end. */
const interruptedMsMax = 10_000;

export type CaseOrder = { readonly kind: "run"; readonly options: CaseOptions } | { readonly kind: "interrupt" };

export type CaseAnswer =
  | { readonly kind: "step"; readonly step: string }
  | { readonly kind: "report"; readonly report: BenchReport }
  | ({ readonly kind: "fault" } & Fault);

/**
 * Measures a case in a process of its own. Errors: those of the case; INTERNAL when the process ends
 * without an answer.
 */
export async function measureInProcess(
  options: CaseOptions,
  onStep: (step: string) => void,
  signal: AbortSignal | undefined,
): Promise<BenchReport> {
  const child = forkEntry("#bench-case");
  await using program = new Program(child, "the process of a case");
  const send = (order: CaseOrder): void => void child.send(order);
  let answer: CaseAnswer | undefined;
  child.on("message", (said: CaseAnswer) => {
    if (said.kind === "step") onStep(said.step);
    else answer = said;
  });
  let killing: NodeJS.Timeout | undefined;
  const interrupt = (): void => {
    send({ kind: "interrupt" });
    killing = setTimeout(() => child.kill("SIGKILL"), interruptedMsMax);
  };
  signal?.addEventListener("abort", interrupt, { once: true });
  try {
    send({ kind: "run", options });
    await program.ended;
  } finally {
    signal?.removeEventListener("abort", interrupt);
    clearTimeout(killing);
  }
  if (answer?.kind === "report") return answer.report;
  if (answer?.kind !== "fault")
    throw new TidemarkError("INTERNAL", `the process of the case ${options.kind} ended without an answer`);
  throw errorOf(answer);
}
