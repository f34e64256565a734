/** Events of protections in the words of the agent. */
import type { ProtectionEvent } from "../../engine/index.ts";
import type { DiskEvent } from "./ports.ts";

/** An event of a protection in the words of the agent. */
export function diskEvent(event: ProtectionEvent): DiskEvent {
  const { kind, disk, message } = event;
  switch (event.kind) {
    case "state":
    case "prune":
      return { kind, disk, message };
    case "point":
      return { kind, disk, message, point: event.point };
    case "notice":
      return { kind, disk, message, code: event.code };
    case "failure":
      return { kind, disk, message, code: event.error.code };
  }
}
