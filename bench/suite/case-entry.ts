/**
 * Process that measures one case of a suite, so that no case inherits memory, compiled code or open
 * files of another. `CaseProcess` starts it. It ends after its answer, or with its parent.
 */
import process from "node:process";
import { TidemarkError } from "../../engine/index.ts";
import { openSink } from "../../sink/index.ts";
import { runCase } from "../run.ts";
import type { CaseAnswer, CaseOrder } from "./case-process.ts";

const abort = new AbortController();

async function measure({ options }: Extract<CaseOrder, { kind: "run" }>): Promise<CaseAnswer> {
  const { address, credentials, proxy } = options.storeAddress;
  try {
    const report = await runCase({
      ...options,
      openVaultSink: async () =>
        await openSink(address, proxy === undefined ? { credentials } : { credentials, proxy }),
      signal: abort.signal,
      onProgress: ({ step }) => process.send?.({ kind: "step", step } satisfies CaseAnswer),
    });
    return { kind: "report", report };
  } catch (error) {
    if (!(error instanceof TidemarkError)) throw error;
    return { kind: "fault", code: error.code, message: error.message, remedy: error.remedy };
  }
}

process.on("message", (order: CaseOrder) => {
  if (order.kind === "interrupt") abort.abort();
  else void measure(order).then((answer) => process.send?.(answer, undefined, undefined, () => process.exit(0)));
});
// The parent is gone.
process.once("disconnect", () => process.exit(0));
