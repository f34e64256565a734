/**
 * Machines of a run as guests of this host: a shell script for qemu, or domains for libvirt.
 *
 * The script boots one machine in the foreground: `sh FILE MACHINE [OPTIONS OF QEMU…]`, with KVM where
 * there is one. ACCEL=tcg does without: the KVM of a host that is a guest itself may fail. NICs are those
 * of qemu's user mode, which needs no rights: a guest reaches the network of the host and is not reached
 * from it. Domains of libvirt name the networks of the plan.
 *
 * Disks and NICs are those of virtio, for Windows SATA and e1000e, which it has drivers for.
 *
 * A machine of generation 2 needs OVMF: the script takes the file that OVMF names, libvirt chooses one.
 */
import type { LocalMachine, MadeDisk } from "./machines.ts";

export interface GuestOptions {
  readonly plan: string;
  readonly run: string;
  /** Names of a test end with `-test`. */
  readonly isTest: boolean;
  readonly notes: readonly string[];
}

/** Images of `vhd:` are fixed VHDs, all others raw. */
function imageOf({ target }: MadeDisk): { readonly path: string; readonly isVhd: boolean; readonly isDevice: boolean } {
  const at = target.indexOf(":");
  const kind = target.slice(0, at);
  return { path: target.slice(at + 1), isVhd: kind === "vhd", isDevice: kind === "device" };
}

function disksOf({ osDisk, dataDisks }: LocalMachine): readonly MadeDisk[] {
  return [osDisk, ...dataDisks];
}

/** A script for `/bin/sh`. */
export function qemuScript(machines: readonly LocalMachine[], { plan, run, notes }: GuestOptions): string {
  const names = machines.map(({ machine }) => machine);
  return [
    "#!/bin/sh",
    `# Run ${run} of plan ${plan}: boots a machine with qemu.`,
    `# usage: sh FILE ${names.join("|")} [OPTIONS OF QEMU...]`,
    ...notes.map((note) => `# ${note.replaceAll(/\s+/g, " ")}`),
    "set -eu",
    "machine=${1:-}; [ $# -eq 0 ] || shift",
    "case $machine in",
    ...machines.flatMap((machine) => [
      `${machine.machine}) set -- \\`,
      ...qemuWords(machine).map((words) => `  ${words.join(" ")} \\`),
      '  "$@" ;;',
    ]),
    `*) echo "usage: $0 ${names.join("|")} [OPTIONS OF QEMU...]" >&2; exit 2 ;;`,
    "esac",
    'exec qemu-system-x86_64 -machine "q35,accel=${ACCEL:-kvm:tcg}" -cpu max "$@"',
    "",
  ].join("\n");
}

/** Ports of a SATA controller. */
const sataPorts = 6;

function qemuWords(machine: LocalMachine): string[][] {
  const { vcpus, memoryMiB, generation, networks, os } = machine;
  const card = os === "windows" ? "e1000e" : "virtio-net-pci";
  return [
    ["-name", machine.machine, "-smp", String(vcpus), "-m", `${memoryMiB}M`],
    ...(generation === 2 ? [["-bios", '"${OVMF:-/usr/share/ovmf/OVMF.fd}"']] : []),
    ...disksOf(machine).flatMap((disk, index) => {
      const { path, isVhd } = imageOf(disk);
      // A comma within an option is doubled.
      const file = path.replaceAll(",", ",,");
      const [controller, port] = [Math.floor(index / sataPorts), index % sataPorts];
      const bus = os === "windows" ? `ide-hd,bus=sata${controller}.${port}` : "virtio-blk-pci";
      return [
        ...(os === "windows" && port === 0 ? [["-device", `ahci,id=sata${controller}`]] : []),
        ["-drive", word(`if=none,id=disk${index},file=${file},format=${isVhd ? "vpc" : "raw"}`)],
        ["-device", `${bus},drive=disk${index}${index === 0 ? ",bootindex=1" : ""}`],
      ];
    }),
    ...(networks.length === 0 ? [["-nic", "none"]] : networks.map(() => ["-nic", `user,model=${card}`])),
  ];
}

/** A word of a shell. */
function word(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** The domain of a machine. `hasKvm`: this host can run it with KVM. */
export function libvirtDomain(
  machine: LocalMachine,
  { plan, run, isTest, notes }: GuestOptions,
  hasKvm: boolean,
): string {
  const { vcpus, memoryMiB, generation, networks, os } = machine;
  const [bus, prefix, card] = os === "windows" ? ["sata", "sd", "e1000e"] : ["virtio", "vd", "virtio"];
  const disks = disksOf(machine).map((disk, index) => {
    const { path, isVhd, isDevice } = imageOf(disk);
    const [type, source] = isDevice ? ["block", "dev"] : ["file", "file"];
    return [
      `    <disk type="${type}" device="disk">`,
      `      <driver name="qemu" type="${isVhd ? "vpc" : "raw"}"/>`,
      `      <source ${source}="${attribute(path)}"/>`,
      `      <target dev="${prefix}${lettersOf(index)}" bus="${bus}"/>`,
      ...(index === 0 ? ['      <boot order="1"/>'] : []),
      "    </disk>",
    ].join("\n");
  });
  const nics = networks.map((network) =>
    [
      '    <interface type="network">',
      `      <source network="${attribute(network)}"/>`,
      `      <model type="${card}"/>`,
      "    </interface>",
    ].join("\n"),
  );
  return [
    ...[`Run ${run} of plan ${plan}`, ...notes].map((text) => `<!-- ${text.replaceAll("--", "- -")} -->`),
    `<domain type="${hasKvm ? "kvm" : "qemu"}">`,
    `  <name>${attribute(machine.machine)}${isTest ? "-test" : ""}</name>`,
    `  <memory unit="MiB">${memoryMiB}</memory>`,
    `  <vcpu>${vcpus}</vcpu>`,
    generation === 2 ? '  <os firmware="efi">' : "  <os>",
    '    <type arch="x86_64" machine="q35">hvm</type>',
    "  </os>",
    "  <features><acpi/><apic/></features>",
    `  <cpu mode="${hasKvm ? "host-passthrough" : "maximum"}"/>`,
    "  <devices>",
    ...disks,
    ...nics,
    '    <serial type="pty"/>',
    '    <console type="pty"/>',
    "  </devices>",
    "</domain>",
    "",
  ].join("\n");
}

/** `a` to `z`, then `aa`. */
function lettersOf(index: number): string {
  const letters = "abcdefghijklmnopqrstuvwxyz";
  const last = letters[index % 26] ?? "";
  return index < 26 ? last : `${letters[Math.floor(index / 26) - 1] ?? ""}${last}`;
}

function attribute(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}
