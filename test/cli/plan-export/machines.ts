/** Machines of a run for tests of the hand-over. */

import { fault } from "../../../cli/agent/fields.ts";
import type { MadeMachine } from "../../../cli/plan/export/machines.ts";
import type { PlanHardware } from "../../../cli/plan/plan-file.ts";
import { planSchema } from "../../../cli/plan/plan-schema.ts";

/** A plan's hardware, from fields as they are written. */
export function hardware(fields: object): PlanHardware {
  const read = planSchema({ plan: "shop", groups: [{ machines: [] }], ...fields }, [], []);
  if (read === fault) throw new Error("the plan of the test has a fault");
  return read;
}

/** `db` with two disks on page blobs, and `web`, which starts after it. */
export const blobs: readonly MadeMachine[] = [
  {
    machine: "db",
    group: 1,
    disks: [
      { disk: "pg-data", target: "blob:dr/pg-data.vhd", point: "a".repeat(32), boot: "none" },
      { disk: "pg-os", target: "blob:dr/pg-os.vhd", point: "b".repeat(32), boot: "uefi" },
    ],
  },
  {
    machine: "web",
    group: 2,
    disks: [{ disk: "web", target: "blob:dr/web.vhd", point: "c".repeat(32), boot: "bios" }],
  },
];

export const images: readonly MadeMachine[] = blobs.map(({ disks, ...machine }) => ({
  ...machine,
  disks: disks.map((disk) => ({ ...disk, target: disk.target.replace("blob:dr/", "file:/srv/dr, it's/") })),
}));

export const shopHardware: PlanHardware = hardware({
  machines: [
    {
      name: "db",
      disks: ["pg-data", "pg-os"],
      os: "linux",
      size: { vcpus: 4, memoryGiB: 12 },
      nics: [
        { network: "corp", subnet: "data", ip: "10.0.0.4" },
        { network: "corp", subnet: "backup" },
        { network: "corp" },
      ],
    },
    {
      name: "web",
      disks: ["web"],
      os: "windows",
      size: "Standard_D2s_v5",
      nics: [{ network: "corp", subnet: "front" }],
    },
  ],
  networks: { corp: { vnet: "dr-vnet", subnets: { data: "dr-data" } } },
  testNetwork: "drill",
});
